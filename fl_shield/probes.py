"""What an update does to inputs that the server holds: clean ones and randomly stamped ones.

A backdoor bends the answer to inputs that look a little wrong. The server cannot know the
trigger, but an update that was trained to obey one tends to answer *any* strange stamp more
firmly with the attacker's target than the global model does. Probes measure that shift, and the
shift of clean inputs' activations, with one forward pass of each client's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import activations_of, find_layers
from fl_shield.rng import keyed
from fl_shield.training import set_arrays
from fl_shield.triggers import draw_trigger
from fl_shield.types import Arrays, Floats


class Probes:
    """Server-held inputs and the answers of the global model to them.

    Parameters
    ----------
    model : nn.Module
        Scratch network of the global architecture.
    clean : array (m, ...)
        Clean inputs; at most ``n_clean`` of them are used.
    n_clean, n_triggers : int
        Size of the probe set: ``n_clean * (1 + n_triggers)`` inputs.
    seed : int
        Draws the triggers; keep it secret from clients.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: NDArray[Any],
        *,
        n_clean: int = 12,
        n_triggers: int = 8,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._layer = find_layers(model, 1)
        self._clean = clean[:n_clean]
        rng = keyed(seed, 77)
        families = trigger_families(clean)
        stamped = [
            draw_trigger(families[i % len(families)], clean, rng).stamp(self._clean)
            for i in range(n_triggers)
        ]
        self._inputs = np.concatenate([self._clean, *stamped])
        self._n_triggers = n_triggers
        self._base: Mapping[str, Floats] = {}

    def set_global(self, arrays: Arrays) -> None:
        """Remember the global model's answers; every shift is measured from them."""
        self._base = self._answers(arrays)

    def shifts(self, arrays: Arrays) -> dict[str, Floats]:
        """Shifts that one update causes, by view name, each (d,)."""
        answers = self._answers(arrays)
        moved = {name: answers[name] - self._base[name] for name in answers}
        by_trigger = moved["stamped"]
        return {
            "probe:activation": moved["activation"],
            "probe:logits": moved["logits"],
            "stamp:logits": np.concatenate([by_trigger.mean(0), by_trigger.max(0)]),
        }

    def _answers(self, arrays: Arrays) -> dict[str, Floats]:
        set_arrays(self._model, arrays)
        rows, logits = activations_of(self._model, self._inputs, self._layer)
        n = len(self._clean)
        centred = logits - logits.mean(1, keepdims=True)
        shape = (self._n_triggers, n, logits.shape[1])
        answers: dict[str, Floats] = {
            "activation": rows[self._layer[0]][:n].mean(0).astype(np.float64),
            "logits": centred[:n].mean(0).astype(np.float64),
            "stamped": centred[n:].reshape(shape).mean(1).astype(np.float64),
        }
        return answers


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
