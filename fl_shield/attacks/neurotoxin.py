"""Neurotoxin: a backdoor in the coordinates that honest training hardly moves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import check_n_epochs
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.attacks.projected_training import cross_entropy_loss, train_projected
from fl_shield.training import evaluating, set_arrays
from fl_shield.types import Arrays, AttackContext, Flags, Samples


@dataclass(frozen=True, kw_only=True)
class Neurotoxin:
    """Poisoned training that never touches the top coordinates of the last global update.

    The last update is ``global_arrays - previous_arrays``; a client that does not know the
    previous model, or sees no change, takes the gradient of its own clean examples instead.
    The coordinates of all trainable tensors compete together. Those in the mask keep their value
    exactly, through momentum and weight decay too.

    That the backdoor lasts is the paper's finding on large networks over many rounds. In a small
    network on 8 x 8 digits it lasted no longer than that of BadNets: after ten honest passes 0.49
    of stamped inputs against 0.50, mean of ten seeds, with 1 or 5 % masked.

    Attributes
    ----------
    mask_ratio : float
        Share of the coordinates that are left alone, in (0, 1); 0.01 to 0.05 in the paper.
    clip_norm : float, optional
        Radius of the L2 ball around the global model that the update is projected onto after
        every epoch, > 0; None leaves it out. 0.2 in the released code.
    scale : float
        Boost of the update, > 0.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, section 3,
    algorithm 1.
    """

    mask_ratio: float = 0.05
    clip_norm: float | None = None
    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None for no ball, got {self.clip_norm}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be > 0 and finite, got {self.scale}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the poisoned model, unchanged in the top coordinates."""
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        lrs = [context.training.lr] * (self.n_epochs or context.training.n_epochs)
        free = free_coordinates(observed_direction(context), self.mask_ratio)
        poisoned = train_projected(context, mix, lrs=lrs, free=free, radius=self.clip_norm)
        return move(context.global_arrays, poisoned, self.scale)


def observed_direction(context: AttackContext) -> dict[str, NDArray[Any]]:
    """Where honest training goes, by trainable tensor: last global update, or own gradient."""
    names = [name for name, _ in context.model.named_parameters()]
    now, before = context.global_arrays, context.previous_arrays
    if before is not None:
        update = {name: np.asarray(now[name] - before[name]) for name in names}
        if any(array.any() for array in update.values()):
            return update
    return clean_gradient(context, context.data)


def clean_gradient(context: AttackContext, samples: Samples) -> dict[str, NDArray[Any]]:
    """Gradient of the mean cross-entropy of the global model, by trainable tensor, in eval mode.

    Zeros without examples.
    """
    model = set_arrays(context.model, context.global_arrays)
    parameters = dict(model.named_parameters())
    total = {name: np.zeros(p.shape, p.detach().numpy().dtype) for name, p in parameters.items()}
    if len(samples) == 0:
        return total
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    with evaluating(model):
        for batch in torch.split(torch.arange(len(y)), context.training.batch_size):
            cost = cross_entropy_loss(model, x[batch], y[batch]) * (len(batch) / len(y))
            grads = torch.autograd.grad(cost, list(parameters.values()), allow_unused=True)
            for array, grad in zip(total.values(), grads, strict=True):
                array += 0 if grad is None else grad.numpy()
    return total


def free_coordinates(direction: Arrays, mask_ratio: float) -> dict[str, Flags]:
    """Flags of all but the largest coordinates, in absolute value, over all tensors together.

    Parameters
    ----------
    direction : Arrays
        Where honest training goes; d coordinates in all.
    mask_ratio : float
        Share that is not free: ``mask_ratio * d``, rounded up. Of equal ones the first go first.

    Examples
    --------
    >>> flags = free_coordinates({"a": np.array([1.0, -5.0]), "b": np.array([[2.0, 0.0]])}, 0.5)
    >>> {name: array.tolist() for name, array in flags.items()}
    {'a': [True, False], 'b': [[False, True]]}
    """
    sizes = np.concatenate([np.abs(array).reshape(-1) for array in direction.values()])
    n_masked = int(np.ceil(np.round(mask_ratio * len(sizes), 6)))
    free = np.ones(len(sizes), bool)
    free[np.argsort(-sizes, kind="stable")[:n_masked]] = False
    ends = np.cumsum([array.size for array in direction.values()])
    return {
        name: free[end - array.size : end].reshape(array.shape)
        for (name, array), end in zip(direction.items(), ends, strict=True)
    }
