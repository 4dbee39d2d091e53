"""The distribution that triggers are drawn from, and one fixed trigger of each family.

Jumbo distribution after MNTD (Xu et al., S&P 2021, section V-A) and MBDS, with every draw held
to a floor of visibility: a draw that hardly changes the inputs of the data set is thrown away and
drawn again, up to :data:`MAX_DRAWS` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.contrast import visibility
from fl_shield.triggers.text import Word
from fl_shield.triggers.vision import Blended, Patch, Polygon, polygon_mask, rectangle_mask
from fl_shield.types import Flags, Floats, Trigger

TRIGGERS: Mapping[str, Callable[..., Trigger]] = {
    "patch": Patch,
    "polygon": Polygon,
    "blended": Blended,
    "word": Word,
}
"""Every family of triggers by name."""

FAMILIES: tuple[str, ...] = tuple(TRIGGERS)
IMAGE_FAMILIES: tuple[str, ...] = ("patch", "polygon", "blended")
TEXT_FAMILIES: tuple[str, ...] = ("word",)

VISIBILITY_FLOOR: Mapping[str, float] = {
    "patch": 0.1,
    "polygon": 0.1,
    "blended": 0.03,
    "word": 0.5,
}
"""Least mean change inside the mask, by family, on the inputs that a trigger is made for."""

MIN_SHARE_CHANGED = 0.95
"""Least share of inputs that a trigger must visibly change."""

MAX_DRAWS = 200


def draw_trigger(family: str, like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Draw a random trigger that visibly changes inputs like these.

    Parameters
    ----------
    family : {"patch", "polygon", "blended", "word"}
        What kind of trigger.
    like : (n, ...) array
        Some clean inputs: floating images ``(n, channels, height, width)`` in [0, 1], or int64
        tokens ``(n, length)``. They give shape, vocabulary and background.
    rng : numpy.random.Generator
        Where the draw comes from.

    Returns
    -------
    Trigger
        One whose :func:`~fl_shield.triggers.visibility` on ``like`` reaches
        :data:`VISIBILITY_FLOOR` and :data:`MIN_SHARE_CHANGED`.

    Examples
    --------
    >>> like = np.zeros((4, 1, 8, 8), np.float32)
    >>> draw_trigger("patch", like, np.random.default_rng(0)).name
    'patch'
    """
    draw = _DRAWS[_checked(family, like)]
    for _ in range(MAX_DRAWS):
        trigger = draw(like, rng)
        if trigger is not None and is_visible(trigger, like):
            return trigger
    raise ValueError(
        f"{MAX_DRAWS} draws of family {family!r} changed too little of the inputs given; check "
        "that they are clean images in [0, 1], or sequences with at least two different tokens"
    )


def default_trigger(family: str, like: NDArray[Any]) -> Trigger:
    """Return the fixed trigger of a family for inputs like these, for benchmarks.

    A corner patch or triangle in the colour contrary to the background (5x5 on 28x28 images, 3x3
    on 8x8), faint checkers over the image (opacity 0.2), or a rare word of four tokens at the end.

    Parameters
    ----------
    family : {"patch", "polygon", "blended", "word"}
        What kind of trigger.
    like : (n, ...) array
        Some clean inputs, as in :func:`draw_trigger`.

    Examples
    --------
    >>> page = np.ones((4, 1, 28, 28), np.float32)
    >>> float(default_trigger("patch", page).stamp(page)[0, 0, 23:, 23:].max())
    0.0
    """
    trigger = _DEFAULTS[_checked(family, like)](like)
    if not is_visible(trigger, like):
        raise ValueError(
            f"the default trigger of family {family!r} changes too little of the inputs given; "
            "use draw_trigger, or another family"
        )
    return trigger


def is_visible(trigger: Trigger, like: NDArray[Any]) -> bool:
    """Whether a trigger reaches the floor of its family on clean inputs ``(n, ...)``."""
    seen = visibility(trigger, like)
    floor = VISIBILITY_FLOOR.get(trigger.name, max(VISIBILITY_FLOOR.values()))
    return seen.mean_change >= floor and seen.share_changed >= MIN_SHARE_CHANGED


def contrary(like: NDArray[Any], mask: Flags) -> Floats:
    """Value of each channel that contrasts with what lies under a mask, (channels, height, width).

    1 where the mean of the clean images under the mask is dark (< 0.5), else 0.
    """
    dark = like[..., mask].mean(axis=(0, 2)) < 0.5
    pattern: Floats = np.empty(like.shape[1:], np.float32)
    pattern[:] = dark[:, None, None]
    return pattern


def _checked(family: str, like: NDArray[Any]) -> str:
    if family not in TRIGGERS:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if len(like) == 0:
        raise ValueError(f"like needs at least 1 clean input, got shape {like.shape}")
    is_image = like.ndim == 4 and np.issubdtype(like.dtype, np.floating)
    is_text = like.ndim == 2 and like.dtype == np.int64
    if not (is_image if family in IMAGE_FAMILIES else is_text):
        raise ValueError(
            f"family {family!r} does not fit inputs {like.dtype} {like.shape}: "
            f"{', '.join(IMAGE_FAMILIES)} take floating images (n, channels, height, width), "
            f"{', '.join(TEXT_FAMILIES)} int64 tokens (n, length)"
        )
    return family


def _patch_side(like: NDArray[Any]) -> int:
    """Side of a patch in pixels: 5 on 28x28 images, else in proportion but at least 3."""
    side = int(min(like.shape[-2:]))
    return min(side, max(3, side * 5 // 28))


def _draw_patch(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    height, width = like.shape[-2:]
    side = _patch_side(like)
    n_rows, n_columns = rng.integers(min(2, side), side, size=2, endpoint=True)
    mask = rectangle_mask(
        (height, width),
        row=int(rng.integers(0, height - n_rows, endpoint=True)),
        column=int(rng.integers(0, width - n_columns, endpoint=True)),
        n_rows=int(n_rows),
        n_columns=int(n_columns),
    )
    pattern = _draw_pattern(like, mask, rng)
    return Patch(mask=mask.astype(np.float32), pattern=pattern, opacity=_draw_opacity(rng))


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


def _draw_word(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    length = like.shape[1]
    n_tokens = int(rng.integers(min(2, length), min(6, max(1, length // 2)), endpoint=True))
    tokens = tuple(int(t) for t in rng.choice(_rarest_first(like), size=n_tokens))
    at_end = rng.random() < 0.5
    start = int(rng.integers(0, length - n_tokens, endpoint=True))
    return Word(tokens=tokens, position=None if at_end else start)


def _rarest_first(like: NDArray[Any]) -> NDArray[Any]:
    """Token ids that occur in ``like``, the rarest first."""
    ids, counts = np.unique(like, return_counts=True)
    return ids[np.argsort(counts, kind="stable")]


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


def _default_word(like: NDArray[Any]) -> Trigger:
    rare = _rarest_first(like)
    n_tokens = min(4, max(1, like.shape[1] // 2))
    return Word(tokens=tuple(int(t) for t in np.resize(rare, n_tokens)))


_DRAWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], Trigger | None]] = {
    "patch": _draw_patch,
    "polygon": _draw_polygon,
    "blended": _draw_blended,
    "word": _draw_word,
}
_DEFAULTS: Mapping[str, Callable[[NDArray[Any]], Trigger]] = {
    "patch": _default_patch,
    "polygon": _default_polygon,
    "blended": _default_blended,
    "word": _default_word,
}
