"""Rules that look at single parameters, signs or directions: literals, slow ways, public faults."""

from __future__ import annotations

import math
import statistics
import sys
from types import FrameType

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from fl_shield.aggregators import (
    AGGREGATORS,
    AggregationContext,
    Aggregator,
    DnC,
    Layout,
    Median,
    SignGuard,
    TrimmedMean,
)
from fl_shield.aggregators.dnc import outlier_scores
from fl_shield.aggregators.signguard import largest_cluster, sign_features
from fl_shield.types import Flags, Floats

ROUNDS = [(5, 7, 0), (8, 1, 1), (11, 40, 2), (20, 12, 3)]
each_round = pytest.mark.parametrize(("n", "size", "seed"), ROUNDS)
MINE = [
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "rfa",
    "norm_clipping",
    "weak_dp",
    "crfl",
    "centred_clipping",
    "dnc",
    "signguard",
]


def a_context(n: int, size: int) -> AggregationContext:
    arrays = {"w": np.zeros((1, size), np.float32)}
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(7),
    )


def a_round(n: int, size: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)) * rng.uniform(0.2, 4, size=(n, 1)) + rng.normal(size=size)


def aggregated(rule: Aggregator, updates: Floats) -> Floats:
    n, size = updates.shape
    return rule.step(updates, np.ones(n), {}, a_context(n, size))[0].update


# Median and trimmed mean --------------------------------------------------------------------------


def test_the_median_by_hand_and_even_rounds_take_both_middle_values() -> None:
    """``torch.median``, in some public versions, returns the lower middle value."""
    updates = np.array([[1.0, -8.0], [2.0, 0.0], [6.0, 4.0], [90.0, 5.0]])
    np.testing.assert_array_equal(aggregated(Median(), updates), [4, 2])
    assert torch.median(torch.tensor(updates), dim=0).values.tolist() == [2, 0]


@each_round
def test_the_median_equals_the_slow_way(n: int, size: int, seed: int) -> None:
    updates = a_round(n, size, seed)
    slow = [statistics.median(map(float, column)) for column in updates.T]
    np.testing.assert_allclose(aggregated(Median(), updates), slow)


def test_the_trimmed_mean_by_hand() -> None:
    updates = np.array([[5.0], [-90.0], [1.0], [3.0], [70.0]])
    np.testing.assert_allclose(aggregated(TrimmedMean(), updates), [3])
    np.testing.assert_allclose(aggregated(TrimmedMean(trim_share=0.4), updates), [3])
    np.testing.assert_allclose(aggregated(TrimmedMean(trim_share=0.0), updates), [-11 / 5])


@each_round
@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_the_trimmed_mean_equals_scipy(n: int, size: int, seed: int, share: float) -> None:
    updates = a_round(n, size, seed)
    slow = trim_mean(updates, share, axis=0)
    np.testing.assert_allclose(aggregated(TrimmedMean(trim_share=share), updates), slow)


def test_a_share_of_less_than_one_client_still_trims_one() -> None:
    """FLPoison returns zeros there; rounding down, as Flower does, returns the plain mean."""
    updates = a_round(5, 30, 0) + 3
    updates[0] = 1e4
    found = aggregated(TrimmedMean(trim_share=0.1), updates)
    np.testing.assert_allclose(found, np.sort(updates, axis=0)[1:4].mean(0))
    assert np.abs(found).max() < 100
    assert np.abs(found).min() > 0


# Divide and Conquer -------------------------------------------------------------------------------


def test_divide_and_conquer_by_hand() -> None:
    updates = np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [10.0, 0.0]])
    found, _ = DnC().step(updates, np.ones(5), {}, a_context(5, 2))
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, [4, 4, 4, 4, 64], atol=1e-9)
    np.testing.assert_array_equal(found.votes, [1, 1, 1, 1, 0])
    np.testing.assert_allclose(found.update, [0, 0], atol=1e-12)


@each_round
def test_scores_are_those_of_the_singular_vector(n: int, size: int, seed: int) -> None:
    updates = a_round(n, size, seed)
    centred = updates - updates.mean(0)
    top = np.linalg.svd(centred)[2][0]
    slow = [float(row @ top) ** 2 for row in centred]
    np.testing.assert_allclose(outlier_scores(updates), slow, rtol=1e-6, atol=1e-9)
    expected = max(1, math.floor(0.2 * n))
    kept = sorted(range(n), key=lambda i: slow[i])[: n - expected]
    np.testing.assert_allclose(aggregated(DnC(), updates), updates[kept].mean(0))


def test_every_pass_draws_other_parameters_and_a_filtered_client_stays_out() -> None:
    rng = np.random.default_rng(0)
    updates = 0.01 * rng.normal(size=(8, 2))
    updates[0, 0] = updates[1, 1] = 50
    rule = DnC(byzantine_share=0.125, n_passes=12, n_parameters=1)
    found, _ = rule.step(updates, np.ones(8), {}, a_context(8, 2))
    np.testing.assert_array_equal(found.votes, [0, 0, 1, 1, 1, 1, 1, 1])


def test_passes_that_leave_nobody_keep_those_who_were_filtered_least() -> None:
    """FLPoison averages an empty set: the model would be not-a-number from there on."""
    updates = np.diag([9.0, 8.0, 7.0]) + 0.01
    rule = DnC(byzantine_share=0.4, n_passes=40, n_parameters=1)
    found, _ = rule.step(updates, np.ones(3), {}, a_context(3, 3))
    assert 1 <= found.votes.sum() < 3
    np.testing.assert_allclose(found.update, updates[found.kept].mean(0))


# SignGuard ----------------------------------------------------------------------------------------


def slow_mean_shift(points: Floats) -> Flags:
    """Flat mean shift from every point, from its definition: members of the largest cluster."""
    n = len(points)
    far = [sorted(math.dist(a, b) for b in points) for a in points]
    width = sum(row[n // 2 - 1] for row in far) / n
    peaks: dict[tuple[float, ...], int] = {}
    for point in points:
        at = point
        for _ in range(300):
            inside = points[[math.dist(at, p) <= width for p in points]]
            moved = inside.mean(0)
            stopped = math.dist(moved, at) < 1e-3 * width
            at = moved
            if stopped:
                break
        peaks[tuple(at)] = len(inside)
    ranked = sorted(peaks, key=lambda peak: (peaks[peak], peak), reverse=True)
    centres: list[tuple[float, ...]] = []
    for peak in ranked:
        if all(math.dist(peak, other) > width for other in centres):
            centres.append(peak)
    labels = []
    for point in points:
        distances = [math.dist(point, centre) for centre in centres]
        labels.append(distances.index(min(distances)) if min(distances) <= width else -1)
    sizes = [labels.count(k) for k in range(len(centres))]
    return np.asarray(np.array(labels) == sizes.index(max(sizes)))


def sign_round(seed: int, n: int = 12, n_bad: int = 3, size: int = 600) -> Floats:
    """Honest updates lean to positive values; the last n_bad, of ordinary norm, to negative."""
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(n, size)) + 0.5
    updates[n - n_bad :] -= 1.0
    return updates


def test_sign_features_by_hand() -> None:
    updates = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, -1.0, -1.0, -1.0]])
    expected = np.array([[1.0, 1.0, 0.0], [1 / 3, 0.0, 1.0]])
    np.testing.assert_allclose(sign_features(updates), expected, atol=1e-6)


@pytest.mark.parametrize(("n", "seed"), [(6, 0), (9, 1), (15, 2), (24, 3), (24, 4)])
def test_the_largest_cluster_equals_the_slow_way(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3)) * 0.2
    points[: n // 3] += 1.0
    np.testing.assert_array_equal(largest_cluster(points), slow_mean_shift(points))


@pytest.mark.parametrize("seed", range(4))
def test_signguard_equals_the_slow_way(seed: int) -> None:
    updates = sign_round(seed)
    updates[0] *= 40
    updates[1] *= 0.01
    found, _ = SignGuard(drawn_share=1.0).step(updates, np.ones(12), {}, a_context(12, 600))
    norms = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in updates]
    bound = statistics.median(norms)
    signs = [[math.copysign(1, v) for v in row] for row in updates]
    shares = [(row.count(1.0) / 600, 0.0, row.count(-1.0) / 600) for row in signs]
    tops = [max(column) or 1.0 for column in zip(*shares, strict=True)]
    points = np.array(shares) / np.array(tops)
    alike = slow_mean_shift(points)
    kept = [i for i in range(12) if alike[i] and 0.1 * bound < norms[i] < 3 * bound]
    slow = np.mean([updates[i] * min(1, bound / norms[i]) for i in kept], axis=0)
    np.testing.assert_array_equal(np.flatnonzero(found.votes), kept)
    np.testing.assert_allclose(found.update, slow)
    assert set(kept) <= set(range(2, 9))


def test_signs_of_drawn_parameters_give_away_attackers_of_ordinary_norm() -> None:
    updates = sign_round(0, size=6000)
    found, _ = SignGuard().step(updates, np.ones(12), {}, a_context(12, 6000))
    assert found.votes[9:].sum() == 0
    assert found.votes.sum() >= 5


def test_an_update_of_zeros_is_out_of_the_band_and_harmless() -> None:
    """FLPoison divides by its norm, and the aggregate is not-a-number."""
    updates = sign_round(1, n_bad=0)
    updates[3] = 0
    found, _ = SignGuard().step(updates, np.ones(12), {}, a_context(12, 600))
    assert found.votes[3] == 0
    assert np.isfinite(found.update).all()


def test_if_nobody_passes_both_filters_the_band_decides() -> None:
    """FLPoison averages an empty set."""
    signs = [1, 1, 1, 0.5, 0.5, 0, 0]
    updates = np.array([np.where(np.arange(100) < 100 * s, 1.0, -1.0) for s in signs])
    updates[:3] *= 100
    assert largest_cluster(sign_features(updates)).tolist() == [True] * 3 + [False] * 4
    found, _ = SignGuard(drawn_share=1.0).step(updates, np.ones(7), {}, a_context(7, 100))
    np.testing.assert_array_equal(found.votes, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(found.update, updates[3:].mean(0))


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), DnC(), SignGuard()])
def test_a_rule_stays_with_the_honest_where_the_mean_does_not(rule: Aggregator) -> None:
    rng = np.random.default_rng(0)
    step = rng.normal(size=400)
    updates = step + 0.3 * rng.normal(size=(15, 400))
    updates[:3] = -10 * step + 0.2 * rng.normal(size=(3, 400))
    honest = updates[3:].mean(0)
    off = np.linalg.norm(updates.mean(0) - honest)
    assert np.linalg.norm(aggregated(rule, updates) - honest) < 0.1 * off


@pytest.mark.parametrize(
    ("rule", "settings", "match"),
    [
        ("trimmed_mean", {"trim_share": 0.5}, "trim_share must be in"),
        ("dnc", {"byzantine_share": 0.5}, "byzantine_share must be in"),
        ("dnc", {"filter_factor": 0}, "filter_factor must be > 0"),
        ("dnc", {"n_passes": 0}, "n_passes and n_parameters must be >= 1"),
        ("dnc", {"n_parameters": 0}, "n_passes and n_parameters must be >= 1"),
        ("signguard", {"low": 1.0}, "low < 1 < high"),
        ("signguard", {"high": 1.0}, "low < 1 < high"),
        ("signguard", {"drawn_share": 0.0}, "drawn_share must be in"),
    ],
)
def test_impossible_settings_are_refused_in_words(
    rule: str, settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        AGGREGATORS[rule](**settings)


def count_calls(rule: Aggregator, updates: Floats) -> int:
    """How many Python and C functions one step calls."""
    n_calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    context = a_context(*updates.shape)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        rule.step(updates, np.ones(len(updates)), {}, context)
    finally:
        sys.setprofile(before)
    return n_calls


@pytest.mark.parametrize("name", MINE)
def test_no_rule_loops_over_parameters(name: str) -> None:
    rule = AGGREGATORS[name]()
    small, large = (a_round(12, size, 0) for size in (200, 20_000))
    rule.step(small, np.ones(12), {}, a_context(*small.shape))
    assert count_calls(rule, large) < 2 * count_calls(rule, small) + 100
