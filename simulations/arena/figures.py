"""Figures of an arena: heat maps of every attack against every defence, ROC curves by attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import roc_curve

from fl_shield.metrics import auroc
from fl_shield.simulations.arena.summary import by_seeds
from fl_shield.simulations.figures import OTHER_COLOURS, colour_of, label_of
from fl_shield.types import Floats, Ints

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


MOST_CURVES = 6
"""Defences with scores that a panel of ROC curves shows: the best by their mean AUC."""

_COLUMNS = 5


def roc_figure(scored: Mapping[tuple[str, str], tuple[Ints, Floats]]) -> Figure:
    """Draw a panel of ROC curves for each attack, a line for each of the best defences.

    One threshold holds for all rounds and seeds of an attack.

    Parameters
    ----------
    scored : mapping of (attack, defence) to labels (n,) and scores (n,)
        Of every update that was scored; 1 = malicious.
    """
    curves = {key: roc_curve(*found) for key, found in scored.items()}
    attacks = list(dict.fromkeys(attack for attack, _ in curves))
    shown = _coloured(_best(scored))
    n_rows = -(-len(attacks) // _COLUMNS)
    figure = Figure(figsize=(2.1 * _COLUMNS, 2.2 * n_rows + 0.5), layout="constrained", dpi=130)
    panels = figure.subplots(n_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for attack, axes in zip(attacks, panels, strict=False):
        for defense, colour in shown.items():
            if (attack, defense) in curves:
                false, true, _ = curves[attack, defense]
                width = 2.2 if defense == "shield" else 1.1
                axes.plot(false, true, color=colour, linewidth=width)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.6)
        axes.set_title(attack, fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in panels[len(attacks) :]:
        axes.axis("off")
    handles = [Line2D([], [], color=c, label=label_of(d)) for d, c in shown.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(shown), fontsize=8)
    figure.supxlabel("benign updates at least as suspicious", fontsize=8)
    figure.supylabel("malicious updates found", fontsize=8)
    return figure


def _coloured(defenses: Sequence[str]) -> dict[str, str]:
    """Colours that differ, the shield's own first."""
    spare = iter(OTHER_COLOURS)
    return {d: colour_of(d) if d == "shield" else next(spare) for d in defenses}


def _best(scored: Mapping[tuple[str, str], tuple[Ints, Floats]]) -> list[str]:
    """Defences by their mean AUC over attacks, the shield first, at most MOST_CURVES."""
    aucs: dict[str, list[float]] = {}
    for (_, defense), (labels, scores) in scored.items():
        aucs.setdefault(defense, []).append(auroc(labels, scores))
    aucs.pop("weak_dp", None)  # norm clipping's scores
    ranked = sorted(aucs, key=lambda d: (d != "shield", -float(np.mean(aucs[d]))))
    return ranked[:MOST_CURVES]


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
