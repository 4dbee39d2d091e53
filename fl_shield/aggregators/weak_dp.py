"""Weak differential privacy: clip every update, add noise to their mean."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    norms_of,
    weighted_mean,
)
from fl_shield.aggregators.norm_clipping import bound_of, check_clip_norm, shorten
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class WeakDP:
    """Shortens every update to a norm, averages by example counts, adds Gaussian noise once.

    The noise is far too small for a privacy guarantee; it is meant to drown what is left of a
    backdoor after clipping.

    Attributes
    ----------
    clip_norm : float, optional
        Bound of an update's Euclidean norm, > 0; None for the median norm of the round.
    noise : float
        Standard deviation of the noise on each parameter of the aggregate, >= 0.

    References
    ----------
    Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 4 (weak differential
    privacy), with the constants 5 and 0.025 of thinh-dao/BackFed. Another public implementation
    (vio1etus/FLPoison, normclipping.py) adds the noise to each client's update instead, so that
    averaging divides it by the root of their number.

    Examples
    --------
    >>> WeakDP(noise=0.0)
    WeakDP(clip_norm=5.0, noise=0.0)
    """

    clip_norm: float | None = 5.0
    noise: float = 0.025

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be >= 0 and finite, got {self.noise}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Clip, average, add noise."""
        check_round(updates, weights, self.min_clients, "weak_dp")
        bound = bound_of(updates, self.clip_norm)
        shortened, left = shorten(updates, bound)
        mean = weighted_mean(shortened, weights)
        noise = context.rng.normal(0.0, self.noise, mean.shape)
        n_clipped = int((left < 1).sum())
        note = f"clipped {n_clipped} of {len(updates)} to {bound:.3g}, noise {self.noise:.2g}"
        update = np.asarray(mean + noise, dtype=updates.dtype)
        return Aggregate(update=update, votes=left, scores=norms_of(updates), note=note), state
