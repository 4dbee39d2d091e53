"""Files of adaptive attackers: results.json, and the curve."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fl_shield.simulations.arena.adaptive import TradeOff
from fl_shield.simulations.campaign import versions, write_json
from fl_shield.simulations.figures import colour_of

Entry = Mapping[str, Any]

_FIGURES = ("upload_asr", "upload_accuracy", "evaded", "vote", "asr", "accuracy")
_STYLES = {"guessed": "--", "known": "-"}


def mean_over_seeds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Means over seeds by defence, knowledge and penalty, in the order of first appearance.

    Examples
    --------
    >>> once = {"defense": "shield", "knowledge": "known", "penalty": 0.3,
    ...         **dict.fromkeys(_FIGURES, 0.0)}
    >>> [m["asr"] for m in mean_over_seeds([once | {"seed": 0}, once | {"seed": 1, "asr": 0.5}])]
    [0.25]
    """
    groups: dict[tuple[str, str, float], list[Entry]] = {}
    for entry in entries:
        key = (entry["defense"], entry["knowledge"], entry["penalty"])
        groups.setdefault(key, []).append(entry)
    return [
        {"defense": defense, "knowledge": knowledge, "penalty": penalty}
        | {name: float(np.mean([entry[name] for entry in group])) for name in _FIGURES}
        for (defense, knowledge, penalty), group in groups.items()
    ]


def write_trade_off(trade_off: TradeOff, entries: Sequence[Entry]) -> list[Path]:
    """Write all trials and the figure, and return the files."""
    results, curve = trade_off.out / "results.json", trade_off.out / "trade-off.png"
    facts = {
        "settings": trade_off.scenario.to_dict(),
        "trials": list(entries),
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(results, facts)
    draw_trade_off(mean_over_seeds(entries)).savefig(curve)
    return [results, curve]


def draw_trade_off(means: Sequence[Entry]) -> Figure:
    """Draw what attackers reach after the round against how far they evade, a line a defence."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2, sharex=True)
    by_line = sorted(means, key=lambda m: (m["defense"], m["knowledge"]))
    for (defense, knowledge), line in groupby(
        by_line, key=lambda m: (m["defense"], m["knowledge"])
    ):
        points = sorted(line, key=lambda m: m["penalty"])
        look = {
            "color": colour_of(defense),
            "linestyle": _STYLES[knowledge],
            "marker": "o",
            "label": f"{defense}, {knowledge}",
        }
        evaded = [100 * m["evaded"] for m in points]
        left.plot(evaded, [100 * m["vote"] for m in points], **look)
        right.plot(evaded, [100 * m["asr"] for m in points], **look)
    left.set_ylabel("vote that is left, %")
    right.set_ylabel("attack success after the round, %")
    for axes in (left, right):
        axes.set_xlabel("benign updates that look as suspicious, %")
        axes.set_xlim(-2, 102)
        axes.grid(alpha=0.3)
    left.set_ylim(-3, 103)
    right.set_ylim(bottom=-0.5)
    left.legend(fontsize=7, handlelength=3.5)
    return figure
