"""CRFL: clip the aggregated global model to a norm and add noise to it."""

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
from fl_shield.aggregators.norm_clipping import shorten
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class CRFL:
    """Averages, then clips the *parameters of the new global model* and adds Gaussian noise.

    What is bounded is the model, not an update: a model longer than the bound is pulled towards
    zero as a whole, whatever the clients sent. The bound has to fit the architecture; a network
    whose honest norm is far above it cannot learn. The certificate of the paper also needs votes
    of many noisy copies of the final model when it predicts, which is no part of aggregation, and
    a last round without noise, of which a rule does not know that it is the last.

    Attributes
    ----------
    clip_norm : float
        Bound of the model's Euclidean norm before the first round, > 0.
    clip_growth : float
        By how much the bound grows each round, >= 0. The authors' code uses 2 + 0.1 a round on
        MNIST and 4 + 0.25 on EMNIST, up to 15 in the former.
    noise : float
        Standard deviation of the noise on each parameter, >= 0; the authors use 0.01 on MNIST.

    References
    ----------
    Xie et al., "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021,
    algorithm 1 (parameter clipping and perturbing), with the constants 3 and 0.001 that are
    common in comparisons. The public implementation of those constants (vio1etus/FLPoison,
    crfl.py) clips the aggregated update instead of the model.

    Examples
    --------
    >>> clip_and_move(np.array([0.0, 3.0]), np.array([0.0, 5.0]), 4.0)
    array([0., 1.])
    """

    clip_norm: float = 3.0
    clip_growth: float = 0.0
    noise: float = 0.001

    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {self.clip_norm}")
        if not self.clip_growth >= 0:
            raise ValueError(f"clip_growth must be >= 0, got {self.clip_growth}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be >= 0 and finite, got {self.noise}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Average by example counts, clip the model that results, add noise."""
        check_round(updates, weights, self.min_clients, "crfl")
        start = context.global_vector
        mean = weighted_mean(updates, weights)
        bound = self.clip_norm + self.clip_growth * context.server_round
        norm = float(np.linalg.norm(start + mean))
        noise = context.rng.normal(0.0, self.noise, mean.shape)
        update = np.asarray(clip_and_move(start, mean, bound) + noise, dtype=updates.dtype)
        did = f"clipped from {norm:.3g} to" if norm > bound else f"of norm {norm:.3g} is within"
        note = f"the model {did} {bound:.3g}, noise {self.noise:.2g}"
        return Aggregate(update=update, votes=np.ones(len(updates)), note=note), state


def clip_and_move(start: Floats, update: Floats, bound: float) -> Floats:
    """Update ``(P,)`` that takes a model ``(P,)`` to its updated self clipped to a norm.

    Examples
    --------
    >>> clip_and_move(np.array([0.0, 3.0]), np.array([0.0, 0.5]), 4.0)
    array([0. , 0.5])
    """
    moved, left = shorten((start + update)[None], bound)
    return update if left[0] == 1 else moved[0] - start
