"""How much a trigger changes the inputs of a data set: one that changes nothing is no attack."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.types import Flags, Floats, Trigger

SMALLEST_CHANGE = 1 / 255
"""Mean change of an image inside the mask below which it counts as unchanged: one grey level."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """What a trigger does to the inputs of one data set.

    Attributes
    ----------
    mean_change : float
        Mean absolute change inside the mask, in [0, 1]; for tokens the share of the overwritten
        ones that differ.
    share_changed : float
        Share of inputs that change visibly, in [0, 1].
    """

    mean_change: float
    share_changed: float


def footprint(trigger: Trigger, x: NDArray[Any]) -> Flags:
    """Where a trigger writes on inputs like ``x`` ``(n, ...)``: flags of one input's shape.

    Found by stamping two opposite constant inputs, so it works for any trigger: whatever is
    written differs from at least one of them.
    """
    is_image = np.issubdtype(x.dtype, np.floating)
    low, high = (0, 1) if is_image else (int(x.min()), int(x.max()) + 1)
    ends = np.stack([np.full(x.shape[1:], end, x.dtype) for end in (low, high)])
    written: Flags = (trigger.stamp(ends) != ends).any(axis=0)
    return written


def visibility(trigger: Trigger, x: NDArray[Any]) -> Visibility:
    """Measure how a trigger changes clean inputs.

    Parameters
    ----------
    trigger : Trigger
        Any trigger that can stamp ``x``.
    x : (n, ...) array
        Clean inputs of the data set, n >= 1: floating images in [0, 1] or int64 tokens.

    Examples
    --------
    A white corner changes nothing on a white page, a black one does:

    >>> from fl_shield.triggers import Patch
    >>> page = np.ones((3, 1, 8, 8), np.float32)
    >>> place = {"row": 6, "column": 6, "n_rows": 2, "n_columns": 2}
    >>> visibility(Patch.rectangle((8, 8), pattern=1.0, **place), page)
    Visibility(mean_change=0.0, share_changed=0.0)
    >>> visibility(Patch.rectangle((8, 8), pattern=0.0, **place), page)
    Visibility(mean_change=1.0, share_changed=1.0)
    """
    if len(x) == 0:
        raise ValueError("visibility needs at least 1 clean input, got 0; pass some of the data")
    change = _change(x, trigger.stamp(x))[:, footprint(trigger, x)].mean(axis=1)
    return Visibility(
        mean_change=float(change.mean()), share_changed=float((change > SMALLEST_CHANGE).mean())
    )


def _change(x: NDArray[Any], stamped: NDArray[Any]) -> Floats:
    is_image = np.issubdtype(x.dtype, np.floating)
    change: Floats = np.abs(stamped - x) if is_image else (stamped != x).astype(np.float64)
    return change
