"""LayerGuard: in each layer, distrust the clients that resemble their nearest peers too much."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    cosines_of,
    weighted_mean,
)
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class LayerGuard:
    """Weighs every client in every layer by how little it resembles its nearest peers.

    Attackers of the same backdoor resemble each other in the layers they poison. The layer score
    of a client is the mean cosine with its nearest peers; those with the highest scores of a
    layer are flagged there; the layers where many are flagged at once are at high risk; and a
    client counts by the share of those layers where it was not flagged, and by how far its score
    in the layer at hand is below the flagged ones'.

    A lone attacker resembles nobody, and is not seen: the rule needs two attackers in a round. In
    a round without attackers it takes weight from the honest clients that agree most. A layer in
    which nobody has any weight left (all are equally alike) cannot be judged, and is averaged by
    example counts alone.

    A client's vote is its mean weight over parameters, its score the share of risky layers where
    it was flagged; whose score is 1 counts as detected in the paper, though layers that are not
    under attack may still hear it.

    Attributes
    ----------
    n_nearest : int
        Peers whose cosines make a score: m of the paper, >= 1.
    start, stride : float
        First threshold of a layer's scores, and how far it comes down until somebody passes.

    References
    ----------
    "LayerGuard: Poisoning-Resilient Federated Learning via Layer-Wise Similarity Analysis",
    anonymous manuscript for NeurIPS 2025, sections 3.3 to 3.7. Each named tensor is a layer here.

    Examples
    --------
    >>> from fl_shield.aggregators.contract import Layout
    >>> arrays = {"w": np.zeros((1, 3), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays),
    ...     client_ids=tuple("abcdef"), rng=np.random.default_rng(0))
    >>> updates = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [-5, -5, 1], [-5, -5, 1]])
    >>> LayerGuard(n_nearest=1).step(updates, np.ones(6), {}, context)[0].votes
    array([1., 1., 1., 1., 0., 0.])
    """

    n_nearest: int = 2
    start: float = 0.95
    stride: float = 0.05

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.n_nearest < 1:
            raise ValueError(f"n_nearest must be >= 1, got {self.n_nearest}")
        if not (0 < self.start <= 1 and 0 < self.stride <= 1):
            raise ValueError(
                f"start and stride must be in (0, 1], got {self.start} and {self.stride}"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Score, flag and weigh the clients of each layer, and average the layers apart."""
        check_round(updates, weights, max(self.min_clients, self.n_nearest + 1), "layerguard")
        slices = list(context.layout.slices.values())
        scores = np.stack([nearest_cosines(updates[:, s], self.n_nearest) for s in slices])
        flagged = np.stack([flagged_clients(row, self.start, self.stride) for row in scores])
        risky = high_risk_layers(flagged)
        client = client_weights(flagged, risky)
        shares = joint_weights(scores, flagged, client)
        unjudged = shares.max(1) <= 0
        shares[unjudged] = 1.0
        update = np.empty_like(updates[0])
        for share, s in zip(shares, slices, strict=True):
            update[s] = weighted_mean(updates[:, s], weights * share)
        sizes = np.array([s.stop - s.start for s in slices])
        votes = np.clip(sizes @ shares / sizes.sum(), 0.0, 1.0)
        note = (
            f"{int(risky.sum())} of {len(slices)} layers at high risk; unheard "
            f"{int((votes <= 0).sum())} of {len(updates)}; {int(unjudged.sum())} layers could not "
            "be judged and were averaged"
        )
        return Aggregate(update=update, votes=votes, scores=1 - client, note=note), state


def nearest_cosines(updates: Floats, n_nearest: int) -> Floats:
    """Mean cosine of each update ``(n, d)`` of a layer with its nearest peers, ``(n,)``.

    Examples
    --------
    >>> nearest_cosines(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1)
    array([1., 1., 0.])
    """
    cosines = cosines_of(updates, updates)
    np.fill_diagonal(cosines, -np.inf)
    nearest: Floats = np.sort(cosines, axis=1)[:, -n_nearest:].mean(1)
    return nearest


def flagged_clients(scores: Floats, start: float, stride: float) -> Flags:
    """Clients of one layer at or above the highest threshold that anybody reaches, ``(n,)``.

    The thresholds are ``start``, ``start - stride`` and so on down to 0; nobody is flagged where
    all scores are below 0.

    Examples
    --------
    >>> flagged_clients(np.array([0.92, 0.91, 0.7, -0.2]), 0.95, 0.05)
    array([ True,  True, False, False])
    """
    n_strides = int(np.floor(start / stride + 1e-9))
    thresholds = np.append(start - stride * np.arange(n_strides + 1), 0.0)
    reached = thresholds[thresholds <= scores.max() + 1e-9]
    if len(reached) == 0:
        return np.zeros(len(scores), bool)
    return np.asarray(scores >= max(float(reached[0]), 0.0) - 1e-9)


def high_risk_layers(flagged: Flags) -> Flags:
    """Layers ``(L, n)`` where many clients are flagged at once: flags ``(L,)``.

    At first n / 2 - 1 must be flagged, the most attackers that the paper allows for; then fewer,
    down to one, until a layer qualifies.

    Examples
    --------
    >>> high_risk_layers(np.array([[True, True, False, False, False], [True] + 4 * [False]]))
    array([ True, False])
    """
    counts = flagged.sum(1)
    most = max(flagged.shape[1] / 2 - 1, 1.0)
    if counts.max() == 0:
        return np.zeros(len(counts), bool)
    needed = next(t for t in np.append(np.arange(most, 1, -1), 1.0) if counts.max() >= t)
    return np.asarray(counts >= needed)


def client_weights(flagged: Flags, risky: Flags) -> Floats:
    """Share of the risky layers ``(L,)`` in which each client is not flagged ``(L, n)``: ``(n,)``.

    Examples
    --------
    >>> flagged = np.array([[True, True, False], [True, False, False], [False, False, True]])
    >>> client_weights(flagged, np.array([True, True, False]))
    array([0. , 0.5, 1. ])
    """
    if not risky.any():
        return np.ones(flagged.shape[1])
    weights: Floats = 1.0 - flagged[risky].mean(0)
    return weights


def joint_weights(scores: Floats, flagged: Flags, client: Floats) -> Floats:
    """Weight of each client in each layer, ``(L, n)``, in [0, 1].

    Parameters
    ----------
    scores : (L, n) float array
        Mean cosines with nearest peers.
    flagged : (L, n) bool array
    client : (n,) float array
        Each client's own weight, of :func:`client_weights`.

    Notes
    -----
    The trusted half are those with the highest weights of their own, and whoever ties with the
    last of them. Where a layer trusts a client in full, its own weight does not count.

    Examples
    --------
    >>> scores = np.array([[1.0, 1.0, 0.4, 0.2, 0.4, 0.6]])
    >>> joint_weights(scores, scores > 0.9, np.array([0.0, 0, 1, 1, 1, 1])).round(2)
    array([[0.  , 0.  , 1.  , 1.  , 1.  , 0.67]])
    """
    n_clients = scores.shape[1]
    trusted = client >= np.sort(client)[n_clients - max(n_clients // 2, 1)]
    weights = np.ones_like(scores)
    for row, score, flags in zip(weights, scores, flagged, strict=True):
        if flags.any():
            row[:] = layer_weights(score, float(score[flags].min()), float(score[trusted].mean()))
    joint: Floats = np.where(weights == 1.0, 1.0, client * weights)
    return joint


def layer_weights(scores: Floats, malicious: float, benign: float) -> Floats:
    """Weight ``(n,)`` of scores: 0 from ``malicious`` up, 1 from ``benign`` down, linear between.

    Examples
    --------
    >>> layer_weights(np.array([0.1, 0.5, 0.7, 0.9]), 0.9, 0.5)
    array([1. , 1. , 0.5, 0. ])
    """
    gap = malicious - benign
    ramp = (malicious - scores) / gap if gap > 0 else np.ones_like(scores)
    weights: Floats = np.where(scores >= malicious, 0.0, np.clip(ramp, 0.0, 1.0))
    return weights
