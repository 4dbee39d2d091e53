"""Norm-clipped poisoning: projected gradient descent inside the ball of honest updates."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import move, update_norm
from fl_shield.attacks.local import check_n_epochs, train_local, train_peers
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.types import Arrays, AttackContext


@dataclass(frozen=True, kw_only=True)
class NormClipped:
    """Poisoned training whose update is projected onto an L2 ball after every epoch.

    The uploaded update's norm over all floating tensors is at most ``clip_norm``, up to the
    rounding of the tensors' dtype.

    Attributes
    ----------
    clip_norm : float, optional
        Radius of the ball, > 0. By default the median norm of the updates that the malicious
        clients of the round get by honest training.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Wang et al., "Attack of the Tails", NeurIPS 2020, section 3 (PGD attack); Sun et al., "Can
    You Really Backdoor Federated Learning?", 2019 (norm-bounded attack).
    """

    clip_norm: float | None = None
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None to learn it, got {self.clip_norm}")
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the poisoned model, projected."""
        radius = honest_norm(context) if self.clip_norm is None else self.clip_norm
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        arrays: Arrays = context.global_arrays
        for _ in range(self.n_epochs or context.training.n_epochs):
            trained = train_local(context, mix, start=arrays, n_epochs=1)
            arrays = project(trained, context.global_arrays, radius)
        return dict(arrays)


def honest_norm(context: AttackContext) -> float:
    """Median L2 norm of the honest updates of the round's malicious clients."""
    norms = [update_norm(model, context.global_arrays) for model in train_peers(context)]
    return float(np.median(norms))


def project(arrays: Arrays, global_arrays: Arrays, radius: float) -> dict[str, NDArray[Any]]:
    """Project an update onto the L2 ball of a radius around the global model.

    Examples
    --------
    >>> project({"w": np.float32([3, 4])}, {"w": np.float32([0, 0])}, 2.5)
    {'w': array([1.5, 2. ], dtype=float32)}
    """
    norm = update_norm(arrays, global_arrays)
    return move(global_arrays, arrays, radius / norm if norm > radius else 1.0)
