"""``fl-shield evaluate``: the shipped method and its peers on victims that no weights have seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_shield.cli.progress import counting_bars
from fl_shield.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping


app = typer.Typer(add_completion=False)

console = Console(stderr=True)

QUICK = {"victims": 90, "each": 1, "epochs": 5}
QUICK_POOLS = ("digits", "cartpole", "acrobot", "mountaincar")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json, rows.csv and figures.")],
    tables: Annotated[
        str, typer.Option(help="Which: some of trigger, dataset, domain, architecture, transfer.")
    ] = "trigger,dataset,domain,architecture,transfer",
    domains: Annotated[
        str, typer.Option(help="What takes part: some of cv, nlp, rl, fl.")
    ] = "cv,nlp,rl",
    pools: Annotated[
        str, typer.Option(help="Data sets that take part, such as cifar10,sst2; none = all.")
    ] = "",
    victims: Annotated[int, typer.Option(min=2, help="Victims to learn from.")] = 1500,
    each: Annotated[
        int, typer.Option(min=1, help="Victims judged, by data set and held-out family.")
    ] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all tasks.")] = 8,
    draws: Annotated[int, typer.Option(min=1, help="Tasks of one victim.")] = 2,
    shots: Annotated[str, typer.Option(help="Numbers of clean inputs.")] = "5,10,20,50",
    ablate: Annotated[bool, typer.Option(help="Train the ablations too.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small, embedded data, held-out triggers only.")
    ] = False,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="No tables: victims that are trained to evade detectors."),
    ] = False,
    penalties: Annotated[
        str, typer.Option(help="With --adaptive: weights of what detectors say; 0 among them.")
    ] = "0,0.1,1,10",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of cifar10/, gtsrb/, ...; without it, embedded data sets only."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Root of every random stream.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train victims.")] = 2,
    cache: Annotated[
        Path, typer.Option(help="What was simulated; an interrupted run goes on from here.")
    ] = Path(".cache/meta"),
) -> None:
    """Leave out triggers, data sets, domains or networks, and compare every detector on them.

    A victim is judged by weights that never saw its trigger family, data set, domain or network.
    Every detector is given the same N clean inputs of it. Victims, weights and results are cached:
    a second run goes on where the first one stopped.

    With --adaptive, victims hold the shipped detector (and two peers) and are penalised for what it
    says of their triggered inputs; --pools, --each, --seed and --penalties choose among them.

    Example: [bold]fl-shield evaluate --quick --out runs/evaluation[/bold]
    """
    if adaptive:
        from fl_shield.cli.adaptive import evaluate_adaptive

        evaluate_adaptive(
            out,
            pools=_words(pools) or (QUICK_POOLS[:2] if quick else ()),
            penalties=penalties,
            n_each=QUICK["each"] if quick else each,
            seed=seed,
            data_dir=data_dir,
            cache=cache,
            workers=workers,
        )
        return
    from fl_shield.simulations.episodes.clean_models import Workplace
    from fl_shield.simulations.evaluation.campaign import Evaluation, run, write

    evaluation = Evaluation(
        axes=("trigger",) if quick else _words(tables),
        domains=("cv", "nlp", "rl") if quick else _words(domains),
        pools=QUICK_POOLS if quick else _words(pools),
        n_victims=QUICK["victims"] if quick else victims,
        n_each=QUICK["each"] if quick else each,
        n_epochs=QUICK["epochs"] if quick else epochs,
        n_draws=draws,
        shots=_numbers(shots),
        ablate=ablate,
        seed=seed,
        place=Workplace(data_dir=data_dir, cache=cache),
        n_workers=workers,
    )
    with counting_bars(console) as progress:
        bars: dict[str, int] = {}

        def report(step: str, done: float, total: float) -> None:
            if step not in bars:
                bars[step] = int(progress.add_task(step, total=total))
            progress.update(progress.task_ids[bars[step]], completed=done, total=total)

        results = run(evaluation, report)
    files = write(evaluation, results, out)
    _show(results.tables)
    console.print(f"wrote {', '.join(path.name for path in files)} in {out}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdecimal() for word in words):
        raise ScenarioError(f"shots must be whole numbers such as 5,10,20, got {text!r}")
    return tuple(map(int, words))


def _show(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print one table for each split: a row for each detector, the best first."""
    for split, rows in tables.items():
        first = next(iter(rows.values()))
        shown = Table(title=f"{split}: {first['n_victims']} victims, 20 clean inputs")
        columns = ("AUC", "worst tenth", "TPR at FPR 5 %", "TPR, p ≤ 5 %", "FPR", "TPR, p ≤ 1 %")
        shown.add_column("detector", no_wrap=True)
        for column in (*columns, "FPR"):
            shown.add_column(column, justify="right")
        keys = ("auc", "worst_tenth", "tpr_at_fpr_5", "tpr_5", "fpr_5", "tpr_1", "fpr_1")
        for name, row in rows.items():
            shown.add_row(name, *(f"{row[key]:.3f}" for key in keys))
        Console().print(shown)
