"""Every rule keeps the contract of aggregators.contract, on rounds of a small network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.aggregators import (
    AGGREGATORS,
    AggregationContext,
    Aggregator,
    Layout,
    is_plain_mean,
)
from fl_shield.errors import AggregationError
from fl_shield.training import get_arrays
from fl_shield.types import Floats, Samples, TrainingConfig

N_CLASSES, N_CLIENTS, N_PIXELS = 4, 10, 6
RANDOM = frozenset({"weak_dp", "crfl"})
"""Rules whose noise does not shrink with the updates."""
STATEFUL = frozenset({"foolsgold", "fldetector", "snowball", "centred_clipping"})
"""Rules whose second round may differ from the first."""
each_rule = pytest.mark.parametrize("name", AGGREGATORS)


def _network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, N_PIXELS)),
            nn.Conv1d(1, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * N_PIXELS, 8),
            nn.ReLU(),
            nn.Linear(8, N_CLASSES),
        )


def _clean(n: int = 20) -> Samples:
    x = np.random.default_rng(1).random((n, N_PIXELS)).astype(np.float32)
    return Samples(x=x, y=np.arange(n) % N_CLASSES)


def a_context(n: int = N_CLIENTS) -> AggregationContext:
    model = _network()
    arrays = get_arrays(model)
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(7),
        model=model,
        clean=_clean(),
        training=TrainingConfig(n_epochs=1, batch_size=8, lr=0.05),
    )


def a_round(n: int = N_CLIENTS, seed: int = 0) -> tuple[Floats, Floats]:
    """Honest updates around a common step, and example counts."""
    rng = np.random.default_rng(seed)
    size = a_context().layout.size
    common = rng.normal(size=size)
    updates = 0.01 * (common + 0.5 * rng.normal(size=(n, size)))
    return updates.astype(np.float32), rng.integers(10, 50, size=n).astype(np.float64)


def _make(name: str) -> Aggregator:
    return AGGREGATORS[name]()


@each_rule
def test_a_round_gives_one_finite_update_and_a_vote_for_each_client(name: str) -> None:
    updates, weights = a_round()
    before = updates.copy()
    found, state = _make(name).step(updates, weights, {}, a_context())
    assert found.update.shape == updates.shape[1:]
    assert np.isfinite(found.update).all()
    assert found.votes.shape == (N_CLIENTS,)
    assert ((found.votes >= 0) & (found.votes <= 1)).all()
    assert found.scores is None or (found.scores.shape == (N_CLIENTS,))
    assert found.scores is None or np.isfinite(found.scores).all()
    assert found.note
    assert all(isinstance(array, np.ndarray) for array in state.values())
    np.testing.assert_array_equal(updates, before)


@each_rule
def test_the_same_round_gives_the_same_aggregate(name: str) -> None:
    updates, weights = a_round()
    one, _ = _make(name).step(updates, weights, {}, a_context())
    other, _ = _make(name).step(updates, weights, {}, a_context())
    np.testing.assert_array_equal(one.update, other.update)
    np.testing.assert_array_equal(one.votes, other.votes)


@each_rule
def test_the_order_of_clients_does_not_matter(name: str) -> None:
    updates, weights = a_round()
    order = np.random.default_rng(3).permutation(N_CLIENTS)
    context = a_context()
    moved = replace(a_context(), client_ids=tuple(context.client_ids[i] for i in order))
    one, _ = _make(name).step(updates, weights, {}, context)
    other, _ = _make(name).step(updates[order], weights[order], {}, moved)
    np.testing.assert_allclose(other.update, one.update, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(other.votes, one.votes[order], atol=1e-4)


@each_rule
def test_a_client_that_is_wholly_rejected_leaves_no_trace(name: str) -> None:
    updates, weights = a_round()
    found, _ = _make(name).step(updates, weights, {}, a_context())
    rejected = np.flatnonzero(~found.kept)
    inside = np.abs(found.update) <= np.abs(updates).max() * N_CLIENTS + 1
    assert inside.all()
    assert len(rejected) < N_CLIENTS


@each_rule
def test_identical_updates_give_that_update_or_less(name: str) -> None:
    updates, weights = a_round()
    same = np.repeat(updates[:1], N_CLIENTS, axis=0)
    found, _ = _make(name).step(same, weights, {}, a_context())
    assert np.isfinite(found.update).all()
    if name not in RANDOM:
        limit = np.linalg.norm(same[0]) * 1.05
        assert np.linalg.norm(found.update) <= limit


@each_rule
def test_updates_of_zeros_do_not_crash_a_round(name: str) -> None:
    updates, weights = a_round()
    for silent in (updates * 0, np.vstack([updates[:-2], updates[-2:] * 0])):
        found, _ = _make(name).step(silent, weights, {}, a_context())
        assert np.isfinite(found.update).all()
        assert np.isfinite(found.votes).all()


@each_rule
def test_one_huge_update_does_not_crash_a_round(name: str) -> None:
    updates, weights = a_round()
    updates[0] *= 1e6
    found, _ = _make(name).step(updates, weights, {}, a_context())
    assert np.isfinite(found.update).all()


@each_rule
def test_the_fewest_clients_are_enough_and_one_fewer_is_refused_in_words(name: str) -> None:
    rule = _make(name)
    n = rule.min_clients
    updates, weights = a_round(n)
    found, _ = rule.step(updates, weights, {}, a_context(n))
    assert np.isfinite(found.update).all()
    with pytest.raises(AggregationError, match=f"at least {n} update"):
        rule.step(updates[: n - 1], weights[: n - 1], {}, a_context(n - 1))


@each_rule
def test_several_rounds_with_changing_clients_carry_the_state(name: str) -> None:
    rule = _make(name)
    state: dict[str, np.ndarray] = {}
    for server_round in range(1, 5):
        updates, weights = a_round(seed=server_round)
        ids = tuple(f"c{(i * server_round) % 13}" for i in range(N_CLIENTS))
        context = replace(a_context(), server_round=server_round, client_ids=ids)
        found, after = rule.step(updates, weights, state, context)
        state = dict(after)
        assert np.isfinite(found.update).all()
        assert found.votes.shape == (N_CLIENTS,)


def test_only_the_plain_mean_is_the_plain_mean_in_a_round_with_a_loud_attacker() -> None:
    updates, weights = a_round()
    updates[0] = -8 * updates[0]
    quiet = [
        name
        for name in AGGREGATORS
        if is_plain_mean(_make(name).step(updates, weights, {}, a_context())[0], updates, weights)
    ]
    assert quiet == [n for n in ("mean", *_LATE) if n in AGGREGATORS]


_LATE = ("fldetector", "backdoor_indicator")
"""Rules that rightly do nothing in their first round."""
