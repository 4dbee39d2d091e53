"""The comparison: weights of every split, and every peer, on the victims that each judges."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fl_shield.detector import MetaShield, Weights
from fl_shield.detectors import DETECTORS, MULTI_PASS, ONE_PASS
from fl_shield.meta import MetaConfig, Progress
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import evaluation_shots
from fl_shield.simulations.episodes.tasks import Task
from fl_shield.simulations.evaluation.judging import Row, judge, row_of
from fl_shield.simulations.evaluation.splits import Split
from fl_shield.simulations.evaluation.tables import PEERS
from fl_shield.simulations.meta_training import Parts, calibrated, episodes_of, fit_weights

MIN_ASR = 0.9
"""Least attack success of a victim that a table counts."""

MEASURED = ("accuracy", "asr", "mean_change", "share_changed", "seconds")
"""Facts of a victim that follow from the others, or from the machine."""

OURS = "metashield"
UNADAPTED = f"{OURS}-unadapted"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights of every split are meta-trained.

    Attributes
    ----------
    config : MetaConfig
    seed : int
    cache : Path
        Folder of finished weights.
    """

    config: MetaConfig
    seed: int
    cache: Path


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no-inner-steps": {"n_inner_steps": 0},
    "one-inner-step": {"n_inner_steps": 1},
    "first-order": {"second_order": False},
    "unconditioned": {"conditioned": False},
    "no-dropout": {"dropout": 0.0},
    "hidden-16": {"n_hidden": 16},
    "hidden-64": {"n_hidden": 64},
}
"""Settings of meta-training that differ from the ones that are shipped, one at a time."""

FEWER_VICTIMS = (0.25, 0.5)
"""Shares of the training victims that ablations learn from."""


def counts(recording: Recording) -> bool:
    """Whether a victim may stand in a table: kept for evaluation, and its attack works."""
    facts = recording.facts
    works = facts["asr"] is not None and facts["asr"] >= MIN_ASR
    return bool(facts["evaluation"] and works)


def can_learn(split: Split, tasks: Sequence[Task]) -> bool:
    """Whether a split leaves enough: a task to learn from and one that calibrates."""
    return sum(split.trains_on(task.facts) for task in tasks) >= 2


def weights_for(
    split: Split,
    tasks: Sequence[Task],
    training: Training,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Weights:
    """Meta-train without what a split leaves out, or load what an earlier run made so."""
    learned = [task for task in tasks if split.trains_on(task.facts)]
    path = training.cache / f"{_key(learned, training)}.safetensors"
    if path.exists():
        return Weights.load(path)
    parts = Parts.of(learned)
    card = {"split": split.name, "seed": str(training.seed)}
    episodes = episodes_of(parts.training)
    for progress, weights in fit_weights(episodes, [], training.config, training.seed, card):
        report(progress)
        kept = weights
    kept = calibrated(kept, parts.held_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".part{os.getpid()}")
    kept.save(partial)
    partial.replace(path)
    return kept


def _key(tasks: Sequence[Task], training: Training) -> str:
    """Hash of everything that weights follow from."""
    kept = [{k: v for k, v in task.facts.items() if k not in MEASURED} for task in tasks]
    facts = [json.dumps(each, sort_keys=True, default=str) for each in kept]
    sizes = [len(task.episodes) for task in tasks]
    described = json.dumps([facts, sizes, asdict(training.config), training.seed])
    return hashlib.sha256(described.encode()).hexdigest()[:20]


def ours(weights: Weights, **settings: Any) -> MetaShield:
    """Build the detector as it is judged: thresholds from the meta-training tasks."""
    return MetaShield(weights, guarantee="tasks", **settings)


def judge_split(
    weights: Weights, split: Split, recordings: Sequence[Recording], shots: Sequence[int]
) -> Iterator[Row]:
    """Judge every victim of a split, adapted and unadapted."""
    variants = {OURS: ours(weights), UNADAPTED: ours(weights, n_inner_steps=0)}
    for recording in recordings:
        if not (counts(recording) and split.judges(recording.facts)):
            continue
        for n_shots in shots:
            for name, detector in variants.items():
                row = judge(detector, recording, n_shots, name=name, split=split.name)
                if row is not None:
                    yield row


def judge_ablations(
    split: Split,
    tasks: Sequence[Task],
    training: Training,
    recordings: Sequence[Recording],
    n_shots: int,
) -> Iterator[Row]:
    """Train with one thing changed at a time, and judge the victims of a split."""
    for name, trained, on in _ablated(tasks, training):
        if not can_learn(split, on):
            continue
        detector = ours(weights_for(split, on, trained))
        for recording in recordings:
            if counts(recording) and split.judges(recording.facts):
                called = f"{OURS}/{name}"
                row = judge(detector, recording, n_shots, name=called, split=split.name)
                if row is not None:
                    yield row


def _ablated(
    tasks: Sequence[Task], training: Training
) -> Iterator[tuple[str, Training, Sequence[Task]]]:
    for name, changes in ABLATIONS.items():
        yield name, replace(training, config=replace(training.config, **changes)), tasks
    for share in FEWER_VICTIMS:
        yield f"victims-{share:.0%}", training, _share_of(tasks, share, training.seed)
    for domain in sorted({str(task.facts["domain"]) for task in tasks}):
        rest = [task for task in tasks if task.facts["domain"] != domain]
        yield f"without-{domain}", training, rest


def _share_of(tasks: Sequence[Task], share: float, seed: int) -> list[Task]:
    """Draw a share of the tasks; a larger one holds a smaller one.

    Every so many in a row would miss families, which take turns.
    """
    drawn = keyed(seed, 83).permutation(len(tasks))[: round(share * len(tasks))]
    return [tasks[i] for i in sorted(drawn)]


def judge_peers(recording: Recording, shots: Sequence[int]) -> Iterator[Row]:
    """Judge one victim by every peer; those of several passes have their scores on record."""
    if not counts(recording):
        return
    for n_shots in shots:
        for name in ONE_PASS:
            row = judge(DETECTORS[name](), recording, n_shots, name=name, split=PEERS)
            if row is not None:
                yield row
        drawn = evaluation_shots(recording, n_shots)
        for name in MULTI_PASS:
            key = f"{name}@{n_shots}"
            if key in recording.peer_scores:
                scores, p_values = recording.peer_scores[key]
                row = row_of(drawn, scores, p_values, recording.facts, name=name, split=PEERS)
                if row is not None:
                    yield row
