"""FLTrust: the server trains too, and trusts clients as far as they point its way."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fl_shield.aggregators.contract import (
    TINY,
    Aggregate,
    AggregationContext,
    State,
    check_round,
    cosines_of,
    names_of,
    norms_of,
)
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class FLTrust:
    """Averages updates of the server's own length, weighed by their cosine with its update.

    In every round the server trains on its clean examples, from the global model and as clients
    do. A client that points away from the server's update has no say; where nobody points its
    way, or its training changes nothing, the model stays. Example counts are not asked.

    References
    ----------
    Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS
    2021, equations 2 to 4 and algorithm 2, with a global rate of 1 (the paper's root set has 100
    examples). In a public version nobody ever set the server's update, and the rule ran as
    FedAvg (thinh-dao/BackFed, issue 10): here a server without examples is an error.

    Examples
    --------
    >>> trust_by(np.array([1.0, 0.0]), np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
    array([1., 0., 0.])
    """

    min_clients: ClassVar[int] = 1

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Train on the server, trust by direction, rescale, average by trust."""
        check_round(updates, weights, self.min_clients, "fltrust")
        own = server_update(context).astype(updates.dtype)
        trust = trust_by(own, updates)
        length = float(np.linalg.norm(own))
        shares = trust * length / np.maximum(norms_of(updates), TINY)
        total = max(float(trust.sum()), TINY)
        update = (shares / total).astype(updates.dtype) @ updates
        rejected = [c for c, say in zip(context.client_ids, trust, strict=True) if say == 0]
        note = (
            f"mean trust {trust.mean():.2f}, length {length:.3g}; without a say: "
            f"{names_of(rejected)}"
        )
        return Aggregate(update=update, votes=trust, scores=1.0 - trust, note=note), state


def server_update(context: AggregationContext) -> Floats:
    """Train on the server's clean examples as clients do: the change of parameters, ``(P,)``.

    The scratch network is left trained. Layers that draw (dropout) draw from the server's stream.
    """
    model, clean = context.need_model("fltrust")
    set_arrays(model, context.global_arrays)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(context.rng.integers(0, 2**63 - 1)))
        train(model, clean, context.training, context.rng)
    change: Floats = context.layout.flat(get_arrays(model)) - context.global_vector
    return change


def trust_by(own: Floats, updates: Floats) -> Floats:
    """Trust in updates ``(n, P)``: the positive part of the cosine with ``own`` ``(P,)``.

    Examples
    --------
    >>> trust_by(np.array([3.0, 4.0]), np.array([[1.0, 0.0], [0.0, -1.0]]))
    array([0.6, 0. ])
    """
    trust: Floats = np.maximum(cosines_of(updates, own[None])[:, 0], 0.0)
    return trust
