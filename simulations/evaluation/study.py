"""The comparison, victim by victim: every weights that judge it, and every peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from fl_shield.detectors import DETECTORS, MULTI_PASS, ONE_PASS
from fl_shield.simulations.episodes.recording import Recording, load_recording
from fl_shield.simulations.episodes.shots import Shots, evaluation_shots
from fl_shield.simulations.evaluation.answers import Profiled, answers, evaluation_profiles
from fl_shield.simulations.evaluation.judging import MAIN_SHOTS, Row, judge, row_of
from fl_shield.simulations.evaluation.promises import (
    DATA_SETS,
    FalseAlarms,
    false_alarms,
    groups_of,
)
from fl_shield.simulations.evaluation.splits import MAIN_SPLIT, Split
from fl_shield.simulations.evaluation.tables import PEERS
from fl_shield.simulations.processes import map_in_processes
from fl_shield.simulations.victims.opponents import OURS
from fl_shield.types import Floats, Representation
from fl_shield.weights import Weights

MIN_ASR = 0.9
"""Least attack success of a victim that a table counts."""

UNADAPTED = f"{OURS}-unadapted"

Reader = Callable[[Representation], Profiled]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Weights that take part in a comparison, and what they judge.

    Attributes
    ----------
    name : str
        Detector of the rows.
    split : Split
    path : Path
        File of the weights: contenders travel to other processes, weights are read there.
    shots : tuple of int
    n_inner_steps : int, optional
        Steps of the inner loop; the meta-trained number by default, 0 for no adaptation.
    n_views : int, optional
        How many of an input's views are read, the last ones; None = all.
    """

    name: str
    split: Split
    path: Path
    shots: tuple[int, ...]
    n_inner_steps: int | None = None
    n_views: int | None = None

    @property
    def is_main(self) -> bool:
        """Whether these weights are shown apart: scores, and false alarms of all victims."""
        return (self.name, self.split.name) == (OURS, MAIN_SPLIT)

    def alarm_groups(self, facts: Mapping[str, Any], n_shots: int) -> tuple[str, ...]:
        """In which groups the false alarms of a victim count, of whatever use it was elsewhere."""
        if self.is_main and facts["evaluation"]:
            return groups_of(facts)
        own = self.name == OURS and self.split.axis == "dataset" and n_shots == MAIN_SHOTS
        return (DATA_SETS,) if own and facts["pool"] == self.split.left_out else ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found of one victim.

    Attributes
    ----------
    rows : list of Row
    alarms : list of FalseAlarms
        Of the main weights, and of those that left its data set out; also where it has no row.
    standard : mapping of int to (n,) float array
        Standardised log-odds that the main weights give to clean (0) and to obeyed triggered (1)
        inputs; empty where they have no row.
    """

    rows: list[Row]
    alarms: list[FalseAlarms]
    standard: dict[int, Floats]


def counts(recording: Recording) -> bool:
    """Whether a victim may stand in a table: kept for evaluation, and its attack works."""
    facts = recording.facts
    works = facts["asr"] is not None and facts["asr"] >= MIN_ASR
    return bool(facts["evaluation"] and works)


def both_ways(split: Split, path: Path, shots: tuple[int, ...]) -> list[Contender]:
    """Make contenders of the weights of a split, adapted and unadapted."""
    steps = {OURS: None, UNADAPTED: 0}
    return [
        Contender(name=name, split=split, path=path, shots=shots, n_inner_steps=n)
        for name, n in steps.items()
    ]


def judge_all(
    files: Sequence[Path],
    contenders: Sequence[Contender],
    shots: Sequence[int],
    n_workers: int = 1,
) -> Iterator[Findings]:
    """Judge recorded victims, in order; they are independent, so processes share them.

    Parameters
    ----------
    files : sequence of Path
        Recordings.
    contenders : sequence of Contender
    shots : sequence of int
        Numbers of clean inputs that peers are given.
    n_workers : int
    """
    each = partial(_judge_file, contenders=tuple(contenders), shots=tuple(shots))
    return map_in_processes(each, files, n_workers)


def _judge_file(path: Path, contenders: Sequence[Contender], shots: Sequence[int]) -> Findings:
    return judge_victim(load_recording(path), contenders, shots)


def judge_victim(
    recording: Recording, contenders: Sequence[Contender], shots: Sequence[int]
) -> Findings:
    """Judge one victim by all weights that judge it, and by every peer.

    Its profiles do not depend on weights: they are worked out once for each number of shots.
    """
    found = Findings(rows=[], alarms=[], standard={})
    for n_shots in shots:
        drawn = evaluation_shots(recording, n_shots)
        profiled: Reader = cache(partial(evaluation_profiles, drawn))
        for contender in contenders:
            if n_shots in contender.shots:
                _judge_by(contender, drawn, profiled, recording, found)
        if counts(recording):
            found.rows.extend(judge_peers(recording, drawn))
    return found


def _judge_by(
    contender: Contender, shots: Shots, profiled: Reader, recording: Recording, found: Findings
) -> None:
    """Add what one contender says of one victim's shots."""
    facts = recording.facts
    has_row = counts(recording) and contender.split.judges(facts)
    groups = contender.alarm_groups(facts, len(shots.references))
    if not (has_row or groups):
        return
    weights = _read(contender.path)
    read = profiled(weights.config.representation)
    if contender.n_views is not None:
        read = read.last(contender.n_views)
    told = answers(weights, read, contender.n_inner_steps)
    if groups:
        found.alarms.extend(false_alarms(shots, told.p_values, groups, facts["pool"]))
    if not has_row:
        return
    if contender.is_main and len(shots.references) == MAIN_SHOTS:
        found.standard.update({c: told.standard[shots.labels == c] for c in (0, 1)})
    names = {"name": contender.name, "split": contender.split.name}
    row = row_of(shots, told.scores, told.p_values, facts, **names, seconds=told.seconds)
    if row is not None:
        found.rows.append(row)


@cache
def _read(path: Path) -> Weights:
    return Weights.load(path)


def judge_peers(recording: Recording, shots: Shots) -> Iterator[Row]:
    """Judge one victim by every peer; those of several passes have their scores on record."""
    facts = recording.facts
    for name in ONE_PASS:
        row = judge(DETECTORS[name](), shots, facts, name=name, split=PEERS)
        if row is not None:
            yield row
    for name in MULTI_PASS:
        key = f"{name}@{len(shots.references)}"
        if key in recording.peer_scores:
            scores, p_values = recording.peer_scores[key]
            row = row_of(shots, scores, p_values, facts, name=name, split=PEERS)
            if row is not None:
                yield row


def judge_one(name: str, recording: Recording, weights: Weights, n_shots: int) -> Row | None:
    """Judge one victim by one detector, outside any split: ours by weights, or a one-pass peer.

    Parameters
    ----------
    name : str
        :data:`OURS` or one of :data:`fl_shield.detectors.ONE_PASS`.
    recording : Recording
    weights : Weights
        Of MetaShield.
    n_shots : int

    Returns
    -------
    Row, optional
        None where no triggered input reaches the target.
    """
    shots, facts = evaluation_shots(recording, n_shots), recording.facts
    if name != OURS:
        return judge(DETECTORS[name](), shots, facts, name=name, split=PEERS)
    told = answers(weights, evaluation_profiles(shots, weights.config.representation))
    return row_of(shots, told.scores, told.p_values, facts, name=name, split=PEERS)
