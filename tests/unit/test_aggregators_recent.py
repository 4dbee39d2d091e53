"""AlignIns and FreqFed against slow loops, literals by hand and faults of others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from fl_shield.aggregators import (
    AggregationContext,
    Aggregator,
    AlignIns,
    FreqFed,
    Layout,
    is_plain_mean,
)
from fl_shield.aggregators.alignins import robust_standard_scores, sign_agreement
from fl_shield.aggregators.freqfed import low_frequencies
from fl_shield.types import Floats

SHAPES = {"conv.weight": (4, 1, 3), "conv.bias": (4,), "mid.weight": (6, 8), "fc.weight": (3, 6)}


def a_context(n: int, seed: int = 0) -> AggregationContext:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(seed),
    )


SIZE = a_context(1).layout.size


def a_round(n: int, seed: int, spread: float = 1.0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    updates = 0.1 * (rng.normal(size=SIZE) + spread * rng.normal(size=(n, SIZE)))
    return updates, rng.integers(5, 60, size=n).astype(np.float64)


def assert_acts(rule: Aggregator, updates: Floats, n_bad: int) -> None:
    """The first ``n_bad`` are unheard, and the aggregate is near the mean of the others."""
    n = len(updates)
    found, _ = rule.step(updates, np.ones(n), {}, a_context(n))
    honest, everybody = updates[n_bad:].mean(0), updates.mean(0)
    assert (found.votes[:n_bad] == 0).all()
    off = float(np.linalg.norm(found.update - honest))
    assert off < 0.5 * np.linalg.norm(found.update - everybody)
    assert not is_plain_mean(found, updates, np.ones(n))


# AlignIns ---------------------------------------------------------------------------------------


def test_sign_agreement_by_hand() -> None:
    updates = np.array([[5.0, -4.0, 0.1, 0.2], [3.0, 4.0, -0.1, 0.0], [-2.0, 1.0, 6.0, 0.0]])
    # majority signs: +, +, +, +; halves: {0, 1}, {0, 1}, {0, 2}
    np.testing.assert_array_equal(sign_agreement(updates, 0.5), [0.5, 1.0, 0.5])


def test_a_coordinate_with_as_many_of_each_sign_agrees_with_zeros_only() -> None:
    updates = np.array([[1.0, 5.0], [-1.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
    np.testing.assert_array_equal(sign_agreement(updates, 1.0), [0.5, 0.5, 1.0, 1.0])


def _alignins_slowly(
    updates: Floats, model: Floats, sparsity: float, limits: tuple[float, float]
) -> tuple[list[int], Floats]:
    n, p = updates.shape
    majority = [math.copysign(1, t) if (t := sum(np.sign(column))) else 0 for column in updates.T]
    metrics: tuple[list[float], list[float]] = ([], [])
    for u in updates:
        dot = sum(a * b for a, b in zip(u, model, strict=True))
        metrics[0].append(dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(model**2)))
        top = sorted(range(p), key=lambda j: -abs(u[j]))[: int(p * sparsity)]
        metrics[1].append(sum(np.sign(u[j]) == majority[j] for j in top) / len(top))
    kept = list(range(n))
    for values, limit in zip(metrics, limits, strict=True):
        mean = sum(values) / n
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / n)
        middle = float(np.percentile(values, 50))
        kept = [i for i in kept if abs(values[i] - middle) / spread < limit]
    norms = {i: math.sqrt(sum(updates[i] ** 2)) for i in kept}
    if not kept:
        return kept, np.zeros(p)
    bound = float(np.percentile(list(norms.values()), 50))
    return kept, np.mean([updates[i] * min(1.0, bound / norms[i]) for i in kept], axis=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "sparsity", "limits"), [(8, 0.3, (1.0, 1.0)), (15, 0.6, (2.0, 1.5))])
def test_alignins_by_loops(seed: int, n: int, sparsity: float, limits: tuple[float, float]) -> None:
    updates, weights = a_round(n, seed)
    context = a_context(n, seed)
    rule = AlignIns(sparsity=sparsity, direction_limit=limits[0], sign_limit=limits[1])
    found, _ = rule.step(updates, weights, {}, context)
    kept, slow = _alignins_slowly(updates, context.global_vector, sparsity, limits)
    assert list(np.flatnonzero(found.votes)) == kept
    np.testing.assert_allclose(found.update, slow, rtol=1e-9, atol=1e-12)


def test_alignins_keeps_everybody_where_all_agree() -> None:
    # divided by a spread of 0 every score is undefined, none is below 1, and nobody is kept
    updates = np.repeat(a_round(1, 0)[0], 6, axis=0)
    found, _ = AlignIns().step(updates, np.ones(6), {}, a_context(6))
    assert found.votes.all()
    np.testing.assert_allclose(found.update, updates[0])


def test_alignins_leaves_the_model_where_nobody_is_near_in_both() -> None:
    signs, directions = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    assert (robust_standard_scores(signs) >= 1).all()
    model = a_context(4).global_vector
    updates = np.stack([d * model for d in directions])
    found, _ = AlignIns().step(updates, np.ones(4), {}, a_context(4))
    assert not found.votes.any()
    assert not found.update.any()
    assert "kept 0 of 4" in found.note


def test_alignins_clips_to_the_norms_of_the_kept_only() -> None:
    updates, _ = a_round(9, 3, spread=0.1)
    updates[:4] *= -50.0  # with these the median norm would be much larger
    found, _ = AlignIns().step(updates, np.ones(9), {}, a_context(9))
    assert not found.votes[:4].any()
    kept = found.votes > 0
    assert np.linalg.norm(found.update) <= np.median(np.linalg.norm(updates[kept], axis=1)) + 1e-9


def test_alignins_rejects_updates_against_the_signs_of_the_rest() -> None:
    updates, _ = a_round(10, 1, spread=0.5)
    updates[:3] = -3 * updates[:3]
    loose = AlignIns(direction_limit=1.2, sign_limit=1.2)
    assert_acts(loose, updates, 3)


# FreqFed ----------------------------------------------------------------------------------------


def _dct_slowly(signal: Floats) -> list[float]:
    p = len(signal)
    return [
        math.sqrt((1 if k == 0 else 2) / p)
        * sum(x * math.cos(math.pi * k * (2 * j + 1) / (2 * p)) for j, x in enumerate(signal))
        for k in range(p)
    ]


@pytest.mark.parametrize(("p", "share", "n_low"), [(8, 0.5, 4), (9, 0.5, 5), (5, 1.0, 5)])
def test_low_frequencies_by_the_definition(p: int, share: float, n_low: int) -> None:
    signals = np.random.default_rng(p).normal(size=(3, p))
    slow = [_dct_slowly(s)[:n_low] for s in signals]
    np.testing.assert_allclose(low_frequencies(signals, share), slow, atol=1e-12)


def test_low_frequencies_by_hand() -> None:
    root = math.sqrt(0.5)
    np.testing.assert_allclose(low_frequencies(np.array([[3.0, 1.0]]), 1.0), [[4 * root, 2 * root]])


@pytest.mark.parametrize("seed", range(4))
def test_freqfed_by_loops(seed: int) -> None:
    updates, weights = a_round(9, seed, spread=0.3)
    updates[:3] *= np.array([-8.0, 12.0, 5.0])[:, None]
    context = a_context(9, seed)
    low = [_dct_slowly(context.global_vector + u)[: math.ceil(SIZE / 2)] for u in updates]
    distances = np.zeros((9, 9))
    for i, a in enumerate(low):
        for j, b in enumerate(low):
            if i != j:
                distances[i, j] = 1 - np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b))
    labels = HDBSCAN(
        min_cluster_size=5,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    ).fit_predict(distances)
    kept = [i for i in range(9) if labels[i] == 0]
    assert len(kept) >= 5
    found, _ = FreqFed().step(updates, weights, {}, context)
    assert list(np.flatnonzero(found.votes)) == kept
    slow = sum(weights[i] * updates[i] for i in kept) / sum(weights[i] for i in kept)
    np.testing.assert_allclose(found.update, slow, rtol=1e-9)


def test_freqfed_rejects_a_minority_of_another_direction() -> None:
    updates, _ = a_round(11, 4, spread=0.3)
    updates[:4] = -10 * updates[:4]
    assert_acts(FreqFed(), updates, 4)


def test_freqfed_drops_those_who_are_each_on_their_own() -> None:
    # public copies count what is in no cluster as a cluster like any other
    rng = np.random.default_rng(0)
    updates, _ = a_round(11, 6, spread=0.01)
    updates[:5] = 8 * rng.normal(size=(5, SIZE))
    found, _ = FreqFed().step(updates, np.ones(11), {}, a_context(11))
    np.testing.assert_array_equal(found.votes, [0] * 5 + [1] * 6)


def test_freqfed_sees_updates_far_shorter_than_the_model() -> None:
    updates, _ = a_round(11, 4, spread=0.3)
    updates[:4] = -10 * updates[:4]
    context = a_context(11)
    large = {name: 1e3 * array for name, array in context.global_arrays.items()}
    exact, _ = FreqFed().step(updates, np.ones(11), {}, replace(context, global_arrays=large))
    single = {name: array.astype(np.float32) for name, array in large.items()}
    context = replace(context, global_arrays=single)
    found, _ = FreqFed().step(updates.astype(np.float32), np.ones(11), {}, context)
    assert not found.votes[:4].any()
    np.testing.assert_array_equal(found.votes, exact.votes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AlignIns(sparsity=0.0), "sparsity must be in"),
        (lambda: AlignIns(sign_limit=0.0), "sign_limit must be > 0"),
        (lambda: FreqFed(low_share=1.1), "low_share must be in"),
    ],
)
def test_impossible_settings_are_refused(make: type[Aggregator], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
