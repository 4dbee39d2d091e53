"""Whether a model is still the one that something was fitted to."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and values of a model's state, in hexadecimal.

    Where a model lies (CPU or GPU) makes no difference; a changed bit does. About a second for
    500 MB.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> before = fingerprint(net)
    >>> _ = nn.init.zeros_(net.bias)
    >>> fingerprint(net) == before
    False
    """
    digest = sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


class Seal:
    """Notices cheaply that a model may have changed, and then looks closely.

    In-place changes count up a number that torch keeps for each tensor. Only when one of them
    has moved is the fingerprint taken again. A tensor that was replaced, or changed behind
    torch's back (``.data``), is found by :meth:`holds` alone.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = [*model.parameters(), *model.buffers()]
        self._versions = self._counted()
        self.digest = fingerprint(model)

    def touched(self) -> bool:
        """Whether any tensor was written to since the last look: a few microseconds."""
        return self._counted() != self._versions

    def holds(self) -> bool:
        """Whether the fingerprint is still the same; reads every value."""
        self._versions = self._counted()
        return fingerprint(self._model) == self.digest

    def _counted(self) -> list[int]:
        return [0 if t.is_inference() else t._version for t in self._tensors]
