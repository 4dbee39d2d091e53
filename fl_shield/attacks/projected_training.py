"""Local training under constraints: another loss, fewer coordinates, or a ball to stay in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.attacks.norm_clipped import project
from fl_shield.rng import torch_generator
from fl_shield.training import get_arrays, set_arrays
from fl_shield.types import Arrays, AttackContext, Flags, Samples, TrainingConfig

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a network, inputs (n, ...) and labels (n,) to a scalar."""


def cross_entropy_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of a network on one batch."""
    return nn.functional.cross_entropy(model(x), y)


def train_projected(
    context: AttackContext,
    samples: Samples,
    *,
    start: Arrays | None = None,
    lrs: Sequence[float] | None = None,
    loss: Loss = cross_entropy_loss,
    free: Mapping[str, Flags] | None = None,
    radius: float | None = None,
    statistics: bool = True,
) -> dict[str, NDArray[Any]]:
    """Train the scratch model under constraints and return its arrays.

    Without any constraint it is :func:`~fl_shield.attacks.local.train_local`, bit for bit.

    Parameters
    ----------
    context : AttackContext
        Gives the scratch model, the training configuration and the random stream.
    samples : Samples
        What to train on; without any the start is returned unchanged.
    start : Arrays, optional
        Where to start; the global model by default.
    lrs : sequence of float, optional
        Learning rate of each epoch; rate and epochs of honest clients by default.
    loss : callable
        What one batch costs.
    free : mapping of str to flags, optional
        Which coordinates may move, by trainable tensor; one that is not named does not move at
        all, whatever momentum or weight decay would do to it. All may by default.
    radius : float, optional
        After every epoch the update is projected onto the L2 ball of this radius around the
        global model; no ball by default.
    statistics : bool
        Whether batch statistics follow the data; False runs the network in eval mode.
    """
    start = context.global_arrays if start is None else start
    if len(samples) == 0:
        return {name: np.array(array) for name, array in start.items()}
    config = context.training
    model = set_arrays(context.model, start)
    moving = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (free is None or name in free)
    }
    fixed = {} if free is None else {n: torch.from_numpy(~free[n]) for n in moving}
    optimiser = sgd(list(moving.values()), config)
    generator = torch_generator(context.rng)
    model.train(statistics)
    for lr in [config.lr] * config.n_epochs if lrs is None else lrs:
        optimiser.param_groups[0]["lr"] = lr
        _epoch(model, samples, config, loss, moving, fixed, optimiser, generator)
        if radius is not None:
            set_arrays(model, project(get_arrays(model), context.global_arrays, radius))
    return get_arrays(model)


def sgd(parameters: Sequence[Tensor], config: TrainingConfig) -> torch.optim.SGD:
    """Optimiser of honest clients for some tensors; idle where there is none."""
    idle = [torch.zeros(0, requires_grad=True)]
    return torch.optim.SGD(
        parameters or idle, config.lr, config.momentum, weight_decay=config.weight_decay
    )


def _epoch(
    model: nn.Module,
    samples: Samples,
    config: TrainingConfig,
    loss: Loss,
    moving: Mapping[str, nn.Parameter],
    fixed: Mapping[str, Tensor],
    optimiser: torch.optim.SGD,
    generator: torch.Generator,
) -> None:
    """One pass in random order; coordinates in ``fixed`` have no gradient and are put back."""
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    before = {name: moving[name].detach().clone() for name in fixed}
    parameters = list(moving.values())
    for batch in torch.split(torch.randperm(len(y), generator=generator), config.batch_size):
        cost = loss(model, x[batch], y[batch])
        grads = torch.autograd.grad(cost, parameters, allow_unused=True) if parameters else ()
        for (name, parameter), grad in zip(moving.items(), grads, strict=True):
            unmasked = grad is None or name not in fixed
            parameter.grad = grad if unmasked else grad.masked_fill(fixed[name], 0)
        if config.clip_norm > 0:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimiser.step()
        with torch.no_grad():
            for name, flags in fixed.items():
                moving[name].copy_(torch.where(flags, before[name], moving[name]))
