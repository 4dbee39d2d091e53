"""What the figures of the benchmark of scoring say: ratios, growth, bars, and one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from fl_shield.simulations.benchmarks.scoring_measures import MEASURES, Figures

ANCHORS = ("flower_multi_krum", "multi_krum", "flame")
"""Rules that the bar compares with; they have more time there."""

BAR = (1000, 1_000_000)
"""Clients and parameters that something is promised of."""


def key_of(name: str, n: int, n_parameters: int) -> str:
    """Name of a cell."""
    return f"{name}/{n}/{n_parameters}"


def ratios(key: str, own: Figures, cells: Mapping[str, Figures]) -> Figures:
    """Seconds of a cell over those of reading and checking, and over those of the shield."""
    beside = cells.get("shield" + key[key.index("/") :], {})
    if "seconds" not in own or "seconds" not in beside:
        return {}
    return {
        "ratio_to_check": own["seconds"] / beside["check_seconds"],
        "ratio_to_shield": own["seconds"] / beside["seconds"],
    }


def exponents(cells: Mapping[str, Figures], clock: str, n_least: int = 0) -> Figures:
    """Powers of clients and of parameters that the shield's seconds grow with, by least squares.

    Examples
    --------
    >>> cells = {f"shield/{n}/{p}": {"s": 2e-9 * n * p} for n in (10, 100) for p in (10, 1000)}
    >>> {name: round(power, 6) for name, power in exponents(cells, "s").items()}
    {'clients': 1.0, 'parameters': 1.0}
    """
    found = [
        [*map(float, key.split("/")[1:]), own[clock]]
        for key, own in cells.items()
        if key.startswith("shield/") and clock in own and int(key.split("/")[1]) >= n_least
    ]
    logs = np.log(np.array(found).reshape(-1, 3))
    if min(len(set(column)) for column in logs.T) < 2:
        return {}
    design = np.column_stack([logs[:, :2], np.ones(len(logs))])
    powers = np.linalg.lstsq(design, logs[:, 2], rcond=None)[0]
    return {"clients": float(powers[0]), "parameters": float(powers[1])}


def growth(cells: Mapping[str, Figures]) -> Figures:
    """Exponents of processor seconds by part of the shield, over all rounds and the large ones."""
    parts = {"check": "check_", "sketches": "sketch_", "beside": "space_", "shield": ""}
    return {
        f"{part}{where}": exponents(cells, f"{clock}cpu_seconds", least)
        for part, clock in parts.items()
        for where, least in (("", 0), (" from 1,000 clients", 1000))
    }


def bars(cells: Mapping[str, Figures]) -> Figures:
    """What is promised of 1,000 clients and a million parameters, and what was seen."""
    own = cells.get(key_of("shield", *BAR), {})
    if "seconds" not in own:
        return {}
    both = own["seconds"] + own["check_seconds"]
    found: Figures = {
        "megabytes beside the replies, at most 256": own["memory_bytes"] / 2**20,
        "shield over reading and checking, at most 2": own["seconds"] / own["check_seconds"],
        "the same in processor seconds": own["cpu_seconds"] / own["check_cpu_seconds"],
    }
    for name in ANCHORS:
        seconds = cells.get(key_of(name, *BAR), {}).get("seconds")
        if seconds is not None:
            found[f"{name} over checking and the shield, at least 10"] = seconds / both
    return found


def verdicts(figures: Figures) -> Iterator[str]:
    """Lines below the table."""
    for name, value in figures["bars"].items():
        yield f"{name}: {value:.2f}"
    for part, powers in figures["exponents"].items():
        if powers:
            yield (
                f"{part}: clients^{powers['clients']:.2f} x parameters^{powers['parameters']:.2f}"
            )


def table(figures: Figures) -> Table:
    """Lay the seconds out, a measure a row, a cell of the grid a column."""
    args, cells = figures["args"], figures["cells"]
    grid = [(n, p) for p in args["parameters"] for n in args["clients"]]
    title = "seconds by clients and parameters; - = skipped, the file says why"
    out = Table("", title=title, box=SIMPLE, padding=(0, 0, 0, 1))
    for n, p in grid:
        out.add_column(f"{n:,}\n{p / 1e6:g}M", justify="right", no_wrap=True)
    rows = {"read and check": ("shield", "check_seconds"), "shield": ("shield", "seconds")}
    rows |= {"  sketches": ("shield", "sketch_seconds"), "  beside": ("shield", "space_seconds")}
    rows |= {"  MB": ("shield", "memory_bytes")}
    others = [name for name in args["measures"] or MEASURES if name != "shield"]
    rows |= {name: (name, "seconds") for name in others}
    for label, (name, clock) in rows.items():
        found = [cells.get(key_of(name, n, p), {}).get(clock) for n, p in grid]
        scale = 2**20 if clock == "memory_bytes" else 1
        shown = ["-" if value is None else f"{value / scale:.3g}" for value in found]
        out.add_row(label, *shown)
    return out
