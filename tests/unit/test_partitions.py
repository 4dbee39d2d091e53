"""Partitions: every index once, sizes, seeds, skew."""

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.partitions import PARTITIONS, dirichlet, iid

LABELS = np.repeat(np.arange(10), 100)


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("n_clients", [1, 7, 100])
def test_every_index_goes_to_one_client(partition, n_clients) -> None:  # type: ignore[no-untyped-def]
    parts = partition(LABELS, n_clients, np.random.default_rng(0))
    assert len(parts) == n_clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_the_generator_decides_and_the_global_one_does_not(partition) -> None:  # type: ignore[no-untyped-def]
    first = partition(LABELS, 5, np.random.default_rng(3))
    again = partition(LABELS, 5, np.random.default_rng(3))
    other = partition(LABELS, 5, np.random.default_rng(4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = [len(part) for part in iid(np.zeros(23, np.int64), 5, np.random.default_rng(0))]
    assert sizes == [5, 5, 5, 4, 4]


def test_dirichlet_tops_up_from_the_richest() -> None:
    parts = dirichlet(LABELS, 50, np.random.default_rng(0), alpha=0.01, min_size=15)
    assert min(map(len, parts)) >= 15
    assert sum(map(len, parts)) == 1000


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    def largest_share(alpha: float) -> float:
        parts = dirichlet(LABELS, 10, np.random.default_rng(0), alpha=alpha, min_size=1)
        return float(np.mean([np.bincount(LABELS[p]).max() / len(p) for p in parts]))

    assert largest_share(0.05) > 0.6
    assert largest_share(1000.0) < 0.13


def test_dirichlet_proportions_of_one_class_are_those_of_the_draw() -> None:
    # one class: the only draws are one permutation and one Dirichlet vector
    rng = np.random.default_rng(5)
    rng.permutation(1000)
    expected = np.diff(np.round(np.cumsum(np.r_[0, rng.dirichlet(np.full(4, 2.0))]) * 1000))
    parts = dirichlet(np.zeros(1000, np.int64), 4, np.random.default_rng(5), alpha=2.0, min_size=0)
    assert [len(part) for part in parts] == expected.astype(int).tolist()


@pytest.mark.parametrize(
    ("n_clients", "alpha", "rule"),
    [
        (0, 0.5, "at least 1 client"),
        (5, 0.0, "alpha of a Dirichlet partition must be > 0"),
        (5, float("nan"), "alpha of a Dirichlet partition must be > 0"),
        (101, 0.5, "ask for fewer --clients"),
    ],
)
def test_impossible_partitions_are_refused(n_clients: int, alpha: float, rule: str) -> None:
    with pytest.raises(DatasetError, match=rule):
        dirichlet(LABELS, n_clients, np.random.default_rng(0), alpha=alpha)
