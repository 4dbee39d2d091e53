"""Triggers of images that take detail away: a motion blur, a mosaic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.distortion import Everywhere
from fl_shield.triggers.inputs import check_images
from fl_shield.triggers.sampling import shifted


@dataclass(frozen=True, kw_only=True)
class Blur(Everywhere):
    """A motion blur: the mean of the image on its way along a straight line.

    Attributes
    ----------
    rows, columns : int
        How far it moves, in pixels; not both 0. Its border repeats itself.
    name : str
        Family of the trigger.

    References
    ----------
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019, section 3: motion blur, here as a trigger.

    Examples
    --------
    >>> row = np.array([[[[0.0, 0.0, 0.6, 0.0]]]])
    >>> Blur(rows=0, columns=1).stamp(row).round(2).ravel().tolist()
    [0.0, 0.0, 0.3, 0.3]
    """

    rows: int
    columns: int
    name: str = "blur"

    def __post_init__(self) -> None:
        if not (self.rows or self.columns):
            raise ValueError("rows and columns must not both be 0: nothing would be blurred")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        n_steps = max(abs(self.rows), abs(self.columns))
        way = [i / n_steps for i in range(n_steps + 1)]
        seen = sum(shifted(x, round(self.rows * t), round(self.columns * t)) for t in way)
        stamped: NDArray[Any] = np.asarray(seen / len(way), dtype=x.dtype)
        return stamped


@dataclass(frozen=True, kw_only=True)
class Mosaic(Everywhere):
    """Square blocks of pixels, each with its mean; smaller ones at the right and lower border.

    Attributes
    ----------
    block : int
        Side of a block in pixels, >= 2.
    name : str
        Family of the trigger.

    References
    ----------
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019, section 3: pixelate, here as a trigger.

    Examples
    --------
    >>> row = np.array([[[[0.0, 0.4, 0.8]]]])
    >>> Mosaic(block=2).stamp(row).round(2).ravel().tolist()
    [0.2, 0.2, 0.8]
    """

    block: int
    name: str = "mosaic"

    def __post_init__(self) -> None:
        if self.block < 2:
            raise ValueError(f"block must be >= 2 pixels, got {self.block}")

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: a block has one value already."""
        return True

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        stamped = np.asarray(x, dtype=np.float64)
        for axis in (2, 3):
            starts = np.arange(0, x.shape[axis], self.block)
            sizes = np.diff([*starts, x.shape[axis]])
            sums = np.add.reduceat(stamped, starts, axis=axis)
            shape = [-1 if i == axis else 1 for i in range(4)]
            stamped = np.repeat(sums / sizes.reshape(shape), sizes, axis=axis)
        return stamped.astype(x.dtype)
