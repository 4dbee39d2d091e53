"""Plain npz files of labelled pictures: ``x``, ``y`` and ``split`` with 0 = train, 1 = test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.types import Samples


def read_labelled(path: Path, shape: tuple[int, ...]) -> tuple[Samples, Samples]:
    """Train and test part of a file, inputs as bytes.

    Parameters
    ----------
    path : Path
        An npz file with ``x`` uint8 (n, *shape), ``y`` and ``split`` (n,); more arrays may be
        there and are not read.
    shape : tuple of int
        Of one input.

    Raises
    ------
    DatasetError
        For a file that is broken, pickled or of another kind.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            x, y, split = (file[name] for name in ("x", "y", "split"))
        _check(x, y, split, shape)
    except (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path} cannot be read as pictures ({error}): it needs x uint8 (n, "
            f"{', '.join(map(str, shape))}), y and split (0 = train, 1 = test)"
        ) from error
    labels = y.astype(np.int64)
    train, test = (Samples(x=x[split == mark], y=labels[split == mark]) for mark in (0, 1))
    return train, test


def _check(x: NDArray[Any], y: NDArray[Any], split: NDArray[Any], shape: tuple[int, ...]) -> None:
    if x.dtype != np.uint8 or x.shape[1:] != shape:
        raise ValueError(f"x is {x.dtype} {x.shape}")
    if y.shape != x.shape[:1] or split.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"y is {y.dtype} {y.shape} and split {split.shape} for {len(x)} pictures")
