"""The median of each parameter over clients."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import Aggregate, AggregationContext, State, check_round
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Median:
    """Takes the median of every parameter on its own; example counts play no part.

    With an even number of updates it is the mean of the two middle values.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 1 and algorithm 1, option I. Implementations on ``torch.median`` return
    the lower of two middle values, which biases every even round downwards.

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.zeros((1, 2), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays),
    ...     client_ids=("a", "b", "c"), rng=np.random.default_rng(0))
    >>> updates = np.array([[1.0, 9.0], [2.0, -1.0], [50.0, 0.0]])
    >>> found, _ = Median().step(updates, np.ones(3), {}, context)
    >>> found.update
    array([2., 0.])
    """

    min_clients: ClassVar[int] = 1

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Return the median; it judges parameters, so everybody votes in full."""
        check_round(updates, weights, self.min_clients, "median")
        update = np.median(updates, axis=0).astype(updates.dtype)
        note = f"median of {len(updates)} updates for each parameter"
        return Aggregate(update=update, votes=np.ones(len(updates)), note=note), state
