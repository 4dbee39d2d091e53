"""The data of one simulated federation: clients, a common test set, the server's clean examples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.types import Samples

KINDS = ("image", "text", "state")


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """What every party of one simulated federation holds.

    Attributes
    ----------
    name : str
        Data set, a key of :data:`fl_shield.simulations.datasets.DATASETS`.
    kind : str
        ``image``: float32 ``(n, channels, height, width)`` in [0, 1]; ``text``: int64 tokens
        ``(n, length)``, indices into ``vocabulary``; ``state``: finite float32
        ``(n, frames, d)``, the newest frame last.
    clients : tuple of Samples
        Training examples of each client, at least one each.
    client_names : tuple of str
        Writer, role or number of each client; unique.
    test : Samples
        Pooled held-out examples of these clients.
    clean : Samples
        The server's own clean examples, in no client's hands and not in ``test``.
    n_classes : int
        Labels run from 0 to ``n_classes - 1``.
    vocabulary : str or tuple of str
        Characters or words by token, for text; empty for what is no text.

    Examples
    --------
    >>> one = Samples(x=np.zeros((2, 1, 8, 8), np.float32), y=np.zeros(2, np.int64))
    >>> FederatedData(name="demo", kind="image", clients=(one,), client_names=("a",),
    ...               test=one, clean=one, n_classes=10).input_shape
    (1, 8, 8)
    """

    name: str
    kind: str
    clients: tuple[Samples, ...]
    client_names: tuple[str, ...]
    test: Samples
    clean: Samples
    n_classes: int
    vocabulary: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DatasetError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.clients or len(self.clients) != len(self.client_names):
            raise DatasetError(
                "a federation needs one name for each of at least one client, got "
                f"{len(self.clients)} clients and {len(self.client_names)} names"
            )
        if len(set(self.client_names)) != len(self.client_names):
            raise DatasetError("client names must be unique: join the data of equal names first")
        for part, samples in self._parts():
            _check(self, part, samples)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.test.x.shape[1:])

    def _parts(self) -> list[tuple[str, Samples]]:
        named = [(f"client {n}", s) for n, s in zip(self.client_names, self.clients, strict=True)]
        return [*named, ("test", self.test), ("clean", self.clean)]


def _check(data: FederatedData, part: str, samples: Samples) -> None:
    """Refuse examples that break the contract of their federation."""
    x, y = samples.x, samples.y
    if len(y) == 0:
        raise DatasetError(f"{part} of {data.name} has no examples: every part needs at least one")
    if y.dtype != np.int64 or y.min() < 0 or y.max() >= data.n_classes:
        raise DatasetError(
            f"labels of {part} of {data.name} must be int64 in 0..{data.n_classes - 1}, "
            f"got {y.dtype} in {y.min()}..{y.max()}"
        )
    if x.shape[1:] != data.input_shape:
        raise DatasetError(
            f"inputs of {part} of {data.name} must have the shape {data.input_shape} of test, "
            f"got {x.shape[1:]}"
        )
    dtype, n_axes, low, high = _expected(data)
    # written so that a NaN fails too
    in_range = bool(x.min() >= low) and bool(x.max() <= high)
    if x.dtype != dtype or x.ndim != n_axes or not in_range:
        raise DatasetError(
            f"inputs of {part} of {data.name} must be {np.dtype(dtype)} with {n_axes} axes in "
            f"{low}..{high}, got {x.dtype} with {x.ndim} axes in {x.min()}..{x.max()}"
        )


def _expected(data: FederatedData) -> tuple[type[np.generic], int, float, float]:
    """Type, axes, least and greatest value of the inputs of a federation's kind."""
    if data.kind == "text":
        return np.int64, 2, 0, len(data.vocabulary) - 1
    if data.kind == "state":
        largest = float(np.finfo(np.float32).max)
        return np.float32, 3, -largest, largest
    return np.float32, 4, 0, 1


def fingerprint(data: FederatedData) -> str:
    """SHA-256 (hex) over the names and arrays of a federation, for manifests.

    Examples
    --------
    >>> from fl_shield.simulations.datasets import load
    >>> fingerprint(load("digits", seed=0)) == fingerprint(load("digits", seed=1))
    False
    """
    digest = hashlib.sha256(f"{data.name}|{data.n_classes}|{data.vocabulary}".encode())
    for part, samples in data._parts():
        for array in (samples.x, samples.y):
            digest.update(f"|{part}|{array.dtype.str}|{array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
