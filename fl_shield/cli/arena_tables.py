"""Tables of the arena on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from fl_shield.cli.progress import defense_name, percent

if TYPE_CHECKING:
    from fl_shield.simulations.arena.summary import Standing

_TITLES = (
    "mal.\nrej.",
    "at\nleast",
    "benign\nrej.",
    "false\nalarms",
    "\nAUC",
    "worst\nASR",
    "too\nmuch",
    "acc.\nlost",
    "\nms",
)


def show_standings(found: Sequence[Standing], console: Console | None = None) -> None:
    """Print one row for each defence of a recorded grid, the lowest worst case first.

    Malicious updates rejected, in the mean and in the attack with the fewest; benign ones rejected
    under attack and without one; the largest success rate after one aggregated round, and the
    largest beyond the perfect defence's; the accuracy lost in the mean, and milliseconds of an
    aggregation.
    """
    table = plain_table(("\ndefence",), _TITLES)
    for s in found:
        table.add_row(
            defense_name(s.defense),
            percent(s.malicious_rejected),
            percent(s.least_rejected),
            percent(s.benign_rejected),
            percent(s.false_alarms),
            "–" if s.auc is None else f"{s.auc:.3f}",
            percent(s.worst_asr),
            percent(s.worst_excess),
            percent(s.accuracy_lost),
            f"{1000 * s.seconds:.0f}",
        )
    (console or Console()).print(table)


def show_closed(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print one row for each attack and defence of the closed federations, means over seeds."""
    table = plain_table(
        ("\nattack", "\ndefence"), ("\nseeds", "attack\nsuccess", "main-task\naccuracy")
    )
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["attack"], entry["defense"]), []).append(entry)
    for (attack, defense), group in groups.items():
        table.add_row(
            attack,
            defense_name(defense),
            str(len(group)),
            percent(sum(e["asr"] for e in group) / len(group)),
            percent(sum(e["main_accuracy"] for e in group) / len(group)),
        )
    (console or Console()).print(table)


def plain_table(names: Sequence[str], titles: Sequence[str]) -> Table:
    """Return an empty table: columns of names, then columns of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table
