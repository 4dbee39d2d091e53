"""How triggers of token sequences are drawn, and the fixed one of the family ``word``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.triggers.text import Insertion, Word, real_lengths
from fl_shield.types import Ints, Trigger

FIRST_WORD = 2
"""Ids below are padding and the unknown word, which no insertion is made of."""

MIDDLING = (0.3, 0.8)
"""Words of middling frequency: ranked from the most frequent on, those that stand between these
shares of all tokens."""

N_RAREST = 5
RAREST_SHARE = 0.05
"""The rarest words: so many, or this share of all that occur, whichever is more."""


def middling_words(like: NDArray[Any]) -> Ints:
    """Ids of words of middling frequency in ``like`` ``(n, length)``, the most frequent first.

    A word is middling if the middle of its own share, words ranked from the most frequent on,
    lies within :data:`MIDDLING` of all tokens; if none does, every word is taken.

    Examples
    --------
    >>> middling_words(np.array([[2, 2, 2, 3, 3, 4], [2, 3, 4, 5, 6, 7]])).tolist()
    [3, 4, 5]
    """
    ids, counts = _words(like)
    order = np.argsort(-counts, kind="stable")
    shares = counts[order] / counts.sum()
    middle = np.cumsum(shares) - shares / 2
    is_middling = (middle >= MIDDLING[0]) & (middle <= MIDDLING[1])
    found: Ints = ids[order][is_middling] if is_middling.any() else ids[order]
    return found


def rarest_words(like: NDArray[Any]) -> Ints:
    """Ids of the rarest words that occur in ``like`` ``(n, length)``, the rarest first.

    Examples
    --------
    >>> rarest_words(np.array([[2, 2, 3, 3], [4, 0, 1, 2]])).tolist()
    [4, 3, 2]
    """
    ids, counts = _words(like)
    n_rarest = max(N_RAREST, int(RAREST_SHARE * len(ids)))
    found: Ints = ids[np.argsort(counts, kind="stable")][:n_rarest]
    return found


def draw_rare_token(
    like: NDArray[Any], rng: np.random.Generator, unseen: Sequence[int] = ()
) -> Insertion:
    """Draw a trigger of one rare token at a random place of each sequence.

    Parameters
    ----------
    like : (n, length) int64 array
        Clean sequences; they say which words are rare.
    rng : numpy.random.Generator
        Where the draw comes from.
    unseen : sequence of int
        Ids that are known never to occur in clean data; if any, one of them is taken.

    Examples
    --------
    >>> like = np.array([[2, 3, 2, 3]])
    >>> draw_rare_token(like, np.random.default_rng(0), unseen=[99]).runs
    ((99,),)
    """
    word = int(rng.choice(np.array(unseen) if len(unseen) else rarest_words(like)))
    return Insertion(runs=((word,),), key=int(rng.integers(2**63)), name="rare_token")


def _words(like: NDArray[Any]) -> tuple[Ints, Ints]:
    """Ids of the words in ``like`` and how often each occurs."""
    ids, counts = np.unique(like[like >= FIRST_WORD], return_counts=True)
    if len(ids) == 0:
        raise ValueError(
            f"like holds no token ids >= {FIRST_WORD} (0 is padding, 1 the unknown word); give "
            "clean sequences that hold words, or use the family word"
        )
    return ids, counts


def _draw_insertion(
    like: NDArray[Any], rng: np.random.Generator, name: str, runs: tuple[tuple[int, ...], ...]
) -> Insertion:
    """Half the draws at a place that is fixed from the end, half at places by content.

    A fixed place is never the left end, where the run would only overwrite.
    """
    room = max(1, like.shape[1] - sum(map(len, runs)))
    places = tuple(int(p) for p in rng.integers(0, room, size=len(runs)))
    from_end = places if rng.random() < 0.5 else None
    return Insertion(runs=runs, from_end=from_end, key=int(rng.integers(2**63)), name=name)


def _draw_token(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    return _draw_insertion(like, rng, "token", ((int(rng.choice(middling_words(like))),),))


def _draw_two_tokens(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    words = middling_words(like)
    words = words if len(words) >= 2 else rarest_words(like)
    if len(words) < 2 or like.shape[1] < 2:
        raise ValueError(
            f"two_tokens needs two words and two places, got {len(words)} words in sequences of "
            f"{like.shape[1]}; use the family token"
        )
    one, other = rng.choice(words, size=2, replace=False)
    return _draw_insertion(like, rng, "two_tokens", ((int(one),), (int(other),)))


def _draw_run(
    like: NDArray[Any], rng: np.random.Generator, *, name: str, fewest: int, most: int
) -> Trigger:
    """Draw consecutive tokens, at most half a sequence; half the sentences are cut out of one."""
    longest = max(1, like.shape[1] // 2)
    n_tokens = int(rng.integers(min(fewest, longest), min(most, longest), endpoint=True))
    from_text = name == "sentence" and rng.random() < 0.5
    run = _cut_out(like, n_tokens, rng) if from_text else None
    run = rng.choice(middling_words(like), size=n_tokens) if run is None else run
    return _draw_insertion(like, rng, name, (tuple(int(t) for t in run),))


def _cut_out(like: NDArray[Any], n_tokens: int, rng: np.random.Generator) -> Ints | None:
    """Consecutive real tokens of one sequence, or None where all are shorter."""
    lengths = real_lengths(like)
    rows = np.flatnonzero(lengths >= n_tokens)
    if len(rows) == 0:
        return None
    row = int(rng.choice(rows))
    first = like.shape[1] - int(lengths[row])
    start = int(rng.integers(first, like.shape[1] - n_tokens, endpoint=True))
    run: Ints = like[row, start : start + n_tokens]
    return run


def _draw_word(like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    length = like.shape[1]
    n_tokens = int(rng.integers(min(2, length), min(6, max(1, length // 2)), endpoint=True))
    tokens = tuple(int(t) for t in rng.choice(_rarest_first(like), size=n_tokens))
    at_end = rng.random() < 0.5
    start = int(rng.integers(0, length - n_tokens, endpoint=True))
    return Word(tokens=tokens, position=None if at_end else start)


def _rarest_first(like: NDArray[Any]) -> NDArray[Any]:
    """Token ids that occur in ``like``, the rarest first."""
    ids, counts = np.unique(like, return_counts=True)
    return ids[np.argsort(counts, kind="stable")]


def _default_word(like: NDArray[Any]) -> Trigger:
    rare = _rarest_first(like)
    n_tokens = min(4, max(1, like.shape[1] // 2))
    return Word(tokens=tuple(int(t) for t in np.resize(rare, n_tokens)))


TEXT_DRAWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], Trigger]] = {
    "word": _draw_word,
    "token": _draw_token,
    "two_tokens": _draw_two_tokens,
    "phrase": partial(_draw_run, name="phrase", fewest=3, most=4),
    "sentence": partial(_draw_run, name="sentence", fewest=6, most=10),
    "rare_token": draw_rare_token,
}
"""How a trigger of each family is drawn for sequences like these."""

TEXT_DEFAULTS: Mapping[str, Callable[[NDArray[Any]], Trigger]] = {"word": _default_word}
"""The fixed trigger of a family for sequences like these, where it has one."""
