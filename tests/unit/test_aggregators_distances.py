"""Rules that clip, or weigh by distances: literals, slow references, public faults."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from fl_shield.aggregators import (
    CRFL,
    RFA,
    AggregationContext,
    Aggregator,
    CenteredClip,
    Layout,
    NormClipping,
    WeakDP,
)
from fl_shield.aggregators.rfa import geometric_median
from fl_shield.types import Arrays, Floats

ROUNDS = [(7, 5, 0), (8, 1, 1), (11, 30, 2), (15, 12, 3)]
each_round = pytest.mark.parametrize(("n", "size", "seed"), ROUNDS)


def a_context(n: int, size: int, arrays: Arrays | None = None, t: int = 1) -> AggregationContext:
    arrays = arrays or {"w": np.zeros((1, size), np.float32)}
    return AggregationContext(
        server_round=t,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(7),
    )


def a_round(n: int, size: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(n, size)) * rng.uniform(0.2, 4, size=(n, 1)) + rng.normal(size=size)
    return updates, rng.integers(1, 60, size=n).astype(float)


def aggregated(rule: Aggregator, updates: Floats, weights: Floats | None = None) -> Floats:
    weights = np.ones(len(updates)) if weights is None else weights
    return rule.step(updates, weights, {}, a_context(*updates.shape))[0].update


def slow_norm(row: Floats) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in row))


def slow_clip(row: Floats, bound: float) -> list[float]:
    norm = slow_norm(row)
    return [float(v) * (bound / norm if norm > bound else 1.0) for v in row]


def slow_mean(rows: list[list[float]], weights: Floats) -> list[float]:
    total = sum(weights)
    return [
        sum(w * v for w, v in zip(weights, column, strict=True)) / total
        for column in zip(*rows, strict=True)
    ]


# Clipping -----------------------------------------------------------------------------------------


def test_clipping_by_hand() -> None:
    updates = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]])
    found, _ = NormClipping(clip_norm=1.0).step(updates, np.array([2, 1, 1]), {}, a_context(3, 2))
    np.testing.assert_allclose(found.update, [0.3, 0.9])
    np.testing.assert_allclose(found.votes, [0.2, 1, 0.5])
    np.testing.assert_allclose(aggregated(NormClipping(), updates), [0.4, (1.6 + 1 + 2) / 3])


@each_round
def test_clipping_equals_the_slow_way(n: int, size: int, seed: int) -> None:
    updates, weights = a_round(n, size, seed)
    middle = sorted(map(slow_norm, updates))
    bound = (middle[(n - 1) // 2] + middle[n // 2]) / 2
    slow = slow_mean([slow_clip(row, bound) for row in updates], weights)
    np.testing.assert_allclose(aggregated(NormClipping(), updates, weights), slow, rtol=1e-9)
    quiet = WeakDP(clip_norm=None, noise=0.0)
    np.testing.assert_allclose(aggregated(quiet, updates, weights), slow, rtol=1e-9)


def test_clipping_counts_tensors_of_any_name_and_no_buffers() -> None:
    """BackFed clips only names with "weight" or "bias": a class token stays as loud as it came."""
    arrays = {
        "token": np.zeros((1, 2), np.float32),
        "norm.running_mean": np.zeros(2, np.float32),
        "norm.num_batches_tracked": np.array(0),
    }
    upload = {
        "token": np.array([[30.0, 40.0]], np.float32),
        "norm.running_mean": np.full(2, 1e6, np.float32),
        "norm.num_batches_tracked": np.array(900),
    }
    context = a_context(1, 2, arrays)
    update = context.layout.flat(upload) - context.global_vector
    found, _ = NormClipping(clip_norm=5.0).step(update[None], np.ones(1), {}, context)
    np.testing.assert_allclose(found.update, [3, 4], rtol=1e-6)


@pytest.mark.parametrize("n", [2, 50])
def test_weak_noise_is_added_once_however_many_clients_there_are(n: int) -> None:
    """FLPoison adds it to every update, so that 50 clients leave a seventh of it."""
    updates, weights = a_round(n, 20_000, 0)
    context = a_context(*updates.shape)
    loud, _ = WeakDP(noise=0.025).step(updates, weights, {}, context)
    still = aggregated(WeakDP(noise=0.0), updates, weights)
    assert np.std(loud.update - still) == pytest.approx(0.025, rel=0.03)
    assert abs(np.mean(loud.update - still)) < 0.001


def test_the_model_is_clipped_by_hand() -> None:
    arrays = {"w": np.array([[0.0, 3.0]], np.float32)}
    updates = np.array([[8.0, 0.0], [0.0, 2.0]])
    rule = CRFL(clip_norm=2.0, clip_growth=0.5, noise=0.0)
    found, _ = rule.step(updates, np.array([1.0, 1.0]), {}, a_context(2, 2, arrays, t=1))
    np.testing.assert_allclose(found.update, np.array([4, 4]) * 2.5 / math.sqrt(32) - [0, 3])
    within, _ = rule.step(updates, np.array([1.0, 1.0]), {}, a_context(2, 2, arrays, t=8))
    np.testing.assert_allclose(within.update, [4, 1])


@each_round
def test_the_model_is_clipped_as_the_slow_way(n: int, size: int, seed: int) -> None:
    updates, weights = a_round(n, size, seed)
    start = np.random.default_rng(9).normal(size=(1, size)) * 2
    context = a_context(n, size, {"w": start})
    found, _ = CRFL(clip_norm=1.5, noise=0.0).step(updates, weights, {}, context)
    mean = slow_mean([[float(v) for v in row] for row in updates], weights)
    moved = slow_clip(start[0] + np.array(mean), 1.5)
    np.testing.assert_allclose(start[0] + found.update, moved, rtol=1e-9)
    assert slow_norm(start[0] + found.update) <= 1.5 + 1e-9


def test_a_small_update_of_a_long_model_is_clipped() -> None:
    """FLPoison clips the aggregated update: one that is short would leave the model as long."""
    arrays = {"w": np.full((1, 10_000), 0.1, np.float32)}
    updates = np.full((3, 10_000), 1e-4, np.float32)
    found, _ = CRFL().step(updates, np.ones(3), {}, a_context(3, 10_000, arrays))
    noise = 0.001 * math.sqrt(10_000)
    assert np.linalg.norm(arrays["w"] + found.update) < 3 + noise
    assert np.std(arrays["w"] + found.update) == pytest.approx(0.001, rel=0.05)


def test_a_model_replacement_is_held_within_the_bound() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(1, 400)) / 8
    updates = 0.01 * rng.normal(size=(10, 400))
    updates[0] += 10 * rng.normal(size=400)
    context = a_context(10, 400, {"w": start})
    found, _ = CRFL().step(updates, np.ones(10), {}, context)
    honest, mean = updates[1:].mean(0), updates.mean(0)
    assert np.linalg.norm(start + mean) > 15
    assert np.linalg.norm(start + found.update) < 3.1
    assert np.linalg.norm(found.update - honest) < 0.3 * np.linalg.norm(mean - honest)


# Centred clipping ---------------------------------------------------------------------------------


def test_the_centre_moves_by_hand() -> None:
    rule = CenteredClip(clip_radius=2.0)
    updates = np.array([[1.0], [9.0]])
    first, state = rule.step(updates, np.ones(2), {}, a_context(2, 1))
    np.testing.assert_allclose(first.update, [1.5])
    np.testing.assert_allclose(first.votes, [1, 2 / 9])
    second, _ = rule.step(updates, np.ones(2), state, a_context(2, 1))
    np.testing.assert_allclose(second.update, [1.5 + (2 - 0.5) / 2])


@each_round
def test_centred_clipping_equals_the_slow_way(n: int, size: int, seed: int) -> None:
    rule, centre = CenteredClip(clip_radius=1.3, n_passes=3), [0.0] * size
    state: dict[str, Floats] = {}
    for t in range(3):
        updates, weights = a_round(n, size, seed + 10 * t)
        found, after = rule.step(updates, weights, state, a_context(n, size))
        state = dict(after)
        for _ in range(3):
            ways = [slow_clip(row - np.array(centre), 1.3) for row in updates]
            moves = slow_mean(ways, np.ones(n))
            centre = [c + m for c, m in zip(centre, moves, strict=True)]
        np.testing.assert_allclose(found.update, centre, rtol=1e-9, atol=1e-12)


def test_an_update_on_the_centre_is_no_division_by_nothing() -> None:
    """FLPoison divides by the length of every way, so that one of length 0 ends training."""
    state = {"centre": np.array([1.0, 2.0])}
    updates = np.array([[1.0, 2.0], [1.0, 2.0], [5.0, 2.0]])
    found, _ = CenteredClip(clip_radius=1.0).step(updates, np.ones(3), state, a_context(3, 2))
    np.testing.assert_allclose(found.update, [1 + 1 / 3, 2])


def test_the_centre_of_another_model_is_forgotten() -> None:
    updates, weights = a_round(5, 4, 0)
    stale = {"centre": np.full(3, 9.0)}
    found, _ = CenteredClip().step(updates, weights, stale, a_context(5, 4))
    np.testing.assert_array_equal(found.update, aggregated(CenteredClip(), updates))


# Geometric median ---------------------------------------------------------------------------------


def test_the_geometric_median_by_hand() -> None:
    square = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(geometric_median(square, np.ones(4), n_passes=50), [1, 1])
    line = np.array([[1.0], [2.0], [9.0]])
    np.testing.assert_allclose(geometric_median(line, np.ones(3), n_passes=200), [2], atol=1e-4)


@each_round
def test_the_geometric_median_has_the_least_sum_of_distances(n: int, size: int, seed: int) -> None:
    updates, weights = a_round(n, size, seed)

    def cost(point: Floats) -> float:
        return float(weights @ [math.dist(point, row) for row in updates])

    def slope(point: Floats) -> Floats:
        ways = [(point - row) / max(math.dist(point, row), 1e-12) for row in updates]
        total: Floats = np.array(slow_mean([list(way) for way in ways], weights)) * weights.sum()
        return total

    best = minimize(cost, updates.mean(0), jac=slope, method="BFGS").fun
    found = geometric_median(updates, weights, n_passes=2000)
    assert cost(found) == pytest.approx(min(best, *map(cost, updates)), rel=1e-5)


def test_example_counts_are_as_many_copies() -> None:
    """FLPoison's RFA gives every client the same weight."""
    updates, _ = a_round(7, 6, 4)
    counts = np.array([1, 5, 2, 1, 3, 1, 4])
    copies = np.repeat(updates, counts, axis=0)
    by_counts = aggregated(RFA(), updates, counts.astype(float))
    np.testing.assert_allclose(by_counts, aggregated(RFA(), copies))
    assert np.linalg.norm(by_counts - aggregated(RFA(), updates)) > 0.01


def test_a_huge_update_does_not_outlast_the_passes() -> None:
    """From the weighted mean, where the authors' code starts, four passes cannot come back."""
    updates, _ = a_round(10, 50, 0)
    updates[0] *= 1e6
    honest = updates[1:].mean(0)
    centre = updates.mean(0)
    for _ in range(4):
        pull = [1 / math.dist(centre, row) for row in updates]
        centre = np.array(slow_mean([list(row) for row in updates], np.array(pull)))
    assert np.linalg.norm(centre - honest) > 100
    assert np.linalg.norm(aggregated(RFA(), updates) - honest) < np.linalg.norm(honest) + 5


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        NormClipping(),
        WeakDP(clip_norm=None, noise=0.001),
        CenteredClip(),
        RFA(),
    ],
)
def test_a_rule_stays_with_the_honest_where_the_mean_does_not(rule: Aggregator) -> None:
    rng = np.random.default_rng(0)
    step = rng.normal(size=400) / 20
    updates = step + 0.3 * rng.normal(size=(15, 400)) / 20
    updates[:3] = -10 * step + 0.01 * rng.normal(size=(3, 400))
    honest = updates[3:].mean(0)
    found = aggregated(rule, updates)
    off = np.linalg.norm(updates.mean(0) - honest)
    assert np.linalg.norm(found - updates.mean(0)) > 0.2 * off
    assert np.linalg.norm(found - honest) < 0.5 * off
    assert np.linalg.norm(found) < 1.2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NormClipping(clip_norm=0), "clip_norm must be > 0"),
        (lambda: WeakDP(clip_norm=-1), "clip_norm must be > 0"),
        (lambda: WeakDP(noise=-1), "noise must be >= 0 and finite"),
        (lambda: CRFL(clip_norm=0), "clip_norm must be > 0"),
        (lambda: CRFL(clip_growth=-1), "clip_growth must be >= 0"),
        (lambda: CRFL(noise=float("inf")), "noise must be >= 0 and finite"),
        (lambda: CenteredClip(clip_radius=0), "clip_radius must be > 0"),
        (lambda: CenteredClip(n_passes=0), "n_passes must be >= 1"),
        (lambda: RFA(n_passes=0), "n_passes must be >= 1"),
        (lambda: RFA(smoothing=0), "smoothing must be > 0"),
    ],
)
def test_impossible_settings_are_refused_in_words(
    make: Callable[[], Aggregator], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make()
