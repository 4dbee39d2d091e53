"""``fl-shield evaluate``: the shipped method and its peers on victims that no weights have seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fl_shield.cli.options import CACHE, Cache, DataDir, Pools, RayAddress, Seed, words
from fl_shield.cli.progress import named_steps
from fl_shield.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


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
    pools: Pools = "",
    victims: Annotated[int, typer.Option(min=2, help="Victims to learn from.")] = 1500,
    each: Annotated[
        int, typer.Option(min=1, help="Victims judged, by data set and held-out family.")
    ] = 8,
    digits: Annotated[int, typer.Option(min=0, help="With fl: federations on digits.")] = 16,
    glyphs: Annotated[int, typer.Option(min=0, help="With fl: federations on glyphs.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all tasks.")] = 4,
    draws: Annotated[int, typer.Option(min=1, help="Tasks of one victim.")] = 2,
    shots: Annotated[str, typer.Option(help="Numbers of clean inputs.")] = "5,10,20,50",
    ablate: Annotated[bool, typer.Option(help="Train the ablations too.")] = False,
    ablations: Annotated[
        str, typer.Option(help="With --ablate: which, such as no-inner-steps; all by default.")
    ] = "",
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
    data_dir: DataDir = None,
    seed: Seed = 0,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that train and judge victims.")
    ] = 2,
    ray_address: RayAddress = None,
    cache: Cache = CACHE,
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
            pools=words(pools) or (QUICK_POOLS[:2] if quick else ()),
            penalties=penalties,
            n_each=QUICK["each"] if quick else each,
            seed=seed,
            data_dir=data_dir,
            cache=cache,
            workers=workers,
        )
        return
    from fl_shield.simulations.episodes.clean_models import Workplace
    from fl_shield.simulations.evaluation.campaign import run
    from fl_shield.simulations.evaluation.federations import federated_tables
    from fl_shield.simulations.evaluation.promises import calibration
    from fl_shield.simulations.evaluation.results import easy_of, write
    from fl_shield.simulations.evaluation.settings import Evaluation

    evaluation = Evaluation(
        axes=("trigger",) if quick else words(tables),
        domains=("cv", "nlp", "rl") if quick else words(domains),
        pools=QUICK_POOLS if quick else words(pools),
        n_victims=QUICK["victims"] if quick else victims,
        n_each=QUICK["each"] if quick else each,
        n_digits=digits,
        n_glyphs=glyphs,
        n_epochs=QUICK["epochs"] if quick else epochs,
        n_draws=draws,
        shots=_numbers(shots),
        ablate=ablate,
        ablations=words(ablations),
        seed=seed,
        place=Workplace(data_dir=data_dir, cache=cache),
        n_workers=workers,
        ray_address=ray_address,
    )
    with named_steps(console) as report:
        results = run(evaluation, report)
    files = write(evaluation, results, out)
    _show(results.tables, easy_of(results))
    _show_calibration(calibration(results.alarms))
    _show_federations(federated_tables(results.rounds))
    console.print(f"wrote {', '.join(path.name for path in files)} in {out}")


def _numbers(text: str) -> tuple[int, ...]:
    numbers = words(text)
    if not all(number.isdecimal() for number in numbers):
        raise ScenarioError(f"shots must be whole numbers such as 5,10,20, got {text!r}")
    return tuple(map(int, numbers))


_COLUMNS = (
    ("AUC", "auc"),
    ("AUC, not easy", "auc_without_easy"),
    ("worst tenth", "worst_tenth"),
    ("TPR at FPR 5 %", "tpr_at_fpr_5"),
    ("TPR, p ≤ 5 %", "tpr_5"),
    ("FPR", "fpr_5"),
    ("TPR, p ≤ 1 %", "tpr_1"),
    ("FPR", "fpr_1"),
)


def _show(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    easy: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Print one table for each split: a row for each detector, the best first."""
    for split, rows in tables.items():
        first = next(iter(rows.values()))
        title = f"{split}: {first['n_victims']} victims, 20 clean inputs"
        shown = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        shown.add_column("detector", no_wrap=True)
        for column, _ in _COLUMNS:
            shown.add_column(column, justify="right")
        for name, row in rows.items():
            numbers = ("–" if row[key] is None else f"{row[key]:.3f}" for _, key in _COLUMNS)
            shown.add_row(name, *numbers)
        Console().print(shown)
        told = (f"{c['pool']} {c['family']} {c['confidence']:.3f}" for c in easy[split])
        Console().print(f"easy cells (AUC of confidence alone): {', '.join(told) or 'none'}\n")


def _show_calibration(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print how the budgets of false alarms hold on unseen victims."""
    shown = Table(title="false-positive rates that were promised and realised")
    shown.add_column("victims")
    for column in ("", "N", "budget", "FPR", "95 %", "holds", "above"):
        shown.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        low, high = line["band"]
        shown.add_row(
            line["victims"],
            str(line["n_victims"]),
            str(line["n_shots"]),
            f"{line['budget']:.2f}",
            f"{line['fpr']:.4f}",
            f"{low:.4f} to {high:.4f}",
            "yes" if line["inside"] else "no",
            f"{line['above']:.0%}",
        )
    if lines:
        Console().print(shown)


def _show_federations(tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Print how malicious updates of unseen federations are told from benign ones."""
    shown = Table(title="client updates of unseen federations")
    for column in ("weights", "detector", "attack"):
        shown.add_column(column)
    for column in ("AUC", "rejected, p ≤ 5 %", "benign"):
        shown.add_column(column, justify="right")
    for name, found in tables.items():
        split, detector = name.split("/", 1)
        for attack, line in found["attacks"].items():
            told = (line[key] for key in ("auc", "rejected", "rejected_benign"))
            numbers = ("–" if value is None else f"{value:.3f}" for value in told)
            shown.add_row(split, detector, attack, *numbers)
    if tables:
        Console().print(shown)
