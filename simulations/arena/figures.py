"""Heat maps of an arena: every attack against every defence at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fl_shield.simulations.arena.summary import by_seeds
from fl_shield.types import Floats

Entry = Mapping[str, Any]

MAPS: Mapping[str, tuple[str, bool]] = {
    "malicious_rejected": ("malicious updates rejected", True),
    "benign_rejected": ("benign updates rejected", False),
    "asr": ("attack success after one aggregated round", False),
    "accuracy": ("accuracy after one aggregated round", True),
    "auc": ("AUC of the defence's scores", True),
}
"""Figure of a cell, its title, and whether more of it is better."""


def draw_maps(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Draw a heat map of each figure that the recorded cells have, and return the PNG files."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure, (title, more_is_better) in MAPS.items():
        attacks, defenses, values = grid_of(_measured(entries, figure), figure)
        if np.isfinite(values).any():
            drawn = heat_map(attacks, defenses, values, title, more_is_better)
            paths.append(out / f"{figure.replace('_', '-')}.png")
            drawn.savefig(paths[-1])
    return paths


def _measured(entries: Sequence[Entry], figure: str) -> list[Entry]:
    """Cells that a figure is about: rules that judge coordinates never reject anybody."""
    if not figure.endswith("_rejected"):
        return list(entries)
    rejecting = {e["defense"] for e in entries if e["malicious_rejected"] or e["benign_rejected"]}
    return [e for e in entries if e["defense"] in rejecting]


def grid_of(entries: Sequence[Entry], figure: str) -> tuple[list[str], list[str], Floats]:
    """Attacks, defences and the figure's means over seeds ``(n_attacks, n_defenses)``, else NaN.

    Examples
    --------
    >>> cells = [{"attack": "lp", "defense": d, "seed": 0, "auc": a}
    ...          for d, a in (("flame", None), ("shield", 0.9))]
    >>> grid_of(cells, "auc")
    (['lp'], ['flame', 'shield'], array([[nan, 0.9]]))
    """
    means = by_seeds(entries)
    attacks = list(dict.fromkeys(attack for attack, _ in means))
    defenses = list(dict.fromkeys(defense for _, defense in means))
    values = np.full((len(attacks), len(defenses)), np.nan)
    for (attack, defense), cell in means.items():
        value = cell.get(figure)
        if value is not None:
            values[attacks.index(attack), defenses.index(defense)] = value
    return attacks, defenses, values


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Floats,
    title: str,
    more_is_better: bool,
) -> Figure:
    """Draw shares in [0, 1] by row and column, each written into its field in per cent."""
    figure = Figure(
        figsize=(2.2 + 0.52 * len(columns), 1.6 + 0.3 * len(rows)), layout="constrained", dpi=130
    )
    axes = figure.subplots()
    colours = "RdYlGn" if more_is_better else "RdYlGn_r"
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{100 * value:.0f}"
        pale = np.isnan(value) or 0.15 < value < 0.85
        colour = "black" if pale else "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=55, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(f"{title}, %", fontsize=10)
    return figure
