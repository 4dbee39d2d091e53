"""The mean of each parameter without the largest and the smallest values."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import Aggregate, AggregationContext, State, check_round
from fl_shield.aggregators.krum import count_byzantine
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Drops a share of the values of every parameter at both ends, then averages what is left.

    A share > 0 drops at least one value at each end, also in a small round: rounded down to none,
    the rule would silently be the mean. Example counts play no part.

    Attributes
    ----------
    trim_share : float
        Share dropped at each end, in [0, 0.5): beta of the paper, which must be at least the
        share of attackers.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 2 and algorithm 1, option II; the default is that of Flower's
    FedTrimmedAvg. A public implementation (vio1etus/FLPoison, trimmedmean.py) returns zeros where
    the share rounds down to no client.

    Examples
    --------
    >>> trimmed_mean(np.array([[1.0], [2.0], [3.0], [90.0]]), 1)
    array([2.5])
    """

    trim_share: float = 0.2

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 <= self.trim_share < 0.5:
            raise ValueError(f"trim_share must be in [0, 0.5), got {self.trim_share}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Return the trimmed mean; it judges parameters, so everybody votes in full."""
        check_round(updates, weights, self.min_clients, "trimmed_mean")
        n = len(updates)
        n_trimmed = count_byzantine(self.trim_share, n, (n - 1) // 2)
        update = trimmed_mean(updates, n_trimmed)
        note = f"dropped {n_trimmed} of {n} values at each end of each parameter"
        return Aggregate(update=update, votes=np.ones(n), note=note), state


def trimmed_mean(updates: Floats, n_trimmed: int) -> Floats:
    """Mean ``(P,)`` of updates ``(n, P)`` without n_trimmed values at each end.

    Examples
    --------
    >>> trimmed_mean(np.array([[1.0], [2.0], [6.0]]), 0)
    array([3.])
    """
    n = len(updates)
    ends = (n_trimmed, n - 1 - n_trimmed)
    middle = np.partition(updates, ends, axis=0)[n_trimmed : n - n_trimmed]
    mean: Floats = middle.mean(0)
    return mean
