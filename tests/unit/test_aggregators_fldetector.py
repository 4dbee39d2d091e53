"""FLDetector against dense BFGS, k-means and a loop over clients; and its public faults."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from sklearn.cluster import KMeans

from fl_shield.aggregators.contract import AggregationContext, Layout, State, is_plain_mean
from fl_shield.aggregators.fldetector import (
    FLDetector,
    boundary,
    hessian_products,
    n_clusters,
    predicted_changes,
    split_costs,
)
from fl_shield.types import Floats, Ints

SIZE = 12


def _context(model: Floats, ids: tuple[str, ...], server_round: int) -> AggregationContext:
    arrays = {"w": model.reshape(3, 4)}
    return AggregationContext(
        server_round=server_round,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=ids,
        rng=np.random.default_rng(server_round),
    )


class _Federation:
    """Clients that descend quadratic losses with one Hessian, each towards a place of its own."""

    def __init__(self, n: int, n_malicious: int = 0, seed: int = 0, noise: float = 0.01) -> None:
        self.rng = np.random.default_rng(seed)
        basis = self.rng.normal(size=(SIZE, SIZE))
        self.hessian = basis @ basis.T / SIZE + np.eye(SIZE)
        self.places = self.rng.normal(size=(n, SIZE))
        self.n, self.n_malicious, self.noise = n, n_malicious, noise
        self.model = 5 * self.rng.normal(size=SIZE)

    def updates(self, members: Ints) -> Floats:
        toward = -0.05 * (self.model - self.places[members]) @ self.hessian
        out = toward * (1 + self.noise * self.rng.normal(size=toward.shape))
        bad = members < self.n_malicious
        out[bad] += 0.5 * self.rng.normal(size=(int(bad.sum()), SIZE))
        return np.asarray(out)


def _slow_hessian(steps: Floats, changes: Floats) -> Floats:
    """BFGS as the recursion that updates a full matrix with one pair after another."""
    s, y = steps[-1], changes[-1]
    matrix = (y @ s) / (s @ s) * np.eye(len(s))
    for s, y in zip(steps, changes, strict=True):
        along = matrix @ s
        matrix = matrix - np.outer(along, along) / (s @ along) + np.outer(y, y) / (y @ s)
    return np.asarray(matrix)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [1, 3, 10])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_hessian_products_are_those_of_the_bfgs_recursion(seed: int, m: int, sign: float) -> None:
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(SIZE, SIZE))
    hessian = basis @ basis.T + np.eye(SIZE)
    steps = rng.normal(size=(m, SIZE))
    changes = sign * steps @ hessian
    vectors = rng.normal(size=(2, SIZE))
    expected = vectors @ _slow_hessian(steps, changes)
    np.testing.assert_allclose(hessian_products(steps, changes, vectors), expected, rtol=1e-6)


def test_hessian_products_by_hand() -> None:
    """Pairs along two axes with curvatures 2 and 5; the last sets what is not seen."""
    steps = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    changes = np.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    found = hessian_products(steps, changes, np.array([[1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(found, [[2.0, 5.0, 5.0]])


def test_hessian_products_of_rounds_in_which_nothing_moved_are_nothing() -> None:
    still = np.zeros((3, SIZE))
    np.testing.assert_array_equal(hessian_products(still, still, np.ones((1, SIZE))), still[:1])


def test_a_change_is_paired_with_the_step_before_it_and_adds_up_over_absences() -> None:
    """A constant curvature is predicted exactly; pairs shifted by a round see another one."""
    models = np.cumsum(np.random.default_rng(0).normal(size=(8, SIZE)), axis=0)
    steps = np.diff(models, axis=0)
    ages = np.array([1, 4, 2, 6])
    found = predicted_changes(steps[:-1], -0.3 * steps[:-1], steps[-1], ages)
    expected = np.stack([-0.3 * (models[-1] - models[-1 - age]) for age in ages])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    shifted = predicted_changes(steps[1:], -0.3 * steps[:-1], steps[-1], ages)
    assert np.abs(shifted - expected).max() > 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [5, 20])
def test_split_costs_are_those_of_the_best_of_all_cuts(seed: int, n: int) -> None:
    """Where k-means may stop at a worse one."""
    values = np.random.default_rng(seed).random(n)
    ordered = sorted(values.tolist())
    found = split_costs(values, 4)
    for k in range(1, 5):
        best = math.inf
        for cuts in combinations(range(1, n), k - 1):
            ends = [0, *cuts, n]
            parts = [ordered[i:j] for i, j in pairwise(ends)]
            best = min(best, sum(len(part) * statistics.pvariance(part) for part in parts))
        assert found[k - 1] == pytest.approx(best, rel=1e-9)
        fitted = KMeans(n_clusters=k, n_init=10, random_state=0).fit(values[:, None])
        assert fitted.inertia_ >= found[k - 1] - 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_the_gap_statistic_is_tibshirani_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(1, 0.1, 12), rng.normal(1 + seed / 2, 0.1, 6)])

    def inertia(values: Floats, k: int) -> float:
        return float(KMeans(n_clusters=k, n_init=10, random_state=0).fit(values[:, None]).inertia_)

    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    references = np.random.default_rng(seed).uniform(size=(5, len(scores)))
    gaps, errors = [], []
    for k in range(1, 5):
        logs = [math.log(inertia(values, k)) for values in references]
        mean = sum(logs) / 5
        gaps.append(mean - math.log(inertia(scaled, k)))
        errors.append(math.sqrt(sum((x - mean) ** 2 for x in logs) / 5 * (1 + 1 / 5)))
    fits = [k for k in range(1, 4) if gaps[k - 1] >= gaps[k] - errors[k]]
    expected = fits[0] if fits else 4
    assert n_clusters(scores, np.random.default_rng(seed), 5, 4) == expected


def test_equal_scores_are_one_cluster() -> None:
    assert n_clusters(np.full(8, 0.7), np.random.default_rng(0)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_boundary_is_that_of_two_means(seed: int) -> None:
    scores = np.random.default_rng(seed).random(20)
    fitted = KMeans(n_clusters=2, n_init=20, random_state=0).fit(scores[:, None])
    high = fitted.labels_ == fitted.cluster_centers_[:, 0].argmax()
    np.testing.assert_array_equal(scores >= boundary(scores), high)


def _slow_scores(
    models: Sequence[Floats],
    rounds: Sequence[Mapping[str, Floats]],
    aggregates: Sequence[Floats],
    window: int,
) -> dict[str, float]:
    """Score every client of recorded rounds by the definition, client by client."""
    distances: dict[str, list[float]] = {}
    for now in range(window + 1, len(rounds)):
        pairs = range(now - window, now)
        steps = np.stack([models[t] - models[t - 1] for t in pairs])
        changes = np.stack([aggregates[t] - aggregates[t - 1] for t in pairs])
        matrix = _slow_hessian(steps, changes)
        surprise = {}
        for client, update in rounds[now].items():
            past = [t for t in range(now) if client in rounds[t]]
            if past and now - past[-1] <= window + 1:
                predicted = rounds[past[-1]][client] + matrix @ (models[now] - models[past[-1]])
                surprise[client] = float(np.linalg.norm(predicted - update))
        for client, distance in surprise.items():
            share = distance / sum(surprise.values())
            distances.setdefault(client, []).append(share * len(surprise))
    return {client: float(np.mean(d[-window:])) for client, d in distances.items()}


@pytest.mark.parametrize("n_present", [8, 5])
def test_fldetector_is_the_paper_s_algorithm_whoever_takes_part(n_present: int) -> None:
    window = 4
    federation = _Federation(8, n_malicious=2, noise=0.05)
    rule = FLDetector(window=window, first_round=0)
    state: State = {}
    models, rounds, aggregates = [], [], []
    for server_round in range(1, 2 * window + 1):
        members = federation.rng.permutation(8)[:n_present]
        ids = tuple(f"c{i}" for i in members)
        updates, weights = federation.updates(members), 1.0 + members
        context = _context(federation.model, ids, server_round)
        found, state = rule.step(updates, weights, state, context)
        assert is_plain_mean(found, updates, weights)
        models.append(federation.model)
        rounds.append(dict(zip(ids, updates, strict=True)))
        aggregates.append(weights @ updates / weights.sum())
        federation.model = federation.model + found.update
    expected = _slow_scores(models, rounds, aggregates, window)
    assert found.scores is not None
    for client, score in zip(ids, found.scores, strict=True):
        assert score == pytest.approx(expected.get(client, 1.0), rel=1e-5)
    kept = {key.removeprefix("distances/") for key in state if key.startswith("distances/")}
    assert kept == set(expected)


def _run(
    rule: FLDetector, federation: _Federation, n_rounds: int, n_present: int
) -> tuple[list[set[str]], State]:
    """Who was rejected in each round, and the state in the end."""
    state: State = {}
    rejected = []
    for server_round in range(1, n_rounds + 1):
        members = federation.rng.permutation(federation.n)[:n_present]
        ids = tuple(f"c{i}" for i in members)
        context = _context(federation.model, ids, server_round)
        updates = federation.updates(members)
        found, state = rule.step(updates, np.ones(n_present), state, context)
        rejected.append({c for c, kept in zip(ids, found.kept, strict=True) if not kept})
        federation.model = federation.model + found.update
    return rejected, state


@pytest.mark.parametrize("seed", range(4))
def test_fldetector_finds_inconsistent_clients_and_keeps_them_out(seed: int) -> None:
    federation = _Federation(12, n_malicious=3, seed=seed, noise=0.05)
    rejected, state = _run(FLDetector(window=4, first_round=0), federation, 14, 12)
    assert rejected[:7] == [set()] * 7
    assert rejected[-1] == {"c0", "c1", "c2"}
    assert {f"detected/{client}" for client in rejected[-1]} <= set(state)


@pytest.mark.parametrize("seed", range(4))
def test_fldetector_finds_them_where_two_of_three_clients_take_part(seed: int) -> None:
    """Who was away for longer is harder to predict, so that one honest client may go too."""
    federation = _Federation(12, n_malicious=3, seed=seed, noise=0.05)
    _, state = _run(FLDetector(window=4, first_round=0), federation, 12, 8)
    found = {key.removeprefix("detected/") for key in state if key.startswith("detected/")}
    assert found >= {"c0", "c1", "c2"}
    assert len(found) <= 4


def test_what_fldetector_keeps_is_nearer_to_the_honest_mean() -> None:
    federation = _Federation(12, n_malicious=3, noise=0.05)
    rule = FLDetector(window=4, first_round=0)
    _, state = _run(rule, federation, 12, 12)
    updates = federation.updates(np.arange(12))
    ids = tuple(f"c{i}" for i in range(12))
    found, _ = rule.step(updates, np.ones(12), state, _context(federation.model, ids, 13))
    np.testing.assert_allclose(found.update, updates[3:].mean(0))
    assert not is_plain_mean(found, updates, np.ones(12))
    assert found.scores is None or found.scores[:3].min() > found.scores[3:].max()


def test_fldetector_compares_clients_with_themselves_not_with_who_had_their_place() -> None:
    """With honest clients in changing places: predictions by place would all be surprised."""
    rule = FLDetector(window=4, first_round=0)
    federation = _Federation(6, noise=0.0)
    federation.places[0] += 40
    state: State = {}
    for server_round in range(1, 8):
        order = federation.rng.permutation(6)
        ids = tuple(f"c{i}" for i in order)
        context = _context(federation.model, ids, server_round)
        updates = federation.updates(order)
        found, state = rule.step(updates, np.ones(6), state, context)
        federation.model = federation.model + found.update
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, 1.0, rtol=0.05)


def test_fldetector_forgets_clients_that_stay_away_and_bounds_its_state() -> None:
    rule = FLDetector(window=3, first_round=0, max_clusters=2)
    state: State = {}
    federation = _Federation(40, noise=0.05)
    for server_round in range(1, 12):
        members = np.arange(3 * server_round, 3 * server_round + 4)
        ids = tuple(f"c{i}" for i in members)
        context = _context(federation.model, ids, server_round)
        _, state = rule.step(federation.updates(members), np.ones(4), state, context)
        federation.model = federation.model + federation.rng.normal(size=SIZE)
    seen = {key for key in state if key.startswith("update/")}
    assert len(seen) <= 4 * (3 + 2)
    assert "update/c4" not in state
    assert state["steps"].shape == state["changes"].shape == (3, SIZE)


def test_fldetector_keeps_everybody_before_it_can_begin_and_says_why() -> None:
    federation = _Federation(5, n_malicious=2)
    rule = FLDetector()
    ids = tuple(f"c{i}" for i in range(5))
    found, state = rule.step(
        federation.updates(np.arange(5)), np.ones(5), {}, _context(federation.model, ids, 1)
    )
    assert found.kept.all()
    assert found.scores is None
    assert "0 of 10 rounds of history, no prediction before round 51" in found.note
    later = _context(federation.model, ids, 60)
    found, _ = rule.step(federation.updates(np.arange(5)), np.ones(5), state, later)
    assert found.kept.all()


def test_fldetector_leaves_the_model_where_all_who_came_were_detected() -> None:
    ids = ("a", "b", "c")
    state = {f"detected/{client}": np.asarray(3.0) for client in ids}
    updates = np.random.default_rng(0).normal(size=(3, SIZE))
    found, _ = FLDetector().step(updates, np.ones(3), state, _context(np.ones(SIZE), ids, 1))
    np.testing.assert_array_equal(found.update, np.zeros(SIZE))
    assert found.kept.sum() == 0


@pytest.mark.parametrize(
    "settings", [{"window": 0}, {"first_round": -1}, {"n_references": 0}, {"max_clusters": 1}]
)
def test_fldetector_refuses_impossible_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the paper takes"):
        FLDetector(**settings)
