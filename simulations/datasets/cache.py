"""Arrays on disk that cost time to make: a file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError

ArrayTable = Mapping[str, NDArray[Any]]


def cached(folder: Path | None, name: str, make: Callable[[], ArrayTable]) -> ArrayTable:
    """Read ``folder/name.npz``, or make the arrays and write them there.

    Parameters
    ----------
    folder : Path, optional
        Made where it is not there; None = nothing is kept.
    name : str
        Tells everything that the arrays depend on.
    make : callable
        Gives the named arrays.

    Examples
    --------
    >>> cached(None, "squares", lambda: {"x": np.arange(3) ** 2})["x"].tolist()
    [0, 1, 4]
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    if path.is_file():
        return _read(path)
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(partial, **dict(arrays))  # type: ignore[arg-type]
    partial.replace(path)
    return arrays


def _read(path: Path) -> ArrayTable:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DatasetError(
            f"{path} is no readable cache file ({error}): delete it to have it made again"
        ) from error
