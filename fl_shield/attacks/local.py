"""Local training inside an attack: honest or on poisoned data, from the global model."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Arrays, AttackContext, Samples


def train_local(
    context: AttackContext,
    samples: Samples,
    *,
    start: Arrays | None = None,
    n_epochs: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Train the scratch model on some examples and return its arrays.

    Parameters
    ----------
    context : AttackContext
        Gives the scratch model, the training configuration and the random stream.
    samples : Samples
        What to train on; without any the start is returned unchanged.
    start : Arrays, optional
        Where to start; the global model by default.
    n_epochs : int, optional
        Passes over the examples; as many as honest clients make by default.
    """
    start = context.global_arrays if start is None else start
    if len(samples) == 0:
        return {name: np.array(array) for name, array in start.items()}
    config = context.training if n_epochs is None else replace(context.training, n_epochs=n_epochs)
    set_arrays(context.model, start)
    train(context.model, samples, config, context.rng)
    return get_arrays(context.model)


def train_peers(context: AttackContext) -> list[dict[str, NDArray[Any]]]:
    """Honest models of every malicious client of the round, this one's first."""
    return [train_local(context, peer) for peer in context.peers or (context.data,)]


def pool_peers(context: AttackContext) -> Samples:
    """Examples of all malicious clients of the round, in the same order for each of them.

    What is worked out of them without the client's own stream is the same for all.
    """
    parts = sorted(context.peers or (context.data,), key=_digest)
    return Samples.join(parts)


def _digest(samples: Samples) -> bytes:
    return hashlib.blake2b(samples.x.tobytes() + samples.y.tobytes(), digest_size=16).digest()


def check_n_epochs(n_epochs: int | None) -> None:
    """Raise ValueError unless a number of epochs is None or at least 1."""
    if n_epochs is not None and n_epochs < 1:
        raise ValueError(f"n_epochs must be >= 1, or None for that of honest clients: {n_epochs}")
