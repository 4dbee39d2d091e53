"""Backdoor triggers: fixed ones, and the distribution they are drawn from."""

from fl_shield.triggers.contrast import Visibility, footprint, visibility
from fl_shield.triggers.jumbo import (
    FAMILIES,
    IMAGE_FAMILIES,
    TEXT_FAMILIES,
    TRIGGERS,
    VISIBILITY_FLOOR,
    default_trigger,
    draw_trigger,
    is_visible,
)
from fl_shield.triggers.text import Word
from fl_shield.triggers.vision import Blended, Patch, Polygon

__all__ = [
    "FAMILIES",
    "IMAGE_FAMILIES",
    "TEXT_FAMILIES",
    "TRIGGERS",
    "VISIBILITY_FLOOR",
    "Blended",
    "Patch",
    "Polygon",
    "Visibility",
    "Word",
    "default_trigger",
    "draw_trigger",
    "footprint",
    "is_visible",
    "visibility",
]
