"""Figures of an evaluation: ROC, AUC by number of shots, transfer between domains, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fl_shield.simulations.evaluation.judging import FPR_GRID, Row
from fl_shield.simulations.evaluation.tables import PEERS, grouped, victim_of
from fl_shield.types import Floats

OURS_COLOUR, GREY = "#1f6fb2", "#8b949e"
COLOURS = ("#c0392b", "#e08e0b", "#27ae60", "#8552a8", "#16a2a2", "#7f5539")
SHOWN = 6
"""Peers drawn in colour: the best of them."""


def roc_figure(rows: Sequence[Row], split: str, n_shots: int, ours: str) -> Figure:
    """Mean ROC over victims: ours and the best peers, false alarms on a logarithmic axis."""
    figure = Figure(figsize=(6, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    own = [r for r in rows if (r.split, r.detector, r.n_shots) == (split, ours, n_shots)]
    victims = {victim_of(row) for row in own}
    peers = [
        r for r in rows if r.split == PEERS and r.n_shots == n_shots and victim_of(r) in victims
    ]
    curves = {n: _mean_roc(group) for n, group in grouped(peers, lambda r: r.detector).items()}
    best = sorted(curves, key=lambda name: -curves[name].mean())[:SHOWN]
    for name, colour in zip(best, COLOURS, strict=False):
        axes.plot(FPR_GRID, curves[name], color=colour, linewidth=1.2, label=name)
    axes.plot(FPR_GRID, _mean_roc(own), color=OURS_COLOUR, linewidth=2.4, label=ours)
    axes.set(xscale="log", xlabel="false-positive rate", ylabel="true-positive rate")
    axes.set(ylim=(0, 1.02), title=f"{split}, {n_shots} clean inputs, {len(own)} victims")
    axes.axvline(0.05, color=GREY, linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _mean_roc(rows: Sequence[Row]) -> Floats:
    curve: Floats = np.mean([row.roc for row in rows], axis=0)
    return curve


def shots_figure(rows: Sequence[Row], split: str, ours: str) -> Figure:
    """AUC by number of clean inputs: ours, ours without adaptation, and the best peers."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    own = [r for r in rows if r.split == split]
    victims = {victim_of(row) for row in own}
    others = [r for r in rows if r.split == PEERS and victim_of(r) in victims]
    lines = {
        name: {n: float(np.mean([r.auc for r in at])) for n, at in _by_shots(group).items()}
        for name, group in grouped([*own, *others], lambda r: r.detector).items()
    }
    full = [name for name, line in lines.items() if len(line) > 1]
    first = [name for name in full if name.startswith(ours)]
    best = sorted(set(full) - set(first), key=lambda n: -max(lines[n].values()))[:SHOWN]
    for name, colour in zip(best, COLOURS, strict=False):
        _draw(axes, lines[name], name, color=colour, linewidth=1.2)
    for name in first:
        style = "-" if name == ours else "--"
        _draw(axes, lines[name], name, color=OURS_COLOUR, linewidth=2.2, linestyle=style)
    axes.set(xlabel="clean inputs", ylabel="mean AUC", title=split, xscale="log")
    ticks = sorted({n for name in full for n in lines[name]})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _by_shots(rows: Sequence[Row]) -> dict[int, list[Row]]:
    return dict(sorted(grouped(rows, lambda r: r.n_shots).items()))


def _draw(axes: Any, line: Mapping[int, float], label: str, **style: Any) -> None:
    axes.plot(list(line), list(line.values()), marker="o", markersize=3, label=label, **style)


def transfer_figure(aucs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Heat map of mean AUC: a row for what was trained on, a column for what is judged."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    columns = list(dict.fromkeys(name for row in aucs.values() for name in row))
    grid = np.array([[row.get(name, np.nan) for name in columns] for row in aucs.values()])
    image = axes.imshow(grid, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            shade = "white" if value < 0.8 else "black"
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(aucs)), list(aucs))
    axes.set(xlabel="judged", ylabel="meta-trained on")
    figure.colorbar(image, label="mean AUC")
    return figure


def score_figure(clean: Floats, triggered: Floats) -> Figure:
    """Histogram of standardised log-odds of clean inputs and of triggered ones, victims pooled."""
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    bins = np.linspace(-4, 14, 73).tolist()
    for values, label, colour in ((clean, "clean", GREY), (triggered, "triggered", "#c0392b")):
        weights = np.full(len(values), 1 / max(len(values), 1))
        shown = values.clip(bins[0], bins[-1])
        axes.hist(shown, bins, weights=weights, label=label, color=colour, alpha=0.65)
    axes.set(xlabel="log-odds beside the references' own, in their spread", ylabel="share")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def adaptive_figure(points: Sequence[Mapping[str, Any]], ours: str) -> Figure:
    """AUC of each detector on victims that fight it, over what the fight costs them.

    Parameters
    ----------
    points : sequence of mapping
        See :func:`~fl_shield.simulations.evaluation.adaptive.curves`.
    ours : str
    """
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=150)
    panels = figure.subplots(1, 2, sharey=True)
    own = [p for p in points if p["fought"] == p["detector"] and p["auc"] is not None]
    names = sorted({p["detector"] for p in own}, key=lambda name: (name == ours, name))
    colours = dict(zip(names, (*COLOURS[: len(names) - 1], OURS_COLOUR), strict=False))
    for axes, cost, label in (
        (panels[0], "asr_cost", "loss of attack success"),
        (panels[1], "accuracy_cost", "loss of accuracy"),
    ):
        for name in names:
            line = sorted((p for p in own if p["detector"] == name), key=lambda p: p["penalty"])
            width = 2.4 if name == ours else 1.2
            x, y = [p[cost] for p in line], [p["auc"] for p in line]
            axes.plot(x, y, "o-", color=colours[name], linewidth=width, markersize=4, label=name)
            for point in line:
                axes.annotate(
                    f"{point['penalty']:g}",
                    (point[cost], point["auc"]),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize=7,
                )
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=label)
        axes.grid(alpha=0.25)
    panels[0].set(ylabel="AUC on victims that fight it", ylim=(0, 1.02))
    if names:
        panels[0].legend(frameon=False, fontsize=8)
    return figure
