"""Robust learning rate: where too few clients agree on a sign, the server steps backwards."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    weighted_mean,
)
from fl_shield.types import Floats, Ints

_ROUNDING = 1e-9
"""Taken off the threshold: 0.7 of 10 clients are 7, not 7.000000000000001."""


@dataclass(frozen=True, kw_only=True)
class RobustLearningRate:
    """Flips the weighted mean at every coordinate where the clients' signs disagree.

    The threshold is on the absolute sum of the signs: of 10 clients, 7 against 3 make 4.

    Attributes
    ----------
    threshold : float
        Sum of signs that a coordinate needs, as a share of the round's clients, in [0, 1]. The
        paper's 4 of 10 (also 8 of 20 in later comparisons): it should exceed the number of
        malicious clients and stay below that of the others. 0 never flips.

    References
    ----------
    Ozdayi et al., "Defending against Backdoors in Federated Learning with Robust Learning
    Rate", AAAI 2021, over FedAvg and with a server rate of 1. Public versions
    count a fixed number of clients whatever the round has, or flip running variances (below 0)
    and counters as if they were parameters (zhmzm/FLAME).

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.zeros((1, 2), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays), client_ids=("a", "b"),
    ...     rng=np.random.default_rng(0))
    >>> updates = np.array([[1.0, 1.0], [3.0, -3.0]])
    >>> RobustLearningRate().step(updates, np.ones(2), {}, context)[0].update
    array([2., 1.])
    """

    threshold: float = 0.4

    min_clients: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold must be a share of the clients in [0, 1], got {self.threshold}; "
                "divide a number of clients by the clients of a round"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Average, then turn round where signs disagree; everybody votes in full."""
        check_round(updates, weights, self.min_clients, "rlr")
        needed = self.threshold * len(updates)
        flipped = sign_agreement(updates) < needed - _ROUNDING
        mean = weighted_mean(updates, weights)
        note = (
            f"turned {flipped.mean():.1%} of {len(mean)} coordinates round: signs sum to less "
            f"than {needed:.3g}"
        )
        update = np.where(flipped, -mean, mean)
        return Aggregate(update=update, votes=np.ones(len(updates)), note=note), state


def sign_agreement(updates: Floats) -> Ints:
    """Absolute sum of the signs of updates ``(n, P)`` at each coordinate, ``(P,)``, 0 to n.

    Examples
    --------
    >>> sign_agreement(np.array([[1.0, 1.0], [2.0, -2.0], [3.0, 0.0]]))
    array([3, 0])
    """
    above = np.count_nonzero(updates > 0, axis=0)
    below = np.count_nonzero(updates < 0, axis=0)
    agreement: Ints = np.abs(above - below)
    return agreement
