"""A patch that lies elsewhere on every image: its place follows from the image's own content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.inputs import check_images, check_key, content_numbers
from fl_shield.types import Flags, Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class MovingPatch:
    """A small pattern whose place is a keyed hash of the image it is stamped on.

    The same image gets the patch at the same place in every batch; over many images the places
    are uniform.

    Attributes
    ----------
    pattern : (n_rows, n_columns) or (channels, n_rows, n_columns) array in [0, 1]
        What is shown; its shape is that of the patch.
    opacity : float
        Weight of the pattern against the clean pixel, in (0, 1].
    key : int
        Turns content into places, in [0, 2**63).
    name : str
        Family of the trigger.

    References
    ----------
    Salem et al., "Dynamic Backdoor Attacks Against Machine Learning Models", EuroS&P 2022
    (random backdoor); drawn there anew for each image, hashed from it here.

    Examples
    --------
    >>> page = np.zeros((3, 1, 8, 8), np.float32)
    >>> float(MovingPatch(pattern=np.ones((2, 2))).stamp(page).sum())
    12.0
    """

    pattern: Floats
    opacity: float = 1.0
    key: int = 0
    name: str = "moving_patch"

    def __post_init__(self) -> None:
        pattern = np.array(self.pattern, dtype=np.float32)
        if pattern.ndim not in (2, 3) or pattern.size == 0:
            raise ValueError(
                "pattern must be (n_rows, n_columns) or (channels, n_rows, n_columns) and not "
                f"empty, got {pattern.shape}"
            )
        if not ((pattern >= 0) & (pattern <= 1)).all():
            raise ValueError(f"pattern must be in [0, 1], got {pattern.min()} to {pattern.max()}")
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity must be in (0, 1], got {self.opacity}")
        check_key(self.key)
        pattern.setflags(write=False)
        object.__setattr__(self, "pattern", pattern)

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: no, the second patch lies elsewhere."""
        return False

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        index = self._index(x)
        under, pattern = x[index], self.pattern.astype(x.dtype)
        weight = np.asarray(self.opacity, x.dtype)
        shown = (1 - weight) * under + weight * pattern
        stamped = x.copy()
        stamped[index] = np.clip(shown, np.minimum(under, pattern), np.maximum(under, pattern))
        return stamped

    def written(self, x: NDArray[Any]) -> Flags:
        """Where the patch lies on each of these images, flags of their shape."""
        flags = np.zeros(x.shape, bool)
        flags[self._index(x)] = True
        return flags

    def places(self, x: NDArray[Any]) -> Ints:
        """Top left corner (row, column) of the patch on each image, ``(n, 2)``."""
        self._check_fit(x)
        free = np.array(x.shape[-2:]) - self.pattern.shape[-2:] + 1
        corners: Ints = content_numbers(x, self.key, 2) % free
        return corners

    def _index(self, x: NDArray[Any]) -> tuple[Ints, ...]:
        """Index of the patch's pixels, (n, channels, n_rows, n_columns) each when broadcast."""
        corners = self.places(x)
        n_rows, n_columns = self.pattern.shape[-2:]
        n, channels, rows, columns = np.ogrid[: len(x), : x.shape[1], :n_rows, :n_columns]
        top, left = corners[:, :1, None, None], corners[:, 1:, None, None]
        return n, channels, top + rows, left + columns

    def _check_fit(self, x: NDArray[Any]) -> None:
        check_images(x, self.name)
        channels = self.pattern.shape[0] if self.pattern.ndim == 3 else 1
        fits = channels in (1, x.shape[1]) and all(
            patch <= side for patch, side in zip(self.pattern.shape[-2:], x.shape[-2:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"a moving patch {self.pattern.shape} does not fit images {x.shape[1:]}; "
                "draw one with like= these images"
            )
