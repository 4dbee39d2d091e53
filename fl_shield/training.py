"""Local SGD on one owner's examples, and the way between a model and its named arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.rng import torch_generator
from fl_shield.types import Arrays, Samples, TrainingConfig


def get_arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy a model's state into named arrays, in the order of its state dict."""
    return {name: t.detach().cpu().numpy().copy() for name, t in model.state_dict().items()}


def set_arrays(model: nn.Module, arrays: Arrays) -> nn.Module:
    """Copy named arrays into a model and return it; names and shapes must match exactly."""
    readable = {name: np.require(a, requirements=("C", "W")) for name, a in arrays.items()}
    model.load_state_dict({name: torch.from_numpy(a) for name, a in readable.items()})
    return model


def train(
    model: nn.Module, samples: Samples, config: TrainingConfig, rng: np.random.Generator
) -> float:
    """Train a model in place by SGD on cross-entropy.

    Parameters
    ----------
    model : nn.Module
        Maps inputs ``(n, ...)`` to logits ``(n, n_classes)``.
    samples : Samples
        At least one example.
    config : TrainingConfig
        Epochs, batches, rates.
    rng : numpy.random.Generator
        Orders the batches.

    Returns
    -------
    float
        Mean loss of the last epoch.
    """
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    generator = torch_generator(rng)
    model.train()
    total = 0.0
    for _ in range(config.n_epochs):
        total = 0.0
        for batch in torch.split(torch.randperm(len(y), generator=generator), config.batch_size):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip_norm > 0:
                nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimiser.step()
            total += float(loss.detach()) * len(batch)
    return total / max(len(y), 1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and give every module its own mode back, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.inference_mode()
def logits_of(model: nn.Module, x: NDArray[Any], batch_size: int = 512) -> torch.Tensor:
    """Logits ``(n, n_classes)`` of inputs ``(n, ...)`` in eval mode, without gradients."""
    with evaluating(model):
        parts = [model(batch) for batch in torch.split(torch.from_numpy(x), batch_size)]
    return torch.cat(parts)


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of examples classified as labelled, in [0, 1]."""
    return float((logits_of(model, samples.x).argmax(1).numpy() == samples.y).mean())
