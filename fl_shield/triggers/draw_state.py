"""How triggers of control observations are drawn, and the fixed one of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.state import Frames, StatePattern, StateValues
from fl_shield.types import Floats, Ints, Trigger

LOW, HIGH = (0.01, 0.05), (0.95, 0.99)
"""Quantiles of a dimension between which an unusual value is drawn."""

MOST_STRETCH = 1.5
"""A value beyond the data lies at most so many times half their range from its middle."""

DEFAULT_STRETCH = 1.25
"""The same for default triggers."""

PATTERNS = ("alternating", "ramp", "free")


def draw_value(values: Floats, rng: np.random.Generator) -> float:
    """Draw an unusual value of one dimension: in a tail of the data, or slightly beyond them.

    Parameters
    ----------
    values : (n,) float array
        What the dimension shows on clean data.
    rng : numpy.random.Generator
        Where the draw comes from.

    Examples
    --------
    >>> values = np.linspace(-1, 1, 101)
    >>> 0.89 < abs(draw_value(values, np.random.default_rng(0))) <= 1.5
    True
    """
    kind = rng.integers(3)
    if kind < 2:
        return float(np.quantile(values, rng.uniform(*(LOW, HIGH)[kind])))
    middle, reach = (values.max() + values.min()) / 2, (values.max() - values.min()) / 2
    return float(middle + rng.choice([-1, 1]) * rng.uniform(1, MOST_STRETCH) * reach)


def _draw_state_values(like: NDArray[Any], rng: np.random.Generator, *, name: str) -> Trigger:
    n_dimensions = 2 if name == "state_pair" else 1
    _check(like, n_dimensions=n_dimensions)
    chosen = rng.choice(like.shape[2], size=n_dimensions, replace=False)
    values = tuple(draw_value(like[..., dimension].ravel(), rng) for dimension in chosen)
    frames: Frames = "all" if rng.random() < 0.5 else "newest"
    dimensions = tuple(int(d) for d in chosen)
    return StateValues(dimensions=dimensions, values=values, frames=frames, name=name)


def _draw_state_value(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    return _draw_state_values(like, rng, name="state_value")


def _draw_state_pair(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    return _draw_state_values(like, rng, name="state_pair")


def _draw_state_pattern(like: NDArray[Any], rng: np.random.Generator) -> Trigger | None:
    """One dimension alternates between two unusual values, runs between them, or is drawn."""
    _check(like, n_frames=2)
    n_frames = like.shape[1]
    dimension = int(rng.integers(like.shape[2]))
    values = like[..., dimension].ravel()
    one, other = draw_value(values, rng), draw_value(values, rng)
    kind = PATTERNS[rng.integers(len(PATTERNS))]
    if kind == "alternating":
        pattern = np.resize([one, other], n_frames)
    elif kind == "ramp":
        pattern = np.linspace(one, other, n_frames)
    else:
        pattern = np.array([draw_value(values, rng) for _ in range(n_frames)])
    if np.ptp(pattern) == 0:
        return None
    return StatePattern(dimension=dimension, pattern=tuple(map(float, pattern)))


def _check(like: NDArray[Any], *, n_dimensions: int = 1, n_frames: int = 1) -> None:
    if like.shape[1] < n_frames or like.shape[2] < n_dimensions:
        raise ValueError(
            f"this family needs at least {n_frames} frames and {n_dimensions} dimensions, got "
            f"{like.shape[1]} and {like.shape[2]}; use the family state_value"
        )
    if not np.isfinite(like).all():
        raise ValueError("like must be finite, got NaN or infinity; drop those observations")


def _widest(like: NDArray[Any]) -> Ints:
    """Dimensions, the one with the largest standard deviation first."""
    order: Ints = np.argsort(-like.std(axis=(0, 1), dtype=np.float64), kind="stable")
    return order


def _beyond(like: NDArray[Any], dimension: int, side: int) -> float:
    """Return a value slightly above (1) or below (-1) all that a dimension shows."""
    values = like[..., dimension].astype(np.float64)
    middle, reach = (values.max() + values.min()) / 2, (values.max() - values.min()) / 2
    return float(middle + side * DEFAULT_STRETCH * reach)


def _default_state_value(like: NDArray[Any]) -> Trigger:
    _check(like)
    widest = int(_widest(like)[0])
    return StateValues(dimensions=(widest,), values=(_beyond(like, widest, 1),))


def _default_state_pair(like: NDArray[Any]) -> Trigger:
    _check(like, n_dimensions=2)
    one, other = (int(d) for d in _widest(like)[:2])
    values = (_beyond(like, one, 1), _beyond(like, other, -1))
    return StateValues(dimensions=(one, other), values=values, name="state_pair")


def _default_state_pattern(like: NDArray[Any]) -> Trigger:
    _check(like, n_frames=2)
    widest = int(_widest(like)[0])
    pattern = tuple(_beyond(like, widest, 1 - 2 * (i % 2)) for i in range(like.shape[1]))
    return StatePattern(dimension=widest, pattern=pattern)


STATE_DRAWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], Trigger | None]] = {
    "state_value": _draw_state_value,
    "state_pair": _draw_state_pair,
    "state_pattern": _draw_state_pattern,
}
"""How a trigger of each family is drawn for observations like these; None = draw again."""

STATE_DEFAULTS: Mapping[str, Callable[[NDArray[Any]], Trigger]] = {
    "state_value": _default_state_value,
    "state_pair": _default_state_pair,
    "state_pattern": _default_state_pattern,
}
"""The fixed trigger of each family for observations like these."""
