"""Ways to share one pool of labelled examples among clients.

Every partition returns one sorted index array a client; together they hold each index once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.types import Ints


def iid(labels: Ints, n_clients: int, rng: np.random.Generator) -> list[Ints]:
    """Share a pool evenly and at random: sizes differ by one at most.

    Parameters
    ----------
    labels : (n,) int array
        Labels of the pool (only their number matters here).
    n_clients : int
        Clients, 1 or more.
    rng : numpy.random.Generator
        Draws the shares.

    Examples
    --------
    >>> [len(part) for part in iid(np.zeros(7, int), 3, np.random.default_rng(0))]
    [3, 2, 2]
    """
    _check_pool(len(labels), n_clients, 1)
    return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), n_clients)]


def dirichlet(
    labels: Ints,
    n_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_size: int = 10,
) -> list[Ints]:
    """Share each class in proportions drawn from a symmetric Dirichlet distribution.

    A client left with fewer than ``min_size`` examples is topped up, one random example at a
    time, from whoever then holds most.

    Parameters
    ----------
    labels : (n,) int array
        Labels of the pool.
    n_clients : int
        Clients, 1 or more.
    rng : numpy.random.Generator
        Draws proportions and shares.
    alpha : float
        Concentration > 0: small = each class with few clients, large = near IID.
    min_size : int
        Smallest share.

    References
    ----------
    T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv:1909.06335, and the per-class form of M. Yurochkin et
    al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4.

    Examples
    --------
    >>> parts = dirichlet(np.arange(100) % 2, 4, np.random.default_rng(0), min_size=5)
    >>> sum(map(len, parts)), min(map(len, parts)) >= 5
    (100, True)
    """
    if not alpha > 0:
        raise DatasetError(f"alpha of a Dirichlet partition must be > 0, got {alpha}")
    _check_pool(len(labels), n_clients, min_size)
    shares: list[list[int]] = [[] for _ in range(n_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(n_clients, alpha))
        cuts = np.round(np.cumsum(proportions)[:-1] * len(members)).astype(int)
        for share, part in zip(shares, np.split(members, cuts), strict=True):
            share.extend(part.tolist())
    _top_up(shares, min_size, rng)
    return [np.sort(np.array(share, dtype=np.int64)) for share in shares]


def _top_up(shares: list[list[int]], min_size: int, rng: np.random.Generator) -> None:
    for share in shares:
        while len(share) < min_size:
            richest = max(shares, key=len)
            share.append(richest.pop(int(rng.integers(len(richest)))))


def _check_pool(n_examples: int, n_clients: int, min_size: int) -> None:
    if n_clients < 1:
        raise DatasetError(f"a partition needs at least 1 client, got {n_clients}")
    if n_examples < n_clients * min_size:
        raise DatasetError(
            f"{n_examples} examples cannot give {n_clients} clients {min_size} each: "
            "ask for fewer --clients"
        )


PARTITIONS: Mapping[str, Callable[..., list[Ints]]] = {"dirichlet": dirichlet, "iid": iid}
"""Partitions of one pool; the third name, ``natural``, keeps the owners as they are."""
