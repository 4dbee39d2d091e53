"""Policies of control tasks: states to actions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn


def policy_mlp(shape: tuple[int, ...], n_actions: int) -> nn.Module:
    """Two hidden layers of 64 units over the stacked frames.

    Examples
    --------
    >>> policy_mlp((4, 4), 2)(torch.zeros(3, 4, 4)).shape
    torch.Size([3, 2])
    """
    return _policy(shape, n_actions, 64, nn.ReLU)


def policy_tanh(shape: tuple[int, ...], n_actions: int) -> nn.Module:
    """Two hidden layers of 128 units with hyperbolic tangents, as PPO's default networks have.

    Examples
    --------
    >>> policy_tanh((4, 6), 3)(torch.zeros(3, 4, 6)).shape
    torch.Size([3, 3])
    """
    return _policy(shape, n_actions, 128, nn.Tanh)


def _policy(
    shape: tuple[int, ...], n_actions: int, width: int, activation: Callable[[], nn.Module]
) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(int(torch.Size(shape).numel()), width),
            act1=activation(),
            fc2=nn.Linear(width, width),
            act2=activation(),
            head=nn.Linear(width, n_actions),
        )
    )
