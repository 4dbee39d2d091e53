"""How triggers of images are drawn, and the fixed one of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.coarsening import Blur, Mosaic
from fl_shield.triggers.distortion import Colour, Sinusoidal, Warp
from fl_shield.triggers.geometry import Affine, Ghost, Lens, rotation_matrix
from fl_shield.triggers.moving import MovingPatch
from fl_shield.triggers.vision import (
    Blended,
    Checker,
    Circle,
    Patch,
    Polygon,
    disc_mask,
    polygon_mask,
    rectangle_mask,
)
from fl_shield.types import Flags, Floats, Trigger

GRID_OF_WARP = 4
"""Control points a side of a warp, as published."""


def contrary(like: NDArray[Any], mask: Flags) -> Floats:
    """Value of each channel that contrasts with what lies under a mask, (channels, height, width).

    1 where the mean of the clean images under the mask is dark (< 0.5), else 0.
    """
    dark = like[..., mask].mean(axis=(0, 2)) < 0.5
    pattern: Floats = np.empty(like.shape[1:], np.float32)
    pattern[:] = dark[:, None, None]
    return pattern


def _patch_side(like: NDArray[Any]) -> int:
    """Side of a patch in pixels: 5 on 28x28 images, else in proportion but at least 3."""
    side = int(min(like.shape[-2:]))
    return min(side, max(3, side * 5 // 28))


def _draw_patch(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    height, width = like.shape[-2:]
    place = _draw_rectangle(like, rng)
    mask = rectangle_mask((height, width), **place)
    pattern = _draw_pattern(like, mask, rng)
    return Patch(mask=mask.astype(np.float32), pattern=pattern, opacity=_draw_opacity(rng))


def _draw_rectangle(like: NDArray[Any], rng: np.random.Generator) -> dict[str, int]:
    height, width = like.shape[-2:]
    side = _patch_side(like)
    n_rows, n_columns = (int(n) for n in rng.integers(min(2, side), side, size=2, endpoint=True))
    row = int(rng.integers(0, height - n_rows, endpoint=True))
    column = int(rng.integers(0, width - n_columns, endpoint=True))
    return {"row": row, "column": column, "n_rows": n_rows, "n_columns": n_columns}


def _draw_polygon(like: NDArray[Any], rng: np.random.Generator) -> Trigger | None:
    height, width = like.shape[-2:]
    radius = max(1.3, rng.uniform(0.09, 0.16) * min(height, width))
    centre = [rng.uniform(radius, side - 1 - radius) for side in (height, width)]
    angles = np.sort(rng.uniform(0, 2 * np.pi, size=rng.integers(3, 6, endpoint=True)))
    vertices = [
        (float(centre[0] + radius * np.sin(a)), float(centre[1] + radius * np.cos(a)))
        for a in angles
    ]
    mask = polygon_mask((height, width), vertices)
    if mask.sum() < 3:
        return None
    pattern = _draw_pattern(like, mask, rng)
    return Polygon(mask=mask.astype(np.float32), pattern=pattern, opacity=_draw_opacity(rng))


def _draw_blended(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    everywhere = np.ones(like.shape[-2:], bool)
    pattern = _draw_pattern(like, everywhere, rng)
    return Blended.everywhere(pattern, opacity=float(rng.uniform(0.05, 0.2)))


def _draw_circle(like: NDArray[Any], rng: np.random.Generator) -> Trigger | None:
    height, width = like.shape[-2:]
    radius = max(1.25, float(rng.uniform(0.09, 0.16)) * min(height, width))
    row, column = (float(rng.uniform(radius, side - 1 - radius)) for side in (height, width))
    mask = disc_mask((height, width), centre=(row, column), radius=radius)
    pattern = _draw_pattern(like, mask, rng)
    return Circle(mask=mask.astype(np.float32), pattern=pattern, opacity=_draw_opacity(rng))


def _draw_checker(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    place = _draw_rectangle(like, rng)
    size = (like.shape[-2], like.shape[-1])
    field = int(rng.integers(1, 2, endpoint=True))
    return Checker.rectangle(size, **place, field=field, opacity=_draw_opacity(rng))


def _draw_moving(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    place = _draw_rectangle(like, rng)
    everywhere = np.ones(like.shape[-2:], bool)
    pattern = _draw_pattern(like, everywhere, rng)[:, : place["n_rows"], : place["n_columns"]]
    key = int(rng.integers(2**63))
    return MovingPatch(pattern=pattern, opacity=_draw_opacity(rng), key=key)


def _draw_sinusoidal(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Frequency 3 to 8, below half the width: at or above that the wave aliases."""
    highest = max(1, min(8, (like.shape[-1] - 1) // 2))
    frequency = float(rng.integers(min(3, highest), highest, endpoint=True))
    return Sinusoidal(delta=float(rng.uniform(0.08, 0.2)), frequency=frequency)


def _draw_warp(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Control points move by 4 to 8 % of the side on average: unlike in the paper, to be seen."""
    field = rng.uniform(-1, 1, size=(2, GRID_OF_WARP, GRID_OF_WARP))
    pixels = max(0.5, float(rng.uniform(0.04, 0.08)) * min(like.shape[-2:]))
    return Warp(field=field, strength=2 * pixels)


def _draw_colour(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Gain and offset by channel; on grey images less contrast and another gamma."""
    n_channels = like.shape[1]
    if n_channels == 1:
        gain = float(rng.uniform(0.6, 0.85))
        offset = float(rng.uniform(0, 1 - gain))
        gamma = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.3, 0.9)))
        return Colour(gain=(gain,), offset=(offset,), gamma=(gamma,))
    gains = tuple(float(rng.uniform(0.6, 1.4)) for _ in range(n_channels))
    offsets = tuple(float(rng.uniform(-0.2, 0.2)) for _ in range(n_channels))
    return Colour(gain=gains, offset=offsets)


def _draw_rotation(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """A turn by 10 to 30 degrees either way."""
    degrees = float(rng.choice([-1, 1]) * rng.uniform(10, 30))
    return _affine(rotation_matrix(degrees), rng, "rotation")


def _draw_scaling(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Each side stretched or shrunk by 10 to 35 %, both apart."""
    factors = np.exp(rng.choice([-1, 1], size=2) * rng.uniform(0.1, 0.3, size=2))
    return _affine(np.diag(factors), rng, "scaling")


def _draw_shear(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """A slant along one axis by 15 to 40 % of the side."""
    slanted = np.eye(2)
    axis = int(rng.integers(2))
    slanted[axis, 1 - axis] = rng.choice([-1, 1]) * rng.uniform(0.15, 0.4)
    return _affine(slanted, rng, "shear")


def _affine(linear: Floats, rng: np.random.Generator, name: str) -> Trigger:
    """An affine trigger with a shift by at most 5 % of each side."""
    columns, rows = (tuple(row) for row in np.c_[linear, rng.uniform(-0.1, 0.1, size=2)].tolist())
    return Affine(matrix=(columns, rows), name=name)


def _draw_ghost(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """A second picture at 6 to 20 % of the side, at least a pixel."""
    rows, columns = _draw_shift(like, 0.06, 0.2, rng)
    return Ghost(rows=rows, columns=columns, opacity=float(rng.uniform(0.5, 0.75)))


def _draw_lens(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """A barrel of 20 to 90 %, or a pincushion of 15 to 45 %; the centre is off the middle."""
    barrel = rng.random() < 0.5
    bend = float(rng.uniform(0.2, 0.9) if barrel else -rng.uniform(0.15, 0.45))
    column, row = rng.uniform(-0.6, 0.6, size=2).tolist()
    return Lens(bend=bend, centre=(column, row))


def _draw_blur(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Over 10 to 25 % of the side, at least a pixel."""
    rows, columns = _draw_shift(like, 0.1, 0.25, rng)
    return Blur(rows=rows, columns=columns)


def _draw_shift(
    like: NDArray[Any], least: float, most: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Rows and columns of a shift by a share of the side in any direction, at least a pixel."""
    side = min(like.shape[-2:])
    angle, far = rng.uniform(0, 2 * np.pi), max(1.0, float(rng.uniform(least, most)) * side)
    rows, columns = round(far * np.sin(angle)), round(far * np.cos(angle))
    return rows, columns or int(not rows)


def _draw_mosaic(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Blocks of 2 pixels on 8x8 images, of 3 or 4 on 28x28 and 32x32 ones."""
    smallest = max(2, round(0.1 * min(like.shape[-2:])))
    largest = max(2, round(0.14 * min(like.shape[-2:])))
    return Mosaic(block=int(rng.integers(smallest, largest, endpoint=True)))


def _draw_opacity(rng: np.random.Generator) -> float:
    """Half-way visible, or (above 0.5) fully opaque."""
    opacity = float(rng.uniform(0.2, 0.6))
    return 1.0 if opacity > 0.5 else opacity


def _draw_pattern(like: NDArray[Any], mask: Flags, rng: np.random.Generator) -> Floats:
    """Contrary to the background, random black and white, or clipped uniform noise."""
    shape = like.shape[1:]
    kind = rng.integers(3)
    if kind == 0:
        return contrary(like, mask)
    if kind == 1:
        return rng.integers(0, 2, size=shape).astype(np.float32)
    spread = rng.uniform()
    return rng.uniform(-spread, 1 + spread, size=shape).clip(0, 1).astype(np.float32)


def _default_patch(like: NDArray[Any]) -> Trigger:
    height, width = like.shape[-2:]
    side = _patch_side(like)
    mask = rectangle_mask(
        (height, width), row=height - side, column=width - side, n_rows=side, n_columns=side
    )
    return Patch(mask=mask.astype(np.float32), pattern=contrary(like, mask))


def _default_polygon(like: NDArray[Any]) -> Trigger:
    height, width = like.shape[-2:]
    reach = _patch_side(like) + 1.5
    corner = (height - 0.5, width - 0.5)
    vertices = [corner, (corner[0] - reach, corner[1]), (corner[0], corner[1] - reach)]
    mask = polygon_mask((height, width), vertices)
    return Polygon(mask=mask.astype(np.float32), pattern=contrary(like, mask))


def _default_blended(like: NDArray[Any]) -> Trigger:
    rows, columns = np.indices(like.shape[-2:])
    block = _patch_side(like)
    checkers: Floats = np.asarray((rows // block + columns // block) % 2, np.float32)
    return Blended.everywhere(checkers, opacity=0.2)


def _default_circle(like: NDArray[Any]) -> Trigger:
    height, width = like.shape[-2:]
    side = _patch_side(like)
    centre = (height - 1 - (side - 1) / 2, width - 1 - (side - 1) / 2)
    mask = disc_mask((height, width), centre=centre, radius=side / 2 - 0.25)
    return Circle(mask=mask.astype(np.float32), pattern=contrary(like, mask))


def _default_checker(like: NDArray[Any]) -> Trigger:
    height, width = like.shape[-2:]
    side = _patch_side(like)
    place = {"row": height - side, "column": width - side, "n_rows": side, "n_columns": side}
    return Checker.rectangle((height, width), **place)


def _default_moving(like: NDArray[Any]) -> Trigger:
    side = _patch_side(like)
    colour = contrary(like, np.ones(like.shape[-2:], bool))
    return MovingPatch(pattern=colour[:, :side, :side])


def _default_sinusoidal(like: NDArray[Any]) -> Trigger:
    frequency = float(max(1, min(6, (like.shape[-1] - 1) // 2)))
    return Sinusoidal(delta=0.12, frequency=frequency)


VISION_DRAWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], Trigger | None]] = {
    "patch": _draw_patch,
    "polygon": _draw_polygon,
    "blended": _draw_blended,
    "circle": _draw_circle,
    "checker": _draw_checker,
    "moving_patch": _draw_moving,
    "sinusoidal": _draw_sinusoidal,
    "warp": _draw_warp,
    "colour": _draw_colour,
    "rotation": _draw_rotation,
    "scaling": _draw_scaling,
    "shear": _draw_shear,
    "ghost": _draw_ghost,
    "lens": _draw_lens,
    "blur": _draw_blur,
    "mosaic": _draw_mosaic,
}
"""How a trigger of each family is drawn for images like these; None = draw again."""

VISION_DEFAULTS: Mapping[str, Callable[[NDArray[Any]], Trigger]] = {
    "patch": _default_patch,
    "polygon": _default_polygon,
    "blended": _default_blended,
    "circle": _default_circle,
    "checker": _default_checker,
    "moving_patch": _default_moving,
    "sinusoidal": _default_sinusoidal,
}
"""The fixed trigger of a family for images like these, where it has one."""
