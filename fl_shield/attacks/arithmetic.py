"""Arithmetic on whole models as named arrays: dtypes are kept, only floating tensors move.

Integer tensors, such as the batch counter of batch normalisation, are never scaled or averaged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.types import Arrays


def is_floating(array: NDArray[Any]) -> bool:
    """Whether an array holds floating numbers."""
    return bool(np.issubdtype(array.dtype, np.floating))


def move(origin: Arrays, towards: Arrays, scale: float) -> dict[str, NDArray[Any]]:
    """Return ``origin + scale * (towards - origin)``; integer tensors are those of ``towards``.

    Examples
    --------
    >>> move({"w": np.float32([1, 1])}, {"w": np.float32([2, 0])}, 3.0)
    {'w': array([ 4., -2.], dtype=float32)}
    """
    return {
        name: moved(start, towards[name], scale) if is_floating(start) else towards[name].copy()
        for name, start in origin.items()
    }


def moved(start: NDArray[Any], end: NDArray[Any], scale: float) -> NDArray[Any]:
    """Return ``start + scale * (end - start)`` of one floating tensor, in its dtype."""
    wide = start.astype(np.float64)
    return np.asarray(wide + scale * (end - wide), dtype=start.dtype)


def update_norm(arrays: Arrays, global_arrays: Arrays) -> float:
    """L2 norm of an update over all floating tensors together.

    Examples
    --------
    >>> update_norm({"w": np.float32([3, 4])}, {"w": np.float32([0, 0])})
    5.0
    """
    squared = (
        np.square(arrays[name].astype(np.float64) - start).sum()
        for name, start in global_arrays.items()
        if is_floating(start)
    )
    return float(np.sqrt(sum(squared)))


def average(models: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Mean of one or more models; integer tensors are those of the first.

    Examples
    --------
    >>> average([{"w": np.float32([1])}, {"w": np.float32([2])}])
    {'w': array([1.5], dtype=float32)}
    """
    first = models[0]
    return {
        name: np.asarray(
            np.mean([m[name] for m in models], axis=0, dtype=np.float64), dtype=array.dtype
        )
        if is_floating(array)
        else array.copy()
        for name, array in first.items()
    }
