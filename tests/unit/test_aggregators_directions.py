"""FLAME, FoolsGold and the robust learning rate, against slow references and public faults."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fl_shield.aggregators.contract import AggregationContext, Layout, State
from fl_shield.aggregators.flame import Flame, majority_cluster, model_distances
from fl_shield.aggregators.foolsgold import FoolsGold, trust_of
from fl_shield.aggregators.inner_products import inner_products
from fl_shield.aggregators.rlr import RobustLearningRate
from fl_shield.types import Floats

N_FEATURES, N_CLASSES = 6, 3
N_BODY, N_HEAD = 40, N_CLASSES * N_FEATURES + N_CLASSES


def _context(n: int, scale: float = 1.0) -> AggregationContext:
    """A body of 40 parameters before a head of 21."""
    rng = np.random.default_rng(11)
    arrays = {
        "body.weight": scale * rng.normal(size=(5, 8)),
        "head.weight": scale * rng.normal(size=(N_CLASSES, N_FEATURES)),
        "head.bias": scale * rng.normal(size=N_CLASSES),
    }
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(5),
    )


def _honest(n: int, seed: int, noise: float = 0.5) -> Floats:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=N_BODY + N_HEAD)
    return common + noise * rng.normal(size=(n, N_BODY + N_HEAD))


def _nearer_to_the_honest(update: Floats, updates: Floats, n_malicious: int) -> bool:
    honest, plain = updates[n_malicious:].mean(0), updates.mean(0)
    return bool(np.linalg.norm(update - honest) < 0.5 * np.linalg.norm(plain - honest))


def test_inner_products_of_single_precision_rows_keep_what_cancels() -> None:
    rng = np.random.default_rng(0)
    a = (1e4 + rng.normal(size=(2, 100_000))).astype(np.float32)
    b = a.astype(np.float64)
    expected = [[math.fsum(x * y) for y in b] for x in b]
    np.testing.assert_allclose(inner_products(a, a), expected, rtol=1e-13)


# ---- FLAME


def _slow_majority(models: Floats) -> list[int]:
    """Join nearest models, link by link, until more than half of them hang together."""
    n = len(models)
    groups = [{i} for i in range(n)]
    links = []
    for i in range(n):
        for j in range(i):
            lengths = math.sqrt(sum(x * x for x in models[i]) * sum(x * x for x in models[j]))
            dot = sum(x * y for x, y in zip(models[i], models[j], strict=True))
            links.append((1 - dot / lengths, i, j))
    for _, i, j in sorted(links):
        one = next(g for g in groups if i in g)
        other = next(g for g in groups if j in g)
        if one is not other:
            groups = [g for g in groups if g is not one and g is not other] + [one | other]
        largest = max(groups, key=len)
        if len(largest) >= n // 2 + 1:
            return sorted(largest)
    raise AssertionError("all models are linked in the end")


def test_flame_by_hand() -> None:
    context = _context(3)
    context = replace(
        context,
        global_arrays={"w": np.array([[10.0, 0.0]])},
        layout=Layout.of({"w": np.zeros((1, 2))}),
    )
    updates = np.array([[0.0, 1.0], [0.0, 3.0], [-20.0, 0.0]])
    found, _ = Flame(noise=0.0).step(updates, np.ones(3), {}, context)
    np.testing.assert_array_equal(found.votes, [1, 1, 0])
    np.testing.assert_allclose(found.update, [0.0, 2.0])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "scale"), [(5, 1.0), (10, 4.0), (13, 0.3)])
def test_flame_is_the_paper_s_algorithm(seed: int, n: int, scale: float) -> None:
    context = _context(n, scale)
    updates = _honest(n, seed) * np.random.default_rng(seed).uniform(0.3, 3, size=(n, 1))
    found, _ = Flame(noise=0.0).step(updates, np.arange(1.0, n + 1), {}, context)
    kept = _slow_majority(updates + context.global_vector)
    assert np.flatnonzero(found.votes).tolist() == kept
    norms = [math.sqrt(sum(x * x for x in u)) for u in updates]
    bound = sorted(norms)[n // 2] if n % 2 else sum(sorted(norms)[n // 2 - 1 : n // 2 + 1]) / 2
    expected = sum(updates[i] * min(1.0, bound / norms[i]) for i in kept) / len(kept)
    np.testing.assert_allclose(found.update, expected, rtol=1e-9)


def test_flame_takes_the_median_norm_over_all_updates_not_over_the_accepted_ones() -> None:
    updates = np.vstack([_honest(6, 1, noise=0.1), -0.1 * _honest(4, 1)])
    found, _ = Flame(noise=0.0).step(updates, np.ones(10), {}, _context(10, scale=0.01))
    norms = np.sort(np.linalg.norm(updates, axis=1))
    assert found.votes.tolist() == [1.0] * 6 + [0.0] * 4
    of_all, of_accepted = np.median(norms), np.median(norms[4:])
    assert of_all < 0.99 * of_accepted
    lengths = np.minimum(np.linalg.norm(updates[:6], axis=1), of_all)
    assert np.linalg.norm(found.update) <= lengths.mean() + 1e-9


def test_flame_tells_short_updates_of_a_single_precision_model_apart() -> None:
    rng = np.random.default_rng(2)
    start = rng.normal(size=20_000).astype(np.float32)
    toward = rng.normal(size=(2, 20_000))
    sides = toward[[0] * 7 + [1] * 3] + 0.3 * rng.normal(size=(10, 20_000))
    updates = (2e-4 * sides).astype(np.float32)
    models = updates + start
    single = 1 - (models @ models.T) / np.outer(*[np.linalg.norm(models, axis=1)] * 2)
    exact = model_distances(updates, start)
    assert np.abs(single - exact).max() > 0.1 * exact.max()
    assert majority_cluster(exact)[7:].sum() == 0
    reference = (updates.astype(np.float64) + start)[[0, 1]]
    cosine = reference[0] @ reference[1] / np.prod(np.linalg.norm(reference, axis=1))
    assert exact[0, 1] == pytest.approx(1 - cosine, rel=1e-6)


def test_flame_s_noise_is_a_share_of_the_median_norm_whatever_the_parameters_spread() -> None:
    updates = np.repeat(_honest(1, 0), 5, axis=0)
    context = _context(5)
    found, _ = Flame(noise=0.1).step(updates, np.ones(5), {}, context)
    noise = (found.update - updates[0]) / np.linalg.norm(updates[0])
    expected = np.random.default_rng(5).normal(0.0, 0.1, size=len(noise))
    np.testing.assert_allclose(noise, expected, rtol=1e-6, atol=1e-9)


def test_flame_rejects_a_minority_that_turns_the_model() -> None:
    updates = _honest(10, 4)
    updates[:3] = -5 * updates[:3]
    found, _ = Flame().step(updates, np.ones(10), {}, _context(10))
    assert found.votes[:3].sum() == 0
    assert np.linalg.norm(found.update - updates[3:].mean(0)) < 0.5 * np.linalg.norm(
        updates.mean(0) - updates[3:].mean(0)
    )


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_flame_refuses_impossible_noise(noise: float) -> None:
    with pytest.raises(ValueError, match="noise must be >= 0"):
        Flame(noise=noise)


# ---- FoolsGold


def _slow_trust(histories: list[list[float]]) -> list[float]:
    n = len(histories)

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    similar = [
        [0.0 if i == j else cosine(histories[i], histories[j]) for j in range(n)] for i in range(n)
    ]
    closest = [max(row) for row in similar]
    for i in range(n):
        for j in range(n):
            if i != j and closest[j] > closest[i]:
                similar[i][j] *= closest[i] / closest[j]
    alpha = [1 - max(row) for row in similar]
    alpha = [a / max(alpha) for a in alpha]
    logits = [1.0 if a >= 1 else -9.0 if a <= 0 else math.log(a / (1 - a)) + 0.5 for a in alpha]
    return [min(max(x, 0.0), 1.0) for x in logits]


def test_foolsgold_by_hand() -> None:
    """Cosines .6 and 0: apart = .4, .4, 1, of which the logits plus a half are .0945 and 1."""
    trust = trust_of(np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 2.0]]))
    np.testing.assert_allclose(trust, [math.log(0.4 / 0.6) + 0.5] * 2 + [1.0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [2, 5, 12])
def test_foolsgold_is_the_paper_s_algorithm_over_rounds_of_changing_clients(
    seed: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    sums: dict[str, list[float]] = {}
    state: State = {}
    for round_seed in range(3):
        ids = tuple(f"c{i}" for i in rng.permutation(n + 3)[:n])
        updates = _honest(n, 10 * seed + round_seed, noise=1.5)
        context = replace(_context(n), client_ids=ids)
        found, state = FoolsGold().step(updates, np.ones(n), state, context)
        for client, update in zip(ids, updates, strict=True):
            head = update[N_BODY:].tolist()
            past = sums.get(client, [0.0] * N_HEAD)
            sums[client] = [a + b for a, b in zip(past, head, strict=True)]
        trust = _slow_trust([sums[client] for client in ids])
        np.testing.assert_allclose(found.votes, trust, atol=1e-8)
        expected = sum(a * u for a, u in zip(trust, updates, strict=True)) / sum(trust)
        np.testing.assert_allclose(found.update, expected, rtol=1e-6)
    assert {key: array.shape for key, array in state.items()} == {
        f"history/{client}": (N_HEAD,) for client in sums
    }


def test_foolsgold_hears_nobody_in_a_round_of_equals_and_makes_no_nan() -> None:
    updates = np.repeat(_honest(1, 3), 6, axis=0)
    found, _ = FoolsGold().step(updates, np.ones(6), {}, _context(6))
    np.testing.assert_array_equal(found.votes, np.zeros(6))
    np.testing.assert_array_equal(found.update, np.zeros(N_BODY + N_HEAD))


def test_foolsgold_finds_sybils_by_the_head_where_whole_models_hide_them() -> None:
    rng = np.random.default_rng(1)
    updates = np.hstack([20 * rng.normal(size=(10, N_BODY)), rng.normal(size=(10, N_HEAD))])
    updates[:3, N_BODY:] = updates[0, N_BODY:] + 0.01 * rng.normal(size=(3, N_HEAD))
    found, _ = FoolsGold().step(updates, np.ones(10), {}, _context(10))
    assert found.votes[:3].max() == 0
    assert found.votes[3:].min() > 0.3
    assert trust_of(updates)[:3].min() > 0.3
    assert _nearer_to_the_honest(found.update, updates, 3)


def test_foolsgold_keeps_histories_by_client_not_by_place() -> None:
    """Two sybils share an aim under noise: the sixth round hides them, all six do not."""
    rng = np.random.default_rng(6)
    aims = rng.normal(size=(6, N_BODY + N_HEAD))
    aims[1] = aims[0]
    by_client: State = {}
    by_place: State = {}
    for _ in range(6):
        order = rng.permutation(6)
        context = _context(6)
        moved = replace(context, client_ids=tuple(f"c{i}" for i in order))
        updates = aims[order] + rng.normal(size=aims.shape)
        alone, _ = FoolsGold().step(updates, np.ones(6), {}, moved)
        found, by_client = FoolsGold().step(updates, np.ones(6), by_client, moved)
        faulty, by_place = FoolsGold().step(updates, np.ones(6), by_place, context)
    assert alone.votes[order < 2].min() > 0.3
    np.testing.assert_array_equal(found.votes[order < 2], [0, 0])
    assert found.votes[order >= 2].min() > 0.3
    assert faulty.votes[order < 2].min() > 0.3


@pytest.mark.parametrize("confidence", [0.0, -1.0, float("nan")])
def test_foolsgold_refuses_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be > 0"):
        FoolsGold(confidence=confidence)


# ---- Robust learning rate


def test_rlr_by_hand() -> None:
    """Sums of signs 4, 2, 0 and 1 of four clients; half of four is 2."""
    updates = np.array(
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, -1.0, 0.0], [1.0, -9.0, -1.0, 0.0]]
    )
    rule = RobustLearningRate(threshold=0.5)
    found, _ = rule.step(updates, np.array([1.0, 1.0, 1.0, 3.0]), {}, _context(4))
    np.testing.assert_allclose(found.update, [1.0, -4.0, 1 / 3, -1 / 6])
    np.testing.assert_array_equal(found.votes, np.ones(4))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "threshold"), [(2, 0.5), (10, 0.4), (10, 0.7), (33, 0.2)])
def test_rlr_is_the_paper_s_algorithm(seed: int, n: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(n, 30)) + rng.normal(size=30)
    updates[rng.random(updates.shape) < 0.1] = 0.0
    weights = rng.integers(1, 9, size=n).astype(np.float64)
    rule = RobustLearningRate(threshold=threshold)
    found, _ = rule.step(updates, weights, {}, _context(n))
    for place in range(30):
        signs = sum((x > 0) - (x < 0) for x in updates[:, place].tolist())
        mean = sum(w * x for w, x in zip(weights, updates[:, place], strict=True)) / sum(weights)
        rate = 1 if abs(signs) >= round(threshold * n, 6) else -1
        assert found.update[place] == pytest.approx(rate * mean)


def test_rlr_counts_a_share_of_the_clients_that_came() -> None:
    """A fixed 8 of 20 turns nearly all of a round of six; a share does not."""
    updates = np.abs(_honest(6, 0))
    found, _ = RobustLearningRate(threshold=0.4).step(updates, np.ones(6), {}, _context(6))
    np.testing.assert_allclose(found.update, updates.mean(0))


def test_rlr_turns_a_minority_s_loud_coordinates_back() -> None:
    updates = np.abs(_honest(10, 0)) * 0.01
    target = np.zeros(N_BODY + N_HEAD)
    target[::4] = 5.0
    updates[::2, ::4] *= -1
    updates[:2] += target
    plain = updates.mean(0)
    found, _ = RobustLearningRate().step(updates, np.ones(10), {}, _context(10))
    assert plain @ target > 0
    assert found.update @ target < 0
    quiet = target == 0
    np.testing.assert_allclose(found.update[quiet], plain[quiet])


@pytest.mark.parametrize("threshold", [-0.1, 4.0, float("nan")])
def test_rlr_refuses_a_number_of_clients_for_a_share(threshold: float) -> None:
    with pytest.raises(ValueError, match="share of the clients"):
        RobustLearningRate(threshold=threshold)
