"""DeepSight: how alike were the data behind two updates? Look into the models, and cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN
from torch import nn

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    Layout,
    State,
    check_round,
    clipped,
    cosines_of,
    norms_of,
    weighted_mean,
)
from fl_shield.errors import AggregationError
from fl_shield.training import logits_of, set_arrays
from fl_shield.types import Flags, Floats, Ints

_MOST = 30.0
"""Largest logarithm of a ratio of probabilities that is told from infinity."""
_LEAST_DISTANCE = 1e-9
"""Between members of one cluster, beside the widest distance: densities stay finite."""


@dataclass(frozen=True, kw_only=True)
class DeepSight:
    """Accepts clusters of updates in which few look trained on few classes; clips; averages.

    Three views tell clients apart: the energies of the head's update by class, the ratios of
    predictions on noise between local and global model, and the direction of the head's bias.
    Each is clustered, and the clusters of how often two clients meet decide together. A client
    outside all clusters stands for itself: kept unless it is suspicious. Local models keep the
    global batch statistics here; a head without bias shows the direction of its weights instead.
    Where nobody is accepted the model stays. Example counts are not asked.

    Attributes
    ----------
    n_inputs, n_draws : int
        Noise inputs a draw, and draws: 20,000 and 3 in the paper. Inputs are uniform between the
        smallest and the largest value of the server's clean examples; tokens likewise.
    threshold_factor : float
        A class counts as trained where its energy exceeds this part of the largest, or 1 /
        classes of it if that is more; in [0, 1).
    max_suspicious : float
        Share of suspicious members at which a cluster is rejected, in (0, 1].
    min_cluster_size : int
        Smallest cluster, >= 2; twice as many clients are needed before there are clusters.

    References
    ----------
    Rieger et al., "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep
    Model Inspection", NDSS 2022, with HDBSCAN's defaults. That outsiders are judged alone is
    read from public code. A public version accepts a cluster whose share of *benign* members is
    below 1/3 (thinh-dao/BackFed, deepsight_server.py): inverted. Others divide logits, whose sign
    and zeros mean nothing, where the paper divides predicted probabilities.

    Examples
    --------
    >>> DeepSight(n_inputs=500).n_draws
    3
    """

    n_inputs: int = 20_000
    n_draws: int = 3
    threshold_factor: float = 0.01
    max_suspicious: float = 1 / 3
    min_cluster_size: int = 5

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.n_inputs < 1 or self.n_draws < 1:
            raise ValueError(
                f"n_inputs and n_draws must be >= 1, got {self.n_inputs} and {self.n_draws}; "
                "the paper takes 20000 and 3"
            )
        if not 0 <= self.threshold_factor < 1 or not 0 < self.max_suspicious <= 1:
            raise ValueError(
                "threshold_factor must be in [0, 1) and max_suspicious in (0, 1], got "
                f"{self.threshold_factor} and {self.max_suspicious}; the paper takes 0.01 and 1/3"
            )
        if self.min_cluster_size < 2:
            raise ValueError(
                f"min_cluster_size must be >= 2, got {self.min_cluster_size}; HDBSCAN takes 5"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Inspect, cluster, accept, clip to the median norm of all, average without weights."""
        check_round(updates, weights, self.min_clients, "deepsight")
        model, clean = context.need_model("deepsight")
        weight, bias = head_updates(updates, context.layout)
        energies = class_energies(weight, bias)
        suspicious = is_suspicious(threshold_exceedings(energies, self.threshold_factor))
        draws = [noise_inputs(clean.x, self.n_inputs, context.rng) for _ in range(self.n_draws)]
        ratios = [division_differences(model, context, updates, x) for x in draws]
        directions = 1.0 - cosines_of(bias, bias)
        clusters = self._clusters(energies, ratios, directions)
        shares = suspicious_shares(clusters, suspicious)
        kept = shares < self.max_suspicious
        bound = float(np.median(norms_of(updates)))
        update = weighted_mean(clipped(updates, bound), kept.astype(np.float64))
        note = (
            f"kept {int(kept.sum())} of {len(kept)} in {len(np.unique(clusters[clusters >= 0]))} "
            f"clusters, {int((clusters < 0).sum())} outside; suspicious "
            f"{int(suspicious.sum())}; clipped to {bound:.3g}"
        )
        votes = kept.astype(np.float64)
        return Aggregate(update=update, votes=votes, scores=shares, note=note), state

    def _clusters(self, energies: Floats, ratios: Sequence[Floats], directions: Floats) -> Ints:
        """Clusters of the round, in an order that does not depend on the clients' order."""
        order = np.lexsort(energies.T)
        spaces = [cdist(values, values) for values in (energies, *ratios)]
        by_energy, *by_ratio = [
            meetings(clusters_of(space[np.ix_(order, order)], self.min_cluster_size))
            for space in spaces
        ]
        by_direction = meetings(
            clusters_of(directions[np.ix_(order, order)], self.min_cluster_size)
        )
        together = np.mean([np.mean(by_ratio, axis=0), by_energy, by_direction], axis=0)
        clusters = np.empty(len(order), np.int64)
        clusters[order] = clusters_of(together, self.min_cluster_size)
        return clusters


def head_updates(updates: Floats, layout: Layout) -> tuple[Floats, Floats]:
    """Head's weight ``(n, C, d)`` and bias ``(n, C)`` of updates ``(n, P)``.

    Without a bias the second is the flat weight.
    """
    head = [layer for layer in layout.layers if layer.is_head]
    if not head:
        raise AggregationError(
            "deepsight needs a model with a dense output layer, found none; choose another rule"
        )
    n_classes = head[0].shape[0]
    weight = updates[:, layout.slices[head[0].name]].reshape(len(updates), n_classes, -1)
    biases = [layer for layer in head[1:] if layer.shape == (n_classes,)]
    if not biases:
        return weight, weight.reshape(len(updates), -1)
    return weight, updates[:, layout.slices[biases[-1].name]]


def class_energies(weight: Floats, bias: Floats) -> Floats:
    """Normalised update energies: ``(n, C, d)`` and ``(n, C)`` to ``(n, C)``, each row sums to 1.

    A row of zeros stays one.

    Examples
    --------
    >>> class_energies(np.array([[[1.0, -1.0], [1.0, 0.0]]]), np.array([[1.0, 0.0]]))
    array([[0.9, 0.1]])
    """
    sums = np.abs(weight).sum(2, dtype=np.float64)
    if bias.shape == sums.shape:
        sums = sums + np.abs(bias)
    relative = sums / np.maximum(sums.max(1, keepdims=True), np.finfo(float).tiny)
    squared = relative**2
    energies: Floats = squared / np.maximum(squared.sum(1, keepdims=True), 1.0)
    return energies


def threshold_exceedings(energies: Floats, factor: float = 0.01) -> Ints:
    """Classes that an update trained: energies ``(n, C)`` above a part of the largest, ``(n,)``.

    Examples
    --------
    >>> threshold_exceedings(np.array([[0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]]))
    array([3, 1])
    """
    part = max(factor, 1.0 / energies.shape[1])
    above: Ints = np.count_nonzero(energies > part * energies.max(1, keepdims=True), axis=1)
    return above


def is_suspicious(exceedings: Ints) -> Flags:
    """Updates that trained at most half as many classes as the median one, ``(n,)``.

    Examples
    --------
    >>> is_suspicious(np.array([8, 8, 6, 4]))
    array([False, False, False, False])
    >>> is_suspicious(np.array([8, 8, 8, 4]))
    array([False, False, False,  True])
    """
    return np.asarray(exceedings <= np.median(exceedings) / 2)


def noise_inputs(like: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Uniform inputs ``(n, ...)`` of the shape, type and range of examples ``(m, ...)``."""
    shape = (n, *like.shape[1:])
    if np.issubdtype(like.dtype, np.integer):
        return rng.integers(like.min(), like.max(), size=shape, dtype=like.dtype, endpoint=True)
    drawn: Floats = rng.uniform(like.min(), like.max(), size=shape).astype(like.dtype)
    return drawn


def division_differences(
    model: nn.Module, context: AggregationContext, updates: Floats, inputs: NDArray[Any]
) -> Floats:
    """Mean ratio of local to global probability by class over inputs: ``(n, C)``.

    The scratch network is left with the last local model.
    """
    before = _log_probabilities(set_arrays(model, context.global_arrays), inputs)
    rows = []
    for update in updates:
        after = _log_probabilities(set_arrays(model, context.arrays_of(update)), inputs)
        logarithms = np.nan_to_num(after - before, nan=_MOST, posinf=_MOST, neginf=-_MOST)
        rows.append(np.exp(np.clip(logarithms, -_MOST, _MOST)).mean(0))
    return np.stack(rows)


def _log_probabilities(model: nn.Module, inputs: NDArray[Any]) -> Floats:
    logits = logits_of(model, inputs).double()
    found: Floats = torch.log_softmax(logits, 1).numpy()
    return found


def clusters_of(distances: Floats, min_size: int) -> Ints:
    """HDBSCAN's cluster of each row of distances ``(n, n)``: ``(n,)``, -1 = in none.

    Neighbourhoods hold as many others as the smallest cluster has members, the default of the
    method's own implementation (whose count leaves the point itself out).

    Examples
    --------
    >>> places = np.array([0.0, 0.1, 0.3, 0.5, 5.0, 5.1, 5.2, 5.4])
    >>> clusters_of(abs(places[:, None] - places), 3)
    array([0, 0, 0, 0, 1, 1, 1, 1])
    """
    n = len(distances)
    if n < 2 * min_size:
        return np.full(n, -1)
    widest = float(distances.max())
    if widest <= 0:
        return np.zeros(n, np.int64)
    apart = np.maximum(distances / widest, _LEAST_DISTANCE)
    np.fill_diagonal(apart, 0.0)
    labels: Ints = HDBSCAN(
        min_cluster_size=min_size, min_samples=min_size + 1, metric="precomputed", copy=True
    ).fit_predict(apart)
    return labels


def meetings(clusters: Ints) -> Floats:
    """Distance 0 between members of one cluster, else 1: labels ``(n,)`` to ``(n, n)``.

    Examples
    --------
    >>> meetings(np.array([0, 0, -1, -1]))
    array([[0., 0., 1., 1.],
           [0., 0., 1., 1.],
           [1., 1., 0., 1.],
           [1., 1., 1., 0.]])
    """
    same = (clusters[:, None] == clusters) & (clusters >= 0)
    apart: Floats = 1.0 - same
    np.fill_diagonal(apart, 0.0)
    return apart


def suspicious_shares(clusters: Ints, suspicious: Flags) -> Floats:
    """Share of suspicious members in each client's cluster, ``(n,)``; an outsider is its own.

    Examples
    --------
    >>> clusters = np.array([0, 0, 1, 1, -1, -1])
    >>> suspicious_shares(clusters, np.array([True, False, False, False, True, False]))
    array([0.5, 0.5, 0. , 0. , 1. , 0. ])
    """
    shares = suspicious.astype(np.float64)
    for label in np.unique(clusters[clusters >= 0]):
        members = clusters == label
        shares[members] = suspicious[members].mean()
    return shares
