"""Progress bars while federations run, and one table when they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from fl_shield.simulations.campaign import Campaign
    from fl_shield.simulations.outcome import RoundRow
    from fl_shield.simulations.scenario import Scenario


def counting_bars(console: Console) -> Progress:
    """Bars of steps that are counted, each with the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def named_steps(console: Console) -> Iterator[Callable[[str, float, float], None]]:
    """Give what shows how much of a named step is done: each name gets a bar of its own."""
    with counting_bars(console) as progress:
        bars: dict[str, TaskID] = {}

        def report(step: str, done: float, total: float) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done, total=total)

        yield report


DEFENSE_NAMES = {"none": "FedAvg", "multikrum": "MultiKrum", "perfect": "(perfect)"}
"""What a defence is called where that is not its own name."""

_TITLES = (
    "\nseed",
    "main-task\naccuracy",
    "attack\nsuccess",
    "malicious\nrejected",
    "benign\nrejected",
    "score\nAUC",
    "shield\n/ round",
)


class CampaignProgress:
    """A bar for each federation; on a terminal that cannot redraw, a line now and then.

    Parameters
    ----------
    campaign : Campaign
        What is about to run.
    console : Console, optional
        Where to write; standard error by default.
    """

    def __init__(self, campaign: Campaign, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        for scenario in campaign.scenarios:
            kept = campaign.is_finished(scenario) and not campaign.force
            self._add(scenario, kept)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def on_event(self, scenario: Scenario, row: RoundRow) -> None:
        """Show one finished round."""
        state = f"acc {row.accuracy:.2f} ASR {row.asr:.2f}"
        task = self._tasks[scenario.to_json()]
        self._progress.start_task(task)
        self._progress.update(task, completed=row.server_round, state=state)
        if not self._console.is_terminal and _is_milestone(row.server_round, scenario.n_rounds):
            where = f"round {row.server_round}/{scenario.n_rounds}"
            self._console.print(f"{describe(scenario)}: {where}  {state}")

    def _add(self, scenario: Scenario, kept: bool) -> None:
        n_rounds = scenario.n_rounds
        self._tasks[scenario.to_json()] = self._progress.add_task(
            describe(scenario),
            start=False,
            total=n_rounds,
            completed=n_rounds if kept else 0,
            state="kept from before" if kept else "",
        )


def defense_name(defense: str) -> str:
    """Return what a defence is called in tables."""
    return DEFENSE_NAMES.get(defense, defense)


def describe(scenario: Scenario) -> str:
    """Return what tells a federation from the others, in words."""
    attack = "no attack" if scenario.attack == "none" else scenario.attack
    return f"{attack} · {defense_name(scenario.defense)} · seed {scenario.seed}"


def show_results(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print one row for each federation of a results file."""
    several_seeds = len({entry["seed"] for entry in entries}) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("\nattack", no_wrap=True)
    table.add_column("\ndefence", no_wrap=True)
    for title in _TITLES if several_seeds else _TITLES[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for entry in entries:
        attack, defense, seed, *measured = _cells(entry)
        table.add_row(attack, defense, *([seed] if several_seeds else []), *measured)
    (console or Console()).print(table)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    shielded = entry["defense"] == "shield"
    defended = entry["defense"] != "none"
    auc = entry["score_auc"]
    return [
        entry["attack"],
        defense_name(entry["defense"]),
        str(entry["seed"]),
        percent(entry["main_accuracy"]),
        percent(entry["asr"]),
        percent(entry["tpr"] if defended else None),
        percent(entry["fpr"] if defended else None),
        "–" if auc is None else f"{auc:.3f}",
        percent(entry["shield_seconds"] / entry["round_seconds"] if shielded else None),
    ]


def percent(value: float | None) -> str:
    """Return a share in per cent, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _is_milestone(server_round: int, n_rounds: int) -> bool:
    return server_round % max(1, n_rounds // 5) == 0
