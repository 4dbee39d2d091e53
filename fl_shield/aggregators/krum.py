"""Krum and Multi-Krum: trust the updates that have the nearest neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    names_of,
)
from fl_shield.aggregators.inner_products import squared_distances
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Krum:
    """Returns the one update with the least sum of squared distances to its nearest peers.

    Attributes
    ----------
    byzantine_share : float
        Share of attackers to withstand, in [0, 0.5): f = share x n, rounded down, at least 1 where
        the share is > 0, and never more than the rule's condition n >= 2 f + 3 allows.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, section 4. Flower's MultiKrum measures distances between whole models, batch
    counters included, and assumes f = 0 unless told.

    Examples
    --------
    >>> krum_scores(squared_distances(np.array([[0.0], [1.0], [3.0], [9.0]])), 0)
    array([ 10.,   5.,  13., 100.])
    """

    byzantine_share: float = 0.2

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_share(self.byzantine_share)

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Return the update of least score; only its sender votes."""
        check_round(updates, weights, self.min_clients, "krum")
        found = _lowest(updates, context, self.byzantine_share, 1)
        return found, state


@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """Averages the updates of least Krum scores, without example counts.

    Attributes
    ----------
    byzantine_share : float
        Share of attackers to withstand, in [0, 0.5), counted as :class:`Krum` does.
    n_kept : int, optional
        How many updates are averaged, >= 1; m of the paper. Without it, n - f.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, section 5 (Multi-Krum).
    """

    byzantine_share: float = 0.2
    n_kept: int | None = None

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_share(self.byzantine_share)
        if self.n_kept is not None and self.n_kept < 1:
            raise ValueError(f"n_kept must be >= 1, got {self.n_kept}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Average the updates of least scores; their senders vote."""
        check_round(updates, weights, self.min_clients, "multi_krum")
        found = _lowest(updates, context, self.byzantine_share, self.n_kept)
        return found, state


def _lowest(
    updates: Floats, context: AggregationContext, share: float, n_kept: int | None
) -> Aggregate:
    n = len(updates)
    f = count_byzantine(share, n, (n - 3) // 2)
    squared = squared_distances(updates)
    kept = krum_order(squared, f)[: n - f if n_kept is None else n_kept]
    votes = np.zeros(n)
    votes[kept] = 1
    names = names_of([context.client_ids[i] for i in kept])
    note = f"kept {len(kept)} of {n} ({names}), f = {f}"
    scores = krum_scores(squared, f)
    return Aggregate(update=updates[kept].mean(0), votes=votes, scores=scores, note=note)


def check_share(share: float) -> None:
    """Raise ValueError unless a share of attackers is in [0, 0.5).

    Examples
    --------
    >>> check_share(0.2)
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"byzantine_share must be in [0, 0.5), got {share}")


def count_byzantine(share: float, n_clients: int, n_most: int) -> int:
    """How many of n clients a share means: rounded down, at least 1 if it is > 0, at most n_most.

    Examples
    --------
    >>> count_byzantine(0.2, 10, 3), count_byzantine(0.1, 5, 3), count_byzantine(0.4, 10, 3)
    (2, 1, 3)
    """
    wanted = max(1, int(share * n_clients + 1e-9)) if share > 0 else 0
    return max(0, min(wanted, n_most))


def krum_scores(squared: Floats, n_byzantine: int) -> Floats:
    """Sum of squared distances ``(n, n)`` to the n - f - 2 nearest peers, at least 1: ``(n,)``.

    Examples
    --------
    >>> krum_scores(np.array([[0.0, 4.0, 9.0], [4.0, 0.0, 1.0], [9.0, 1.0, 0.0]]), 0)
    array([4., 1., 1.])
    """
    n = len(squared)
    others = squared.astype(np.float64)
    np.fill_diagonal(others, np.inf)
    n_nearest = min(max(1, n - n_byzantine - 2), n - 1)
    scores: Floats = np.sort(others, axis=1)[:, :n_nearest].sum(1)
    return scores


def krum_order(squared: Floats, n_byzantine: int) -> NDArray[np.intp]:
    """Clients from the least Krum score to the largest, by squared distances ``(n, n)``: ``(n,)``.

    Two that are each other's only counted neighbour have the same score: the one nearer to
    everybody comes first, so that the order of clients decides nothing.

    Examples
    --------
    >>> krum_order(squared_distances(np.array([[0.0], [1.0], [3.0]])), 0)
    array([1, 0, 2])
    """
    order: NDArray[np.intp] = np.lexsort((squared.sum(1), krum_scores(squared, n_byzantine)))
    return order
