"""What a pool is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.types import Samples

DOMAINS = ("cv", "nlp", "rl")
KINDS = ("image", "text", "state")
EVERYONE = 1_000_000
"""More owners than any corpus has."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Labelled examples to train single victims on.

    Attributes
    ----------
    name : str
        A key of :data:`fl_shield.simulations.pools.POOLS`.
    domain : str
        ``cv``, ``nlp`` or ``rl``.
    kind : str
        ``image``: float32 (n, channels, height, width) in [0, 1]; ``text``: int64 ids
        (n, length); ``state``: float32 (n, frames, d), the newest frame last.
    train, test : Samples
        No input of ``test`` occurs in ``train``.
    n_classes : int
        Labels are ``0 .. n_classes - 1``.
    n_tokens : int
        Size of the vocabulary, ids ``0 .. n_tokens - 1`` (text only).
    words : tuple of str
        What each id stands for, ``n_tokens`` of them (text only).

    Examples
    --------
    >>> import numpy as np
    >>> part = Samples(x=np.zeros((2, 3, 4), np.float32), y=np.array([0, 1]))
    >>> Pool(name="toy", domain="rl", kind="state", train=part, test=part, n_classes=2).n_tokens
    0
    """

    name: str
    domain: str
    kind: str
    train: Samples
    test: Samples
    n_classes: int
    n_tokens: int = 0
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS or self.kind not in KINDS:
            raise ValueError(
                f"domain must be one of {DOMAINS} and kind one of {KINDS}, got {self.domain!r} "
                f"and {self.kind!r}"
            )
        if self.n_tokens != len(self.words) or (self.kind == "text") != bool(self.n_tokens):
            raise ValueError(
                f"a text pool names each of its tokens and no other pool has any: got kind "
                f"{self.kind!r}, {self.n_tokens} tokens and {len(self.words)} words"
            )
        for part, samples in (("train", self.train), ("test", self.test)):
            self._check(part, samples)

    def _check(self, part: str, samples: Samples) -> None:
        if len(samples) == 0:
            raise DatasetError(f"{self.name} has no {part} example: get the whole data set")
        _check_range(f"labels of {self.name}'s {part} part", samples.y, self.n_classes)
        if self.kind == "text":
            _check_range(f"ids of {self.name}'s {part} part", samples.x, self.n_tokens)


def _check_range(what: str, values: NDArray[Any], end: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise DatasetError(f"{what} must be in 0..{end - 1}, got {low}..{high}: copy it again")
