"""Snowball against scikit-learn on raw differences, literals by hand, and faults of others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score
from torch.distributions import Normal, kl_divergence

from fl_shield.aggregators import AggregationContext, Layout, Snowball, is_plain_mean
from fl_shield.aggregators.difference_autoencoder import DifferenceAutoencoder
from fl_shield.aggregators.inner_products import squared_distances
from fl_shield.aggregators.snowball import (
    differences,
    grouped,
    most_voted,
    separation,
    tensor_votes,
    watched_tensors,
)
from fl_shield.types import Floats

SHAPES = {
    "conv1.weight": (4, 1, 3),
    "conv1.bias": (4,),
    "layer1.conv1.weight": (4, 4, 3),
    "fc.weight": (3, 6),
    "fc.bias": (3,),
}


def a_context(n: int, server_round: int = 50) -> AggregationContext:
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    return AggregationContext(
        server_round=server_round,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i:02}" for i in range(n)),
        rng=np.random.default_rng(3),
    )


SIZE = a_context(1).layout.size
QUICK = Snowball(n_far=3, n_first_epochs=20, n_later_epochs=4, n_hidden=24, n_latent=6)


def a_round(n: int, n_bad: int, seed: int = 0) -> Floats:
    """Honest updates around a common step; the first few are scattered far off it."""
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=SIZE) + 0.5 * rng.normal(size=(n, SIZE))
    updates[:n_bad] += 4 * rng.normal(size=(n_bad, SIZE))
    return np.asarray(0.1 * updates)


# Election from below ----------------------------------------------------------------------------


def test_votes_by_hand() -> None:
    # whoever votes starts from itself and from 9: {0, 1, 2} and {9}, however the vote began
    np.testing.assert_allclose(tensor_votes(np.array([[0.0], [1], [2], [9]]), 1), [3, 3, 3, 1])


def test_the_separation_by_hand() -> None:
    points = np.array([[0.0], [2.0], [10.0]])
    labels = np.array([0, 0, 1])
    # within 1 + 1, between 2 * 9 + 36 = 54, over 2 - 1 groups, times 3 - 2 points
    assert separation(squared_distances(points), labels) == pytest.approx(54 / 2)
    assert separation(squared_distances(points), np.zeros(3, int)) == 0


def _votes_slowly(rows: Floats, n_far: int) -> Floats:
    n = len(rows)
    groups, scores = [], []
    for i in range(n):
        away = np.array([rows[i] - row for row in rows])
        far = np.argsort(np.linalg.norm(away, axis=1))[-min(n_far, n - 2) :]
        starts = away[[i, *far]]
        labels = KMeans(len(starts), init=starts, n_init=1, tol=0).fit_predict(away)
        groups.append(labels == labels[i])
        scores.append(calinski_harabasz_score(away, labels))
    low, high = min(scores), max(scores)
    votes = np.zeros(n)
    for group, score in zip(groups, scores, strict=True):
        for j in np.flatnonzero(group):
            votes[j] += (score - low) / (high - low)
    return votes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "d", "n_far"), [(8, 3, 2), (14, 40, 5), (6, 2, 99)])
def test_votes_by_scikit_learn_on_raw_differences(seed: int, n: int, d: int, n_far: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    rows[: n // 3] *= 2
    np.testing.assert_allclose(tensor_votes(rows, n_far), _votes_slowly(rows, n_far), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_groups_and_separation_by_scikit_learn(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(15, 4))
    squared, starts = squared_distances(points), [0, 7, 11]
    labels = grouped(squared, starts)
    slow = KMeans(3, init=points[starts], n_init=1, tol=0).fit_predict(points)
    np.testing.assert_array_equal(labels, slow)
    assert separation(squared, labels) == pytest.approx(calinski_harabasz_score(points, slow))


def test_equal_separations_all_count_in_full() -> None:
    # scaled between their least and their most they are 0 / 0, and nobody has a vote
    votes = tensor_votes(np.repeat(np.ones((1, 3)), 5, axis=0), 2)
    np.testing.assert_array_equal(votes, [5] * 5)
    votes[3] += 1e-13
    np.testing.assert_array_equal(most_voted(votes, 2), [0, 1])


def test_the_first_layer_is_found_by_its_place_and_not_by_its_name() -> None:
    layout = a_context(1).layout
    names = ["conv1.weight", "conv1.bias", "fc.weight", "fc.bias"]  # not layer1.conv1
    assert watched_tensors(layout) == [layout.slices[name] for name in names]
    flat = Layout.of({"w": np.zeros(3, np.float32)})
    assert watched_tensors(flat) == [slice(0, 3)]


def test_the_warm_up_elects_a_tenth_by_votes_alone() -> None:
    updates = a_round(30, 6)
    context = a_context(30, server_round=30)
    found, _ = QUICK.step(updates, np.ones(30), {}, context)
    ballots = [_votes_slowly(updates[:, s], 3) for s in watched_tensors(context.layout)]
    ranks = sorted(range(30), key=lambda i: (-round(math.fsum(b[i] for b in ballots), 6), i))
    assert list(np.flatnonzero(found.votes)) == sorted(ranks[:3])
    np.testing.assert_allclose(found.update, updates[found.kept].mean(0))
    assert "warm-up" in found.note


# Election from above ----------------------------------------------------------------------------


def test_differences_by_loops() -> None:
    points = torch.arange(8.0).reshape(4, 2) ** 2
    own = differences(points, [0, 2, 3], [0, 2, 3])
    slow = [points[i] - points[j] for i in (0, 2, 3) for j in (0, 2, 3) if i != j]
    assert torch.equal(own, torch.stack(slow))
    both = differences(points, [0, 2], [3])
    slow = [d for i in (0, 2) for d in (points[i] - points[3], points[3] - points[i])]
    assert torch.equal(both, torch.stack(slow))


def test_the_loss_of_the_autoencoder_by_distributions() -> None:
    autoencoder = DifferenceAutoencoder(5, 8, 3, generator=torch.Generator().manual_seed(0))
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
    mean, log_variance = autoencoder.encoded(x)
    latent = Normal(mean, log_variance.exp().sqrt())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    shown = autoencoder.decoded(latent.mean + latent.stddev * noise)
    slow = kl_divergence(latent, Normal(0.0, 1.0)).sum() + ((shown - x) ** 2).sum()
    loss = autoencoder.loss(x, torch.Generator().manual_seed(2))
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)


def test_the_error_by_hand_where_the_latent_is_not_heard() -> None:
    generator = torch.Generator().manual_seed(0)
    autoencoder = DifferenceAutoencoder(2, 4, 3, generator=generator)
    shown = autoencoder.layers["shown"]
    assert isinstance(shown, torch.nn.Linear)
    with torch.no_grad():
        shown.weight.zero_()
        shown.bias.copy_(torch.tensor([0.0, math.log(3)]))  # shows 1/2 and 3/4
    rows = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]])  # squeezed 1/2 and 3/4
    np.testing.assert_allclose(autoencoder.errors(rows, generator), [1 / 16, 1 / 16], rtol=1e-5)


def test_the_autoencoder_learns_what_it_is_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 10, generator=generator)
    autoencoder = DifferenceAutoencoder(10, 32, 8, generator=generator)
    before = autoencoder.errors(rows, generator).mean()
    autoencoder.train_on(rows, 30, generator)
    after = autoencoder.errors(rows, generator).mean()
    assert after < 0.7 * before
    assert autoencoder.errors(6 * rows, generator).mean() > 2 * after


def test_the_autoencoder_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    QUICK.step(a_round(8, 2), np.ones(8), {}, a_context(8))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("n", "n_bad"), [(10, 2), (20, 4)])
def test_half_of_a_round_is_elected_and_none_of_the_attackers(n: int, n_bad: int) -> None:
    updates = a_round(n, n_bad, seed=1)
    weights = np.arange(1.0, n + 1)
    found, _ = QUICK.step(updates, weights, {}, a_context(n))
    assert found.votes.sum() == n // 2
    assert not found.votes[:n_bad].any()
    assert found.scores is not None
    assert found.scores[:n_bad].min() > found.scores[found.kept].max()
    slow = np.average(updates, axis=0, weights=weights * found.votes)
    np.testing.assert_allclose(found.update, slow)
    honest = np.average(updates[n_bad:], axis=0, weights=weights[n_bad:])
    everybody = np.average(updates, axis=0, weights=weights)
    assert np.linalg.norm(found.update - honest) < np.linalg.norm(found.update - everybody)
    assert not is_plain_mean(found, updates, weights)


def test_two_are_elected_where_a_tenth_is_one() -> None:
    # of one update there are no differences to learn, and the public implementation stops
    found, _ = QUICK.step(a_round(6, 1), np.ones(6), {}, a_context(6))
    assert "elected 2 of 6 from below, then 1 from above" in found.note


def test_the_order_of_clients_does_not_matter_after_the_warm_up() -> None:
    updates, context = a_round(9, 2), a_context(9)
    order = np.random.default_rng(5).permutation(9)
    moved = replace(a_context(9), client_ids=tuple(context.client_ids[i] for i in order))
    one, _ = QUICK.step(updates, np.ones(9), {}, context)
    other, _ = QUICK.step(updates[order], np.ones(9), {}, moved)
    np.testing.assert_array_equal(other.votes, one.votes[order])


def test_attackers_far_more_alike_than_the_honest_elect_themselves() -> None:
    updates = a_round(20, 4)
    rng = np.random.default_rng(0)
    updates[:4] = 0.3 * rng.normal(size=SIZE) + 0.001 * rng.normal(size=(4, SIZE))
    found, _ = replace(QUICK, n_far=4).step(updates, np.ones(20), {}, a_context(20, 1))
    assert set(np.flatnonzero(found.votes)) < set(range(4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"growth": 0.0}, "growth must be in"), ({"n_far": 0}, "n_far"), ({"n_latent": 0}, "latent")],
)
def test_impossible_settings_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Snowball(**settings)


def test_the_published_widths_and_shares_are_the_defaults() -> None:
    rule = Snowball()
    assert (rule.n_far, rule.n_hidden, rule.n_latent) == (10, 256, 64)
    assert math.isclose(rule.elected_share + rule.growth + rule.final_share, 0.65)
