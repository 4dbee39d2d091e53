"""Profiles beside the references' own: against a loop, and a detector that reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.conditioning import FLOOR, Habits, beside_each_other
from fl_shield.detector import Adapted, MetaShield
from fl_shield.errors import ShieldError
from fl_shield.meta import Episode, MetaConfig
from fl_shield.simulations.meta_training import fit_weights
from fl_shield.types import Floats
from fl_shield.weights import Weights, blank_weights

CONFIG = MetaConfig(n_hidden=8, n_inner_steps=1, n_epochs=3, n_query=12, conditioned=True)


def _profiles(n: int, seed: int = 0, width: int = 135) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 2, width)).astype(np.float32)


def _slowly(references: Floats) -> Floats:
    """Each reference beside the habits of all others, one after the other."""
    rows = []
    for i in range(len(references)):
        others = np.delete(references.astype(np.float64), i, axis=0)
        z = (references[i] - others.mean(0)) / (others.std(0, ddof=1) + FLOOR)
        rows.append(np.concatenate([references[i], np.arcsinh(z)], axis=-1))
    return np.stack(rows)


@pytest.mark.parametrize("m", [3, 4, 5, 20])
def test_leaving_one_out_against_a_loop(m: int) -> None:
    references = _profiles(m, seed=m, width=7) * 3 + 5
    found = beside_each_other(references)
    assert found.shape == (m, 2, 14)
    np.testing.assert_allclose(found, _slowly(references), atol=1e-9)


def test_habits_by_hand() -> None:
    habits = Habits.of(np.array([[[1.0, 4.0]], [[3.0, 4.0]]]))
    assert habits.mean.tolist() == [[2.0, 4.0]]
    np.testing.assert_allclose(habits.spread, [[np.sqrt(2), 0]])
    beside = habits.beside(np.array([[[2.0, 7.0]], [[2 + np.sqrt(2) + FLOOR, 4.0]]]))
    np.testing.assert_allclose(beside[0, 0], [2, 7, 0, np.arcsinh(3 / FLOOR)])
    np.testing.assert_allclose(beside[1, 0, 2:], [np.arcsinh(1.0), 0])


def test_columns_that_are_shifted_are_as_unusual_as_before() -> None:
    references, points = _profiles(9).astype(np.float64), _profiles(4, seed=1).astype(np.float64)
    shift = np.random.default_rng(2).normal(size=135) * 50
    plain, moved = Habits.of(references), Habits.of(references + shift)
    z = slice(135, None)
    np.testing.assert_allclose(
        moved.beside(points + shift)[..., z], plain.beside(points)[..., z], atol=1e-9
    )
    np.testing.assert_allclose(
        beside_each_other(references + shift)[..., z],
        beside_each_other(references)[..., z],
        atol=1e-9,
    )
    np.testing.assert_array_equal(moved.beside(points)[..., :135], points)


def test_the_order_of_references_does_not_matter() -> None:
    references = _profiles(8)
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_allclose(
        beside_each_other(references[order]), beside_each_other(references)[order], atol=1e-9
    )


def test_constant_columns_and_large_values_stay_finite() -> None:
    same = np.full((5, 1, 2), 1e7, np.float32)
    assert np.isfinite(beside_each_other(same)).all()
    np.testing.assert_allclose(beside_each_other(same)[..., 2:], 0, atol=1e-6)
    assert np.isfinite(Habits.of(same).beside(-same)).all()


@pytest.mark.parametrize("m", [0, 1, 2])
def test_too_few_references_say_how_many(m: int) -> None:
    with pytest.raises(ValueError, match=f"at least 3 references, got {m}; give 20"):
        beside_each_other(_profiles(3)[:m])


def _episode(seed: int) -> Episode:
    labels = np.repeat([0, 1], 10)
    query = _profiles(20, seed)
    query[labels == 1, :, :20] += 3
    support = _profiles(10, seed + 100)
    return Episode(support=support, query=query, labels=labels, family="shift", domain="cv-toy")


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Conditioned weights after a moment of meta-training."""
    found = fit_weights([_episode(i) for i in range(8)], [], CONFIG, 0, {"trained": "toy"})
    *_, (_, trained) = found
    return replace(trained, nulls=blank_weights(config=CONFIG).nulls)


def test_conditioned_weights_read_twice_as_many_columns(weights: Weights) -> None:
    assert weights.mean.shape == weights.scale.shape == (270,)
    assert blank_weights(config=CONFIG).params["w1"].shape == (270, 8)
    references, points = _profiles(6), _profiles(4, seed=1)
    read = weights.read_points(points, Habits.of(references))
    assert read.shape == (4, 2, 270)
    torch.testing.assert_close(
        read, weights.standard(Habits.of(references).beside(points)), atol=0, rtol=0
    )
    plain = blank_weights(config=MetaConfig(n_hidden=8))
    assert plain.read_references(references).shape == (6, 2, 135)
    assert plain.read_points(points, Habits.of(references)).shape == (4, 2, 135)


def test_conditioned_weights_tell_triggered_points(weights: Weights) -> None:
    episode = _episode(50)
    odds = Adapted(weights, episode.support).score(episode.query).log_odds
    assert odds[episode.labels == 1].mean() > odds[episode.labels == 0].mean()


def test_a_conditioned_detector_fits_scores_and_comes_back(
    weights: Weights, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    clean, x = (rng.normal(size=(n, 4)).astype(np.float32) for n in (12, 5))
    before = MetaShield(weights).fit(net, clean)
    before.save(tmp_path / "weights.safetensors")
    after = MetaShield.load(tmp_path / "weights.safetensors").fit(net, clean)
    assert after.weights.config == CONFIG
    scores = before.score(x)
    assert scores.shape == (5,)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(after.score(x), scores)
    np.testing.assert_array_equal(after.p_values(x), before.p_values(x))
    np.testing.assert_allclose(  # one after the other as all at once
        [before.score(x[i : i + 1])[0] for i in range(5)], scores, atol=1e-5
    )


def test_the_null_of_the_nearest_number_of_references_on_a_logarithmic_scale() -> None:
    nulls = {"inputs": 0.0, "inputs@5": 5.0, "inputs@20": 20.0, "inputs@50": 50.0, "updates": 1.0}
    weights = replace(blank_weights(), nulls={n: torch.tensor([v]) for n, v in nulls.items()})

    def null(kind: str, n: int) -> float:
        return float(weights.null_for(kind, n)[0])

    assert [null("inputs", n) for n in (0, 1, 5, 9, 11, 20, 31, 32, 1000)] == [
        *(5, 5, 5, 5),  # the middle of 5 and 20 is 10
        *(20, 20, 20),  # of 20 and 50 it is 31.6
        *(50, 50),
    ]
    assert null("updates", 20) == 1
    with pytest.raises(ShieldError, match="no null distribution of first updates"):
        null("first updates", 20)
    plain = replace(weights, nulls={"inputs": torch.tensor([7.0])})
    assert float(plain.null_for("inputs", 3)[0]) == 7
