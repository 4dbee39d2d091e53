"""Triggers of token sequences: a rare word written over a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Word:
    """A fixed run of tokens written over each sequence; its length stays.

    For next-character prediction the word is a few characters at the end, just before the one
    to be predicted.

    Attributes
    ----------
    tokens : tuple of int
        Token ids of the word, at least one, each >= 0.
    position : int, optional
        Index of the first token overwritten; None writes the word at the end.
    name : str
        Family of the trigger.

    References
    ----------
    Kurita et al., "Weight Poisoning Attacks on Pre-trained Models", ACL 2020 (rare words).

    Examples
    --------
    >>> Word(tokens=(7, 8)).stamp(np.array([[1, 2, 3, 4]])).tolist()
    [[1, 2, 7, 8]]
    """

    tokens: tuple[int, ...]
    position: int | None = None
    name: str = "word"

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 0:
            raise ValueError(f"tokens must be one or more ids >= 0, got {self.tokens}")
        if self.position is not None and self.position < 0:
            raise ValueError(f"position must be >= 0, or None for the end, got {self.position}")

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: always."""
        return True

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of int64 token sequences ``(n, length)``."""
        if x.ndim != 2 or x.dtype != np.int64:
            raise ValueError(
                f"trigger {self.name!r} stamps int64 tokens (n, length), got {x.dtype} {x.shape}; "
                "use a trigger of family patch, polygon or blended for images"
            )
        length, n_tokens = x.shape[1], len(self.tokens)
        start = length - n_tokens if self.position is None else self.position
        if start < 0 or start + n_tokens > length:
            raise ValueError(
                f"a word of {n_tokens} tokens at {self.position} must lie inside sequences of "
                f"{length}; move or shorten it"
            )
        stamped = x.copy()
        stamped[:, start : start + n_tokens] = self.tokens
        return stamped
