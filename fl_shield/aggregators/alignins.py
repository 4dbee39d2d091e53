"""AlignIns: keep updates whose direction and principal signs agree with the rest, then clip."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    clipped,
    cosines_of,
    norms_of,
)
from fl_shield.types import Floats

_ROUNDING = 1e-7  # cosines of single-precision updates that are all the same differ by less


@dataclass(frozen=True, kw_only=True)
class AlignIns:
    """Keeps updates that are unremarkable in two alignments, clipped to their median norm.

    The first alignment is the cosine of an update with the global model, the second the share of
    its largest coordinates whose sign is that of the majority of clients. Both are standardised by
    the median and the standard deviation of the round, and an update stays if both are near.
    The kept ones are averaged without weights. Where nobody is near in both, the model stays as
    it is.

    Attributes
    ----------
    sparsity : float
        Share of coordinates, the largest of each update, whose signs are compared, in (0, 1].
    direction_limit, sign_limit : float
        Standard scores of the cosine and of the sign share below which an update stays, > 0:
        lambda_c and lambda_s of the paper.

    References
    ----------
    Xu et al., "Detecting Backdoor Attacks in Federated Learning via Direction Alignment
    Inspection", CVPR 2025, section 4, equations 1 to 3 and algorithm 1. The public implementation
    divides by a spread of 0 where all clients agree, and then keeps nobody; its model vector
    holds batch statistics, too.

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.ones((1, 4), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays),
    ...     client_ids=("a", "b", "c", "d"), rng=np.random.default_rng(0))
    >>> updates = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [-4, -3, -2, -1]])
    >>> found, _ = AlignIns().step(updates, np.ones(4), {}, context)
    >>> found.votes
    array([1., 1., 1., 0.])
    """

    sparsity: float = 0.3
    direction_limit: float = 1.0
    sign_limit: float = 1.0

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"sparsity must be in (0, 1], got {self.sparsity}")
        if not (self.direction_limit > 0 and self.sign_limit > 0):
            raise ValueError(
                "direction_limit and sign_limit must be > 0, got "
                f"{self.direction_limit} and {self.sign_limit}"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Inspect both alignments, clip what is kept, average without weights."""
        check_round(updates, weights, self.min_clients, "alignins")
        toward = cosines_of(updates, context.global_vector[None].astype(updates.dtype))[:, 0]
        direction = robust_standard_scores(toward)
        signs = robust_standard_scores(sign_agreement(updates, self.sparsity))
        kept = (direction < self.direction_limit) & (signs < self.sign_limit)
        update, bound = np.zeros_like(updates[0]), 0.0
        if kept.any():
            bound = float(np.median(norms_of(updates[kept])))
            update = clipped(updates[kept], bound).mean(0)
        note = (
            f"kept {int(kept.sum())} of {len(updates)} "
            f"({int((direction >= self.direction_limit).sum())} off in direction, "
            f"{int((signs >= self.sign_limit).sum())} off in signs), clipped to {bound:.3g}"
        )
        scores = np.maximum(direction / self.direction_limit, signs / self.sign_limit)
        votes = kept.astype(np.float64)
        return Aggregate(update=update, votes=votes, scores=scores, note=note), state


def sign_agreement(updates: Floats, sparsity: float) -> Floats:
    """Share of each update's largest coordinates that have the majority's sign, ``(n,)``.

    The majority's sign is that of the sum of signs, 0 where both are equally many. Of ``(n, P)``
    updates the ``int(sparsity * P)`` largest coordinates in absolute value count, at least one.

    Examples
    --------
    >>> sign_agreement(np.array([[3.0, 1.0], [2.0, -1.0], [-9.0, -1.0]]), 0.5)
    array([1., 1., 0.])
    """
    n_positive = np.count_nonzero(updates > 0, axis=0)
    n_negative = np.count_nonzero(updates < 0, axis=0)
    majority = np.sign(n_positive - n_negative)
    n_parameters = updates.shape[1]
    n_largest = max(int(n_parameters * sparsity), 1)
    shares = np.empty(len(updates))
    for i, update in enumerate(updates):
        largest = np.argpartition(np.abs(update), n_parameters - n_largest)[-n_largest:]
        shares[i] = (np.sign(update[largest]) == majority[largest]).mean()
    return shares


def robust_standard_scores(values: Floats) -> Floats:
    """Distance of each value from the median in standard deviations, ``(n,)``.

    All 0 where the values do not differ by more than rounding does.

    Examples
    --------
    >>> robust_standard_scores(np.array([0.0, 0.0, 0.0, 4.0])).round(2)
    array([0.  , 0.  , 0.  , 2.31])
    """
    spread = float(values.std())
    if spread <= _ROUNDING:
        return np.zeros(len(values))
    scores: Floats = np.abs(values - np.median(values)) / spread
    return scores
