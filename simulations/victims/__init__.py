"""Networks under attack, by name, and how honest clients train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fl_shield.errors import ScenarioError
from fl_shield.simulations.datasets import FederatedData
from fl_shield.simulations.victims.control_models import policy_mlp
from fl_shield.simulations.victims.text import LeafLSTM, NewsAverager, SmallLSTM
from fl_shield.simulations.victims.vision import (
    cifar_cnn,
    digits_cnn,
    digits_mlp,
    fed_cnn,
    leaf_cnn,
    resnet18_gn,
    small_cnn,
)
from fl_shield.types import TrainingConfig

__all__ = ["MODELS", "Victim", "build_model", "default_model", "default_training"]


@dataclass(frozen=True, kw_only=True)
class Victim:
    """One architecture.

    Attributes
    ----------
    build : callable
        Number of classes -> network.
    input_shape : tuple of int
        Shape of one input that it takes.
    kind : str
        ``image``, ``text`` or ``state``.
    """

    build: Callable[[int], nn.Module]
    input_shape: tuple[int, ...]
    kind: str = "image"


MODELS: Mapping[str, Victim] = {
    "digits-mlp": Victim(build=digits_mlp, input_shape=(1, 8, 8)),
    "digits-cnn": Victim(build=digits_cnn, input_shape=(1, 8, 8)),
    "small-cnn": Victim(build=small_cnn, input_shape=(1, 28, 28)),
    "leaf-cnn": Victim(build=leaf_cnn, input_shape=(1, 28, 28)),
    "fed-cnn": Victim(build=fed_cnn, input_shape=(1, 28, 28)),
    "small-lstm": Victim(build=SmallLSTM, input_shape=(80,), kind="text"),
    "leaf-lstm": Victim(build=LeafLSTM, input_shape=(80,), kind="text"),
    "cifar-cnn": Victim(build=cifar_cnn, input_shape=(3, 32, 32)),
    "resnet18-gn": Victim(build=resnet18_gn, input_shape=(3, 32, 32)),
    "news-averager": Victim(build=NewsAverager, input_shape=(32,), kind="text"),
    "policy-mlp": Victim(build=partial(policy_mlp, (4, 4)), input_shape=(4, 4), kind="state"),
}
"""Every network by name."""

_DEFAULTS: Mapping[str, tuple[str, TrainingConfig]] = {
    "digits": ("digits-cnn", TrainingConfig(n_epochs=2, batch_size=16, lr=0.05, momentum=0.9)),
    "glyphs": ("small-cnn", TrainingConfig(n_epochs=2, batch_size=20, lr=0.05, momentum=0.9)),
    "femnist": ("small-cnn", TrainingConfig(n_epochs=2, batch_size=20, lr=0.05, momentum=0.9)),
    "shakespeare": (
        "small-lstm",
        TrainingConfig(n_epochs=1, batch_size=10, lr=0.3, momentum=0.9, clip_norm=1.0),
    ),
    "roles": (
        "small-lstm",
        TrainingConfig(n_epochs=1, batch_size=10, lr=0.3, momentum=0.9, clip_norm=1.0),
    ),
    "cifar10": ("cifar-cnn", TrainingConfig(n_epochs=1, batch_size=20, lr=0.01, momentum=0.9)),
    "tiny-imagenet": (
        "cifar-cnn",
        TrainingConfig(n_epochs=1, batch_size=20, lr=0.01, momentum=0.9),
    ),
    "gtsrb": ("cifar-cnn", TrainingConfig(n_epochs=2, batch_size=20, lr=0.02, momentum=0.9)),
    "ag-news": (
        "news-averager",
        TrainingConfig(n_epochs=4, batch_size=20, lr=0.3, momentum=0.9, clip_norm=1.0),
    ),
    "cartpole": ("policy-mlp", TrainingConfig(n_epochs=2, batch_size=20, lr=0.05, momentum=0.9)),
}


def build_model(name: str, data: FederatedData, seed: int) -> nn.Module:
    """Build a freshly initialised network for a data set; torch's global generator stays as it was.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`.
    data : FederatedData
        Gives the number of classes and must have the inputs that the network takes.
    seed : int
        Seed of the initial weights.

    Examples
    --------
    >>> from fl_shield.simulations.datasets import load
    >>> build_model("digits-mlp", load("digits"), seed=0).head.out_features
    10
    """
    if name not in MODELS:
        raise ScenarioError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    victim = MODELS[name]
    if (victim.kind, victim.input_shape) != (data.kind, data.input_shape):
        fitting = [
            other
            for other, v in MODELS.items()
            if (v.kind, v.input_shape) == (data.kind, data.input_shape)
        ]
        raise ScenarioError(
            f"model {name!r} takes {victim.kind} inputs {victim.input_shape} and {data.name} has "
            f"{data.kind} inputs {data.input_shape}: use {' or '.join(fitting) or 'other data'}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _initialised(victim.build(data.n_classes))


def _initialised(model: nn.Module) -> nn.Module:
    """Draw dense and convolutional weights as He et al. (ICCV 2015) do, zero their biases.

    Torch's own, smaller weights leave the first ten federated rounds without progress.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                layer.weight, nonlinearity="linear" if name == "head" else "relu"
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def default_model(dataset: str) -> str:
    """Name of the network that a data set is trained with by default.

    Examples
    --------
    >>> default_model("femnist")
    'small-cnn'
    """
    return _default(dataset)[0]


def default_training(dataset: str) -> TrainingConfig:
    """How an honest client trains the default network of a data set.

    Examples
    --------
    >>> default_training("digits").n_epochs
    2
    """
    return _default(dataset)[1]


def _default(dataset: str) -> tuple[str, TrainingConfig]:
    if dataset not in _DEFAULTS:
        raise ScenarioError(f"data set must be one of {', '.join(_DEFAULTS)}, got {dataset!r}")
    return _DEFAULTS[dataset]
