"""What every detector promises, over one table: add a detector by adding a line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.detector import MetaShield, Weights
from fl_shield.errors import NotFittedError
from fl_shield.types import Floats, View

DETECTORS: Mapping[str, Callable[[Weights], Any]] = {
    "metashield": MetaShield,
    "metashield-unadapted": lambda weights: MetaShield(weights, n_inner_steps=0),
    "metashield-tasks": lambda weights: MetaShield(weights, guarantee="tasks"),
    "metashield-named-layers": lambda weights: MetaShield(weights, layers=("0", "2")),
}
"""Detectors by name, each made from weights that only the meta-learned ones use."""

LOADERS: Mapping[str, Callable[[Path], Any]] = {"metashield": MetaShield.load}
"""How the detectors that can be saved are loaded again."""

detectors = pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)


def _model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def _inputs(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


CLEAN = _inputs(16, 0)
POINTS = np.concatenate([_inputs(8, 1), _inputs(2, 2) * 30])


@detectors
def test_one_finite_score_a_point(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    for n in (1, 2, len(POINTS)):
        scores = detector.score(POINTS[:n])
        assert scores.shape == (n,)
        assert np.isfinite(scores).all()


@detectors
def test_fit_returns_self(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    detector = make(toy_weights)
    assert detector.fit(_model(), CLEAN) is detector


@detectors
def test_nothing_is_told_before_fit(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    detector = make(toy_weights)
    for ask in (detector.score, detector.p_values, detector.predict):
        with pytest.raises(NotFittedError, match="fit"):
            ask(POINTS)


@detectors
def test_constructor_stores_only(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    detector = make(toy_weights)
    settings = set(inspect.signature(type(detector).__init__).parameters) - {"self"}
    assert set(vars(detector)) == settings
    assert not any(name.endswith("_") for name in vars(detector))


@detectors
def test_refit_forgets(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    once = make(toy_weights).fit(_model(1), CLEAN)
    twice = make(toy_weights).fit(_model(0), _inputs(20, 9) * 3).fit(_model(1), CLEAN)
    np.testing.assert_array_equal(twice.score(POINTS), once.score(POINTS))
    np.testing.assert_array_equal(twice.p_values(POINTS), once.p_values(POINTS))
    assert twice.threshold_ == once.threshold_


@detectors
def test_same_inputs_same_scores(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    first, second = (make(toy_weights).fit(_model(), CLEAN) for _ in range(2))
    np.testing.assert_array_equal(first.score(POINTS), second.score(POINTS))
    np.testing.assert_array_equal(first.score(POINTS), first.score(POINTS))


@detectors
def test_order_of_points_moves_with_the_scores(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    order = np.random.default_rng(0).permutation(len(POINTS))
    np.testing.assert_allclose(
        detector.score(POINTS[order]), detector.score(POINTS)[order], atol=1e-4
    )


@detectors
def test_points_do_not_change_each_others_scores(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    together = detector.score(POINTS)
    alone = np.concatenate([detector.score(POINTS[i : i + 1]) for i in range(len(POINTS))])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@detectors
def test_order_of_references_does_not_matter(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    order = np.random.default_rng(0).permutation(len(CLEAN))
    first = make(toy_weights).fit(_model(), CLEAN).score(POINTS)
    second = make(toy_weights).fit(_model(), CLEAN[order]).score(POINTS)
    np.testing.assert_allclose(first, second, atol=1e-3)


@detectors
def test_an_obvious_outlier_is_more_suspicious(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    scores, p_values = detector.score(POINTS), detector.p_values(POINTS)
    assert scores[8:].min() > scores[:8].max()
    assert p_values[8:].max() < p_values[:8].mean()


@detectors
def test_p_values_fall_as_scores_rise(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    order = np.argsort(detector.score(POINTS), kind="stable")
    p_values = detector.p_values(POINTS)[order]
    assert p_values.shape == (len(POINTS),)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert (np.diff(p_values) <= 1e-12).all()


@detectors
def test_flags_are_scores_above_the_threshold(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    detector = make(toy_weights).fit(_model(), CLEAN)
    flags = detector.predict(POINTS)
    assert flags.dtype == np.bool_
    np.testing.assert_array_equal(flags, detector.score(POINTS) > detector.threshold_)


@detectors
def test_the_model_and_the_data_are_left_as_they_were(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    model, clean, points = _model().train(), CLEAN.copy(), POINTS.copy()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    make(toy_weights).fit(model, clean).score(points)
    assert model.training
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    np.testing.assert_array_equal(clean, CLEAN)
    np.testing.assert_array_equal(points, POINTS)


@detectors
def test_global_random_numbers_are_not_touched(
    make: Callable[[Weights], Any], toy_weights: Weights
) -> None:
    before = torch.get_rng_state()
    make(toy_weights).fit(_model(), CLEAN).score(POINTS)
    assert torch.equal(before, torch.get_rng_state())


@detectors
def test_no_clean_inputs_are_refused(make: Callable[[Weights], Any], toy_weights: Weights) -> None:
    for clean in (None, CLEAN[:0], CLEAN[:2]):
        with pytest.raises(ValueError, match="clean"):
            make(toy_weights).fit(_model(), clean)


@pytest.mark.parametrize("name", LOADERS)
def test_saved_detectors_give_the_same_scores(
    name: str, toy_weights: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "detector.safetensors"
    saved = DETECTORS[name](toy_weights)
    saved.save(path)
    loaded = LOADERS[name](path)
    for detector in (saved, loaded):
        detector.fit(_model(), CLEAN)
    np.testing.assert_array_equal(saved.score(POINTS), loaded.score(POINTS))
    np.testing.assert_array_equal(saved.p_values(POINTS), loaded.p_values(POINTS))


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

    from fl_shield.errors import ShieldError

    broken, foreign = tmp_path / "broken.safetensors", tmp_path / "foreign.safetensors"
    broken.write_bytes(b"no weights")
    save_file({"x": torch.zeros(2)}, str(foreign), metadata={"format": "another/1"})
    with pytest.raises(ShieldError, match="not a readable detector"):
        MetaShield.load(broken)
    with pytest.raises(ShieldError, match="not a readable detector"):
        MetaShield.load(tmp_path / "absent.safetensors")
    with pytest.raises(ShieldError, match="this version reads"):
        MetaShield.load(foreign)


def test_shipped_weights_load_and_score() -> None:
    scores = MetaShield.from_pretrained().fit(_model(), CLEAN).score(POINTS)
    assert np.isfinite(scores).all()
