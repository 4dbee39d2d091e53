"""What an evaluation found, and its files: results.json, rows.csv and the figures."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_shield.detectors import ONE_PASS
from fl_shield.simulations.evaluation.federations import FederatedRow, federated_tables
from fl_shield.simulations.evaluation.figures import (
    roc_figure,
    score_figure,
    shots_figure,
    transfer_figure,
)
from fl_shield.simulations.evaluation.judging import MAIN_SHOTS, Row
from fl_shield.simulations.evaluation.promises import FalseAlarms, calibration
from fl_shield.simulations.evaluation.settings import Evaluation
from fl_shield.simulations.evaluation.splits import MAIN_SPLIT
from fl_shield.simulations.evaluation.tables import by_shots, cells, grouped, paired, shots_needed
from fl_shield.simulations.victims.opponents import OURS
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation found.

    Attributes
    ----------
    rows : list of Row
    tables : mapping of str to mapping
        By split and, below, by detector: see
        :func:`~fl_shield.simulations.evaluation.tables.summary`.
    victims : list of mapping
        Facts of every judged victim, also of those that do not count.
    scores : pair of (n,) float arrays
        Standardised log-odds of clean and triggered inputs under held-out triggers.
    alarms : list of FalseAlarms
        Of every judged victim, also of those that do not count, under held-out triggers.
    rounds : list of FederatedRow
        Of every judged federation.
    """

    rows: list[Row]
    tables: dict[str, dict[str, dict[str, Any]]]
    victims: list[Mapping[str, Any]]
    scores: tuple[Floats, Floats]
    alarms: list[FalseAlarms]
    rounds: list[FederatedRow] = field(default_factory=list)


def write(evaluation: Evaluation, results: Results, out: Path) -> list[Path]:
    """Write ``results.json``, ``rows.csv`` and the figures, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "results.json", out / "rows.csv"]
    files[0].write_text(json.dumps(described(evaluation, results), indent=1) + "\n")
    lines = [row.to_json() for row in results.rows]
    with files[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)
    return [*files, *_draw(results, out)]


HOW = ("place", "n_workers", "ray_address")
"""Settings that no result follows from."""


def described(evaluation: Evaluation, results: Results) -> dict[str, Any]:
    """All tables of an evaluation, as plain numbers."""
    splits = list(results.tables)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "settings": {
            **{k: v for k, v in evaluation.__dict__.items() if k not in HOW},
            "pools": evaluation.curriculum.pools(),
        },
        "victims": _counted(results.victims),
        "tables": results.tables,
        "paired": {s: paired(results.rows, s, MAIN_SHOTS, OURS) for s in splits},
        "cells": cells_of(results),
        "easy_cells": easy_of(results),
        "shots": {s: by_shots(results.rows, s, OURS) for s in splits},
        "shots_needed": {s: shots_needed(by_shots(results.rows, s, OURS)) for s in splits},
        "transfer": transfer(results.rows),
        "calibration": calibration(results.alarms),
        "federations": federated_tables(results.rounds),
    }


def cells_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Cells of every split, see :func:`~fl_shield.simulations.evaluation.tables.cells`."""
    return {s: cells(results.rows, s, MAIN_SHOTS, OURS, ONE_PASS) for s in results.tables}


def easy_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Cells of every split that confidence alone solves, listed apart."""
    return {s: [cell for cell in found if cell["easy"]] for s, found in cells_of(results).items()}


def _counted(victims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By data set and family: how many victims were trained, and how good they are."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for facts in victims:
        found.setdefault((facts["pool"], facts["family"]), []).append(facts)
    return [
        {
            "pool": pool,
            "family": family,
            "n_victims": len(group),
            "accuracy": float(np.mean([f["accuracy"] for f in group])),
            "asr": float(np.mean([f["asr"] for f in group])),
            "working": sum(f["asr"] >= 0.9 for f in group),
            "mean_change": float(np.mean([f["mean_change"] for f in group])),
        }
        for (pool, family), group in found.items()
    ]


def transfer(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean AUC by the domain that was trained on and the domain that is judged."""
    prefix = "transfer-"
    ours_only = [
        r
        for r in rows
        if r.detector == OURS and r.n_shots == MAIN_SHOTS and r.split.startswith(prefix)
    ]
    return {
        split.removeprefix(prefix): {
            domain: float(np.mean([r.auc for r in own]))
            for domain, own in grouped(group, lambda r: r.domain).items()
        }
        for split, group in grouped(ours_only, lambda r: r.split).items()
    }


def _draw(results: Results, out: Path) -> Iterator[Path]:
    figures = {}
    for split in results.tables:
        if not split.startswith("transfer-"):
            figures[f"roc-{split}"] = roc_figure(results.rows, split, MAIN_SHOTS, OURS)
    if MAIN_SPLIT in results.tables:
        figures["scores"] = score_figure(*results.scores)
        if len({row.n_shots for row in results.rows}) > 1:
            figures["shots"] = shots_figure(results.rows, MAIN_SPLIT, OURS)
    between = transfer(results.rows)
    if between:
        figures["transfer"] = transfer_figure(between)
    for name, figure in figures.items():
        path = out / f"{name}.png"
        figure.savefig(path)
        yield path
