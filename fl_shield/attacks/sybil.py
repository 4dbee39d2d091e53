"""Sybil clones: one attacker behind many clients, who all send nearly the same."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import update_norm
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.collusion import as_one
from fl_shield.types import Arrays, Attack, AttackContext


@dataclass(frozen=True, kw_only=True)
class SybilClones:
    """Every malicious client uploads the same attack's model, with a little noise of its own.

    The attack runs on the examples of the round's largest malicious client. Poisoning is the
    default: what sybils have over a single attacker is their number, no need to scale anything.

    Attributes
    ----------
    inner : Attack
        What is cloned.
    jitter : float
        Norm of a clone's own noise beside that of the cloned update, about; >= 0. It is spread
        evenly over the trainable tensors; 0 makes the clones equal.

    References
    ----------
    Fung et al., "The Limitations of Federated Learning in Sybil Settings", RAID 2020, section 3;
    sybils with perturbed updates: section 7 (there in pairs whose noise cancels, here
    independent).

    Examples
    --------
    >>> SybilClones(jitter=0.1).inner
    BadNets(poison_rate=0.5, n_epochs=None)
    """

    inner: Attack = field(default_factory=BadNets)
    jitter: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < float("inf"):
            raise ValueError(f"jitter must be finite and >= 0, got {self.jitter}; try 0.01")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return this client's clone."""
        with as_one(context) as shared:
            cloned = self.inner(shared)
        names = [name for name, _ in context.model.named_parameters(remove_duplicate=False)]
        parts = {name: cloned[name] for name in names}
        norm = update_norm(parts, {name: context.global_arrays[name] for name in names})
        return jittered(cloned, names, self.jitter * norm, context.rng)


def jittered(
    arrays: Arrays, names: list[str], norm: float, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return a copy with normal noise on some tensors, of an expected squared norm ``norm**2``."""
    std = norm / np.sqrt(max(1, sum(arrays[name].size for name in names)))
    copy = {name: np.array(array) for name, array in arrays.items()}
    for name in names:
        noise = std * rng.standard_normal(arrays[name].shape)
        copy[name] = np.asarray(arrays[name] + noise, dtype=arrays[name].dtype)
    return copy
