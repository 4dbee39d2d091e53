"""Centred clipping: updates are clipped to a ball around the last aggregate."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    named,
    norms_of,
)
from fl_shield.aggregators.norm_clipping import bound_of, shorten
from fl_shield.types import Floats

CENTRE = "centre"
"""Where the state keeps the last aggregate, ``(P,)``."""


@dataclass(frozen=True, kw_only=True)
class CenteredClip:
    """Moves the last aggregate by the mean of the clipped ways to each update.

    The first round starts from zero. The paper's workers send gradients with momentum; ours send
    what several local steps changed, so that only the centre remembers. A vote is the part of the
    way to the update that was left, a score is how far the update was from the last centre.

    Attributes
    ----------
    clip_radius : float, optional
        Longest way from the centre, > 0: tau of the paper, which takes 10 for gradients and
        10 / (1 - momentum) for momenta. Without one, the median way of each pass: a constant made
        for gradients clips no update of a small network, and the rule would silently be the mean.
    n_passes : int
        How often the centre is moved a round, >= 1; the paper finds 1 enough.

    References
    ----------
    Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021, algorithm 2 and equation (CC). A public implementation (vio1etus/FLPoison,
    centeredclipping.py) divides by the way's length also where it is 0.

    Examples
    --------
    >>> moved, left = move_centre(np.zeros(2), np.array([[3.0, 4.0], [0.6, 0.8]]), 1.0)
    >>> moved
    array([0.6, 0.8])
    >>> left
    array([0.2, 1. ])
    """

    clip_radius: float | None = None
    n_passes: int = 1

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.clip_radius is not None and not self.clip_radius > 0:
            raise ValueError(
                f"clip_radius must be > 0, got {self.clip_radius}; None takes the median way"
            )
        if self.n_passes < 1:
            raise ValueError(f"n_passes must be >= 1, got {self.n_passes}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Move the centre; it is the aggregate, and the start of the next round."""
        check_round(updates, weights, self.min_clients, "centred_clipping")
        start = _centre(updates, state)
        centre = start
        for _ in range(self.n_passes):
            radius = bound_of(updates - centre, self.clip_radius)
            centre, left = move_centre(centre, updates, radius)
        moved = float(np.linalg.norm(centre - start))
        note = (
            f"clipped {int((left < 1).sum())} of {len(updates)} to {radius:.3g} around the last "
            f"aggregate, moved it by {moved:.3g}"
        )
        scores = norms_of(updates - start)
        found = Aggregate(update=centre, votes=left, scores=scores, note=note)
        return found, named({CENTRE: centre})


def move_centre(centre: Floats, updates: Floats, radius: float) -> tuple[Floats, Floats]:
    """One pass: the new centre ``(P,)``, and the part of each way ``(n,)`` that was left.

    Examples
    --------
    >>> move_centre(np.ones(1), np.array([[1.0], [5.0]]), 2.0)
    (array([2.]), array([1. , 0.5]))
    """
    ways, left = shorten(updates - centre, radius)
    moved: Floats = centre + ways.mean(0)
    return moved, left


def _centre(updates: Floats, state: State) -> Floats:
    """Return the last aggregate; zeros where there is none of this model's size."""
    centre = state.get(CENTRE)
    if centre is None or centre.shape != updates.shape[1:]:
        return np.zeros_like(updates[0])
    return centre.astype(updates.dtype)
