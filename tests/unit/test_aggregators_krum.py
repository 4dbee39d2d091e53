"""Krum, Multi-Krum and Bulyan: literals, slow references, public faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum

from fl_shield.aggregators import (
    AggregationContext,
    Aggregator,
    Bulyan,
    Krum,
    Layout,
    MultiKrum,
)
from fl_shield.aggregators.bulyan import choose_again
from fl_shield.aggregators.inner_products import squared_distances
from fl_shield.aggregators.krum import krum_scores
from fl_shield.types import Arrays, Floats

ROUNDS = [(7, 5, 0), (8, 1, 1), (11, 30, 2), (15, 12, 3)]
each_round = pytest.mark.parametrize(("n", "size", "seed"), ROUNDS)


def a_context(n: int, size: int, arrays: Arrays | None = None) -> AggregationContext:
    arrays = arrays or {"w": np.zeros((1, size), np.float32)}
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


def slow_krum(updates: Floats, f: int) -> list[tuple[float, float]]:
    """Least sum over every set of n - f - 2 peers, and the sum over all peers for ties."""
    scores = []
    for i, row in enumerate(updates):
        far = [
            sum((float(a) - float(b)) ** 2 for a, b in zip(row, other, strict=True))
            for j, other in enumerate(updates)
            if j != i
        ]
        n_near = min(max(1, len(updates) - f - 2), len(far))
        scores.append((min(sum(some) for some in combinations(far, n_near)), sum(far)))
    return scores


def test_krum_by_hand() -> None:
    updates = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
    found, _ = Krum().step(updates, np.array([1, 1, 1, 1, 90.0]), {}, a_context(5, 1))
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, [5, 2, 5, 13, 96**2 + 98**2])
    np.testing.assert_array_equal(found.votes, [0, 1, 0, 0, 0])
    assert found.update == 1
    np.testing.assert_allclose(aggregated(MultiKrum(), updates), [7 / 4])
    np.testing.assert_allclose(aggregated(MultiKrum(n_kept=3), updates), [1])


@each_round
def test_krum_equals_the_best_of_all_sets_of_peers(n: int, size: int, seed: int) -> None:
    updates = a_round(n, size, seed)
    f = min(max(1, math.floor(0.3 * n)), (n - 3) // 2)
    slow = slow_krum(updates, f)
    order = sorted(range(n), key=lambda i: slow[i])
    np.testing.assert_allclose(krum_scores(squared_distances(updates), f), [s for s, _ in slow])
    np.testing.assert_array_equal(aggregated(Krum(byzantine_share=0.3), updates), updates[order[0]])
    multi = aggregated(MultiKrum(byzantine_share=0.3), updates)
    np.testing.assert_allclose(multi, updates[order[: n - f]].mean(0))


def test_batch_counters_never_enter_distances() -> None:
    """Flower's MultiKrum flattens whole records: counters outweigh every parameter."""
    rng = np.random.default_rng(0)
    counters = [0, 100, 200, 300, 400, 500, 250]
    uploads: list[dict[str, np.ndarray]] = [
        {
            "fc.weight": (1 + 0.01 * rng.normal(size=(2, 3))).astype(np.float32),
            "norm.num_batches_tracked": np.array(count),
        }
        for count in counters
    ]
    uploads[-1]["fc.weight"] = np.full((2, 3), -5, np.float32)
    records = [
        RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in upload.items()})})
        for upload in uploads
    ]
    assert select_multikrum(records, 1, 1) == [records[-1]]
    start = {"fc.weight": np.zeros((2, 3), np.float32), "norm.num_batches_tracked": np.array(0)}
    context = a_context(7, 6, start)
    updates = np.stack([context.layout.flat(upload) for upload in uploads]) - context.global_vector
    for rule in (Krum(), MultiKrum(), Bulyan()):
        found, _ = rule.step(updates, np.ones(7), {}, context)
        assert found.votes[-1] == 0
        np.testing.assert_allclose(found.update, 1, atol=0.03)


def test_a_loud_client_does_not_drown_the_distances_of_the_others() -> None:
    """Around the mean, in single precision, it does: a second attacker would pass unseen."""
    updates = a_round(9, 500, 0)
    updates = (0.01 * updates).astype(np.float32)
    updates[0] *= 1e5
    exact = ((updates[:, None].astype(np.float64) - updates[None]) ** 2).sum(-1)[1:, 1:]
    np.testing.assert_allclose(squared_distances(updates)[1:, 1:], exact, rtol=1e-6)
    centred = updates - updates.mean(0)
    gram = centred @ centred.T
    drowned = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    assert np.abs(drowned[1:, 1:] - exact).max() > exact.max()


def test_what_all_clients_share_does_not_drown_their_distances() -> None:
    updates = a_round(9, 500, 0) + 1e9
    updates[0] *= -1e3
    exact = ((updates[:, None] - updates[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(updates), exact, rtol=1e-6)


def test_distances_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = a_round(6, 23, 0)
    whole = squared_distances(updates)
    monkeypatch.setattr("fl_shield.aggregators.inner_products._CHUNK", 4)
    np.testing.assert_allclose(squared_distances(updates), whole)


def test_bulyan_asks_krum_again_by_hand() -> None:
    """Flower takes the five least scores of one pass, {0, 1, 2, 3, 7}."""
    squared = squared_distances(np.array([[0.0], [1.0], [2.0], [3.0], [7.0], [8.0], [10.0]]))
    assert sorted(np.argsort(krum_scores(squared, 1))[:5].tolist()) == [0, 1, 2, 3, 4]
    assert choose_again(squared, 1, 5).tolist() == [3, 2, 5, 1, 4]
    updates = np.array([[0.0], [1.0], [2.0], [3.0], [7.0], [8.0], [10.0]])
    np.testing.assert_allclose(aggregated(Bulyan(), updates), [2])


@each_round
def test_bulyan_equals_the_slow_way(n: int, size: int, seed: int) -> None:
    updates = a_round(n, size, seed)
    f = min(max(1, math.floor(0.2 * n)), (n - 3) // 4)
    rest, chosen = list(range(n)), list[int]()
    while len(chosen) < n - 2 * f:
        scores = slow_krum(updates[rest], f)
        rounded = [(round(a, 9), round(b, 9)) for a, b in scores]
        chosen.append(rest.pop(rounded.index(min(rounded))))
    slow = []
    for column in updates[chosen].T:
        ordered = sorted(map(float, column))
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        near = sorted(ordered, key=lambda v: abs(v - middle))[: n - 4 * f]
        slow.append(sum(near) / len(near))
    np.testing.assert_allclose(aggregated(Bulyan(), updates), slow, rtol=1e-9)


def test_bulyan_trims_what_it_chose() -> None:
    """FLPoison averages n - 2 f values out of n - 2 f: a value hidden in one parameter stays."""
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(11, 5000))
    updates[4] *= 0.5
    updates[4, 17] = 40.0
    found, _ = Bulyan().step(updates, np.ones(11), {}, a_context(11, 5000))
    assert found.votes[4] == 1
    assert found.votes.sum() == 7
    assert abs(found.update[17]) < 1.5
    assert updates[found.kept, 17].mean() > 4


@pytest.mark.parametrize("rule", [Krum(), MultiKrum(), Bulyan()])
def test_a_rule_stays_with_the_honest_where_the_mean_does_not(rule: Aggregator) -> None:
    rng = np.random.default_rng(0)
    step = rng.normal(size=400) / 20
    updates = step + 0.3 * rng.normal(size=(15, 400)) / 20
    updates[:3] = -10 * step + 0.01 * rng.normal(size=(3, 400))
    honest = updates[3:].mean(0)
    found = aggregated(rule, updates)
    off = np.linalg.norm(updates.mean(0) - honest)
    assert np.linalg.norm(found - updates.mean(0)) > 0.2 * off
    assert np.linalg.norm(found - honest) < 0.15 * off
    assert np.linalg.norm(found) < 1.2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Krum(byzantine_share=0.5), "byzantine_share must be in"),
        (lambda: MultiKrum(n_kept=0), "n_kept must be >= 1"),
        (lambda: Bulyan(byzantine_share=-0.1), "byzantine_share must be in"),
    ],
)
def test_impossible_settings_are_refused_in_words(
    make: Callable[[], Aggregator], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make()
