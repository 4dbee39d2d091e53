"""SignGuard: a band of norms, and a cluster of shares of positive and negative values."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.cluster import MeanShift, estimate_bandwidth

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    norms_of,
)
from fl_shield.aggregators.norm_clipping import shorten
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class SignGuard:
    """Averages updates of ordinary norm and ordinary signs, clipped to the median norm.

    One filter keeps norms inside a band around the median. The other draws a part of the
    parameters, takes each update's shares of positive, zero and negative values there, and keeps
    the largest cluster of those. Who passes both is clipped and averaged, without example counts.
    If nobody passes both, whoever passes the band is kept; if nobody does, everybody is.

    Attributes
    ----------
    low, high : float
        Band of norms in medians, 0 <= low < 1 < high.
    drawn_share : float
        Part of the parameters whose signs are read, in (0, 1].

    References
    ----------
    Xu et al., "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
    Filtering", ICDCS 2022, algorithm 2: the plain variant without similarities, clusters by mean
    shift with the authors' bandwidth. Parameters are drawn one by one; the authors' code takes a
    stretch of neighbours, which may lie within a single layer. A public implementation
    (vio1etus/FLPoison, signguard.py) divides by the norm of updates of zeros and averages an
    empty set if nobody passes.

    Examples
    --------
    >>> sign_shares(np.array([[1.0, 2.0, -1.0, 0.0]]))
    array([[0.5 , 0.25, 0.25]])
    """

    low: float = 0.1
    high: float = 3.0
    drawn_share: float = 0.1

    min_clients: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1 < self.high:
            raise ValueError(f"need 0 <= low < 1 < high, got {self.low} and {self.high}")
        if not 0 < self.drawn_share <= 1:
            raise ValueError(f"drawn_share must be in (0, 1], got {self.drawn_share}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Filter twice, clip, average; who is kept votes."""
        check_round(updates, weights, self.min_clients, "signguard")
        norms = norms_of(updates)
        bound = float(np.median(norms))
        size = updates.shape[1]
        n_drawn = max(1, int(self.drawn_share * size))
        drawn = context.rng.choice(size, n_drawn, replace=False, shuffle=False)
        in_band = (norms > self.low * bound) & (norms < self.high * bound)
        alike = largest_cluster(sign_features(updates[:, drawn]))
        kept = _first_of(in_band & alike, in_band)
        update = shorten(updates[kept], bound)[0].mean(0)
        note = (
            f"kept {int(kept.sum())} of {len(updates)}: {int(in_band.sum())} have ordinary norms, "
            f"{int(alike.sum())} ordinary signs; clipped to {bound:.3g}"
        )
        return Aggregate(update=update, votes=kept.astype(np.float64), note=note), state


def _first_of(*choices: Flags) -> Flags:
    """Return the first choice that keeps anybody, or else everybody."""
    return next((flags for flags in choices if flags.any()), np.ones(len(choices[0]), bool))


def sign_shares(updates: Floats) -> Floats:
    """Shares of positive, zero and negative values of each update ``(n, b)``: ``(n, 3)``.

    Examples
    --------
    >>> sign_shares(np.array([[1.0, 1.0], [-1.0, 0.0]]))
    array([[1. , 0. , 0. ],
           [0. , 0.5, 0.5]])
    """
    positive = (updates > 0).mean(1)
    negative = (updates < 0).mean(1)
    zero = (updates == 0).mean(1)
    return np.stack([positive, zero, negative], axis=1)


def sign_features(updates: Floats) -> Floats:
    """Sign shares ``(n, 3)`` of updates ``(n, b)``, each over the largest of the round.

    Examples
    --------
    >>> sign_features(np.array([[1.0, 1.0], [1.0, -1.0]])).round(3)
    array([[1. , 0. , 0. ],
           [0.5, 0. , 1. ]])
    """
    shares = sign_shares(updates)
    features: Floats = shares / (shares.max(0) + 1e-8)
    return features


def largest_cluster(features: Floats) -> Flags:
    """Members of the largest mean-shift cluster of features ``(n, d)``: flags ``(n,)``.

    The bandwidth is the mean distance to the farthest of each point's nearest half. Where it is 0,
    more than half of the points coincide with their neighbours: equal points are one cluster then.

    Examples
    --------
    >>> largest_cluster(np.array([[0.0], [0.1], [0.05], [0.08], [3.0]]))
    array([ True,  True,  True,  True, False])
    """
    bandwidth = float(estimate_bandwidth(features, quantile=0.5))
    if bandwidth > 0:
        labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit_predict(features)
    else:
        labels = np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)
    return np.asarray(labels == np.bincount(labels[labels >= 0]).argmax())
