"""The distribution that triggers are drawn from, and one fixed trigger of each family.

Jumbo distribution after MNTD (Xu et al., S&P 2021, section V-A) and MBDS, with every draw held
to a floor of visibility: a draw that hardly changes the inputs of the data set is thrown away and
drawn again, up to :data:`MAX_DRAWS` times. How a draw is made stands in ``draw_vision``,
``draw_text`` and ``draw_state``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.coarsening import Blur, Mosaic
from fl_shield.triggers.contrast import visibility
from fl_shield.triggers.distortion import Colour, Sinusoidal, Warp
from fl_shield.triggers.draw_state import STATE_DEFAULTS, STATE_DRAWS
from fl_shield.triggers.draw_text import TEXT_DEFAULTS, TEXT_DRAWS
from fl_shield.triggers.draw_vision import VISION_DEFAULTS, VISION_DRAWS
from fl_shield.triggers.geometry import Affine, Ghost, Lens
from fl_shield.triggers.moving import MovingPatch
from fl_shield.triggers.state import StatePattern, StateValues
from fl_shield.triggers.text import Insertion, Word
from fl_shield.triggers.vision import Blended, Checker, Circle, Patch, Polygon
from fl_shield.types import Trigger

TRIGGERS: Mapping[str, Callable[..., Trigger]] = {
    "patch": Patch,
    "polygon": Polygon,
    "blended": Blended,
    "circle": Circle,
    "checker": Checker,
    "moving_patch": MovingPatch,
    "sinusoidal": Sinusoidal,
    "warp": Warp,
    "colour": Colour,
    "rotation": partial(Affine, name="rotation"),
    "scaling": partial(Affine, name="scaling"),
    "shear": partial(Affine, name="shear"),
    "ghost": Ghost,
    "lens": Lens,
    "blur": Blur,
    "mosaic": Mosaic,
    "word": Word,
    "token": partial(Insertion, name="token"),
    "two_tokens": partial(Insertion, name="two_tokens"),
    "phrase": partial(Insertion, name="phrase"),
    "sentence": partial(Insertion, name="sentence"),
    "rare_token": partial(Insertion, name="rare_token"),
    "state_value": partial(StateValues, name="state_value"),
    "state_pair": partial(StateValues, name="state_pair"),
    "state_pattern": StatePattern,
}
"""Every family of triggers by name."""

FAMILIES: tuple[str, ...] = tuple(TRIGGERS)
VISION_TRIGGERS: tuple[str, ...] = tuple(VISION_DRAWS)
TEXT_TRIGGERS: tuple[str, ...] = tuple(TEXT_DRAWS)
STATE_TRIGGERS: tuple[str, ...] = tuple(STATE_DRAWS)

HELD_OUT_FAMILIES: tuple[str, ...] = ("circle", "warp", "rare_token", "state_pair")
"""Families that no detector is ever trained on: what it does on these is its result."""

IMAGE_FAMILIES: tuple[str, ...] = ("patch", "polygon", "blended")
TEXT_FAMILIES: tuple[str, ...] = ("word",)
STATE_FAMILIES: tuple[str, ...] = STATE_TRIGGERS
"""What simulated federations draw from. Their published figures follow from the content and the
order of these tuples: add families to the ``_TRIGGERS`` ones instead."""

VISIBILITY_FLOOR: Mapping[str, float] = {
    "patch": 0.1,
    "polygon": 0.1,
    "blended": 0.03,
    "circle": 0.1,
    "checker": 0.1,
    "moving_patch": 0.1,
    "sinusoidal": 0.02,
    "warp": 0.02,
    "colour": 0.05,
    **dict.fromkeys(("rotation", "scaling", "shear", "ghost", "lens", "blur", "mosaic"), 0.02),
    **dict.fromkeys(TEXT_TRIGGERS, 0.5),
    **dict.fromkeys(STATE_TRIGGERS, 0.5),
}
"""Least mean change where the trigger writes, by family, on the inputs that it is made for: of
pixels in [0, 1], as a share of tokens, or in standard deviations of a state's dimension."""

MIN_SHARE_CHANGED = 0.95
"""Least share of inputs that a trigger must visibly change."""

MAX_DRAWS = 200

_DRAWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], Trigger | None]] = {
    **VISION_DRAWS,
    **TEXT_DRAWS,
    **STATE_DRAWS,
}
_DEFAULTS: Mapping[str, Callable[[NDArray[Any]], Trigger]] = {
    **VISION_DEFAULTS,
    **TEXT_DEFAULTS,
    **STATE_DEFAULTS,
}


def draw_trigger(family: str, like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Draw a random trigger that visibly changes inputs like these.

    Parameters
    ----------
    family : str
        What kind of trigger, one of :data:`FAMILIES`.
    like : (n, ...) array
        Some clean inputs: floating images ``(n, channels, height, width)`` in [0, 1], int64
        tokens ``(n, length)``, or floating observations ``(n, frames, d)``. They give shape,
        vocabulary, range and background.
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
        "that they are clean images in [0, 1] that differ from place to place, sequences with at "
        "least two different tokens, or observations that vary"
    )


def default_trigger(family: str, like: NDArray[Any]) -> Trigger:
    """Return the fixed trigger of a family for inputs like these, for benchmarks.

    For pixels a corner patch, triangle, disc or checkerboard in the colour contrary to the
    background (5x5 on 28x28 images, 3x3 on 8x8), such a patch that moves, faint checkers
    (opacity 0.2) or stripes (0.12) over the image; a rare word of four tokens at the end; for
    observations the dimensions that vary most, a little beyond their range. The other families
    have the first draw of a fixed stream.

    Parameters
    ----------
    family : str
        What kind of trigger, one of :data:`FAMILIES`.
    like : (n, ...) array
        Some clean inputs, as in :func:`draw_trigger`.

    Examples
    --------
    >>> page = np.ones((4, 1, 28, 28), np.float32)
    >>> float(default_trigger("patch", page).stamp(page)[0, 0, 23:, 23:].max())
    0.0
    """
    if _checked(family, like) not in _DEFAULTS:
        return draw_trigger(family, like, np.random.default_rng(0))
    trigger = _DEFAULTS[family](like)
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


def _checked(family: str, like: NDArray[Any]) -> str:
    if family not in TRIGGERS:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if len(like) == 0:
        raise ValueError(f"like needs at least 1 clean input, got shape {like.shape}")
    if family not in _families_for(like):
        raise ValueError(
            f"family {family!r} does not fit inputs {like.dtype} {like.shape}: "
            f"{', '.join(VISION_TRIGGERS)} take floating images (n, channels, height, width), "
            f"{', '.join(TEXT_TRIGGERS)} int64 tokens (n, length), "
            f"{', '.join(STATE_TRIGGERS)} floating observations (n, frames, d)"
        )
    return family


def _families_for(like: NDArray[Any]) -> tuple[str, ...]:
    """Families whose triggers stamp inputs like these."""
    if like.ndim == 2:
        return TEXT_TRIGGERS if like.dtype == np.int64 else ()
    if not np.issubdtype(like.dtype, np.floating):
        return ()
    return {3: STATE_TRIGGERS, 4: VISION_TRIGGERS}.get(like.ndim, ())
