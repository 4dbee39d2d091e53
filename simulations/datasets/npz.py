"""One npz file with the examples of many owners.

Arrays: ``x`` (n, ...) and ``y`` (n,); ``owner`` (or ``writer``, ``role``) (n,) integers;
``split`` (n,) with 0 = train, 1 = test; optionally ``owner_ids`` (or ``writer_ids``,
``role_ids``) with the names. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.corpus import MIN_EXAMPLES, Owner
from fl_shield.types import Samples

DecodeArrays = Callable[[NDArray[Any], NDArray[Any]], Samples]
"""Turns one owner's arrays x and y into samples; raises ValueError where they cannot be."""


def find_npz(folder: Path) -> Path | None:
    """First npz file of a folder by name, or None."""
    return min(folder.glob("*.npz"), default=None) if folder.is_dir() else None


def read_npz(
    path: Path, decode: DecodeArrays, n_owners: int, rng: np.random.Generator
) -> tuple[Owner, ...]:
    """Read a draw of usable owners from an npz file.

    Parameters
    ----------
    path : Path
        The file, see the module's docstring.
    decode : callable
        Arrays x, y of one owner -> Samples.
    n_owners : int
        Usable owners wanted; fewer come back where the file holds fewer.
    rng : numpy.random.Generator
        Draws the owners.
    """
    arrays = _arrays(path)
    x, y, split = arrays["x"], arrays["y"], arrays["split"]
    owner = _either(arrays, path, "owner", "writer", "role")
    shapes = {x.shape[:1], y.shape, split.shape, owner.shape}
    if len(shapes) != 1 or shapes == {()} or owner.dtype.kind not in "iu":
        raise DatasetError(
            f"{path} has x, y, split and owner of shapes {x.shape}, {y.shape}, {split.shape} and "
            f"{owner.shape} ({owner.dtype}): they need one row an example, and integers for owner"
        )
    names = _names(arrays, owner)
    present, n_train = np.unique(owner[split == 0], return_counts=True)
    enough = np.intersect1d(present[n_train >= MIN_EXAMPLES], owner[split == 1])
    drawn = rng.permutation(enough)[:n_owners]
    try:
        return tuple(
            Owner(
                name=names.get(int(i), str(i)),
                train=decode(x[(owner == i) & (split == 0)], y[(owner == i) & (split == 0)]),
                test=decode(x[(owner == i) & (split == 1)], y[(owner == i) & (split == 1)]),
            )
            for i in drawn
        )
    except ValueError as error:
        raise DatasetError(
            f"examples in {path} are not of this data set ({error}): point --data-dir at the "
            "right file"
        ) from error


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path} cannot be read as npz without pickle ({error}): copy it again, or save plain "
            "arrays with numpy.savez"
        ) from error
    absent = {"x", "y", "split"} - set(arrays)
    if absent:
        raise DatasetError(
            f"{path} lacks {', '.join(sorted(absent))}: it needs x, y, owner and split "
            "(0 = train, 1 = test)"
        )
    return arrays


def _either(arrays: dict[str, NDArray[Any]], path: Path, *names: str) -> NDArray[Any]:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DatasetError(f"{path} lacks {' or '.join(names)}: it must say whose each example is")


def _names(arrays: dict[str, NDArray[Any]], owner: NDArray[Any]) -> dict[int, str]:
    for key in ("owner_ids", "writer_ids", "role_ids"):
        if key in arrays and len(arrays[key]) > int(owner.max(initial=0)):
            return {i: str(name) for i, name in enumerate(arrays[key])}
    return {}
