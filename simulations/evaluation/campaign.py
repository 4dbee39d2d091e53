"""One evaluation from settings to files: victims, weights of every split, rows, tables, figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fl_shield.calibration import standardise
from fl_shield.detector import Weights
from fl_shield.detectors import ONE_PASS
from fl_shield.errors import ScenarioError
from fl_shield.meta import MetaConfig
from fl_shield.profile import MIN_REFERENCES
from fl_shield.simulations.episodes.clean_models import Workplace
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.federations import load_all, simulate_all
from fl_shield.simulations.episodes.population import VictimSetting, evaluation_victims
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.recordings import load_population, simulate_population
from fl_shield.simulations.episodes.shots import evaluation_shots
from fl_shield.simulations.episodes.tasks import Task, federated_tasks, victim_tasks
from fl_shield.simulations.episodes.victims import N_REFERENCES
from fl_shield.simulations.evaluation.figures import (
    roc_figure,
    score_figure,
    shots_figure,
    transfer_figure,
)
from fl_shield.simulations.evaluation.judging import Row
from fl_shield.simulations.evaluation.splits import all_splits, check_axes
from fl_shield.simulations.evaluation.study import (
    OURS,
    Training,
    can_learn,
    counts,
    judge_ablations,
    judge_peers,
    judge_split,
    ours,
    weights_for,
)
from fl_shield.simulations.evaluation.tables import (
    by_detector,
    by_shots,
    cells,
    grouped,
    paired,
    shots_needed,
)
from fl_shield.types import Floats

MAIN_SHOTS = 20
"""Clean inputs of the tables."""

MAIN_SPLIT = "trigger-held-out"

Report = Callable[[str, float, float], None]
"""Name of a step, how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is compared on which victims.

    Attributes
    ----------
    axes : tuple of str
        Tables, see :data:`~fl_shield.simulations.evaluation.splits.AXES`.
    domains, pools : tuple of str
        What takes part; no pools = all data sets of the domains.
    n_victims, n_each : int
        Victims to learn from, and victims judged by data set and held-out family.
    n_epochs, n_draws : int
        Passes of meta-training, and tasks of one victim.
    shots : tuple of int
        Numbers of clean inputs; 20 must be among them.
    ablate : bool
        Whether weights with one thing changed are trained and judged too.
    seed : int
    place : Workplace
    n_workers : int
    """

    axes: tuple[str, ...]
    domains: tuple[str, ...]
    pools: tuple[str, ...]
    n_victims: int
    n_each: int
    n_epochs: int
    n_draws: int
    shots: tuple[int, ...]
    ablate: bool
    seed: int
    place: Workplace
    n_workers: int

    def __post_init__(self) -> None:
        check_axes(self.axes)
        if MAIN_SHOTS not in self.shots:
            raise ScenarioError(
                f"shots must hold {MAIN_SHOTS}, which the tables are made with, got {self.shots}"
            )
        if not MIN_REFERENCES < min(self.shots) <= max(self.shots) <= N_REFERENCES:
            raise ScenarioError(
                f"shots must be in {MIN_REFERENCES + 1}..{N_REFERENCES}, the clean inputs that are "
                f"recorded of a victim, got {self.shots}"
            )

    @property
    def curriculum(self) -> Curriculum:
        """What is learned from, before anything is left out."""
        return Curriculum(
            domains=self.domains,
            n_victims=self.n_victims,
            with_files=self.place.data_dir is not None,
            only=self.pools,
            seed=self.seed,
        )

    @property
    def training(self) -> Training:
        """How the weights of every split are trained."""
        config = MetaConfig(n_epochs=self.n_epochs, dropout=0.1, conditioned=True)
        return Training(config=config, seed=self.seed, cache=self.place.cache / "weights")

    def judged(self) -> list[VictimSetting]:
        """Victims that are judged."""
        return evaluation_victims(self.curriculum.pools(), self.n_each, self.seed)


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
    """

    rows: list[Row]
    tables: dict[str, dict[str, dict[str, Any]]]
    victims: list[Mapping[str, Any]]
    scores: tuple[Floats, Floats]


def run(evaluation: Evaluation, report: Report = lambda step, done, total: None) -> Results:
    """Simulate what is missing, train the weights of every split and judge."""
    judged, tasks = _material(evaluation, report)
    counted = [recording for recording in judged if counts(recording)]
    splits = [s for s in all_splits(judged, evaluation.axes) if can_learn(s, tasks)]
    if not splits:
        raise ScenarioError(
            f"nothing is left to learn from for {', '.join(evaluation.axes)} with "
            f"{', '.join(evaluation.domains)}: take part with more domains, or ask for other tables"
        )
    rows: list[Row] = []
    scores: tuple[Floats, Floats] = (np.zeros(0), np.zeros(0))
    for i, split in enumerate(splits):
        report("splits: meta-training and judging", i, len(splits))
        weights = weights_for(split, tasks, evaluation.training)
        rows += judge_split(weights, split, counted, evaluation.shots)
        if split.name == MAIN_SPLIT:
            held_out = [r for r in counted if split.judges(r.facts)]
            scores = standard_scores(weights, held_out)
            if evaluation.ablate:
                given = (split, tasks, evaluation.training, held_out, MAIN_SHOTS)
                rows += judge_ablations(*given)
    report("splits: meta-training and judging", len(splits), len(splits))
    for i, recording in enumerate(counted):
        report("peers", i, len(counted))
        rows += judge_peers(recording, evaluation.shots)
    report("peers", len(counted), len(counted))
    tables = {s.name: by_detector(rows, s.name, MAIN_SHOTS) for s in splits}
    return Results(
        rows=rows,
        tables={name: table for name, table in tables.items() if table},
        victims=[recording.facts for recording in judged],
        scores=scores,
    )


def _material(evaluation: Evaluation, report: Report) -> tuple[list[Recording], list[Task]]:
    """Recordings that are judged, and tasks to learn from."""
    curriculum, place = evaluation.curriculum, evaluation.place
    settings = [*curriculum.victims(), *evaluation.judged()]
    done = 0
    for n in simulate_population(settings, place, evaluation.n_workers):
        done += n
        report("training victims", done, len(settings))
    federations, cache = curriculum.federations(), place.cache / "episodes"
    for i, _ in enumerate(simulate_all(federations, cache, evaluation.n_workers)):
        report("simulating federations", i + 1, len(federations))
    recordings = load_population(curriculum.victims(), place)
    tasks = [
        *federated_tasks(load_all(federations, cache)),
        *victim_tasks(recordings, evaluation.n_draws),
    ]
    return load_population(evaluation.judged(), place), tasks


def standard_scores(weights: Weights, recordings: Sequence[Recording]) -> tuple[Floats, Floats]:
    """Standardised log-odds of clean and of obeyed triggered inputs, victims pooled."""
    found: dict[int, list[Floats]] = {0: [np.zeros(0)], 1: [np.zeros(0)]}
    for recording in recordings:
        shots = evaluation_shots(recording, MAIN_SHOTS)
        fitted = ours(weights).fit(shots.references)
        scores = fitted.score(shots.points).clip(1e-12, 1 - 1e-12)
        odds = np.log(scores) - np.log1p(-scores)
        standard = standardise(odds, fitted.adapted_.reference_log_odds)
        for label, kept in found.items():
            kept.append(standard[shots.labels == label])
    return np.concatenate(found[0]), np.concatenate(found[1])


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


def described(evaluation: Evaluation, results: Results) -> dict[str, Any]:
    """All tables of an evaluation, as plain numbers."""
    splits = list(results.tables)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "settings": {
            **{k: v for k, v in evaluation.__dict__.items() if k not in ("place", "n_workers")},
            "pools": evaluation.curriculum.pools(),
        },
        "victims": _counted(results.victims),
        "tables": results.tables,
        "paired": {s: paired(results.rows, s, MAIN_SHOTS, OURS) for s in splits},
        "cells": {s: cells(results.rows, s, MAIN_SHOTS, OURS, ONE_PASS) for s in splits},
        "shots": {s: by_shots(results.rows, s, OURS) for s in splits},
        "shots_needed": {s: shots_needed(by_shots(results.rows, s, OURS)) for s in splits},
        "transfer": transfer(results.rows),
    }


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
