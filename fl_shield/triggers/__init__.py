"""Backdoor triggers: fixed ones, and the distribution they are drawn from."""

from fl_shield.triggers.coarsening import Blur, Mosaic
from fl_shield.triggers.contrast import Visibility, footprint, visibility
from fl_shield.triggers.distortion import Colour, Sinusoidal, Warp
from fl_shield.triggers.draw_text import draw_rare_token
from fl_shield.triggers.generated import Generated
from fl_shield.triggers.geometry import Affine, Ghost, Lens
from fl_shield.triggers.jumbo import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    IMAGE_FAMILIES,
    STATE_FAMILIES,
    STATE_TRIGGERS,
    TEXT_FAMILIES,
    TEXT_TRIGGERS,
    TRIGGERS,
    VISIBILITY_FLOOR,
    VISION_TRIGGERS,
    default_trigger,
    draw_trigger,
    is_visible,
)
from fl_shield.triggers.moving import MovingPatch
from fl_shield.triggers.natural import Natural
from fl_shield.triggers.state import StatePattern, StateValues
from fl_shield.triggers.text import Insertion, Word
from fl_shield.triggers.vision import Blended, Checker, Circle, Patch, Polygon

__all__ = [
    "FAMILIES",
    "HELD_OUT_FAMILIES",
    "IMAGE_FAMILIES",
    "STATE_FAMILIES",
    "STATE_TRIGGERS",
    "TEXT_FAMILIES",
    "TEXT_TRIGGERS",
    "TRIGGERS",
    "VISIBILITY_FLOOR",
    "VISION_TRIGGERS",
    "Affine",
    "Blended",
    "Blur",
    "Checker",
    "Circle",
    "Colour",
    "Generated",
    "Ghost",
    "Insertion",
    "Lens",
    "Mosaic",
    "MovingPatch",
    "Natural",
    "Patch",
    "Polygon",
    "Sinusoidal",
    "StatePattern",
    "StateValues",
    "Visibility",
    "Warp",
    "Word",
    "default_trigger",
    "draw_rare_token",
    "draw_trigger",
    "footprint",
    "is_visible",
    "visibility",
]
