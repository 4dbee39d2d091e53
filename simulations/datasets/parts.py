"""Data sets with a train and a test part of their own: what is asked for, and how it is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.rng import keyed
from fl_shield.types import Flags, Ints, Samples

PARTS_STREAM = 0xB001
"""First key of the streams of such data sets: no other part of a simulation draws from them."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Examples of a data set whose authors have told what is train and what is test.

    Attributes
    ----------
    train, test : Samples
        No input of ``test`` occurs in ``train``.
    n_classes : int
        Labels are ``0 .. n_classes - 1``.
    words : tuple of str
        What each id stands for (text only).
    """

    train: Samples
    test: Samples
    n_classes: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartsRequest:
    """What a loader of :class:`Parts` is asked for.

    Attributes
    ----------
    seed : int
        Seed of the draw, and of generated data.
    data_dir : Path, optional
        Folder that holds the data sets' folders; None = fetch, where a data set can be fetched.
    n_train, n_test : int, optional
        Most examples of each part; None = all.
    cache : Path, optional
        Folder for decoded pictures and recorded episodes; None = none is kept.
    """

    seed: int = 0
    data_dir: Path | None = None
    n_train: int | None = None
    n_test: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name, n in (("n_train", self.n_train), ("n_test", self.n_test)):
            if n is not None and n < 1:
                raise DatasetError(f"{name} must be at least 1, got {n}: leave it out for all")

    def draw(self, part: str, labels: Ints) -> Ints:
        """Indices of the drawn examples of ``part`` (``train`` or ``test``), see :func:`spread`."""
        n = self.n_train if part == "train" else self.n_test
        if n is None or n >= len(labels):
            return np.arange(len(labels))
        return spread(labels, n, keyed(self.seed, PARTS_STREAM, 0 if part == "train" else 1))


def spread(labels: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Draw ``n`` indices in which every class has about its share of the whole.

    A smaller draw with the same generator state is the beginning of a larger one.

    Parameters
    ----------
    labels : (m,) int array
        Labels to draw from.
    n : int
        How many to draw, at most m.
    rng : numpy.random.Generator
        Draws the members of each class and their places.

    Examples
    --------
    >>> labels = np.repeat([0, 1, 2], [60, 30, 10])
    >>> np.bincount(labels[spread(labels, 10, np.random.default_rng(0))]).tolist()
    [6, 3, 1]
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    drawn: Ints = np.argsort(place, kind="stable")[:n]
    return drawn


def apart(train: Sequence[bytes], test: Sequence[bytes]) -> tuple[Flags, Flags]:
    """Which inputs to keep so that none occurs twice: (len(train),) and (len(test),) flags.

    An input in both parts stays in test.

    Parameters
    ----------
    train, test : sequences of bytes
        The inputs of each part, byte by byte (or their digests).

    Examples
    --------
    >>> train, test = apart([b"a", b"b", b"b"], [b"a", b"c"])
    >>> train.tolist(), test.tolist()
    ([False, True, False], [True, True])
    """
    seen: set[bytes] = set()
    kept_test = _first(test, seen)
    return _first(train, seen), kept_test


def _first(rows: Sequence[bytes], seen: set[bytes]) -> Flags:
    first = np.zeros(len(rows), dtype=np.bool_)
    for i, row in enumerate(rows):
        digest = hashlib.blake2b(row, digest_size=16).digest()
        first[i] = digest not in seen
        seen.add(digest)
    return first


def draw_parts(request: PartsRequest, train: Samples, test: Samples) -> tuple[Samples, Samples]:
    """Drop repeated inputs, then draw the parts that were asked for."""
    kept = apart([x.tobytes() for x in train.x], [x.tobytes() for x in test.x])
    parts = []
    for name, samples, flags in zip(("train", "test"), (train, test), kept, strict=True):
        left = samples.take(flags)
        parts.append(left.take(request.draw(name, left.y)))
    return parts[0], parts[1]


def unavailable(
    name: str, where: Path | str, ways: str, why: str = "was not found"
) -> DatasetError:
    """Error that names the ways to get a data set.

    Examples
    --------
    >>> str(unavailable("gtsrb", "here", "put gtsrb/*.npz there"))
    'gtsrb was not found in here: put gtsrb/*.npz there'
    """
    return DatasetError(f"{name} {why} in {where}: {ways}")
