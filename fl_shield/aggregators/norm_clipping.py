"""Norm clipping: no update says more than a bound allows."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    TINY,
    Aggregate,
    AggregationContext,
    State,
    check_round,
    norms_of,
    weighted_mean,
)
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class NormClipping:
    """Shortens every update to a norm, then averages by example counts.

    A vote is the part of the update's length that was left.

    Attributes
    ----------
    clip_norm : float, optional
        Bound of an update's Euclidean norm, > 0. Without one, the median norm of the round: the
        paper sets a constant that fits its task (3 and 5 are common), which on another task either
        clips nobody or everybody.

    References
    ----------
    Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 4 (norm thresholding
    of updates). A public implementation (thinh-dao/BackFed, weakdp_server.py) clips only tensors
    with "weight" or "bias" in their names and leaves the others as loud as they came.

    Examples
    --------
    >>> shortened, left = shorten(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    >>> shortened
    array([[0.6, 0.8],
           [0.3, 0.4]])
    >>> left
    array([0.2, 1. ])
    """

    clip_norm: float | None = None

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Clip and average."""
        check_round(updates, weights, self.min_clients, "norm_clipping")
        bound = bound_of(updates, self.clip_norm)
        shortened, left = shorten(updates, bound)
        note = f"clipped {int((left < 1).sum())} of {len(updates)} to {bound:.3g}"
        update = weighted_mean(shortened, weights)
        return Aggregate(update=update, votes=left, scores=norms_of(updates), note=note), state


def check_clip_norm(clip_norm: float | None) -> None:
    """Raise ValueError unless a bound is left out or > 0.

    Examples
    --------
    >>> check_clip_norm(None)
    """
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be > 0, got {clip_norm}; None takes the median norm")


def bound_of(updates: Floats, clip_norm: float | None) -> float:
    """Return the bound that is set, or else the median norm of updates ``(n, P)``.

    Examples
    --------
    >>> bound_of(np.array([[1.0], [-2.0], [9.0]]), None)
    2.0
    """
    return float(np.median(norms_of(updates))) if clip_norm is None else clip_norm


def shorten(updates: Floats, bound: float) -> tuple[Floats, Floats]:
    """Clip updates ``(n, P)`` to a norm; also the part of each that is left, ``(n,)`` in [0, 1].

    An update of zeros is left whole.

    Examples
    --------
    >>> shorten(np.array([[0.0, 0.0]]), 0.0)
    (array([[0., 0.]]), array([1.]))
    """
    norms = norms_of(updates)
    left = np.where(norms > bound, bound / np.maximum(norms, TINY), 1.0)
    shortened: Floats = updates * left.astype(updates.dtype)[:, None]
    return shortened, left
