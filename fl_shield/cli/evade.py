"""``fl-shield evade``: attackers who know their server's rule and train against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_shield.cli.arena import numbers, table_of
from fl_shield.cli.options import words

if TYPE_CHECKING:
    from fl_shield.simulations.arena.adaptive import TradeOff, Trial

app = typer.Typer(rich_markup_mode="rich")

Table = Annotated[str, typer.Option("--scenario", help="Named table of fl-shield arena --list.")]
Defenses = Annotated[
    str, typer.Option(help="Defences that are known: shield, or rules that have a gradient.")
]
Knowledge = Annotated[
    str,
    typer.Option(
        help="guessed: the weights are known, the round and the server's secrets are guessed; "
        "known: all of it has leaked."
    ),
]
Penalties = Annotated[
    str, typer.Option(help="How much attackers care for the rule, from 0 (not at all).")
]
Rounds = Annotated[str, typer.Option(help="Rounds that are attacked, each by itself.")]
Steps = Annotated[int, typer.Option(min=1, help="Batches of the training against the rule.")]
Seeds = Annotated[str, typer.Option(help="Roots of all chance.")]
Weights = Annotated[str | None, typer.Option(help="Shipped weights of the shield [the table's].")]
DataDir = Annotated[
    str | None, typer.Option(help="Folder of the data set, where it is not embedded.")
]
Out = Annotated[Path, typer.Option(help="Folder for results and what is finished.")]
Cache = Annotated[Path, typer.Option(help="Recordings, shared with fl-shield arena.")]


@app.command()
def evade(
    scenario: Table = "smoke",
    defenses: Defenses = "shield,alignins,multi_krum,trimmed_mean",
    knowledge: Knowledge = "guessed,known",
    penalties: Penalties = "0,0.03,0.3,3",
    rounds: Rounds = "3",
    steps: Steps = 80,
    seeds: Seeds = "0",
    weights: Weights = None,
    data_dir: DataDir = None,
    out: Out = Path("runs/evade"),
    cache: Cache = Path(".cache/arena"),
) -> None:
    """Let attackers who know the rule train against it: what they reach, and what it costs them.

    For each defence the same attack is given a differentiable form of what that defence decides
    by. Told are the success rate of the models that they upload, the share of benign updates that
    look at least as suspicious, what is left of their vote, and the success rate of the global
    model after the round. What is finished is kept: the same command again goes on.

    [bold]Examples[/bold]

    Does it run, on embedded digits:

        fl-shield evade --defenses multi_krum --knowledge guessed --penalties 0,0.3

    The curve on real handwriting, three attacked rounds:

        fl-shield evade --scenario femnist --data-dir DIR --rounds 3,6,9 --out runs/evade
    """
    from fl_shield.simulations.arena.adaptive import TradeOff, trials

    table = table_of(scenario, {}, {"data_dir": data_dir, "weights": weights})
    trade_off = TradeOff(
        scenario=table.recorded("none", 0),
        rounds=numbers(rounds, "--rounds"),
        out=out,
        cache=cache,
        n_steps=steps,
    )
    chosen = trials(words(defenses), numbers(seeds), words(knowledge), _amounts(penalties))
    _conduct(trade_off, chosen)


def _amounts(text: str) -> list[float]:
    from fl_shield.errors import ScenarioError

    try:
        amounts = [float(word) for word in words(text)]
    except ValueError:
        amounts = []
    if not amounts or not all(0 <= amount < float("inf") for amount in amounts):
        raise ScenarioError(f"--penalties must be numbers >= 0 such as 0,0.3,3, got {text!r}")
    return amounts


def _conduct(trade_off: TradeOff, chosen: Sequence[Trial]) -> None:
    from rich.console import Console

    from fl_shield.cli.progress import counting_bars
    from fl_shield.simulations.arena.contest import quiet_flower
    from fl_shield.simulations.arena.trade_off_files import write_trade_off

    entries: list[Mapping[str, Any]] = []
    with counting_bars(Console(stderr=True)) as progress, quiet_flower():
        bar = progress.add_task("adaptive attackers", total=len(chosen))
        for trial in chosen:
            progress.update(bar, description=trial.name)
            entries.append(trade_off.conduct(trial))
            progress.advance(bar)
    _show(entries)
    paths = write_trade_off(trade_off, entries)
    typer.echo(f"written: {', '.join(str(path) for path in paths)}", err=True)


def _show(entries: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console

    from fl_shield.cli.arena_tables import plain_table
    from fl_shield.cli.progress import percent
    from fl_shield.simulations.arena.trade_off_files import mean_over_seeds

    table = plain_table(
        ("\ndefence", "\nattackers"),
        ("\npenalty", "success of\nuploads", "evaded", "vote\nleft", "success\nafter", "accuracy"),
    )
    for entry in mean_over_seeds(entries):
        figures = ("upload_asr", "evaded", "vote", "asr", "accuracy")
        table.add_row(
            entry["defense"],
            entry["knowledge"],
            f"{entry['penalty']:g}",
            *(percent(entry[name]) for name in figures),
        )
    Console().print(table)
