"""Small networks of many kinds for single victims: images, token sequences, control states.

Without dropout, batch statistics or anything in place, so that many of one kind train stacked (see
:mod:`fl_shield.simulations.victims.stacked`). The head is always called ``head``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fl_shield.errors import ScenarioError
from fl_shield.simulations.victims.control_models import policy_mlp, policy_tanh
from fl_shield.simulations.victims.image_models import (
    ImageResNet,
    ImageViT,
    image_cnn,
    image_lenet,
    image_mlp,
)
from fl_shield.simulations.victims.text_models import TextCNN, TextGRU, TextTransformer

IMAGE_MODELS: Mapping[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "cnn": image_cnn,
    "lenet": image_lenet,
    "mlp": image_mlp,
    "resnet": ImageResNet,
    "vit": ImageViT,
}
TEXT_MODELS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "text-cnn": TextCNN,
    "gru": TextGRU,
    "transformer": TextTransformer,
}
STATE_MODELS: Mapping[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "policy-mlp": policy_mlp,
    "policy-tanh": policy_tanh,
}
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "image": tuple(IMAGE_MODELS),
    "text": tuple(TEXT_MODELS),
    "state": tuple(STATE_MODELS),
}
"""Names of the networks that take each kind of input."""


def build_victim(
    name: str, shape: tuple[int, ...], n_classes: int, n_tokens: int, seed: int
) -> nn.Module:
    """Build a freshly initialised network; torch's global generator stays as it was.

    Parameters
    ----------
    name : str
        One of :data:`ARCHITECTURES`.
    shape : tuple of int
        Of one input; unused by networks of text.
    n_classes, n_tokens, seed : int

    Examples
    --------
    >>> type(build_victim("gru", (16,), 4, 100, seed=0)).__name__
    'TextGRU'
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TEXT_MODELS:
            return TEXT_MODELS[name](n_tokens, n_classes)
        builders = {**IMAGE_MODELS, **STATE_MODELS}
        if name not in builders:
            known = ", ".join([*builders, *TEXT_MODELS])
            raise ScenarioError(f"victim must be one of {known}, got {name!r}")
        return builders[name](shape, n_classes)
