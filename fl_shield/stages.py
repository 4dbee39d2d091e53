"""Which parts of a network are worth watching: its layers, or its stages over the whole depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn


def find_layers(model: nn.Module, n_layers: int = 3) -> tuple[str, ...]:
    """Names of the modules worth watching, the head last.

    The head is the last ``nn.Linear`` in the order of ``named_modules``; its *input* is the
    penultimate activation. Beside it the last modules with parameters of their own before it.

    Parameters
    ----------
    model : nn.Module
        Any network that has at least one module with parameters.
    n_layers : int
        How many names to give at most, the head included.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> find_layers(net)
    ('0', '2')
    """
    names = [n for n, module in model.named_modules() if n and _is_layer(module)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no module with parameters below it; "
            "name the layers yourself: layers=[...]"
        )
    modules = dict(model.named_modules())
    linear = [n for n in names if isinstance(modules[n], nn.Linear)]
    head = linear[-1] if linear else names[-1]
    earlier = [n for n in names[: names.index(head)] if not _is_norm(modules[n])]
    return (*earlier[max(0, len(earlier) - n_layers + 1) :], head)


def _is_layer(module: nn.Module) -> bool:
    own = any(True for _ in module.parameters(recurse=False))
    return own and not isinstance(module, nn.Embedding)


def _is_norm(module: nn.Module) -> bool:
    norms = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return isinstance(module, norms)


N_STAGES = 5
"""Stages that detectors of inputs watch unless told otherwise; shipped weights learned from as
many."""


def find_stages(model: nn.Module, n_layers: int = N_STAGES) -> tuple[str, ...]:
    """Names of the stages of a network, spread over its depth, the head last.

    A stage is a direct child with parameters (a convolution, a block of layers); where there are
    too few, the largest child is taken apart. The head is the last ``nn.Linear``, watched at its
    *input*. The others are evenly spaced before it.

    Parameters
    ----------
    model : nn.Module
        Any network that has at least one module with parameters.
    n_layers : int
        How many names to give at most, the head included.

    Examples
    --------
    >>> net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(7)))
    >>> find_stages(net, 3)
    ('2', '4', '6')
    """
    head = find_layers(model, 1)[0]
    stages = _stages(model, n_layers + 1)
    before = [n for n in stages if n != head and not head.startswith(f"{n}.")]
    places = np.linspace(0, len(before), n_layers + 1)[1:-1]
    chosen = [before[i] for i in sorted({int(place) for place in places}) if i < len(before)]
    return (*chosen, head)


def _stages(model: nn.Module, at_least: int) -> list[str]:
    """Children with parameters, in order; the largest is opened until there are enough."""
    modules = dict(model.named_modules())
    stages = _children(modules, "")
    while len(stages) < at_least or any(_is_list(modules[n]) for n in stages):
        opened = [n for n in stages if _children(modules, n)]
        if not opened:
            break
        first = max(opened, key=lambda n: (_is_list(modules[n]), _size(modules[n])))
        place = stages.index(first)
        stages[place : place + 1] = _children(modules, first)
    return stages


def _children(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    skipped = (nn.Embedding, nn.LayerNorm, nn.GroupNorm)
    found = [f"{name}.{n}" if name else n for n, _ in modules[name].named_children()]
    return [
        n
        for n in found
        if _size(modules[n]) and not isinstance(modules[n], skipped) and not _is_norm(modules[n])
    ]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
