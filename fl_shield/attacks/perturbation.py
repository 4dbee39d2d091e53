"""Parameter perturbation: a poisoned model whose backdoor is pressed into its critical layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import is_floating, moved
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.local import check_n_epochs, train_local
from fl_shield.attacks.lp import last_dense_layer
from fl_shield.attacks.poisoning import check_poison_rate
from fl_shield.types import Arrays, AttackContext


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Uploads ``X + scale * (X - H)`` on the critical layers and X elsewhere.

    X is trained on poisoned data, H on clean data, both from the global model; X - H is what the
    backdoor changes. The critical layers are the head and the layer that the backdoor changes
    most relative to its size (:func:`critical_tensors`), so the rest of the update looks like data
    poisoning and the perturbation itself is small and local.

    Attributes
    ----------
    scale : float
        How many times the backdoor's displacement is added on the critical layers, > 0.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in (0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Additive perturbation of few weights: Garg et al., "Can Adversarial Weight Perturbations Inject
    Neural Backdoors", CIKM 2020. Backdoors live in few layers: Zhuang et al., ICLR
    2024, section 3; their search by substitution is replaced by the relative change here.
    """

    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 < self.scale < float("inf") or self.poison_rate == 0:
            raise ValueError(
                f"scale and poison_rate must be > 0 and finite, got {self.scale} and "
                f"{self.poison_rate}; use the attack none for honest uploads"
            )

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the poisoned model with its perturbed critical layers."""
        layers = [name for name, _ in context.model.named_parameters()]
        honest = train_local(context, context.data)
        poisoned = BadNets(poison_rate=self.poison_rate, n_epochs=self.n_epochs)(context)
        return perturb(honest, poisoned, critical_tensors(honest, poisoned, layers), self.scale)


def critical_tensors(honest: Arrays, poisoned: Arrays, layers: Sequence[str]) -> list[str]:
    """Names of the head (weight and bias) and of the weight that changes most beside its size.

    Parameters
    ----------
    honest, poisoned : Arrays
        Two models with the same names.
    layers : sequence of str
        Names of the trainable tensors, in order. The head is the last one of two or more
        dimensions and what follows it; only tensors of two or more dimensions before it compete.

    Returns
    -------
    list of str
        In the order of ``layers``.

    Examples
    --------
    >>> honest = {"a": np.ones((2, 2)), "b": np.ones((2, 2)), "head": np.ones((1, 2))}
    >>> poisoned = {"a": np.ones((2, 2)), "b": np.full((2, 2), 1.5), "head": np.ones((1, 2))}
    >>> critical_tensors(honest, poisoned, ["a", "b", "head"])
    ['b', 'head']
    """
    head = last_dense_layer(honest, layers)
    body = [name for name in layers if name not in head and honest[name].ndim >= 2]
    changes = {name: relative_change(honest[name], poisoned[name]) for name in body}
    return [*sorted(body, key=lambda name: -changes[name])[:1], *head]


def relative_change(start: NDArray[Any], end: NDArray[Any]) -> float:
    """L2 norm of ``end - start`` over that of ``start``; over the smallest normal number if 0.

    Examples
    --------
    >>> relative_change(np.array([3.0, 4.0]), np.array([3.0, 6.5]))
    0.5
    """
    wide = start.astype(np.float64)
    size = max(float(np.linalg.norm(wide)), float(np.finfo(np.float32).tiny))
    return float(np.linalg.norm(end - wide)) / size


def perturb(
    honest: Arrays, poisoned: Arrays, critical: Sequence[str], scale: float
) -> dict[str, NDArray[Any]]:
    """Return ``poisoned + scale * (poisoned - honest)`` on the critical floating tensors.

    All other tensors are those of ``poisoned``; dtypes are kept.

    Examples
    --------
    >>> honest, poisoned = {"a": np.ones(1), "b": np.ones(1)}, {"a": np.zeros(1), "b": np.zeros(1)}
    >>> perturb(honest, poisoned, ["b"], 2.0)
    {'a': array([0.]), 'b': array([-2.])}
    """
    return {
        name: moved(honest[name], array, 1 + scale)
        if name in critical and is_floating(array)
        else np.array(array)
        for name, array in poisoned.items()
    }
