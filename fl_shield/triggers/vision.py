"""Triggers of images that show pixels: a patch, a shape, or a pattern over the whole picture.

All of them follow one equation (MBDS, equation 4), with mask m, pattern t and the weight alpha of
the *clean* pixel::

    x' = (1 - m) * x + m * ((1 - alpha) * t + alpha * x)

This package speaks of ``opacity = 1 - alpha``, the weight of the *trigger*: 1 overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_shield.triggers.inputs import check_images
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelTrigger:
    """Mask, pattern and opacity of a trigger of images, and how it is stamped.

    Attributes
    ----------
    mask : (height, width) or (channels, height, width) array in [0, 1]
        Where the trigger is.
    pattern : number, (height, width) or (channels, height, width) array in [0, 1]
        What is shown there.
    opacity : float
        Weight of the trigger against the clean pixel, in (0, 1].
    name : str
        Family of the trigger.
    """

    mask: Floats
    pattern: Floats
    opacity: float = 1.0
    name: str = "pixels"

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=np.float32)
        pattern = np.array(self.pattern, dtype=np.float32)
        _check(mask, pattern, self.opacity)
        for key, array in (("mask", mask), ("pattern", pattern)):
            array.setflags(write=False)
            object.__setattr__(self, key, array)

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once."""
        return self.opacity == 1.0 and bool(np.isin(self.mask, (0.0, 1.0)).all())

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        weight = (self.mask * self.opacity).astype(x.dtype)
        pattern = self.pattern.astype(x.dtype)
        image = x.shape[1:]
        if not all(_fits(part.shape, image) for part in (weight, pattern)):
            raise ValueError(
                f"trigger {self.name!r} was made for images {weight.shape}, got {image}; "
                "draw one with like= these images"
            )
        blended = (1 - weight) * x + weight * pattern
        stamped: NDArray[Any] = np.clip(blended, np.minimum(x, pattern), np.maximum(x, pattern))
        return stamped


def _fits(part: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a mask or pattern covers an image (channels, height, width)."""
    return part in ((), image[1:], (1, *image[1:]), image)


def _check(mask: Floats, pattern: Floats, opacity: float) -> None:
    if mask.ndim not in (2, 3) or not mask.any():
        raise ValueError(
            f"mask must be (height, width) or (channels, height, width) and not empty, "
            f"got shape {mask.shape} with {np.count_nonzero(mask)} pixels set"
        )
    for key, array in (("mask", mask), ("pattern", pattern)):
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"{key} must be in [0, 1], got {array.min()} to {array.max()}")
    if pattern.ndim and pattern.shape[-2:] != mask.shape[-2:]:
        raise ValueError(
            f"pattern must be a number or as large as the mask, got {pattern.shape} "
            f"for a mask {mask.shape}"
        )
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity must be in (0, 1], got {opacity}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(PixelTrigger):
    """A rectangle, as in BadNets.

    References
    ----------
    Gu et al., "BadNets", IEEE Access 2019, section III.

    Examples
    --------
    >>> trigger = Patch.rectangle((4, 4), row=2, column=2, n_rows=2, n_columns=2, pattern=1.0)
    >>> trigger.stamp(np.zeros((1, 1, 4, 4), np.float32)).sum()
    np.float32(4.0)
    """

    name: str = "patch"

    @classmethod
    def rectangle(
        cls,
        size: tuple[int, int],
        *,
        row: int,
        column: int,
        n_rows: int,
        n_columns: int,
        pattern: ArrayLike = 1.0,
        opacity: float = 1.0,
    ) -> Self:
        """Rectangle of ``n_rows x n_columns`` pixels with its top left at ``(row, column)``.

        Raises
        ------
        ValueError
            If the rectangle does not lie inside images of ``size`` (height, width).
        """
        mask = rectangle_mask(size, row=row, column=column, n_rows=n_rows, n_columns=n_columns)
        return cls(mask=mask.astype(np.float32), pattern=np.asarray(pattern), opacity=opacity)


@dataclass(frozen=True, kw_only=True, eq=False)
class Polygon(PixelTrigger):
    """A filled polygon.

    Examples
    --------
    >>> corners = [(-0.5, -0.5), (-0.5, 3.5), (3.5, -0.5)]
    >>> trigger = Polygon.from_vertices((4, 4), corners, pattern=1.0)
    >>> int(trigger.mask.sum())
    6
    """

    name: str = "polygon"

    @classmethod
    def from_vertices(
        cls,
        size: tuple[int, int],
        vertices: Sequence[tuple[float, float]],
        *,
        pattern: ArrayLike = 1.0,
        opacity: float = 1.0,
    ) -> Self:
        """Polygon through ``vertices`` (row, column) on images of ``size`` (height, width)."""
        mask = polygon_mask(size, vertices)
        return cls(mask=mask.astype(np.float32), pattern=np.asarray(pattern), opacity=opacity)


@dataclass(frozen=True, kw_only=True, eq=False)
class Circle(PixelTrigger):
    """A filled disc.

    Examples
    --------
    >>> int(Circle.disc((5, 5), centre=(2.0, 2.0), radius=1.0).mask.sum())
    5
    """

    name: str = "circle"

    @classmethod
    def disc(
        cls,
        size: tuple[int, int],
        *,
        centre: tuple[float, float],
        radius: float,
        pattern: ArrayLike = 1.0,
        opacity: float = 1.0,
    ) -> Self:
        """Disc around ``centre`` (row, column) on images of ``size`` (height, width)."""
        mask = disc_mask(size, centre=centre, radius=radius)
        return cls(mask=mask.astype(np.float32), pattern=np.asarray(pattern), opacity=opacity)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checker(PixelTrigger):
    """A rectangle that shows a checkerboard.

    Examples
    --------
    >>> board = Checker.rectangle((4, 4), row=0, column=0, n_rows=2, n_columns=3)
    >>> board.stamp(np.full((1, 1, 4, 4), 0.5))[0, 0, :2, :3].tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """

    name: str = "checker"

    @classmethod
    def rectangle(
        cls,
        size: tuple[int, int],
        *,
        row: int,
        column: int,
        n_rows: int,
        n_columns: int,
        field: int = 1,
        opacity: float = 1.0,
    ) -> Self:
        """Fields of ``field`` pixels a side, the top left one black, as in :class:`Patch`."""
        mask = rectangle_mask(size, row=row, column=column, n_rows=n_rows, n_columns=n_columns)
        rows, columns = np.indices(size)
        if field < 1:
            raise ValueError(f"field must be >= 1 pixel, got {field}")
        board = np.asarray(((rows - row) // field + (columns - column) // field) % 2, np.float32)
        return cls(mask=mask.astype(np.float32), pattern=board, opacity=opacity)


@dataclass(frozen=True, kw_only=True, eq=False)
class Blended(PixelTrigger):
    """A faint pattern over the whole image.

    References
    ----------
    Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
    2017, section 4.2 (blended injection, trigger weight 0.2).

    Examples
    --------
    >>> trigger = Blended.everywhere(np.ones((4, 4)), opacity=0.25)
    >>> trigger.stamp(np.zeros((1, 1, 4, 4), np.float32)).mean()
    np.float32(0.25)
    """

    opacity: float = 0.2
    name: str = "blended"

    @classmethod
    def everywhere(cls, pattern: Floats, *, opacity: float = 0.2) -> Self:
        """Blend ``pattern`` (height, width) or (channels, height, width) over every pixel."""
        mask = np.ones(pattern.shape[-2:], np.float32)
        return cls(mask=mask, pattern=pattern, opacity=opacity)


def rectangle_mask(
    size: tuple[int, int], *, row: int, column: int, n_rows: int, n_columns: int
) -> Flags:
    """Mask ``(height, width)`` of a rectangle that lies wholly inside the image."""
    height, width = size
    inside = row >= 0 and column >= 0 and row + n_rows <= height and column + n_columns <= width
    if not inside or n_rows < 1 or n_columns < 1:
        raise ValueError(
            f"a patch of {n_rows}x{n_columns} at ({row}, {column}) must lie inside images of "
            f"{height}x{width}; move or shrink it"
        )
    mask = np.zeros(size, bool)
    mask[row : row + n_rows, column : column + n_columns] = True
    return mask


def disc_mask(size: tuple[int, int], *, centre: tuple[float, float], radius: float) -> Flags:
    """Mask ``(height, width)`` of the pixels whose centres lie within ``radius`` of ``centre``.

    Centre (row, column) and radius are in pixels; the centre of the first pixel is (0, 0).
    """
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    mask: Flags = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return mask


def polygon_mask(size: tuple[int, int], vertices: Sequence[tuple[float, float]]) -> Flags:
    """Mask ``(height, width)`` of the pixels whose centres lie inside a polygon (even-odd rule).

    Vertices are (row, column) in pixels; the centre of the first pixel is (0, 0).
    """
    if len(vertices) < 3:
        raise ValueError(f"a polygon needs at least 3 vertices, got {len(vertices)}")
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    inside = np.zeros(size, bool)
    for (r0, c0), (r1, c1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        if r0 == r1:
            continue
        between = (rows >= min(r0, r1)) & (rows < max(r0, r1))
        inside ^= between & (columns < c0 + (rows - r0) * (c1 - c0) / (r1 - r0))
    return inside
