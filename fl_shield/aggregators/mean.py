"""The plain weighted mean (FedAvg): no defence, and the yardstick of every other rule."""

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
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Averages updates by their example counts.

    References
    ----------
    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017, algorithm 1.

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.zeros((1, 2), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays), client_ids=("a", "b"),
    ...     rng=np.random.default_rng(0))
    >>> found, _ = Mean().step(np.array([[1.0, 1.0], [4.0, 1.0]]), np.array([2, 1]), {}, context)
    >>> found.update
    array([2., 1.])
    """

    min_clients: ClassVar[int] = 1

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Return the weighted mean; everybody votes in full."""
        check_round(updates, weights, self.min_clients, "mean")
        update = weighted_mean(updates, weights)
        return Aggregate(update=update, votes=np.ones(len(updates)), note="averaged"), state
