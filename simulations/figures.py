"""Figures of a results file: attack success and accuracy by round, and who was suspected when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_shield.types import Floats

Entry = Mapping[str, Any]
"""One federation in ``results.json``."""

COLOURS = {
    "none": "#c0392b",
    "multikrum": "#e08e0b",
    "shield": "#1f6fb2",
    "reference": "#7f8c8d",
    "perfect": "#7f8c8d",
}
OTHER_COLOURS = ("#27ae60", "#8552a8", "#16a2a2", "#7f5539", "#b5179e", "#556b2f")
"""Of published rules, told apart by their name."""
LABELS = {
    "none": "FedAvg",
    "multikrum": "MultiKrum (told f)",
    "perfect": "perfect (told who)",
    "reference": "FedAvg, no attack",
}
"""What a line is called where that is not the defence's own name."""


def draw_figures(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Draw everything that a results file supports and return the PNG files.

    Parameters
    ----------
    entries : sequence of mapping
        ``federations`` of a results file.
    out : Path
        Folder for ``rounds-ATTACK.png`` (one for each attack, mean over seeds) and
        ``scores-ATTACK-sSEED.png`` (one for each shielded federation).
    """
    attacks = list(dict.fromkeys(e["attack"] for e in entries))
    attacks = [a for a in attacks if a != "none"] or attacks
    paths = [
        _save(rounds_figure(entries, attack), out / f"rounds-{attack}.png") for attack in attacks
    ]
    for entry in entries:
        if entry["defense"] == "shield":
            name = f"scores-{entry['attack']}-s{entry['seed']}.png"
            paths.append(_save(scores_figure(entry), out / name))
    return paths


def rounds_figure(entries: Sequence[Entry], attack: str) -> Figure:
    """Attack success rate and main-task accuracy by round, a line for each defence."""
    figure = Figure(figsize=(9, 3.7), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    reference = [e for e in entries if e["attack"] == e["defense"] == "none"]
    groups = {"reference": reference} if attack != "none" else {}
    for entry in entries:
        if entry["attack"] == attack:
            groups.setdefault(entry["defense"], []).append(entry)
    for name, group in groups.items():
        _line(left, name, group, "asr")
        _line(right, name, group, "accuracy")
    for axes, title in ((left, "attack success rate"), (right, "main-task accuracy")):
        axes.set(title=title, xlabel="round", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    settings = next(e["settings"] for e in entries if e["attack"] == attack)
    if attack != "none":
        left.axvline(settings["attack_from"], color="black", linewidth=0.8, linestyle=":")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{settings['dataset']}, attack: {attack}")
    return figure


def _line(axes: Axes, name: str, group: Sequence[Entry], key: str) -> None:
    """Mean over seeds, and their range as a band."""
    if not group:
        return
    values = np.array([[row[key] for row in entry["rounds"]] for entry in group])
    rounds = [row["server_round"] for row in group[0]["rounds"]]
    label, colour = label_of(name), colour_of(name)
    style = "--" if name == "reference" else "-"
    axes.plot(rounds, values.mean(0), style, color=colour, label=label)
    axes.fill_between(rounds, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


def label_of(defense: str) -> str:
    """What a defence's line is called: the same in every figure.

    Examples
    --------
    >>> label_of("none")
    'FedAvg'
    """
    return LABELS.get(defense, defense)


def colour_of(defense: str) -> str:
    """Colour of a defence's line: the same in every figure.

    Examples
    --------
    >>> colour_of("shield")
    '#1f6fb2'
    """
    return COLOURS.get(defense, OTHER_COLOURS[crc32(defense.encode()) % len(OTHER_COLOURS)])


def score_matrix(entry: Entry) -> Floats:
    """Score of each client in each round, shape (n_clients, n_rounds); NaN where it has none.

    Examples
    --------
    >>> rows = [{"server_round": 1, "participants": [1], "scores": [0.5]}]
    >>> score_matrix({"settings": {"n_clients": 2}, "rounds": rows}).tolist()
    [[nan], [0.5]]
    """
    rows = [row for row in entry["rounds"] if row["server_round"] > 0]
    matrix = np.full((entry["settings"]["n_clients"], len(rows)), np.nan)
    for column, row in enumerate(rows):
        for partition, score in zip(row["participants"], row["scores"], strict=True):
            matrix[partition, column] = np.nan if score is None else score
    return matrix


def scores_figure(entry: Entry) -> Figure:
    """Heat map client x round of the shield's scores; attackers dotted, rejected ones boxed."""
    scores = score_matrix(entry)
    height = min(12.0, 1.6 + 0.16 * len(scores))
    figure = Figure(figsize=(8, height), layout="constrained", dpi=150)
    axes = figure.subplots()
    n_rounds = scores.shape[1]
    extent = (0.5, n_rounds + 0.5, len(scores) - 0.5, -0.5)
    colours = colormaps["magma_r"].with_extremes(bad="#f3f3f3")
    image = axes.imshow(scores, aspect="auto", cmap=colours, vmin=0, vmax=1, extent=extent)
    figure.colorbar(image, ax=axes, label="score (1 = most suspicious)")
    _mark(axes, entry, "malicious", marker="o", s=14, color="#17c3b2", label="attacks")
    _mark(axes, entry, "rejected", marker="s", s=52, color="#2e86de", label="rejected")
    axes.set(xlabel="round", ylabel="client")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    attackers = {p for row in entry["rounds"] for p in row["malicious"]}
    ticks = range(len(scores)) if len(scores) <= 40 else sorted(attackers)
    axes.set_yticks(list(ticks))
    for tick, label in zip(ticks, axes.get_yticklabels(), strict=True):
        label.set(fontsize=7, color="#c0392b" if tick in attackers else "black")
    axes.set_title(f"{entry['attack']}, seed {entry['seed']}: scores (malicious clients in red)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _mark(axes: Axes, entry: Entry, key: str, **style: Any) -> None:
    points = [(row["server_round"], p) for row in entry["rounds"] for p in row[key]]
    rounds, partitions = zip(*points, strict=True) if points else ((), ())
    if style["marker"] == "s":
        style |= {"facecolors": "none", "edgecolors": style.pop("color"), "linewidths": 1.1}
    axes.scatter(rounds, partitions, **style)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
