"""FreqFed: cluster the low frequencies of local models, and average the largest cluster."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.fft import dct

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    weighted_mean,
)
from fl_shield.aggregators.flame import majority_cluster, model_distances
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class FreqFed:
    """Averages the local models whose low frequencies fall into the largest cluster.

    Each local model, all trainable tensors one after another, is a signal; its discrete cosine
    transform is cut to the lower frequencies, and the cosine distances between those are given to
    HDBSCAN as distances. The paper names no settings of HDBSCAN: here they are those of FLAME,
    under which a cluster is a majority of the round, noise never passes for a cluster, and
    everybody stays where there is no cluster at all (models that are all the same). A transform of
    eleven million parameters takes a second or two, and each update needs one.

    Attributes
    ----------
    low_share : float
        Share of frequencies that is kept, the lowest first, in (0, 1].

    References
    ----------
    Fereidooni et al., "FreqFed: A Frequency Analysis-Based Approach for Mitigating Poisoning
    Attacks in Federated Learning", NDSS 2024, algorithm 1. Public copies hand the rows of the
    distance matrix to HDBSCAN as if they were coordinates, and let the noise be elected when it
    outnumbers every cluster.

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.zeros((1, 4), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays),
    ...     client_ids=("a", "b", "c", "d"), rng=np.random.default_rng(0))
    >>> updates = np.array([[1.0, 1, 1, 1], [1, 1, 1, 1.1], [1, 1, 1, 0.9], [-1, 1, -1, -1]])
    >>> FreqFed().step(updates, np.ones(4), {}, context)[0].votes
    array([1., 1., 1., 0.])
    """

    low_share: float = 0.5

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.low_share <= 1:
            raise ValueError(f"low_share must be in (0, 1], got {self.low_share}")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Transform, cut, cluster, and average the largest cluster by example counts."""
        check_round(updates, weights, self.min_clients, "freqfed")
        low = low_frequencies(updates, self.low_share)
        start = low_frequencies(context.global_vector[None], self.low_share)[0]
        kept = majority_cluster(model_distances(low, start))
        note = f"kept {int(kept.sum())} of {len(updates)} by {low.shape[1]} low frequencies"
        update = weighted_mean(updates[kept], weights[kept])
        return Aggregate(update=update, votes=kept.astype(np.float64), note=note), state


def low_frequencies(signals: Floats, low_share: float) -> Floats:
    """Lowest frequencies of each signal ``(n, P)``: ``(n, ceil(low_share * P))``.

    The transform is the orthonormal DCT-II, so that all frequencies together have the norms and
    the cosines of the signals themselves. It is linear: the frequencies of a local model are
    those of its update and of the global model, added. One signal at a time is transformed.

    Examples
    --------
    >>> low_frequencies(np.array([[1.0, 1.0], [1.0, -1.0]]), 0.5).round(3)
    array([[1.414],
           [0.   ]])
    """
    n_low = int(np.ceil(low_share * signals.shape[1]))
    low = np.empty((len(signals), n_low), signals.dtype)
    for row, signal in zip(low, signals, strict=True):
        row[:] = dct(signal, norm="ortho")[:n_low]
    return low
