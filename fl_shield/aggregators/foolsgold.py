"""FoolsGold: clients whose summed updates look alike are one attacker in several guises."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    cosines_of,
    names_of,
    weighted_mean,
)
from fl_shield.types import Floats

_ROUNDING = 1e-9
"""Similarities this close to 1 are 1: rescaling would otherwise blow rounding up to trust."""


@dataclass(frozen=True, kw_only=True)
class FoolsGold:
    """Weighs each client by how little its history resembles the most similar other one.

    A client's history is the sum of its updates of the head (the last dense layer), kept by
    client id, so it does not matter which clients take part in a round; the state holds one
    head a client. The paper adds up weighted updates, because its clients send single gradient
    steps; for whole local models this is the mean weighted by trust. Example counts are not
    asked. Where all histories are the same nobody is trusted, and the model stays.

    Attributes
    ----------
    confidence : float
        How steeply the logit divides: kappa of the paper, > 0.

    References
    ----------
    Fung et al., "The Limitations of Federated Learning in Sybil Settings", RAID 2020,
    algorithm 1; all features of the head count the same. As in the authors' code a client is
    compared with itself by similarity 0, so that unlike clients never pardon each other by a
    negative factor. Public versions compare whole models, where what all clients learn drowns
    the sybils' common aim, keep histories by position in the round, and return NaN in a round
    of equals.

    Examples
    --------
    >>> histories = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> trust_of(histories)
    array([0., 0., 1.])
    """

    confidence: float = 1.0

    min_clients: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.confidence < float("inf"):
            raise ValueError(f"confidence must be > 0, got {self.confidence}; the paper takes 1")

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Add to the histories, compare them, average by trust."""
        check_round(updates, weights, self.min_clients, "foolsgold")
        after = _with_round(state, updates[:, context.layout.head], context.client_ids)
        histories = np.stack([after[_key(client)] for client in context.client_ids])
        trust = trust_of(histories, self.confidence)
        rejected = [
            client for client, say in zip(context.client_ids, trust, strict=True) if say == 0
        ]
        note = f"mean trust {trust.mean():.2f}; without a say: {names_of(rejected)}"
        update = weighted_mean(updates, trust)
        return Aggregate(update=update, votes=trust, scores=1.0 - trust, note=note), after


def _key(client: str) -> str:
    return f"history/{client}"


def _with_round(
    state: State, heads: Floats, client_ids: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    after = dict(state)
    for client, head in zip(client_ids, heads.astype(np.float64), strict=True):
        past = after.get(_key(client))
        after[_key(client)] = head if past is None else past + head
    return after


def trust_of(histories: Floats, confidence: float = 1.0) -> Floats:
    """Weight of each client by its summed updates ``(n, H)``: ``(n,)``, in [0, 1].

    Examples
    --------
    >>> trust_of(np.array([[1.0, 2.0], [1.0, 2.0]]))
    array([0., 0.])
    """
    similar = cosines_of(histories, histories)
    np.fill_diagonal(similar, 0.0)
    closest = similar.max(1)
    pardon = np.minimum(1.0, closest[:, None] / np.maximum(closest, np.finfo(float).tiny))
    apart = 1.0 - (similar * pardon).max(1)
    if apart.max() <= _ROUNDING:
        return np.zeros(len(histories))
    trust: Floats = np.clip(confidence * (logit(apart / apart.max()) + 0.5), 0.0, 1.0)
    return trust
