"""One-pass detectors against slow loops straight from the formula, and literals by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from fl_shield.activations import Activations
from fl_shield.detectors import (
    BadActs,
    Beatrix,
    Confidence,
    KNearest,
    Mahalanobis,
    MahalanobisLogit,
    MixtureDensity,
    OneClassSupport,
    TedPlusPlus,
)
from fl_shield.detectors.badacts import share_outside
from fl_shield.detectors.beatrix import FLOOR, Bands, gram_features
from fl_shield.detectors.confidence import confidence_log_odds
from fl_shield.detectors.contract import MAX_REFITS, OnePass
from fl_shield.detectors.knn import nearest_distances
from fl_shield.detectors.mahalanobis import shrunk_distances
from fl_shield.detectors.tedpp import Bank, axis_outlier_scores, nearest_ranks, tube_radii
from fl_shield.types import Detector, Floats, Ints


def _seen(n: int, seed: int = 0, d: int = 5, n_classes: int = 3, shift: float = 0) -> Activations:
    rng = np.random.default_rng(seed)
    layers = {"a": rng.normal(size=(n, d + 2)) + shift, "head": rng.normal(size=(n, d)) + shift}
    return Activations(layers=layers, logits=rng.normal(size=(n, n_classes)))


CLEAN, POINTS = _seen(18), _seen(7, 1, shift=0.7)


# Distances --------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 40])  # fewer and more units than references
@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_mahalanobis_is_the_inverse_of_the_shrunk_covariance(d: int, shrinkage: float) -> None:
    rng = np.random.default_rng(d)
    points, clean = rng.normal(size=(6, d)) * 2, rng.normal(size=(12, d))
    covariance = np.cov(clean.T)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    slow = [
        math.sqrt((x - clean.mean(0)) @ np.linalg.inv(shrunk) @ (x - clean.mean(0))) for x in points
    ]
    np.testing.assert_allclose(shrunk_distances(points, clean, shrinkage), slow, rtol=1e-9)


def test_the_rule_to_beat_by_loops() -> None:
    detector = MahalanobisLogit().fit(CLEAN)
    everyone = np.arange(len(CLEAN))
    rows = CLEAN.penultimate
    far = [float(shrunk_distances(rows[[i]], rows[everyone != i])[0]) for i in everyone]
    sure = [float(z.max() - z.mean()) for z in CLEAN.logits]
    own_far = shrunk_distances(POINTS.penultimate, rows)
    own_sure = [float(z.max() - z.mean()) for z in POINTS.logits]
    slow = [
        (a - np.mean(far)) / np.std(far, ddof=1) + (b - np.mean(sure)) / np.std(sure, ddof=1)
        for a, b in zip(own_far, own_sure, strict=True)
    ]
    np.testing.assert_allclose(detector.score(POINTS), slow, rtol=1e-9)
    others_far, others_sure = far[1:], sure[1:]
    first = (far[0] - np.mean(others_far)) / np.std(others_far, ddof=1)
    first += (sure[0] - np.mean(others_sure)) / np.std(others_sure, ddof=1)
    assert detector.reference_scores_[0] == pytest.approx(first)


@pytest.mark.parametrize("k", [1, 3, 99])
def test_nearest_references_by_loops(k: int) -> None:
    points, clean = POINTS.penultimate, CLEAN.penultimate
    scale = [clean[:, j].std(ddof=1) for j in range(clean.shape[1])]  # none is below the floor
    slow = []
    for x in points:
        lengths = [math.dist(x / scale, c / scale) for c in clean]
        slow.append(sorted(lengths)[min(k, len(clean)) - 1])
    np.testing.assert_allclose(nearest_distances(points, clean, k), slow, rtol=1e-9)
    np.testing.assert_allclose(KNearest(k=k).fit(CLEAN).score(POINTS), slow, rtol=1e-9)


def test_a_silent_unit_keeps_a_finite_scale() -> None:
    clean = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])  # spreads 2 and 0: the floor is 0.1
    assert nearest_distances(np.array([[0.0, 0.3]]), clean, 1) == pytest.approx([3.0])


# Confidence -------------------------------------------------------------------------------------


def test_confidence_orders_like_the_largest_probability_and_never_ties() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        confidence_log_odds(logits), np.log(p.max(1) / (1 - p.max(1))), rtol=1e-6
    )
    certain = np.array([[50.0, 0.0], [90.0, 0.0]])  # both have probability 1.0 in float64
    assert confidence_log_odds(certain).tolist() == [50.0, 90.0]
    assert confidence_log_odds(np.array([[3.0]])).tolist() == [0.0]
    assert Confidence().fit(CLEAN).score(POINTS).shape == (7,)


# BadActs ----------------------------------------------------------------------------------------


def test_badacts_by_loops() -> None:
    slow = []
    for i in range(len(POINTS)):
        outside, total = 0, 0
        for name, rows in CLEAN.layers.items():
            for j in range(rows.shape[1]):
                mean, spread = np.mean(rows[:, j]), np.std(rows[:, j], ddof=1)
                outside += not mean - 2 * spread <= POINTS.layers[name][i, j] <= mean + 2 * spread
                total += 1
        slow.append(outside / total)
    assert max(slow) > 0
    np.testing.assert_allclose(BadActs().fit(CLEAN).score(POINTS), slow)


def test_a_neuron_silent_for_all_references_counts_once_it_speaks() -> None:
    clean = np.zeros((6, 4))
    assert share_outside(np.array([[0.0, 0, 0, 0], [0, 0, 1e-3, 0]]), clean).tolist() == [0.0, 0.25]


def test_rounding_of_a_constant_neuron_is_no_alarm() -> None:
    clean = np.full((7, 3), 0.1, np.float32)
    assert share_outside(clean[:1], clean).tolist() == [0.0]


# TED++ ------------------------------------------------------------------------------------------


def _slow_ranks(x: Activations, bank: Activations, skip_self: bool) -> Floats:
    """Trajectories by loops over points, layers and references."""
    out = []
    last = list(bank.layers)[-1]
    for i in range(len(x)):
        others = [j for j in range(len(bank)) if not (skip_self and i == j)]
        label = x.labels[i]
        if not any(bank.labels[j] == label for j in others):
            lengths = {j: math.dist(x.layers[last][i], bank.layers[last][j]) for j in others}
            label = bank.labels[min(lengths, key=lambda j: lengths[j])]
        row = []
        for name, rows in bank.layers.items():
            order = sorted(others, key=lambda j: math.dist(x.layers[name][i], rows[j]))
            rank = next(r for r, j in enumerate(order) if bank.labels[j] == label)
            near = math.dist(x.layers[name][i], rows[order[rank]])
            inside = near <= _slow_radius(rows, bank.labels, label)
            row.append(rank + 1 if inside else len(others))
        out.append(row)
    return np.array(out, dtype=float)


def _slow_radius(rows: Floats, labels: Ints, label: int) -> float:
    def of(members: list[int]) -> list[float]:
        radii = []
        for i in members:
            own = sorted(math.dist(rows[i], rows[j]) for j in members if j != i)
            if own:
                radii.append(own[min(math.ceil(0.5 * len(members)), len(own)) - 1])
        return radii

    members = {c: [i for i in range(len(rows)) if labels[i] == c] for c in set(labels.tolist())}
    own = of(members[label])
    if own:
        return max(own)
    borrowed = [max(of(m)) for m in members.values() if of(m)]
    return max(borrowed) if borrowed else max(of(list(range(len(rows)))))


@pytest.mark.parametrize("n_classes", [2, 6, 40])  # many, few, and mostly one reference a class
def test_rank_trajectories_by_loops(n_classes: int) -> None:
    bank, x = _seen(14, 3, n_classes=n_classes), _seen(9, 4, n_classes=n_classes, shift=0.3)
    made = Bank.of(bank)
    np.testing.assert_array_equal(made.ranks(x), _slow_ranks(x, bank, skip_self=False))
    np.testing.assert_array_equal(made.own_ranks(), _slow_ranks(bank, bank, skip_self=True))


def test_one_reference_a_class_throughout() -> None:
    rows = np.arange(5.0)[:, None] ** 2
    bank = Activations(layers={"head": rows}, logits=np.eye(5))
    distances = np.abs(rows - rows.T)
    assert set(tube_radii(distances, bank.labels)) == {0, 1, 2, 3, 4}
    # each one's third smallest distance to the others: 9, 8, 5, 8, 15
    assert set(tube_radii(distances, bank.labels).values()) == {15.0}
    assert Bank.of(bank).own_ranks().tolist() == [[1.0]] * 5


def test_ranks_by_hand() -> None:
    distances = np.array([[4.0, 1.0, 2.0, 3.0]])
    same = np.array([[True, False, False, True]])
    assert nearest_ranks(distances, same, np.array([9.0])).tolist() == [3.0]
    assert nearest_ranks(distances, same, np.array([2.9])).tolist() == [4.0]  # out of the tube
    distances[0, 1] = np.inf  # taken out: three are left
    assert nearest_ranks(distances, same, np.array([2.9])).tolist() == [3.0]


def test_axis_outlier_scores_by_loops() -> None:
    rng = np.random.default_rng(0)
    clean, points = rng.normal(size=(30, 4)) * [1, 5, 2, 3], rng.normal(size=(6, 4)) * 4
    z = (clean - clean.mean(0)) / clean.std(0)
    values, vectors = np.linalg.eigh(z.T @ z)
    slow = np.zeros(6)
    for value, axis in list(zip(values, vectors.T, strict=True))[::-1][:2]:
        e = axis * np.sign(axis[np.abs(axis).argmax()])
        for i, x in enumerate(points):
            slow[i] += math.dist((x - clean.mean(0)) / clean.std(0), e) / (value / values.sum())
    np.testing.assert_allclose(axis_outlier_scores(points, clean, 2), slow, rtol=1e-9)


def test_bank_in_perfect_order_still_tells_disorder() -> None:
    """All ranks of the references equal 1, as in a well trained network: no spread at all."""
    own = np.ones((20, 3))
    scores = axis_outlier_scores(np.array([[1.0, 1, 1], [1, 1, 4], [20, 20, 20]]), own, 2)
    assert np.isfinite(scores).all()
    assert all(a < b for a, b in pairwise(scores))


def test_an_input_that_leaves_its_class_halfway_is_caught() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [10, 0]])
    labels = np.repeat([0, 1], 10)
    rows = centres[labels] + rng.normal(size=(20, 2))
    logits = np.eye(2)[labels]
    bank = Activations(layers={"a": rows, "b": rows, "head": rows}, logits=logits)
    new = centres[labels[::2]] + rng.normal(size=(10, 2)) * 0.3
    clean = Activations(layers={"a": new, "b": new, "head": new}, logits=logits[::2])
    moved = centres[1 - labels[::2]] + rng.normal(size=(10, 2)) * 0.3
    turned = Activations(layers={"a": moved, "b": moved, "head": new}, logits=logits[::2])
    detector = TedPlusPlus().fit(bank)
    assert detector.score(turned).min() > detector.score(clean).max()


# Beatrix ----------------------------------------------------------------------------------------


def test_gram_features_by_loops() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 4, 5))
    fast = gram_features(maps, (1, 2, 3))
    for n in range(3):
        for row, p in enumerate((1, 2, 3)):
            entries = []
            for i in range(4):
                for j in range(i, 4):
                    g = sum(maps[n, i, t] ** p * maps[n, j, t] ** p for t in range(5))
                    entries.append(math.copysign(abs(g) ** (1 / p), g))
            np.testing.assert_allclose(fast[n, row], entries, rtol=1e-9)


def test_of_pooled_activations_only_the_parity_of_an_order_counts() -> None:
    pooled = np.random.default_rng(0).normal(size=(4, 6, 1))
    grams = gram_features(pooled, (1, 2, 3, 4, 8))
    np.testing.assert_allclose(grams[:, 0], grams[:, 2])
    np.testing.assert_allclose(grams[:, 1], grams[:, 3])
    np.testing.assert_allclose(grams[:, 1], grams[:, 4])
    np.testing.assert_allclose(np.abs(grams[:, 0]), grams[:, 1])


def test_bands_by_hand() -> None:
    grams = np.array([1.0, 2, 3, 4, 100])[:, None, None]  # median 3, deviations 2 1 0 1 97: 1
    bands = Bands.of(grams, 10)
    assert (bands.low.item(), bands.high.item()) == (-7.0, 13.0)
    excess = bands.excess(np.array([[[13.0]], [[26.0]], [[-14.0]]]))
    np.testing.assert_allclose(excess, [[0.0], [1.0], [1.0]])


@pytest.mark.parametrize("orders", [(1, 2, 3, 4), (1,), (2, 4), (1, 2, 3)])
def test_beatrix_by_loops(orders: tuple[int, ...]) -> None:
    clean, points = _seen(20, 5, n_classes=3), _seen(6, 6, n_classes=3, shift=3.0)
    counts = np.bincount(clean.labels, minlength=3)
    least = int(np.sort(counts)[1])  # one class has too few references
    detector = Beatrix(orders=orders, min_per_class=least, n_deviations=3).fit(clean)
    slow = []
    for i in range(6):
        own = clean.labels == points.labels[i]
        used = own if own.sum() >= least else np.ones(20, bool)
        layers = []
        for name, rows in clean.layers.items():
            g = gram_features(rows[used][:, :, None], orders)
            x = gram_features(points.layers[name][[i]][:, :, None], orders)[0]
            median = np.median(g, axis=0)
            reach = 3 * np.median(np.abs(g - median), axis=0)
            low, high = median - reach, median + reach
            means = []
            for p in range(len(orders)):
                floor = FLOOR * (np.abs(low[p]).mean() + np.abs(high[p]).mean()) / 2
                total = 0.0
                for e in range(g.shape[2]):
                    if x[p, e] < low[p, e]:
                        total += (low[p, e] - x[p, e]) / max(abs(low[p, e]), floor)
                    if x[p, e] > high[p, e]:
                        total += (x[p, e] - high[p, e]) / max(abs(high[p, e]), floor)
                means.append(total / g.shape[2])
            layers.append(np.mean(means))
        slow.append(np.mean(layers))
    assert max(slow) > 0
    np.testing.assert_allclose(detector.score(points), slow, rtol=1e-9)


@pytest.mark.parametrize("m", [5, 8, 20, 21, 55])
def test_beatrix_beside_the_others_by_refits(m: int) -> None:
    clean = _seen(m, 7, n_classes=3)
    rows = {name: rows.round(1) for name, rows in clean.layers.items()}  # with ties
    clean = Activations(layers=rows, logits=clean.logits)
    detector = Beatrix(n_deviations=2).fit(clean)
    slow = OnePass._out_of_fit(detector, clean)
    assert slow.max() > 0
    np.testing.assert_array_equal(detector.reference_scores_, slow)


@pytest.mark.parametrize("m", [4, 5, 8, 9])
def test_bands_without_each_by_loops(m: int) -> None:
    grams = np.random.default_rng(m).integers(0, 4, (m, 2, 30)).astype(float)  # with ties
    rows = np.array([m - 1, 0, 2])
    fast = Bands.without_each(grams, rows, 3)
    for i, row in enumerate(rows):
        slow = Bands.of(np.delete(grams, row, axis=0), 3)
        np.testing.assert_array_equal(fast.low[i], slow.low)
        np.testing.assert_array_equal(fast.high[i], slow.high)


def test_wide_layers_give_evenly_spaced_units() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10, 300))
    seen = Activations(layers={"head": rows}, logits=rng.normal(size=(10, 2)))
    loud = rows.copy()
    loud[:, 1] = 1e6  # between the first and the second unit that are read
    other = Activations(layers={"head": loud}, logits=seen.logits)
    detector = Beatrix(max_units=4).fit(seen)
    np.testing.assert_array_equal(detector.score(other), detector.score(seen))


# Backbones of the ablation ----------------------------------------------------------------------


def test_mixture_of_one_is_a_gaussian_by_hand() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 3)) @ np.diag([3.0, 2.0, 1.0])
    seen = Activations(layers={"head": rows}, logits=rows)
    detector = MixtureDensity(n_components=1, n_axes=2).fit(seen)
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    z = (rows - rows.mean(0)) @ axes[:2].T
    variance = z.var(0) + 0.1 * z.var(0).mean() + 1e-9
    slow = 0.5 * (z**2 / variance + np.log(2 * np.pi * variance)).sum(1)
    np.testing.assert_allclose(detector.score(seen), slow, rtol=1e-6)


def test_support_of_one_class_grows_with_distance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 3))
    seen = Activations(layers={"head": rows}, logits=rows)
    steps = np.outer(np.arange(6), np.ones(3)) + rows.mean(0)
    scores = OneClassSupport().fit(seen).score(Activations(layers={"head": steps}, logits=steps))
    assert all(a < b for a, b in pairwise(scores))


# The contract -----------------------------------------------------------------------------------


def test_more_references_than_refits_are_scored_in_folds() -> None:
    seen = _seen(2 * MAX_REFITS + 3)
    detector = Mahalanobis().fit(seen)
    fold = np.arange(len(seen)) % MAX_REFITS
    expected = shrunk_distances(seen.penultimate[fold == 0], seen.penultimate[fold != 0])
    np.testing.assert_allclose(detector.reference_scores_[fold == 0], expected)


def test_other_layers_than_those_of_the_references_are_refused() -> None:
    detector = Mahalanobis().fit(CLEAN)
    renamed = Activations(layers={"b": CLEAN.layers["head"]}, logits=CLEAN.logits)
    with pytest.raises(ValueError, match="watch the same layers"):
        detector.score(renamed)
    with pytest.raises(ValueError, match="watch the same layers"):
        detector.score(_seen(3, d=9))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mahalanobis(shrinkage=0),
        lambda: MahalanobisLogit(shrinkage=1.5),
        lambda: KNearest(k=0),
        lambda: BadActs(n_sigma=0),
        lambda: TedPlusPlus(tube_share=0),
        lambda: TedPlusPlus(n_components=0),
        lambda: Beatrix(orders=()),
        lambda: Beatrix(orders=(0,)),
        lambda: Beatrix(min_per_class=1),
        lambda: MixtureDensity(n_axes=0),
        lambda: OneClassSupport(nu=0),
    ],
)
def test_impossible_settings_are_refused(make: type[Mahalanobis]) -> None:
    with pytest.raises(ValueError, match="got"):
        make()


def test_one_contract_with_our_own_detector() -> None:
    made: Detector = Mahalanobis(fpr_budget=0.1)  # held by the type checker
    assert made.fit(CLEAN).p_values(POINTS).min() >= 1 / (len(CLEAN) + 1)


def test_fit_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match="torch module with clean inputs, or Activations"):
        Mahalanobis().fit(np.zeros((9, 3)))  # type: ignore[arg-type]
