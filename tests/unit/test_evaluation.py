"""Splits and rows of an evaluation, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_shield.activations import Activations
from fl_shield.detector import MetaShield
from fl_shield.detectors import DETECTORS, ONE_PASS
from fl_shield.errors import ScenarioError
from fl_shield.meta import MetaConfig
from fl_shield.metrics import auroc
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import Shots, evaluation_shots
from fl_shield.simulations.evaluation.answers import answers, evaluation_profiles
from fl_shield.simulations.evaluation.judging import FPR_GRID, judge, row_of
from fl_shield.simulations.evaluation.splits import AXES, Split, all_splits
from fl_shield.types import Floats, Representation
from fl_shield.weights import blank_weights

FACTS = {
    "pool": "digits",
    "domain": "cv",
    "architecture": "mlp",
    "family": "circle",
    "seed": 3,
    "evaluation": True,
    "poison_rate": 0.2,
    "asr": 0.95,
}


def _facts(**changes: Any) -> dict[str, Any]:
    return {**FACTS, **changes}


def _activations(n: int, seed: int = 0) -> Activations:
    rows = np.random.default_rng(seed).normal(size=(n, 4))
    return Activations(layers={"head": rows}, logits=rows[:, :2])


def _recording(**changes: Any) -> Recording:
    return Recording(
        references=_activations(30),
        clean=_activations(6, 1),
        triggered=_activations(5, 2),
        reached=np.array([True, True, True, False, True]),
        facts=_facts(**changes),
        peer_scores={},
    )


def test_held_out_triggers_are_never_learned_whatever_the_split() -> None:
    for axis in AXES:
        split = Split(axis=axis, left_out="other")
        assert not split.trains_on(_facts(evaluation=False))
        assert not split.trains_on(_facts(family="patch"))  # kept for evaluation


@pytest.mark.parametrize(
    ("axis", "left_out", "own"),
    [("dataset", "digits", {}), ("domain", "cv", {}), ("architecture", "mlp", {})],
)
def test_what_is_left_out_is_judged_and_not_learned(
    axis: Any, left_out: str, own: dict[str, str]
) -> None:
    split = Split(axis=axis, left_out=left_out)
    assert split.name == f"{axis}-{left_out}"
    learnable = _facts(evaluation=False, family="patch")
    other = {"pool": "sst2", "domain": "nlp", "architecture": "gru"}
    assert not split.trains_on(learnable)
    assert split.trains_on({**learnable, **other})
    assert split.judges(FACTS)
    assert split.judges(_facts(family="patch"))
    assert not split.judges(_facts(**other))
    assert not split.judges(learnable)
    assert split.trains_on({"domain": "fl", "pool": "federation", "evaluation": False})


def test_triggers_and_transfer() -> None:
    triggers, transfer = (
        Split(axis="trigger", left_out="held-out"),
        Split(axis="transfer", left_out="nlp"),
    )
    learnable = _facts(evaluation=False, family="patch")
    assert triggers.trains_on(learnable)
    assert [triggers.judges(_facts(family=f)) for f in ("circle", "patch")] == [True, False]
    assert not transfer.trains_on(learnable)
    assert transfer.trains_on({**learnable, "domain": "nlp"})
    assert not transfer.trains_on({"domain": "fl", "pool": "federation", "evaluation": False})
    assert transfer.judges(FACTS)
    assert not transfer.judges(learnable)


def test_all_splits_that_the_victims_allow() -> None:
    recordings = [_recording(), _recording(pool="glyphs"), _recording(pool="sst2", domain="nlp")]
    assert [s.name for s in all_splits(recordings, ("dataset", "trigger", "domain"))] == [
        "trigger-held-out",
        *("dataset-digits", "dataset-glyphs", "dataset-sst2"),
        *("domain-cv", "domain-nlp"),
    ]
    assert len(all_splits(recordings)) == 1 + 3 + 2 + 1 + 2
    for wrong, got in ((("trigger", "colour"), "'colour'"), ((), "none")):
        with pytest.raises(ScenarioError, match=f"a table must be one of trigger.*got {got}"):
            all_splits(recordings, wrong)


def _shots(labels: list[int]) -> Shots:
    return Shots(
        references=_activations(20),
        points=_activations(len(labels)),
        labels=np.array(labels),
        n_clean=labels.count(0),
    )


def test_a_row_by_hand() -> None:
    shots = _shots([0, 0, 0, 0, 1, 1, 2, 2])
    scores = np.array([0.1, 0.2, 0.3, 0.8, 0.7, 0.9, 0.95, 0.0])
    p_values = np.array([0.9, 0.8, 0.5, 0.04, 0.05, 0.01, 0.005, 1.0])
    row = row_of(shots, scores, p_values, FACTS, name="knn", split="peers", seconds=(0.5, 0.25))
    assert row is not None
    assert (row.detector, row.split, row.n_shots, row.seed) == ("knn", "peers", 20, 3)
    assert (row.pool, row.domain, row.architecture, row.family) == ("digits", "cv", "mlp", "circle")
    assert row.auc == pytest.approx(7 / 8)  # of eight pairs one is in the wrong order
    assert row.tpr_at_fpr_5 == 0.5  # no false alarm is allowed: above 0.8
    assert (row.tpr_5, row.fpr_5) == (1.0, 0.25)
    assert (row.tpr_1, row.fpr_1) == (0.5, 0.0)
    assert row.f2_5 == pytest.approx(5 * 2 / (5 * 2 + 1))
    assert row.missed_flagged == 0.5
    assert (row.fit_seconds, row.score_seconds) == (0.5, 0.25)
    assert row.roc == tuple(0.5 if fpr < 0.25 else 1.0 for fpr in FPR_GRID)


def test_a_row_without_misses_says_nothing_of_them() -> None:
    row = row_of(_shots([0, 1]), np.array([0.1, 0.2]), np.ones(2), FACTS, name="knn", split="peers")
    assert row is not None
    told = row.to_json()
    assert told["missed_flagged"] is told["fit_seconds"] is None
    assert (told["auc"], told["tpr_5"]) == (1.0, 0.0)


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1], [0, 0]])
def test_a_victim_that_nothing_can_be_said_of_has_no_row(labels: list[int]) -> None:
    numbers = np.linspace(0, 1, len(labels))
    assert row_of(_shots(labels), numbers, numbers, FACTS, name="knn", split="peers") is None


class _FirstCoordinate:
    """A detector whose score is the first coordinate of the head's input."""

    def fit(self, model_or_view: Activations, clean: Any = None) -> _FirstCoordinate:
        self.n = len(model_or_view)
        self.reference_scores_ = np.full(self.n, -99.0)
        return self

    def score(self, points: Activations) -> Floats:
        return points.penultimate[:, 0]


def test_judging_gives_the_detector_its_references_and_points() -> None:
    recording = _recording()
    shots = evaluation_shots(recording, 20)
    row = judge(_FirstCoordinate(), shots, recording.facts, name="first", split="s")
    assert row is not None
    kept = shots.labels < 2
    expected = auroc(shots.labels[kept], shots.points.penultimate[kept, 0])
    assert row.auc == pytest.approx(expected)
    assert (row.tpr_5, row.fpr_5, row.tpr_1) == (1.0, 1.0, 0.0)  # p = 1 / 21
    assert row.fit_seconds >= 0
    assert row.n_shots == 20


@pytest.mark.parametrize("name", ONE_PASS)
def test_peers_have_the_p_values_of_their_own(name: str) -> None:
    recording = _recording()
    shots = evaluation_shots(recording, 20)
    row = judge(DETECTORS[name](), shots, recording.facts, name=name, split="s")
    fitted = DETECTORS[name]().fit(shots.references)
    scores, p_values = fitted.score(shots.points), fitted.p_values(shots.points)
    slow = row_of(shots, scores, p_values, recording.facts, name=name, split="s")
    assert row is not None
    assert slow is not None
    assert replace(row, fit_seconds=0.0, score_seconds=0.0) == replace(
        slow, fit_seconds=0.0, score_seconds=0.0
    )


@pytest.mark.parametrize("representation", ["profile", "pca"])
@pytest.mark.parametrize("n_inner_steps", [None, 0])
def test_shared_profiles_give_the_numbers_of_the_detector(
    representation: Representation, n_inner_steps: int | None
) -> None:
    config = MetaConfig(n_hidden=4, n_inner_steps=2, representation=representation)
    shots = evaluation_shots(_recording(), 20)
    profiled = evaluation_profiles(shots, representation)
    for seed in range(2):  # other weights, the same profiles
        weights = blank_weights(seed, config)
        told = answers(weights, profiled, n_inner_steps)
        shield = MetaShield(weights, guarantee="tasks", n_inner_steps=n_inner_steps)
        shield.fit(shots.references)
        np.testing.assert_array_equal(told.scores, shield.score(shots.points))
        np.testing.assert_array_equal(told.p_values, shield.p_values(shots.points))
        assert told.seconds[0] >= profiled.fit_seconds > 0
        assert told.seconds[1] >= profiled.score_seconds / len(shots.points) > 0
