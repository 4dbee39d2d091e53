"""FLAME: cluster local models by direction, clip what is kept to the median norm, add noise."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.cluster import HDBSCAN

from fl_shield.aggregators.contract import (
    TINY,
    Aggregate,
    AggregationContext,
    State,
    check_round,
    clipped,
    norms_of,
)
from fl_shield.aggregators.inner_products import inner_products
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class Flame:
    """Keeps the majority cluster of local models, clipped to the median norm, with noise.

    The clusters are those of the cosine distances between whole local models, not updates; the
    clipping bound S is the median norm of *all* updates, also of those that are filtered out.
    Local models differ little from each other, so their cosines are taken in double precision:
    in single precision updates shorter than a few ten-thousandths of the model would be lost.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise in clipping bounds: lambda of the paper, >= 0. The
        paper's value for images; learning rates of adaptive optimisers want a smaller one.

    References
    ----------
    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022,
    algorithm 1. A public implementation takes the median over accepted updates only
    (zhmzm/FLAME, issue 3), and clusters batch statistics too (issue 10).

    Examples
    --------
    >>> Flame(noise=0.0)
    Flame(noise=0.0)
    """

    noise: float = 0.001

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be >= 0 and finite, got {self.noise}; try 0.001")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Filter, clip, average without weights, add noise."""
        check_round(updates, weights, self.min_clients, "flame")
        kept = majority_cluster(model_distances(updates, context.global_vector))
        norms = norms_of(updates)
        bound = float(np.median(norms))
        mean = clipped(updates[kept], bound).mean(0)
        spread = self.noise * bound
        noise = context.rng.normal(0.0, spread, mean.shape) if spread else 0.0
        note = (
            f"kept {int(kept.sum())} of {len(updates)}, clipped "
            f"{int((norms[kept] > bound).sum())} to {bound:.3g}, noise {spread:.2g}"
        )
        update = np.asarray(mean + noise, dtype=updates.dtype)
        return Aggregate(update=update, votes=kept.astype(np.float64), note=note), state


def model_distances(updates: Floats, global_vector: Floats) -> Floats:
    """Cosine distance of every two local models: updates ``(n, P)`` onto ``(P,)``; ``(n, n)``.

    Examples
    --------
    >>> model_distances(np.array([[0.0, 0.0], [-1.0, 1.0]]), np.array([1.0, 0.0]))
    array([[0., 1.],
           [1., 0.]])
    """
    start = global_vector[None]
    toward = inner_products(updates, start)
    gram = inner_products(updates, updates) + toward + toward.T + inner_products(start, start)
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    distances: Floats = 1.0 - gram / np.maximum(np.outer(lengths, lengths), TINY)
    np.fill_diagonal(distances, 0.0)
    return np.clip(distances, 0.0, 2.0)


def majority_cluster(distances: Floats) -> Flags:
    """Members of the largest HDBSCAN cluster of distances ``(n, n)``: flags ``(n,)``.

    A cluster has at least n / 2 + 1 members. Without one everybody stays: the paper's clusters
    always exist because a single one is allowed, but identical models leave HDBSCAN none.

    Examples
    --------
    >>> places = np.array([0.0, 1.0, 2.5, 9.0])
    >>> majority_cluster(abs(places[:, None] - places))
    array([ True,  True,  True, False])
    """
    labels = HDBSCAN(
        min_cluster_size=len(distances) // 2 + 1,
        min_samples=1,
        allow_single_cluster=True,
        metric="precomputed",
        copy=True,
    ).fit_predict(distances)
    members = labels[labels >= 0]
    if len(members) == 0:
        return np.ones(len(distances), bool)
    return np.asarray(labels == np.bincount(members).argmax())
