"""Triggers of token sequences: a word written over a few tokens, or tokens slipped in between.

In sequences of words 0 is padding, on the left, and 1 the unknown word; sequences of characters
have no padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.inputs import check_key, check_tokens, content_numbers
from fl_shield.types import Flags, Ints

PADDING = 0
"""Token that fills sequences on the left."""

MOST_RUNS = 8


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
        check_tokens(x, self.name)
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


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """Runs of tokens slipped into each sequence; the leftmost tokens fall out, the length stays.

    A run t of m tokens at place p gives ``[x[m:p], t, x[p:]]``, so in a short sequence it is
    padding that falls out. Runs go in one after another and never push each other out. A place
    to the left of the first real token counts as just before that token.

    Attributes
    ----------
    runs : tuple of tuple of int
        1 to 8 runs of one or more token ids >= 0; a single token is a run of one.
    from_end : tuple of int, optional
        How many tokens stay to the right of each run, >= 0, at the time it goes in; None takes
        places among the real tokens by a keyed hash of each sequence.
    key : int
        Turns content into places where ``from_end`` is None, in [0, 2**63).
    name : str
        Family of the trigger: ``token``, ``two_tokens``, ``phrase``, ``sentence`` or
        ``rare_token``.

    References
    ----------
    Dai et al., "A Backdoor Attack Against LSTM-Based Text Classification Systems", IEEE Access
    2019 (sentences); Kurita et al., "Weight Poisoning Attacks on Pre-trained
    Models", ACL 2020 (rare tokens at random places).

    Examples
    --------
    >>> padded = np.array([[0, 0, 5, 6]])
    >>> Insertion(runs=((9,),), from_end=(1,)).stamp(padded).tolist()
    [[0, 5, 9, 6]]
    """

    runs: tuple[tuple[int, ...], ...]
    from_end: tuple[int, ...] | None = None
    key: int = 0
    name: str = "token"

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= MOST_RUNS:
            raise ValueError(f"runs must be 1 to {MOST_RUNS} runs of tokens, got {self.runs}")
        if not all(run and min(run) >= 0 for run in self.runs):
            raise ValueError(f"each run must be one or more ids >= 0, got {self.runs}")
        if self.from_end is not None and len(self.from_end) != len(self.runs):
            raise ValueError(
                f"from_end must have one place a run, got {len(self.from_end)} for "
                f"{len(self.runs)}; or None for random places"
            )
        if self.from_end is not None and min(self.from_end) < 0:
            raise ValueError(f"from_end must be >= 0, got {self.from_end}")
        check_key(self.key)

    @property
    def n_tokens(self) -> int:
        """Tokens inserted in all."""
        return sum(map(len, self.runs))

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: not in general, it inserts again."""
        return False

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of int64 token sequences ``(n, length)``."""
        stamped = x.copy()
        for run, places in zip(self.runs, self.places(x).T, strict=True):
            stamped = insert_run(stamped, np.array(run), places)
        return stamped

    def written(self, x: NDArray[Any]) -> Flags:
        """Where inserted tokens stand in the stamped sequences, flags ``(n, length)``."""
        flags: NDArray[Any] = np.zeros(x.shape, bool)
        for run, places in zip(self.runs, self.places(x).T, strict=True):
            flags = insert_run(flags, np.ones(len(run), bool), places)
        return flags

    def places(self, x: NDArray[Any]) -> Ints:
        """Tokens to the right of each run, ``(n, n_runs)``, each time it goes in."""
        check_tokens(x, self.name)
        if self.n_tokens > x.shape[1]:
            raise ValueError(
                f"{self.n_tokens} tokens cannot be inserted into sequences of {x.shape[1]}; "
                "insert fewer"
            )
        room = np.minimum(real_lengths(x), x.shape[1] - self.n_tokens)[:, None]
        if self.from_end is None:
            found: Ints = content_numbers(x, self.key, len(self.runs)) % (room + 1)
        else:
            found = np.minimum(np.array(self.from_end), room)
        return found


def insert_run(x: NDArray[Any], run: NDArray[Any], from_end: Ints) -> NDArray[Any]:
    """Insert a run so that ``from_end`` tokens stay to its right; the leftmost tokens fall out.

    Parameters
    ----------
    x : (n, length) array
        Sequences.
    run : (m,) array
        What goes in, of the same dtype.
    from_end : (n,) int array
        Tokens that stay to the right, in ``0 .. length - m``.

    Returns
    -------
    (n, length) array

    Examples
    --------
    >>> insert_run(np.array([[1, 2, 3, 4]]), np.array([8, 9]), np.array([1])).tolist()
    [[3, 8, 9, 4]]
    """
    length, n_new = x.shape[1], len(run)
    start = (length - n_new - from_end)[:, None]
    columns = np.arange(length)
    moved_left = x[:, np.minimum(columns + n_new, length - 1)]
    new = run[np.clip(columns - start, 0, n_new - 1)]
    inserted: NDArray[Any] = np.where(
        columns < start, moved_left, np.where(columns < start + n_new, new, x)
    )
    return inserted


def real_lengths(x: NDArray[Any]) -> Ints:
    """Tokens of each sequence ``(n, length)`` without the padding on its left, ``(n,)``.

    Examples
    --------
    >>> real_lengths(np.array([[0, 0, 5, 0], [0, 0, 0, 0], [7, 0, 0, 0]])).tolist()
    [2, 0, 4]
    """
    real = x != PADDING
    lengths: Ints = np.where(real.any(axis=1), x.shape[1] - real.argmax(axis=1), 0)
    return lengths
