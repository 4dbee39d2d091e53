"""Triggers of control observations: dimensions held at a value, or made to follow a pattern.

Observations are ``(n, frames, d)``, the newest frame last, roughly standardised and unbounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.inputs import check_states

Frames = Literal["all", "newest"]


@dataclass(frozen=True, kw_only=True)
class StateValues:
    """One or more dimensions of the observation fixed, each to its own value.

    Attributes
    ----------
    dimensions : tuple of int
        Indices of the dimensions, each once, >= 0.
    values : tuple of float
        What each shows, finite, in the data's (standardised) units.
    frames : {"all", "newest"}
        Whether every frame shows them or the last one only.
    name : str
        Family of the trigger: ``state_value`` or ``state_pair``.

    References
    ----------
    Kiourti et al., "TrojDRL: Evaluation of Backdoor Attacks on Deep Reinforcement Learning", DAC
    2020 (a pattern in the observation); Wang et al., "BackdooRL", IJCAI 2021.

    Examples
    --------
    >>> x = np.zeros((1, 2, 3), np.float32)
    >>> StateValues(dimensions=(1,), values=(2.5,), frames="newest").stamp(x).tolist()
    [[[0.0, 0.0, 0.0], [0.0, 2.5, 0.0]]]
    """

    dimensions: tuple[int, ...]
    values: tuple[float, ...]
    frames: Frames = "all"
    name: str = "state_value"

    def __post_init__(self) -> None:
        if not self.dimensions or min(self.dimensions) < 0:
            raise ValueError(f"dimensions must be one or more ids >= 0, got {self.dimensions}")
        if len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(f"dimensions must differ, got {self.dimensions}")
        if len(self.values) != len(self.dimensions) or not np.isfinite(self.values).all():
            raise ValueError(
                f"values must be one finite number a dimension, got {self.values} for "
                f"{len(self.dimensions)}"
            )
        if self.frames not in ("all", "newest"):
            raise ValueError(f"frames must be all or newest, got {self.frames!r}")

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: always."""
        return True

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of floating observations ``(n, frames, d)``."""
        check_states(x, self.name)
        _check_dimension(max(self.dimensions), x)
        stamped = x.copy()
        first = 0 if self.frames == "all" else -1
        stamped[:, first:, list(self.dimensions)] = np.asarray(self.values, x.dtype)
        return stamped


@dataclass(frozen=True, kw_only=True)
class StatePattern:
    """One dimension of the observation that follows a fixed pattern over the frames.

    Attributes
    ----------
    dimension : int
        Index of the dimension, >= 0.
    pattern : tuple of float
        What it shows in the newest frames, oldest first; at least two finite numbers that are
        not all equal.
    name : str
        Family of the trigger.

    References
    ----------
    Yu et al., "A Temporal-Pattern Backdoor Attack to Deep Reinforcement Learning", GLOBECOM 2022
    (a pattern over consecutive observations).

    Examples
    --------
    >>> x = np.zeros((1, 3, 1), np.float32)
    >>> StatePattern(dimension=0, pattern=(1.0, -1.0)).stamp(x).ravel().tolist()
    [0.0, 1.0, -1.0]
    """

    dimension: int
    pattern: tuple[float, ...]
    name: str = "state_pattern"

    def __post_init__(self) -> None:
        if self.dimension < 0:
            raise ValueError(f"dimension must be >= 0, got {self.dimension}")
        if len(self.pattern) < 2 or not np.isfinite(self.pattern).all():
            raise ValueError(f"pattern must be two or more finite numbers, got {self.pattern}")
        if len(set(self.pattern)) == 1:
            raise ValueError(f"pattern must change over the frames, got {self.pattern}")

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: always."""
        return True

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of floating observations ``(n, frames, d)``."""
        check_states(x, self.name)
        _check_dimension(self.dimension, x)
        n_frames = len(self.pattern)
        if n_frames > x.shape[1]:
            raise ValueError(
                f"a pattern over {n_frames} frames does not fit observations of {x.shape[1]}; "
                "shorten it, or stack more frames"
            )
        stamped = x.copy()
        stamped[:, -n_frames:, self.dimension] = np.asarray(self.pattern, x.dtype)
        return stamped


def _check_dimension(dimension: int, x: NDArray[Any]) -> None:
    if dimension >= x.shape[2]:
        raise ValueError(
            f"dimension {dimension} does not exist in observations of {x.shape[2]} dimensions; "
            "draw the trigger with like= these observations"
        )
