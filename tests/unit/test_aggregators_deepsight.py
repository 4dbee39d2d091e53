"""DeepSight's parts against loops, HDBSCAN against its definition, and the inverted rule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN
from torch import nn

from fl_shield.aggregators.contract import AggregationContext, Layout
from fl_shield.aggregators.deepsight import (
    DeepSight,
    class_energies,
    clusters_of,
    division_differences,
    head_updates,
    is_suspicious,
    meetings,
    noise_inputs,
    suspicious_shares,
    threshold_exceedings,
)
from fl_shield.errors import AggregationError
from fl_shield.training import get_arrays
from fl_shield.types import Flags, Floats, Ints, Samples

N_FEATURES, N_CLASSES = 5, 8
SIZE = N_CLASSES * (N_FEATURES + 1)
QUICK = DeepSight(n_inputs=200)


def _context(n: int) -> AggregationContext:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(N_FEATURES, N_CLASSES)
    arrays = get_arrays(model)
    rng = np.random.default_rng(1)
    clean = Samples(x=rng.random((10, N_FEATURES)).astype(np.float32), y=np.arange(10) % N_CLASSES)
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(2),
        model=model,
        clean=clean,
    )


def _round(n_honest: int, n_malicious: int, seed: int) -> Floats:
    """Honest updates move all classes a little apart; malicious ones push class 0 alone."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=SIZE) + 0.1 * rng.normal(size=(n_honest, SIZE))
    shape = (n_malicious, N_CLASSES, N_FEATURES)
    weight = 0.01 * rng.normal(size=shape)
    bias = 0.01 * rng.normal(size=(n_malicious, N_CLASSES))
    weight[:, 0] += 6
    bias[:, 0] += 6
    malicious = np.hstack([weight.reshape(n_malicious, -1), bias])
    return np.vstack([malicious, 0.1 * honest])


# ---- parts


def test_class_energies_and_exceedings_by_hand() -> None:
    """Sums 2, 1, 0 and 1: squares 4, 1, 0 and 1 of 6; a quarter of the largest is not exceeded."""
    weight = np.array([[[1.0, -0.5], [0.5, 0.5], [0.0, 0.0], [-1.0, 0.0]]])
    bias = np.array([[0.5, 0.0, 0.0, 0.0]])
    energies = class_energies(weight, bias)
    np.testing.assert_allclose(energies, [[4 / 6, 1 / 6, 0.0, 1 / 6]])
    assert threshold_exceedings(energies).tolist() == [1]
    assert threshold_exceedings(np.array([[0.6, 0.16, 0.1, 0.14]])).tolist() == [2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_classes", [3, 10, 120])
def test_energies_and_exceedings_are_the_paper_s(seed: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(4, n_classes, 6)) ** 3, rng.normal(size=(4, n_classes))
    energies = class_energies(weight, bias)
    counts = threshold_exceedings(energies)
    for i in range(4):
        squares = []
        for c in range(n_classes):
            energy = abs(bias[i, c]) + sum(abs(x) for x in weight[i, c])
            squares.append(energy**2)
        slow = [s / sum(squares) for s in squares]
        np.testing.assert_allclose(energies[i], slow)
        assert counts[i] == sum(e > max(0.01, 1 / n_classes) * max(slow) for e in slow)


def test_a_silent_update_has_no_energy_and_is_suspicious_among_others() -> None:
    silent = class_energies(np.zeros((1, 3, 2)), np.zeros((1, 3)))
    np.testing.assert_array_equal(silent, np.zeros((1, 3)))
    assert threshold_exceedings(silent).tolist() == [0]
    assert is_suspicious(np.array([3, 3, 0])).tolist() == [False, False, True]


def test_suspicious_is_at_most_half_the_median() -> None:
    assert is_suspicious(np.array([10, 9, 8, 5, 4, 3])).tolist() == [False] * 4 + [False, True]
    assert is_suspicious(np.array([10, 8, 8, 4])).tolist() == [False, False, False, True]


def test_noise_has_the_shape_type_and_range_of_the_clean_examples() -> None:
    rng = np.random.default_rng(0)
    images = noise_inputs(np.full((2, 1, 4, 4), 0.5, np.float32) * [[[[0, 2, 1, 1]]]], 300, rng)
    assert images.shape == (300, 1, 4, 4)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.mean() == pytest.approx(0.5, abs=0.02)
    tokens = noise_inputs(np.array([[3, 4], [5, 6]]), 400, rng)
    assert tokens.dtype == np.int64
    assert set(np.unique(tokens)) == {3, 4, 5, 6}


@pytest.mark.parametrize("seed", range(3))
def test_division_differences_divide_probabilities(seed: int) -> None:
    """Not logits, whose ratio changes when a constant is added to all of them."""
    context = _context(3)
    assert context.model is not None
    rng = np.random.default_rng(seed)
    updates, inputs = rng.normal(size=(3, SIZE)), rng.random((40, N_FEATURES)).astype(np.float32)
    found = division_differences(context.model, context, updates, inputs)
    start = context.global_vector.astype(np.float64)

    def probabilities(vector: Floats, x: Floats) -> list[float]:
        weight = vector[: N_CLASSES * N_FEATURES].reshape(N_CLASSES, N_FEATURES)
        logits = weight @ x + vector[N_CLASSES * N_FEATURES :]
        return [1 / sum(math.exp(other - logit) for other in logits) for logit in logits]

    for i, update in enumerate(updates):
        total = np.zeros(N_CLASSES)
        for x in inputs:
            local, before = probabilities(start + update, x), probabilities(start, x)
            total += [a / b for a, b in zip(local, before, strict=True)]
        np.testing.assert_allclose(found[i], total / len(inputs), rtol=1e-4)
    lifted = updates.copy()
    lifted[:, -N_CLASSES:] += 3.0
    same = division_differences(context.model, context, lifted, inputs)
    np.testing.assert_allclose(same, found, rtol=1e-4)


def test_the_head_is_read_as_classes_by_inputs_with_or_without_a_bias() -> None:
    arrays = {"a": np.zeros((2, 2)), "fc.weight": np.zeros((3, 2)), "fc.bias": np.zeros(3)}
    rows = np.arange(13.0)[None]
    weight, bias = head_updates(rows, Layout.of(arrays))
    assert weight.tolist() == [[[4, 5], [6, 7], [8, 9]]]
    assert bias.tolist() == [[10, 11, 12]]
    del arrays["fc.bias"]
    weight, direction = head_updates(rows[:, :10], Layout.of(arrays))
    assert direction.tolist() == [[4, 5, 6, 7, 8, 9]]
    with pytest.raises(AggregationError, match="dense output layer"):
        head_updates(rows[:, :3], Layout.of({"scale": np.zeros(3)}))


# ---- clusters


def _pieces(reach: Floats, members: list[int], below: float) -> list[list[int]]:
    """Members that hang together by links shorter than a level."""
    left, out = set(members), []
    while left:
        piece: set[int] = set()
        grow = [left.pop()]
        while grow:
            i = grow.pop()
            piece.add(i)
            near = {j for j in left if reach[i, j] < below}
            left -= near
            grow += near
        out.append(sorted(piece))
    return out


def _selected(
    reach: Floats, members: list[int], birth: float, min_size: int
) -> tuple[float, list[list[int]]]:
    """Excess of mass of the best selection within a cluster, and that selection."""
    mass, inside = 0.0, members
    for level in sorted({float(r) for r in reach[np.ix_(members, members)].ravel()})[::-1]:
        large = [p for p in _pieces(reach, inside, level) if len(p) >= min_size]
        staying = len(large[0]) if len(large) == 1 else 0
        mass += (len(inside) - staying) * (1 / level - 1 / birth)
        if len(large) != 1:
            break
        inside = large[0]
    below = [_selected(reach, part, level, min_size) for part in large]
    deeper = sum(part_mass for part_mass, _ in below)
    if deeper > mass or birth == math.inf:
        return deeper, [cluster for _, chosen in below for cluster in chosen]
    return mass, [members]


def _slow_hdbscan(distances: Floats, min_size: int) -> Ints:
    """Clusters of greatest excess of mass among the level sets, never all of it; -1 = in none."""
    core = np.sort(distances, axis=1)[:, min_size]
    reach = np.maximum(distances, np.maximum(core[:, None], core))
    labels = np.full(len(distances), -1)
    _, chosen = _selected(reach, list(range(len(distances))), math.inf, min_size)
    for label, cluster in enumerate(chosen):
        labels[cluster] = label
    return labels


@pytest.mark.parametrize("seed", range(1, 10))
@pytest.mark.parametrize("min_size", [3, 5])
def test_clusters_are_those_of_hdbscan_s_definition(seed: int, min_size: int) -> None:
    """Without ties: a client just as far away as two clusters are apart may join either."""
    rng = np.random.default_rng(seed)
    centres = 6 * rng.normal(size=(3, 2))
    points = centres[rng.integers(0, 3, size=30)] + rng.normal(size=(30, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    found, slow = clusters_of(distances, min_size), _slow_hdbscan(distances, min_size)
    np.testing.assert_array_equal(found < 0, slow < 0)
    np.testing.assert_array_equal(meetings(found), meetings(slow))


def test_too_few_clients_for_two_clusters_are_all_outside() -> None:
    assert clusters_of(np.ones((9, 9)) - np.eye(9), 5).tolist() == [-1] * 9
    assert clusters_of(np.zeros((10, 10)), 5).tolist() == [0] * 10


def test_equal_members_of_two_clusters_make_no_infinite_density() -> None:
    sides = np.repeat([0.0, 1.0], [8, 7])
    found = clusters_of(abs(sides[:, None] - sides), 5)
    np.testing.assert_array_equal(meetings(found), abs(sides[:, None] - sides))


# ---- the rule


def test_a_cluster_is_accepted_for_its_few_suspicious_members_not_for_its_few_benign_ones() -> None:
    """The inverted rule of a public version would accept exactly the other cluster."""
    clusters = np.array([0] * 5 + [1] * 5 + [-1, -1])
    suspicious = np.array([True] + [False] * 4 + [True] * 4 + [False] + [True, False])
    shares = suspicious_shares(clusters, suspicious)
    np.testing.assert_allclose(shares, [0.2] * 5 + [0.8] * 5 + [1.0, 0.0])
    kept = shares < QUICK.max_suspicious
    assert kept.tolist() == [True] * 5 + [False] * 5 + [False, True]
    inverted = suspicious_shares(clusters, ~suspicious) < QUICK.max_suspicious
    assert inverted.tolist() == (~kept).tolist()


def test_a_third_is_too_many() -> None:
    shares = suspicious_shares(np.zeros(3, np.int64), np.array([True, False, False]))
    assert not (shares < QUICK.max_suspicious).any()


def _slow_kept(updates: Floats, context: AggregationContext, rule: DeepSight) -> Flags:
    """Run the ensemble with HDBSCAN on the values themselves, pair by pair."""
    assert context.model is not None
    assert context.clean is not None
    n = len(updates)
    weight = updates[:, : N_CLASSES * N_FEATURES].reshape(n, N_CLASSES, N_FEATURES)
    bias = updates[:, N_CLASSES * N_FEATURES :]
    energies = (np.abs(bias) + np.abs(weight).sum(2)) ** 2
    energies /= energies.sum(1, keepdims=True)
    counts = [(e > max(0.01, 1 / N_CLASSES) * e.max()).sum() for e in energies]
    suspicious = [count <= np.median(counts) / 2 for count in counts]
    unit = bias / np.linalg.norm(bias, axis=1, keepdims=True)
    own = {"min_cluster_size": 5, "min_samples": 6, "copy": True}
    views = [HDBSCAN(**own).fit_predict(energies)] * 3
    views += [
        HDBSCAN(**own, metric="precomputed").fit_predict(np.maximum(1 - unit @ unit.T, 0))
    ] * 3
    for _ in range(3):
        x = context.rng.uniform(
            context.clean.x.min(), context.clean.x.max(), size=(rule.n_inputs, N_FEATURES)
        )
        views.append(
            HDBSCAN(**own).fit_predict(
                division_differences(context.model, context, updates, x.astype(np.float32))
            )
        )
    apart = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            met = [i == j or (view[i] == view[j] >= 0) for view in views]
            apart[i, j] = 1 - sum(met) / len(met)
    clusters = _slow_hdbscan(np.maximum(apart, 1e-9), 5)
    kept = [not s for s in suspicious]
    for label in set(clusters.tolist()) - {-1}:
        members = [i for i in range(n) if clusters[i] == label]
        share = sum(suspicious[i] for i in members) / len(members)
        for i in members:
            kept[i] = share < 1 / 3
    return np.array(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_honest", "n_malicious"), [(14, 7), (8, 2), (9, 8)])
def test_deepsight_is_the_paper_s_algorithm(seed: int, n_honest: int, n_malicious: int) -> None:
    n = n_honest + n_malicious
    updates = _round(n_honest, n_malicious, seed)
    found, _ = QUICK.step(updates, np.arange(1.0, n + 1), {}, _context(n))
    kept = _slow_kept(updates, _context(n), QUICK)
    np.testing.assert_array_equal(found.kept, kept)
    norms = np.sqrt((updates**2).sum(1))
    bound = np.median(norms)
    shortened = [u * min(1, bound / norm) for u, norm in zip(updates, norms, strict=True)]
    expected = np.mean([u for u, k in zip(shortened, kept, strict=True) if k], axis=0)
    np.testing.assert_allclose(found.update, expected, rtol=1e-6)


def test_deepsight_rejects_who_trains_one_class_and_clips_to_the_median_of_all() -> None:
    updates = _round(14, 6, 1)
    updates[6] *= 50
    found, _ = QUICK.step(updates, np.ones(20), {}, _context(20))
    assert found.votes[:6].sum() == 0
    assert found.votes[6:].sum() >= 13
    honest, plain = updates[7:].mean(0), updates.mean(0)
    assert np.linalg.norm(found.update - honest) < 0.1 * np.linalg.norm(plain - honest)
    assert found.scores is not None
    assert found.scores[:6].min() > found.scores[6:].max()


def test_deepsight_leaves_the_model_where_nobody_is_accepted() -> None:
    updates = np.zeros((4, SIZE))
    found, _ = QUICK.step(updates, np.ones(4), {}, _context(4))
    assert found.kept.sum() == 0
    np.testing.assert_array_equal(found.update, np.zeros(SIZE))


def test_deepsight_needs_a_model_and_the_shapes_of_clean_examples() -> None:
    for lacking in (replace(_context(3), model=None), replace(_context(3), clean=None)):
        with pytest.raises(AggregationError, match="deepsight runs the model"):
            QUICK.step(np.ones((3, SIZE)), np.ones(3), {}, lacking)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_inputs": 0},
        {"n_draws": 0},
        {"threshold_factor": 1.0},
        {"max_suspicious": 0.0},
        {"min_cluster_size": 1},
    ],
)
def test_deepsight_refuses_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="takes"):
        DeepSight(**settings)  # type: ignore[arg-type]
