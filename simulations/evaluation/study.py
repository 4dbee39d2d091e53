"""The whole comparison: weights of every split, and every peer, on the victims that each judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fl_shield.detector import MetaShield, Weights
from fl_shield.detectors import DETECTORS, MULTI_PASS, ONE_PASS
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.evaluation.judging import Row, judge, row_of, shots_for
from fl_shield.simulations.evaluation.splits import Split

MIN_ASR = 0.9
"""Least attack success of a victim that a table counts."""

OURS = "metashield"


def counts(recording: Recording) -> bool:
    """Whether a victim may stand in a table: kept for evaluation, and its attack works."""
    facts = recording.facts
    works = facts["asr"] is not None and facts["asr"] >= MIN_ASR
    return bool(facts["evaluation"] and works)


def ours(weights: Weights, **settings: Any) -> MetaShield:
    """Build the detector as it is judged: thresholds from the meta-training tasks."""
    return MetaShield(weights, guarantee="tasks", **settings)


def judge_split(
    weights: Weights, split: Split, recordings: Sequence[Recording], shots: Sequence[int]
) -> Iterator[Row]:
    """Judge every victim of a split, adapted and unadapted."""
    variants = {OURS: ours(weights), f"{OURS}-unadapted": ours(weights, n_inner_steps=0)}
    for recording in recordings:
        if not (counts(recording) and split.judges(recording.facts)):
            continue
        for n_shots in shots:
            for name, detector in variants.items():
                row = judge(detector, recording, n_shots, name=name, split=split.name)
                if row is not None:
                    yield row


def judge_peers(recording: Recording, shots: Sequence[int]) -> Iterator[Row]:
    """Judge one victim by every peer; those of several passes have their scores on record."""
    if not counts(recording):
        return
    for n_shots in shots:
        for name in ONE_PASS:
            row = judge(DETECTORS[name](), recording, n_shots, name=name, split="peers")
            if row is not None:
                yield row
        drawn = shots_for(recording, n_shots)
        for name in MULTI_PASS:
            key = f"{name}@{n_shots}"
            if key in recording.peer_scores:
                scores, p_values = recording.peer_scores[key]
                row = row_of(drawn, scores, p_values, recording.facts, name=name, split="peers")
                if row is not None:
                    yield row
