"""Bulyan: choose by Krum again and again, then keep the values nearest to the median."""

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
from fl_shield.aggregators.krum import (
    check_share,
    count_byzantine,
    krum_order,
    krum_scores,
)
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Bulyan:
    """Chooses n - 2 f updates by Krum, then averages n - 4 f values of each parameter.

    Krum is asked again after each choice, with the chosen update taken out. Of every parameter
    only the n - 4 f chosen values nearest to their median are averaged.

    Attributes
    ----------
    byzantine_share : float
        Share of attackers to withstand, in [0, 0.5): f = share x n, rounded down, at least 1 where
        the share is > 0, and never more than the rule's condition n >= 4 f + 3 allows (so 1 of 10
        clients). With f = 0, below 7 clients, the rule is the plain unweighted mean.

    References
    ----------
    El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", ICML 2018, section 4. The last choices leave Krum fewer peers than it counts: it
    then counts the nearest one. Public implementations choose all in a single pass (Flower), or
    average as many values as they chose, so that nothing is trimmed (vio1etus/FLPoison).

    Examples
    --------
    >>> mean_near_median(np.array([[1.0], [2.0], [3.0], [4.0], [50.0]]), 3)
    array([3.])
    """

    byzantine_share: float = 0.2

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_share(self.byzantine_share)

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Choose and trim; the chosen vote."""
        check_round(updates, weights, self.min_clients, "bulyan")
        n = len(updates)
        f = count_byzantine(self.byzantine_share, n, (n - 3) // 4)
        squared = squared_distances(updates)
        chosen = choose_again(squared, f, n - 2 * f)
        votes = np.zeros(n)
        votes[chosen] = 1
        left_out = names_of([context.client_ids[i] for i in np.flatnonzero(votes == 0)])
        note = (
            f"chose {len(chosen)} of {n} (not {left_out}), averaged the {n - 4 * f} values nearest "
            f"to the median, f = {f}"
        )
        update = mean_near_median(updates[chosen], n - 4 * f)
        return Aggregate(
            update=update, votes=votes, scores=krum_scores(squared, f), note=note
        ), state


def choose_again(squared: Floats, n_byzantine: int, n_chosen: int) -> NDArray[np.intp]:
    """Indices of n_chosen clients by squared distances ``(n, n)``: Krum's choice, taken out, ...

    Examples
    --------
    >>> choose_again(squared_distances(np.array([[0.0], [1.0], [1.5], [9.0]])), 0, 3)
    array([1, 2, 0])
    """
    rest = np.arange(len(squared))
    chosen = []
    for _ in range(n_chosen):
        best = krum_order(squared[np.ix_(rest, rest)], n_byzantine)[0]
        chosen.append(rest[best])
        rest = np.delete(rest, best)
    return np.array(chosen, dtype=np.intp)


def mean_near_median(updates: Floats, n_near: int) -> Floats:
    """Mean ``(P,)`` of the n_near values of each column of ``(n, P)`` nearest to its median.

    They stand side by side once a column is sorted; of two sets as near, the lower one counts.

    Examples
    --------
    >>> mean_near_median(np.array([[0.0], [10.0], [11.0], [13.0]]), 2)
    array([10.5])
    """
    ordered = np.sort(updates, axis=0)
    median = np.median(ordered, axis=0)
    mean: Floats = ordered[:n_near].mean(0)
    reach = np.full(mean.shape, np.inf)
    for start in range(len(ordered) - n_near + 1):
        window = ordered[start : start + n_near]
        farthest = np.maximum(median - window[0], window[-1] - median)
        mean = np.where(farthest < reach, window.mean(0), mean)
        reach = np.minimum(reach, farthest)
    return mean
