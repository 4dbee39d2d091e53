"""Safetensors files, read whole."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

UNREADABLE = (SafetensorError, OSError)
"""What reading a file that is missing or damaged raises."""


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a file by its name, and what the file says beside them."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
