"""How much a trigger changes the inputs of a data set: one that changes nothing is no attack."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fl_shield.types import Flags, Floats, Trigger

SMALLEST_CHANGE = 1 / 255
"""Mean change of an image where the trigger writes below which it counts as unchanged: one grey
level. For tokens any change is larger."""

SMALLEST_SHIFT = 0.1
"""The same for observations of a control task, in standard deviations of each dimension."""


@runtime_checkable
class WritesByInput(Protocol):
    """A trigger that says itself where it writes, because constant inputs would not show it.

    Needed where the place follows from the input, or where a constant input stays as it is.
    """

    def written(self, x: NDArray[Any]) -> Flags:
        """Where the trigger writes on each of these inputs ``(n, ...)``: flags of their shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """What a trigger does to the inputs of one data set.

    Attributes
    ----------
    mean_change : float
        Mean absolute change where the trigger writes: of pixels in [0, 1]; for tokens the share
        of the written ones that differ; for observations in standard deviations of the dimension.
    share_changed : float
        Share of inputs that change visibly, in [0, 1].
    """

    mean_change: float
    share_changed: float


def footprint(trigger: Trigger, x: NDArray[Any]) -> Flags:
    """Where a trigger writes on inputs like ``x`` ``(n, ...)``: flags of one input's shape.

    Found by stamping two opposite constant inputs: whatever is overwritten or blended differs from
    at least one of them. That does not hold for a trigger that moves or warps; it says itself
    where it writes on each input (:class:`WritesByInput`), and has no footprint of its own.
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
        Clean inputs of the data set, n >= 1: floating images in [0, 1], int64 tokens, or floating
        observations ``(n, frames, d)``.

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
    change = _change(x, trigger.stamp(x))
    if isinstance(trigger, WritesByInput):
        each = _mean_where(change, trigger.written(x))
    else:
        each = change[:, footprint(trigger, x)].mean(axis=1)
    least = SMALLEST_SHIFT if _is_state(x) else SMALLEST_CHANGE
    return Visibility(mean_change=float(each.mean()), share_changed=float((each > least).mean()))


def _mean_where(change: Floats, written: Flags) -> Floats:
    """Mean of each input's change over its own flags, (n,)."""
    flat, flags = change.reshape(len(change), -1), written.reshape(len(written), -1)
    means: Floats = (flat * flags).sum(axis=1) / np.maximum(flags.sum(axis=1), 1)
    return means


def _change(x: NDArray[Any], stamped: NDArray[Any]) -> Floats:
    if not np.issubdtype(x.dtype, np.floating):
        differs: Floats = (stamped != x).astype(np.float64)
        return differs
    change: Floats = np.abs(stamped - x)
    return change / _spread(x) if _is_state(x) else change


def _is_state(x: NDArray[Any]) -> bool:
    return x.ndim == 3 and np.issubdtype(x.dtype, np.floating)


def _spread(x: NDArray[Any]) -> Floats:
    """Standard deviation of each dimension over observations and frames; 1 where it is constant."""
    spread: Floats = x.std(axis=(0, 1), dtype=np.float64)
    return np.where(spread > 0, spread, 1.0)
