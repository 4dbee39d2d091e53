"""What every detector promises, over one table: add a detector by adding a line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.activations import read_activations
from fl_shield.detector import MetaShield
from fl_shield.detectors import DETECTORS as PUBLISHED
from fl_shield.detectors import MULTI_PASS, ONE_PASS, make_detector
from fl_shield.errors import NotFittedError, ShieldError
from fl_shield.types import Floats, View
from fl_shield.weights import Purpose, Weights


def _model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def _model_of_images(seed: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *_model(seed))


def _model_with_norm(seed: int = 0) -> nn.Sequential:
    first, *rest = _model(seed)
    return nn.Sequential(first, nn.BatchNorm1d(16), *rest)


def _inputs(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def _images(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).random((n, 1, 2, 3), np.float32)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One line of the table: a detector, and what it is tried on.

    Attributes
    ----------
    make : callable
        Weights, which only the meta-learned ones use -> detector.
    model, inputs : callable
        Seed -> network, and number and seed -> inputs.
    far : float
        What the last two points are multiplied by.
    sees_far : bool
        Whether such points are what the detector looks for; not so where it looks for answers
        that survive a change, and its scores have a few levels only.
    ties : bool
        Whether its scores have a largest value, which ordinary points may reach too.
    """

    make: Callable[[Weights], Any]
    model: Callable[[int], nn.Module] = _model
    inputs: Callable[[int, int], Floats] = _inputs
    far: float = 30.0
    sees_far: bool = True
    ties: bool = False

    @property
    def clean(self) -> Floats:
        return self.inputs(16, 0)

    @property
    def points(self) -> Floats:
        return np.concatenate([self.inputs(8, 1), self.inputs(2, 2) * np.float32(self.far)])

    def fitted(self, weights: Weights, seed: int = 0) -> Any:
        return self.make(weights).fit(self.model(seed), self.clean)


def _published(name: str) -> Subject:
    make = PUBLISHED[name]
    images = name.startswith("scale_up")
    return Subject(
        make=lambda _weights: make(),
        model={"ibd_psc": _model_with_norm}.get(name, _model_of_images if images else _model),
        inputs=_images if images else _inputs,
        far=1.0 if images else 30.0,
        sees_far=not images,
        ties=name == "tedpp",
    )


DETECTORS: Mapping[str, Subject] = {
    "metashield": Subject(make=MetaShield),
    "metashield-unadapted": Subject(make=lambda weights: MetaShield(weights, n_inner_steps=0)),
    "metashield-tasks": Subject(make=lambda weights: MetaShield(weights, guarantee="tasks")),
    "metashield-named-layers": Subject(make=lambda weights: MetaShield(weights, layers=("0", "2"))),
    **{name: _published(name) for name in PUBLISHED},
}
"""Every detector by name."""

LOADERS: Mapping[str, Callable[[Path], Any]] = {"metashield": MetaShield.load}
"""How the detectors that can be saved are loaded again."""

detectors = pytest.mark.parametrize("subject", DETECTORS.values(), ids=DETECTORS)

CLEAN = _inputs(16, 0)
POINTS = np.concatenate([_inputs(8, 1), _inputs(2, 2) * 30])


@detectors
def test_one_finite_score_a_point(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    for n in (1, 2, len(subject.points)):
        scores = detector.score(subject.points[:n])
        assert scores.shape == (n,)
        assert np.isfinite(scores).all()


@detectors
def test_fit_returns_self(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.make(toy_weights)
    assert detector.fit(subject.model(0), subject.clean) is detector


@detectors
def test_nothing_is_told_before_fit(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.make(toy_weights)
    for ask in (detector.score, detector.p_values, detector.predict):
        with pytest.raises(NotFittedError, match="fit"):
            ask(subject.points)


@detectors
def test_constructor_stores_only(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.make(toy_weights)
    settings = set(inspect.signature(type(detector).__init__).parameters) - {"self"}
    assert set(vars(detector)) == settings
    assert not any(name.endswith("_") for name in vars(detector))


@detectors
def test_refit_forgets(subject: Subject, toy_weights: Weights) -> None:
    once = subject.make(toy_weights).fit(subject.model(1), subject.clean)
    twice = (
        subject.make(toy_weights)
        .fit(subject.model(0), subject.inputs(20, 9) * np.float32(min(subject.far, 3)))
        .fit(subject.model(1), subject.clean)
    )
    np.testing.assert_array_equal(twice.score(subject.points), once.score(subject.points))
    np.testing.assert_array_equal(twice.p_values(subject.points), once.p_values(subject.points))
    assert twice.threshold_ == once.threshold_


@detectors
def test_same_inputs_same_scores(subject: Subject, toy_weights: Weights) -> None:
    first, second = (subject.fitted(toy_weights) for _ in range(2))
    np.testing.assert_array_equal(first.score(subject.points), second.score(subject.points))
    np.testing.assert_array_equal(first.score(subject.points), first.score(subject.points))


@detectors
def test_order_of_points_moves_with_the_scores(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    order = np.random.default_rng(0).permutation(len(subject.points))
    np.testing.assert_allclose(
        detector.score(subject.points[order]), detector.score(subject.points)[order], atol=1e-4
    )


@detectors
def test_points_do_not_change_each_others_scores(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    together = detector.score(subject.points)
    alone = np.concatenate(
        [detector.score(subject.points[i : i + 1]) for i in range(len(subject.points))]
    )
    np.testing.assert_allclose(alone, together, rtol=1e-6, atol=1e-4)


@detectors
def test_order_of_references_does_not_matter(subject: Subject, toy_weights: Weights) -> None:
    order = np.random.default_rng(0).permutation(len(subject.clean))
    first = subject.fitted(toy_weights).score(subject.points)
    second = (
        subject.make(toy_weights).fit(subject.model(0), subject.clean[order]).score(subject.points)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(
    "subject",
    [pytest.param(s, id=name) for name, s in DETECTORS.items() if s.sees_far],
)
def test_an_obvious_outlier_is_more_suspicious(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    scores, p_values = detector.score(subject.points), detector.p_values(subject.points)
    if subject.ties:
        assert scores[8:].min() >= scores[:8].max() > np.median(scores[:8])
    else:
        assert scores[8:].min() > scores[:8].max()
    assert p_values[8:].max() < p_values[:8].mean()


@detectors
def test_p_values_fall_as_scores_rise(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    order = np.argsort(detector.score(subject.points), kind="stable")
    p_values = detector.p_values(subject.points)[order]
    assert p_values.shape == (len(subject.points),)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert (np.diff(p_values) <= 1e-12).all()


@detectors
def test_flags_are_scores_above_the_threshold(subject: Subject, toy_weights: Weights) -> None:
    detector = subject.fitted(toy_weights)
    flags = detector.predict(subject.points)
    assert flags.dtype == np.bool_
    np.testing.assert_array_equal(flags, detector.score(subject.points) > detector.threshold_)


@detectors
def test_the_model_and_the_data_are_left_as_they_were(
    subject: Subject, toy_weights: Weights
) -> None:
    model, clean, points = subject.model(0).train(), subject.clean.copy(), subject.points.copy()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    subject.make(toy_weights).fit(model, clean).score(points)
    assert model.training
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    np.testing.assert_array_equal(clean, subject.clean)
    np.testing.assert_array_equal(points, subject.points)


@detectors
def test_global_random_numbers_are_not_touched(subject: Subject, toy_weights: Weights) -> None:
    before = torch.get_rng_state()
    subject.fitted(toy_weights).score(subject.points)
    assert torch.equal(before, torch.get_rng_state())


@detectors
def test_no_clean_inputs_are_refused(subject: Subject, toy_weights: Weights) -> None:
    for clean in (None, subject.clean[:0], subject.clean[:2]):
        with pytest.raises(ValueError, match="clean"):
            subject.make(toy_weights).fit(subject.model(0), clean)


@pytest.mark.parametrize("name", LOADERS)
def test_saved_detectors_give_the_same_scores(
    name: str, toy_weights: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "detector.safetensors"
    saved = DETECTORS[name].make(toy_weights)
    saved.save(path)
    loaded = LOADERS[name](path)
    for detector in (saved, loaded):
        detector.fit(_model(), CLEAN)
    np.testing.assert_array_equal(saved.score(POINTS), loaded.score(POINTS))
    np.testing.assert_array_equal(saved.p_values(POINTS), loaded.p_values(POINTS))


# What the published detectors promise beyond the contract.


@pytest.mark.parametrize("name", ONE_PASS)
def test_activations_are_taken_in_place_of_a_model(name: str) -> None:
    model = _model()
    clean, points = read_activations(model, CLEAN), read_activations(model, POINTS)
    from_model = PUBLISHED[name]().fit(model, CLEAN)
    from_activations = PUBLISHED[name]().fit(clean)
    np.testing.assert_array_equal(from_activations.score(points), from_model.score(POINTS))
    np.testing.assert_array_equal(from_model.score(points), from_model.score(POINTS))
    assert from_activations.threshold_ == from_model.threshold_
    assert from_model.n_passes == 1
    with pytest.raises(ShieldError, match="fitted on activations"):
        from_activations.score(POINTS)


@pytest.mark.parametrize("name", MULTI_PASS)
def test_several_passes_need_the_model_and_say_how_many(name: str) -> None:
    subject = DETECTORS[name]
    model, seen = subject.model(0), read_activations(_model(), CLEAN)
    calls: list[int] = []
    detector: Any = PUBLISHED[name]()
    with pytest.raises(TypeError, match=r"call fit\(model, clean\)"):
        detector.fit(seen)
    detector.fit(model, subject.clean)
    handle = detector._model.register_forward_hook(lambda *_: calls.append(1))
    detector.score(subject.points)
    handle.remove()
    assert 1 < len(calls) <= detector.n_passes


@pytest.mark.parametrize("n", [4, 5, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_fewer_references_than_classes_will_do(name: str, n: int) -> None:
    subject = DETECTORS[name]
    detector = PUBLISHED[name]().fit(subject.model(0), subject.clean[:n])
    assert np.isfinite(detector.score(subject.points)).all()
    assert np.isfinite(detector.reference_scores_).all()
    assert "cannot promise FPR 0.05" in detector.guarantee_
    assert not detector.predict(subject.points).any()


@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_references_and_numbers_that_are_none(name: str) -> None:
    subject = DETECTORS[name]
    same = np.repeat(subject.clean[:1], 6, axis=0)
    detector = PUBLISHED[name]().fit(subject.model(0), same)
    assert np.isfinite(detector.score(subject.points)).all()
    broken = subject.points.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        detector.score(broken)
    with pytest.raises(ValueError, match="NaN"):
        PUBLISHED[name]().fit(subject.model(0), broken)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("budget", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_budgets_are_refused(name: str, budget: float) -> None:
    with pytest.raises(ValueError, match="fpr_budget"):
        PUBLISHED[name](fpr_budget=budget)


@pytest.mark.parametrize("name", PUBLISHED)
def test_references_are_scored_by_the_others(name: str) -> None:
    subject = DETECTORS[name]
    detector = PUBLISHED[name]().fit(subject.model(0), subject.clean)
    rest = PUBLISHED[name]().fit(subject.model(0), subject.clean[1:])
    expected = rest.score(subject.clean[:1])
    if name == "mahalanobis_logit":  # standardised by the others' scores of the whole fit
        assert abs(detector.reference_scores_[0] - expected[0]) < 0.5
        return
    np.testing.assert_allclose(detector.reference_scores_[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rules_flag_clean_inputs_about_as_often_as_asked(name: str) -> None:
    subject, rates = DETECTORS[name], []
    for seed in range(5):
        detector = PUBLISHED[name](fpr_budget=0.2)
        detector.fit(subject.model(seed), subject.inputs(19, 100 + seed))
        rates.append(detector.predict(subject.inputs(100, 200 + seed)).mean())
    assert np.mean(rates) < 0.35


def test_every_name_makes_its_detector() -> None:
    assert {*ONE_PASS, *MULTI_PASS} == set(PUBLISHED)
    assert not set(ONE_PASS) & set(MULTI_PASS)
    for name in PUBLISHED:
        assert make_detector(name, fpr_budget=0.1).fpr_budget == 0.1
    with pytest.raises(ValueError, match="detector must be one of confidence"):
        make_detector("oracle")


# What MetaShield promises beyond the contract.


def _views(points: Floats, seed: int = 0) -> list[View]:
    rng = np.random.default_rng(seed)
    return [
        View(name=f"v{k}", points=points, references=rng.normal(size=(12, 6)), depth=k / 2)
        for k in (1, 2)
    ]


def test_explanations_add_up_to_the_log_odds(toy_weights: Weights) -> None:
    detector = MetaShield(toy_weights).fit(_model(), CLEAN)
    parts = detector.explain(POINTS)
    assert list(parts) == list(detector.view_names_) == ["layer:0", "layer:2"]
    odds = np.sum(list(parts.values()), axis=0)
    np.testing.assert_allclose(detector.score(POINTS), 1 / (1 + np.exp(-odds)), atol=1e-6)


def test_views_are_taken_in_place_of_a_model(toy_weights: Weights) -> None:
    detector = MetaShield(toy_weights).fit(_views(POINTS[:1]))
    scores = detector.score(_views(POINTS))
    assert scores.shape == (len(POINTS),)
    assert scores[8:].min() > scores[:8].mean()


def test_flags_follow_the_p_values(toy_weights: Weights) -> None:
    detector = MetaShield(toy_weights, fpr_budget=0.2).fit(_model(), CLEAN)
    points = np.concatenate([_inputs(150, 3), _inputs(50, 4) * 2])
    within = detector.p_values(points) <= 0.2
    disagree = (within != detector.predict(points)) & (
        np.abs(detector.score(points) - detector.threshold_) > 0.01
    )
    assert not disagree.any()
    assert 0 < within.sum() < len(points)


def test_clean_inputs_are_flagged_about_as_often_as_asked(toy_weights: Weights) -> None:
    rates = []
    for seed in range(10):
        detector = MetaShield(toy_weights, fpr_budget=0.2)
        detector.fit(_model(seed), _inputs(19, 100 + seed))
        rates.append(detector.predict(_inputs(100, 200 + seed)).mean())
    assert np.mean(rates) < 0.35


def test_a_promise_that_cannot_be_kept_is_said(toy_weights: Weights) -> None:
    detector = MetaShield(toy_weights, fpr_budget=0.01).fit(_model(), CLEAN)
    assert "cannot promise FPR 0.01" in detector.guarantee_


def test_a_budget_below_the_smallest_p_value_flags_nothing(toy_weights: Weights) -> None:
    detector = MetaShield(toy_weights, fpr_budget=0.01).fit(_model(), CLEAN)
    assert (detector.p_values(POINTS * 1e3) > 0.01).all()
    assert not detector.predict(POINTS * 1e3).any()


def test_unreadable_weights_say_what_to_do(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken, foreign = tmp_path / "broken.safetensors", tmp_path / "foreign.safetensors"
    broken.write_bytes(b"no weights")
    save_file({"x": torch.zeros(2)}, str(foreign), metadata={"format": "another/1"})
    with pytest.raises(ShieldError, match="not a readable detector"):
        MetaShield.load(broken)
    with pytest.raises(ShieldError, match="not a readable detector"):
        MetaShield.load(tmp_path / "absent.safetensors")
    with pytest.raises(ShieldError, match="this version reads"):
        MetaShield.load(foreign)


@pytest.mark.parametrize("purpose", ["updates", "inputs"])
def test_shipped_weights_load_and_score(purpose: Purpose) -> None:
    scores = MetaShield.from_pretrained(purpose).fit(_model(), CLEAN).score(POINTS)
    assert np.isfinite(scores).all()


def test_unknown_weights_name_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="purpose must be one of updates, inputs, arena, got 'models'"
    ):
        MetaShield.from_pretrained("models")  # type: ignore[arg-type]
