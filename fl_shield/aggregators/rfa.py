"""RFA: the geometric median of updates, by the smoothed Weiszfeld algorithm."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    norms_of,
)
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class RFA:
    """Approximates the point with the least weighted sum of distances to all updates.

    It starts at the global model (an update of zeros). The authors' released code starts at the
    weighted mean, from where a few passes cannot come back if one update is huge. A score is the
    distance to the result; a vote is the nearest distance over the client's own, so 1 for the
    nearest.

    Attributes
    ----------
    n_passes : int
        Weiszfeld steps, >= 1; the paper finds 3 enough, the authors' code takes at most 4.
    smoothing : float
        Distances below it count as it: nu of the paper, > 0.

    References
    ----------
    Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", 2019 (IEEE
    Transactions on Signal Processing 2022), algorithm 2. Public implementations
    (vio1etus/FLPoison, rfa.py) drop the example counts.

    Examples
    --------
    >>> middle = geometric_median(np.array([[0.0], [1.0], [9.0]]), np.ones(3), n_passes=100)
    >>> middle.round(6)
    array([1.])
    """

    n_passes: int = 4
    smoothing: float = 1e-6

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.n_passes < 1:
            raise ValueError(f"n_passes must be >= 1, got {self.n_passes}")
        if not self.smoothing > 0:
            raise ValueError(f"smoothing must be > 0, got {self.smoothing}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Return the geometric median by example counts."""
        check_round(updates, weights, self.min_clients, "rfa")
        centre = geometric_median(
            updates, weights, n_passes=self.n_passes, smoothing=self.smoothing
        )
        distances = norms_of(updates - centre)
        near = np.maximum(distances, self.smoothing)
        note = (
            f"geometric median after {self.n_passes} passes, nearest update at "
            f"{distances.min():.3g}, farthest at {distances.max():.3g}"
        )
        votes = near.min() / near
        return Aggregate(update=centre, votes=votes, scores=distances, note=note), state


def geometric_median(
    updates: Floats, weights: Floats, *, n_passes: int = 4, smoothing: float = 1e-6
) -> Floats:
    """Weighted geometric median ``(P,)`` of updates ``(n, P)`` by weights ``(n,)`` > 0.

    Examples
    --------
    >>> geometric_median(np.array([[2.0, 0.0], [2.0, 0.0]]), np.ones(2))
    array([2., 0.])
    """
    centre: Floats = np.zeros_like(updates[0])
    for _ in range(n_passes):
        pull = weights / np.maximum(norms_of(updates - centre), smoothing)
        centre = (pull / pull.sum()).astype(updates.dtype) @ updates
    return centre
