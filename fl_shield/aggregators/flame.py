"""FLAME: cluster local models by direction, clip what is kept to the median norm, add noise."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.cluster import HDBSCAN

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    clipped,
    cosines_of,
    norms_of,
)
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class Flame:
    """Keeps the majority cluster of local models, clipped to the median norm, with noise.

    The clusters are those of the cosine distances between whole local models, not updates; the
    clipping bound S is the median norm of *all* updates, also of those that are filtered out.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise in clipping bounds: lambda of the paper, >= 0.

    References
    ----------
    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022,
    algorithm 1. A public implementation takes the median over accepted updates only
    (zhmzm/FLAME, issue 3).
    """

    noise: float = 0.001

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"noise must be >= 0, got {self.noise}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Filter, clip, average without weights, add noise."""
        check_round(updates, weights, self.min_clients, "flame")
        kept = majority_cluster(updates + context.global_vector)
        bound = float(np.median(norms_of(updates)))
        shortened = clipped(updates[kept], bound)
        mean = shortened.mean(0)
        noise = context.rng.normal(0.0, self.noise * bound, mean.shape) if self.noise * bound else 0
        n_clipped = int((norms_of(updates[kept]) > bound).sum())
        note = (
            f"kept {int(kept.sum())} of {len(updates)}, clipped {n_clipped} to {bound:.3g}, "
            f"noise {self.noise * bound:.2g}"
        )
        update = np.asarray(mean + noise, dtype=updates.dtype)
        return Aggregate(update=update, votes=kept.astype(np.float64), note=note), state


def majority_cluster(models: Floats) -> Flags:
    """Members of the largest HDBSCAN cluster of cosine distances ``(n, P)``: flags ``(n,)``.

    A cluster has at least n / 2 + 1 members. Without one everybody stays: the paper's clusters
    always exist because a single one is allowed, but identical models leave HDBSCAN none.

    Examples
    --------
    >>> models = np.array([[1.0, 0.0], [1.0, 0.01], [1.0, -0.01], [0.0, 1.0]])
    >>> majority_cluster(models)
    array([ True,  True,  True, False])
    """
    distances = 1.0 - cosines_of(models, models)
    np.fill_diagonal(distances, 0.0)
    labels = HDBSCAN(
        min_cluster_size=min(len(models), len(models) // 2 + 1),
        min_samples=1,
        allow_single_cluster=True,
        metric="precomputed",
        copy=True,
    ).fit_predict(np.maximum(distances, 0.0))
    members = labels[labels >= 0]
    if len(members) == 0:
        return np.ones(len(models), bool)
    return np.asarray(labels == np.bincount(members).argmax())
