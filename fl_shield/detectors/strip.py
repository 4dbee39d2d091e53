"""STRIP: an answer that survives when other inputs are mixed in is suspicious."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.detectors.contract import MultiPass, Rule, canonical_order, probabilities
from fl_shield.rng import keyed
from fl_shield.types import Floats, Ints

Mix = Callable[[NDArray[Any]], NDArray[Any]]
"""Inputs (n, ...) -> perturbed copies (n, ...)."""


def entropy_bits(p: Floats) -> Floats:
    """Shannon entropy of class probabilities (..., n_classes) over the *classes*, in bits.

    Examples
    --------
    >>> entropy_bits(np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])).tolist()
    [1.0, 2.0]
    """
    safe = np.where(p > 0, p, 1.0)
    bits: Floats = -(p * np.log2(safe)).sum(-1)
    return bits


def superimposed(x: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Saturated sum of images (n, ...) and one other (...), in [0, 1].

    Examples
    --------
    >>> superimposed(np.array([[0.25, 0.75]]), np.array([0.5, 0.5])).tolist()
    [[0.75, 1.0]]
    """
    out: NDArray[Any] = np.clip(x + other, 0, 1).astype(x.dtype)
    return out


def averaged(x: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Half of each of states (n, ...) and half of one other (...), not clipped.

    Examples
    --------
    >>> averaged(np.array([[4.0, -8.0]]), np.array([0.0, 0.0])).tolist()
    [[2.0, -4.0]]
    """
    out: NDArray[Any] = ((x + other) / 2).astype(x.dtype)
    return out


def top_words(texts: Ints, index: int, padding: int | None = None) -> Ints:
    """Words of one of the texts (m, length) by falling TF-IDF among all, ties by token, (k,).

    Frequency in the text times ``log((1 + m) / (1 + number of texts with the word)) + 1``.

    Examples
    --------
    >>> top_words(np.array([[7, 7, 1, 2], [1, 2, 1, 3]]), 0).tolist()
    [7, 1, 2]
    """
    real = texts[index] if padding is None else texts[index][texts[index] != padding]
    words, counts = np.unique(real, return_counts=True)
    holders = (texts[:, :, None] == words).any(1).sum(0)
    weight = counts * (np.log((1 + len(texts)) / (1 + holders)) + 1)
    falling: Ints = words[np.lexsort((words, -weight))]
    return falling


def replaced(
    tokens: Ints, words: Ints, priority: Floats, share: float = 0.5, padding: int | None = None
) -> Ints:
    """Texts (n, length) with a share of their positions taken by words, the first words first.

    Parameters
    ----------
    tokens : (n, length) int array
    words : (k,) int array
        By falling TF-IDF; begun again where positions outnumber them.
    priority : (length,) float array
        Positions of the smallest ones go first; padding stays padding.
    share : float
        Share of the positions that are not padding, rounded up.

    Examples
    --------
    >>> text, order = np.array([[1, 2, 3, 4]]), np.array([0.3, 0.1, 0.9, 0.2])
    >>> replaced(text, np.array([8, 9]), order).tolist()
    [[1, 8, 3, 9]]
    """
    if not len(words):
        return tokens.copy()
    real = np.ones(tokens.shape, bool) if padding is None else tokens != padding
    place = np.where(real, priority, np.inf).argsort(1, kind="stable").argsort(1)
    taken = real & (place < np.ceil(share * real.sum(1) - 1e-9)[:, None])
    out: Ints = np.where(taken, words[place % len(words)], tokens).astype(tokens.dtype)
    return out


@dataclass(kw_only=True, eq=False)
class Strip(MultiPass):
    """Suspects inputs whose answer stays certain under strong perturbation.

    The score is minus the mean entropy over the copies. Images are superimposed on clean ones
    (saturated sum), states averaged with clean ones, texts get half of their positions replaced by
    characteristic words of clean texts. All inputs meet the same perturbations.

    Attributes
    ----------
    n_copies : int
        Perturbed copies of each input; images and states take at most one a reference.
    share : float
        Share of positions that are replaced in a text, in (0, 1].
    padding : int, optional
        Token that fills up texts: neither replaced nor given.
    seed : int
        Which clean inputs, and which positions, are drawn.

    References
    ----------
    Y. Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019,
    section 4 (100 copies, 10 adequate); Y. Gao et al., "Design and Evaluation of a Multi-Domain
    Trojan Detection Method on Deep Neural Networks", arXiv:1911.10312, for text.

    Examples
    --------
    >>> from torch import nn
    >>> x = np.random.default_rng(0).random((10, 1, 4, 4), np.float32)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> Strip(n_copies=5).fit(net, x).score(x[:2]).shape
    (2,)
    """

    n_copies: int = 20
    share: float = 0.5
    padding: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_copies < 1:
            raise ValueError(f"n_copies must be >= 1, got {self.n_copies}; 10 are adequate")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}; 0.5 is usual")

    @property
    def n_passes(self) -> int:
        """One forward pass a copy."""
        return self.n_copies

    def _learn(self, references: NDArray[Any]) -> Rule[NDArray[Any]]:
        model, mixes = self._model, list(self._mixes(references[canonical_order(references)]))

        def rule(x: NDArray[Any]) -> Floats:
            bits = [entropy_bits(probabilities(model, mix(x))) for mix in mixes]
            scores: Floats = -np.mean(bits, axis=0)
            return scores

        return rule

    def _mixes(self, clean: NDArray[Any]) -> Iterable[Mix]:
        rng = keyed(self.seed)
        if self._kind == "text":
            for donor in rng.integers(len(clean), size=self.n_copies):
                priority: Floats = rng.random(clean.shape[1:])
                yield self._replacing(top_words(clean, int(donor), self.padding), priority)
            return
        blend = superimposed if self._kind == "image" else averaged
        for other in clean[rng.permutation(len(clean))[: self.n_copies]]:
            yield _blending(blend, other)

    def _replacing(self, words: Ints, priority: Floats) -> Mix:
        return lambda x: replaced(x, words, priority, self.share, self.padding)


def _blending(
    blend: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], other: NDArray[Any]
) -> Mix:
    return lambda x: blend(x, other)
