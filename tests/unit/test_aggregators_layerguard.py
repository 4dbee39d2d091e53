"""LayerGuard against slow loops, literals by hand, and the attacker that it cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fl_shield.aggregators import AggregationContext, LayerGuard, Layout
from fl_shield.aggregators.layerguard import (
    client_weights,
    flagged_clients,
    high_risk_layers,
    joint_weights,
    nearest_cosines,
)
from fl_shield.errors import AggregationError
from fl_shield.types import Floats

SHAPES = {"conv.weight": (4, 1, 3), "conv.bias": (4,), "mid.weight": (6, 8), "fc.weight": (3, 6)}


def a_context(n: int) -> AggregationContext:
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(0),
    )


SIZE = a_context(1).layout.size


def a_round(n: int, seed: int, spread: float) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    updates = 0.1 * (rng.normal(size=SIZE) + spread * rng.normal(size=(n, SIZE)))
    return updates, rng.integers(5, 60, size=n).astype(np.float64)


def test_thresholds_come_down_until_somebody_passes() -> None:
    scores = np.array([0.93, 0.91, 0.90, 0.89, -0.5])
    np.testing.assert_array_equal(flagged_clients(scores, 0.95, 0.05), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(flagged_clients(scores - 0.9, 0.95, 0.05), [1, 1, 1, 0, 0])
    assert not flagged_clients(scores - 1, 0.95, 0.05).any()


def test_high_risk_layers_by_hand() -> None:
    flagged = np.zeros((3, 10), bool)
    flagged[0, :3] = flagged[1, 3] = flagged[2, :2] = True
    np.testing.assert_array_equal(high_risk_layers(flagged), [1, 0, 0])  # 4 is too many, 3 is not
    flagged[2, :5] = True
    np.testing.assert_array_equal(high_risk_layers(flagged), [0, 0, 1])


def test_a_layer_that_trusts_a_client_in_full_ignores_the_clients_own_weight() -> None:
    scores = np.array([[0.9, 0.9, 0.1, 0.2], [0.0, 0.5, 0.6, 0.1]])
    flagged = np.array([[True, True, False, False], [False, False, True, False]])
    weights = joint_weights(scores, flagged, client_weights(flagged, np.array([True, False])))
    # both flagged ones have a weight of 0; in the second layer the benign bound is 0.35
    by_hand = np.array([[0, 0, 1, 1 - 0.05 / 0.75], [1, 0, 0, 1]])
    np.testing.assert_allclose(weights, by_hand)


def _nearest_slowly(rows: Floats, i: int, m: int) -> float:
    cosines = [
        float(rows[i] @ other / math.sqrt((rows[i] @ rows[i]) * (other @ other)))
        for j, other in enumerate(rows)
        if j != i
    ]
    return sum(sorted(cosines)[-m:]) / m


def _flagged_slowly(scores: list[float]) -> list[int]:
    for percent in range(95, -1, -5):
        if passed := [i for i, score in enumerate(scores) if score >= percent / 100]:
            return passed
    return []


def _risky_slowly(bad: list[list[int]], needed: float) -> list[int]:
    risky = [layer for layer, passed in enumerate(bad) if len(passed) >= needed]
    return risky if risky or needed <= 1 else _risky_slowly(bad, max(needed - 1, 1))


def _layerguard_slowly(updates: Floats, counts: Floats, slices: list[slice], m: int) -> Floats:
    n = len(updates)
    scores = [[_nearest_slowly(updates[:, s], i, m) for i in range(n)] for s in slices]
    bad = [_flagged_slowly(layer) for layer in scores]
    risky = _risky_slowly(bad, n / 2 - 1)
    alpha = [1 - sum(i in bad[layer] for layer in risky) / len(risky) for i in range(n)]
    half = sorted(alpha, reverse=True)[n // 2 - 1]
    trusted = [i for i in range(n) if alpha[i] >= half]
    out = np.zeros(updates.shape[1])
    for layer, s in enumerate(slices):
        malicious = min(scores[layer][i] for i in bad[layer])
        benign = sum(scores[layer][i] for i in trusted) / len(trusted)
        weights = np.zeros(n)
        for i, score in enumerate(scores[layer]):
            if score < malicious and score <= benign:
                weights[i] = counts[i]
            elif score < malicious:
                weights[i] = counts[i] * alpha[i] * (malicious - score) / (malicious - benign)
        out[s] = np.average(updates[:, s], axis=0, weights=weights if weights.any() else counts)
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m", "n_bad"), [(10, 2, 3), (7, 1, 2), (12, 3, 0)])
def test_layerguard_by_loops(seed: int, n: int, m: int, n_bad: int) -> None:
    updates, weights = a_round(n, seed, spread=2.0)
    context = a_context(n)
    if n_bad:
        s = context.layout.slices["mid.weight"]
        updates[:n_bad, s] = updates[0, s] + 0.02 * updates[:n_bad, s]
    found, _ = LayerGuard(n_nearest=m).step(updates, weights, {}, context)
    slow = _layerguard_slowly(updates, weights, list(context.layout.slices.values()), m)
    np.testing.assert_allclose(found.update, slow, rtol=1e-8, atol=1e-12)


def _poisoned_layer(n_bad: int, factor: float) -> tuple[Floats, Floats, slice]:
    """A round, what LayerGuard makes of it, and where the poisoned layer stands."""
    updates, _ = a_round(10, 5, spread=4.0)
    context = a_context(10)
    s = context.layout.slices["mid.weight"]
    updates[:n_bad, s] = factor * (-3.0 + 0.05 * updates[:n_bad, s])
    found, _ = LayerGuard().step(updates, np.ones(10), {}, context)
    return updates, found.update, s


@pytest.mark.parametrize("n_bad", [2, 3, 4])
def test_layerguard_silences_colluders_in_the_layer_that_they_poison(n_bad: int) -> None:
    updates, found, s = _poisoned_layer(n_bad, 1.0)
    honest = updates[n_bad:, s].mean(0)
    far = np.linalg.norm(updates[:, s].mean(0) - honest)
    assert np.linalg.norm(found[s] - honest) < 0.3 * far
    _, louder, _ = _poisoned_layer(n_bad, 100.0)
    np.testing.assert_allclose(louder[s], found[s], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_layerguard_detects_colluders_in_all_layers_without_a_mistake(seed: int) -> None:
    # the paper reports no error of either kind at 30 % attackers who poison the whole model
    updates, _ = a_round(10, seed, spread=4.0)
    updates[:3] = updates[0] + 0.02 * updates[:3]
    found, _ = LayerGuard().step(updates, np.ones(10), {}, a_context(10))
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores == 1, [True] * 3 + [False] * 7)
    np.testing.assert_array_equal(found.kept, found.scores < 1)


def test_layerguard_does_not_see_a_lone_attacker() -> None:
    updates, found, s = _poisoned_layer(1, 1.0)
    honest = updates[1:, s].mean(0)
    far = np.linalg.norm(updates[:, s].mean(0) - honest)
    assert np.linalg.norm(found[s] - honest) > 0.5 * far
    _, louder, _ = _poisoned_layer(1, 100.0)
    assert np.linalg.norm(louder[s]) > 50 * np.linalg.norm(found[s])


def test_layerguard_averages_layers_in_which_all_are_alike() -> None:
    updates = np.repeat(a_round(1, 2, 1.0)[0], 5, axis=0) * np.arange(1, 6)[:, None]
    found, _ = LayerGuard().step(updates, np.ones(5), {}, a_context(5))
    np.testing.assert_allclose(found.update, updates.mean(0))
    assert "4 layers could not be judged" in found.note
    assert found.votes.all()


def test_a_client_is_not_its_own_nearest_peer() -> None:
    assert nearest_cosines(np.eye(4), 2).max() == 0


def test_layerguard_wants_as_many_peers_as_it_compares_with() -> None:
    updates, weights = a_round(4, 0, 1.0)
    with pytest.raises(AggregationError, match="at least 6 updates"):
        LayerGuard(n_nearest=5).step(updates, weights, {}, a_context(4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"n_nearest": 0}, "n_nearest must be >= 1"), ({"stride": 0.0}, "start and stride")],
)
def test_impossible_settings_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LayerGuard(**settings)
