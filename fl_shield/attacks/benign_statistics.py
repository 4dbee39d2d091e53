"""What benign clients upload in a round, as far as an attacker knows: mean and spread."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import average
from fl_shield.attacks.collusion import as_one
from fl_shield.attacks.local import train_peers
from fl_shield.types import Arrays, AttackContext, Floats


@dataclass(frozen=True, kw_only=True)
class BenignStatistics:
    """Benign uploads of one round, beside the global model that they started from.

    Only trainable tensors count as parts of an update. Batch statistics and integer counters
    cannot be scaled without breaking the model, so a crafted upload carries their benign mean.

    Attributes
    ----------
    uploads : tuple of Arrays
        The n benign models, n >= 1.
    global_arrays : Arrays
        The model that the server sent.
    names : tuple of str
        The trainable tensors.
    mean, std : mapping of str to float64 array
        Mean and standard deviation (dividing by n) of each coordinate of the n updates, by
        trainable tensor. With one upload the deviation is 0.
    """

    uploads: tuple[Arrays, ...]
    global_arrays: Arrays
    names: tuple[str, ...]
    mean: Mapping[str, Floats]
    std: Mapping[str, Floats]

    def updates(self) -> Iterator[tuple[str, Floats]]:
        """Each trainable tensor's name and its n updates, ``(n, *shape)`` float64."""
        return _updates(self.uploads, self.global_arrays, self.names)

    def craft(self, update: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """Return the upload whose trainable tensors are ``global + update``."""
        crafted = average(self.uploads)
        for name in self.names:
            start = self.global_arrays[name]
            moved = start.astype(np.float64) + update[name]
            crafted[name] = np.asarray(moved, dtype=start.dtype)
        return crafted


def benign_uploads(context: AttackContext) -> list[Arrays]:
    """Uploads of benign clients: the true ones where the attacker knows them, else estimates.

    The estimates are the honest models of the round's malicious clients, trained on their own
    examples; all of them arrive at the same estimates. A lone attacker has just one.
    """
    if context.benign_uploads:
        return list(context.benign_uploads)
    with as_one(context) as shared:
        return list(train_peers(shared))


def benign_statistics(context: AttackContext) -> BenignStatistics:
    """Mean and coordinate-wise standard deviation of the benign updates of a round.

    Parameters
    ----------
    context : AttackContext
        Gives ``benign_uploads``, or the examples to estimate them from.
    """
    uploads = tuple(benign_uploads(context))
    # tied tensors have two names in the state: both must move
    names = tuple(name for name, _ in context.model.named_parameters(remove_duplicate=False))
    mean, std = {}, {}
    for name, updates in _updates(uploads, context.global_arrays, names):
        mean[name], std[name] = updates.mean(axis=0), updates.std(axis=0)
    return BenignStatistics(
        uploads=uploads, global_arrays=context.global_arrays, names=names, mean=mean, std=std
    )


def _updates(
    uploads: Sequence[Arrays], global_arrays: Arrays, names: Sequence[str]
) -> Iterator[tuple[str, Floats]]:
    for name in names:
        yield name, np.stack([u[name] for u in uploads]).astype(np.float64) - global_arrays[name]
