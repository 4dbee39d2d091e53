"""What an update does to inputs that the server holds: clean ones and stamped ones.

A backdoor bends the answer to inputs that look a little wrong. The server cannot know the
trigger, but an update that was trained to obey one tends to answer strange stamps more firmly
with the attacker's target than the global model does. Probes measure that shift with one forward
pass of each client's model, as it is and as a contrast: what the update does to clean inputs
subtracted, so that a client who simply owns many examples of one class does not look like a
backdoor of that class.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import activations_of, find_layers
from fl_shield.rng import keyed
from fl_shield.training import logits_of, set_arrays
from fl_shield.triggers import draw_trigger
from fl_shield.types import Arrays, Floats

GRID = 4
"""Images are stamped on a grid of GRID x GRID blocks, each inverted once."""


class Probes:
    """Server-held inputs and the answers of the global model to them.

    Parameters
    ----------
    model : nn.Module
        Scratch network of the global architecture.
    clean : array (m, ...)
        Clean inputs; at most ``n_clean`` of them are used.
    n_clean, n_triggers : int
        Clean inputs, and random triggers beside the inverted blocks; every clean input is
        stamped in every way.
    seed : int
        Draws the triggers; keep it secret from clients.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: NDArray[Any],
        *,
        n_clean: int = 6,
        n_triggers: int = 8,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._layer = find_layers(model, 1)
        self._clean = clean[:n_clean]
        stamped = [
            *inverted_blocks(self._clean),
            *_randomly_stamped(self._clean, clean, n_triggers, keyed(seed, 77)),
        ]
        self._n_stamps = len(stamped)
        self._inputs = np.concatenate([self._clean, *stamped])
        prefer_channels_last(model, self._inputs[:1])
        self._base: Mapping[str, Floats] = {}

    def set_global(self, arrays: Arrays) -> None:
        """Remember the global model's answers; every shift is measured from them."""
        self._base = self._answers(arrays)

    def shifts(self, arrays: Arrays) -> dict[str, Floats]:
        """Shifts that one update causes, by view name, each (d,)."""
        answers = self._answers(arrays)
        moved = {name: answers[name] - self._base[name] for name in answers}
        return {
            "probe:activation": moved["activation"],
            "probe:logits": moved["logits"],
            "stamp:logits": np.concatenate([moved["stamped"].mean(0), moved["stamped"].max(0)]),
            "stamp:contrast": (moved["stamped"] - moved["logits"]).ravel(),
        }

    def _answers(self, arrays: Arrays) -> dict[str, Floats]:
        set_arrays(self._model, arrays)
        rows, logits = activations_of(self._model, self._inputs, self._layer)
        n = len(self._clean)
        centred = logits - logits.mean(1, keepdims=True)
        shape = (self._n_stamps, n, logits.shape[1])
        answers: dict[str, Floats] = {
            "activation": rows[self._layer[0]][:n].mean(0).astype(np.float64),
            "logits": centred[:n].mean(0).astype(np.float64),
            "stamped": centred[n:].reshape(shape).mean(1).astype(np.float64),
        }
        return answers


def prefer_channels_last(model: nn.Module, x: NDArray[Any]) -> bool:
    """Store convolutions' weights with channels last, where the model runs so: it halves the time.

    A network that flattens by ``view`` refuses that layout; it stays as it was.

    Parameters
    ----------
    model : nn.Module
        Changed in place; the numbers stay the same.
    x : array (n, ...)
        One input to try.

    Returns
    -------
    bool
        Whether the layout was changed.
    """
    kernels = [p for p in model.parameters() if p.dim() == 4]
    before = [p.data for p in kernels]
    for p in kernels:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    try:
        logits_of(model, x)
    except RuntimeError:
        for p, data in zip(kernels, before, strict=True):
            p.data = data
        return False
    return bool(kernels)


def inverted_blocks(x: NDArray[Any], grid: int = GRID) -> list[NDArray[Any]]:
    """Images (n, c, h, w) in [0, 1] with one block of a grid inverted, one copy a block.

    Wherever a local trigger sits, one of the blocks covers a part of it. Inputs of other kinds
    have no blocks.

    Examples
    --------
    >>> len(inverted_blocks(np.zeros((2, 1, 8, 8), np.float32)))
    16
    """
    if x.ndim != 4:
        return []
    rows = np.linspace(0, x.shape[2], grid + 1).round().astype(int)
    columns = np.linspace(0, x.shape[3], grid + 1).round().astype(int)
    copies = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            copy = x.copy()
            copy[:, :, top:bottom, left:right] = 1 - x[:, :, top:bottom, left:right]
            copies.append(copy)
    return copies


def _randomly_stamped(
    x: NDArray[Any], like: NDArray[Any], n_triggers: int, rng: np.random.Generator
) -> Sequence[NDArray[Any]]:
    families = trigger_families(like)
    if families == ("word",):
        n_triggers += GRID * GRID
    names = [families[i % len(families)] for i in range(n_triggers)]
    return [draw_trigger(name, like, rng).stamp(x) for name in names]


def trigger_families(x: NDArray[Any]) -> tuple[str, ...]:
    """Trigger families that fit inputs of this kind: images (n, c, h, w) or tokens (n, length)."""
    if x.ndim == 4:
        return ("patch", "polygon", "blended")
    if x.ndim == 2 and np.issubdtype(x.dtype, np.integer):
        return ("word",)
    raise ValueError(
        f"no trigger family fits inputs of shape {x.shape} and dtype {x.dtype}; "
        "images are (n, channels, height, width), tokens (n, length); "
        "or switch probes off: probes=False"
    )
