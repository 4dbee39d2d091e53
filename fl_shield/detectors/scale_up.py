"""SCALE-UP: an answer that survives when pixels are multiplied is suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.detectors.contract import Kind, MultiPass, Rule
from fl_shield.training import logits_of
from fl_shield.types import Floats, Ints

FACTORS = (3, 5, 7, 9, 11)


def scaled_consistency(
    model: nn.Module, x: NDArray[Any], factors: Sequence[float] = FACTORS
) -> tuple[Floats, Ints]:
    """Share of scaled copies that keep the answer, and the answer: (n,) and (n,).

    Parameters
    ----------
    model : nn.Module
        Takes raw pixels; what normalises them is a part of it.
    x : (n, channels, height, width) float array in [0, 1]
    factors : sequence of float
        Copies are ``clip(factor * x, 0, 1)``.
    """
    answers: Ints = logits_of(model, x).argmax(1).numpy()
    kept = [
        logits_of(model, np.clip(x * factor, 0, 1).astype(x.dtype)).argmax(1).numpy() == answers
        for factor in factors
    ]
    shares: Floats = np.mean(kept, axis=0)
    return shares, answers


def class_standardised(
    shares: Floats, labels: Ints, clean_shares: Floats, clean_labels: Ints, least: float
) -> Floats:
    """Shares (n,) minus the mean of their predicted class among clean ones, over its spread.

    A class with fewer than two clean inputs takes mean and spread of all; no spread is below
    ``least``.

    Examples
    --------
    >>> clean, labels = np.array([0.2, 0.4, 0.6, 0.6]), np.array([0, 0, 1, 1])
    >>> class_standardised(np.array([1.0, 1.0]), np.array([0, 1]), clean, labels, 0.1).round(2)
    array([4.95, 4.  ])
    """
    out = np.empty(len(shares))
    for c in np.unique(labels):
        own = clean_shares[clean_labels == c]
        among = own if len(own) > 1 else clean_shares
        which = labels == c
        out[which] = (shares[which] - among.mean()) / max(among.std(ddof=1), least)
    return out


@dataclass(kw_only=True, eq=False)
class _Scaled(MultiPass):
    """What both variants share: factors, the passes that they cost, and the consistency."""

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    factors: tuple[float, ...] = FACTORS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factors or min(self.factors) <= 1:
            raise ValueError(
                f"factors must be above 1, got {tuple(self.factors)}; the paper has {FACTORS}"
            )

    @property
    def n_passes(self) -> int:
        """One for the answer and one a factor."""
        return 1 + len(self.factors)

    def _consistency(self, x: NDArray[Any]) -> tuple[Floats, Ints]:
        return scaled_consistency(self._model, x, self.factors)


@dataclass(kw_only=True, eq=False)
class ScaleUp(_Scaled):
    """Suspects images whose predicted class survives amplified pixels: the data-free variant.

    The score is the scaled prediction consistency itself; only the threshold needs clean images
    (the paper flags from 0.5).

    Attributes
    ----------
    factors : tuple of float
        What pixels are multiplied by.

    References
    ----------
    J. Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing
    Scaled Prediction Consistency", ICLR 2023, section 4.2.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((10, 1, 4, 4), np.float32)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> bool((ScaleUp().fit(net, x).score(np.ones_like(x)) == 1).all())  # white stays white
    True
    """

    def _learn(self, references: NDArray[Any]) -> Rule[NDArray[Any]]:
        return lambda x: self._consistency(x)[0]

    def _out_of_fit(self, references: NDArray[Any]) -> Floats:
        """Nothing is learned: the references' own scores are out of fit."""
        return self._consistency(references)[0]


@dataclass(kw_only=True, eq=False)
class ScaleUpLimited(_Scaled):
    """The data-limited variant of :class:`ScaleUp`: standardised within the predicted class.

    The published 100 clean images a class are more than few-shot use has: a class with fewer than
    two takes mean and spread of all, and a spread is at least half a step of the consistency.

    Attributes
    ----------
    factors : tuple of float
        What pixels are multiplied by.

    References
    ----------
    J. Guo et al., SCALE-UP, ICLR 2023, section 4.3.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((10, 1, 4, 4), np.float32)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> ScaleUpLimited().fit(net, x).score(x[:2]).shape
    (2,)
    """

    def _learn(self, references: NDArray[Any]) -> Rule[NDArray[Any]]:
        clean = self._consistency(references)

        def rule(x: NDArray[Any]) -> Floats:
            return class_standardised(*self._consistency(x), *clean, self._least)

        return rule

    def _out_of_fit(self, references: NDArray[Any]) -> Floats:
        shares, labels = self._consistency(references)
        rows = []
        for i in range(len(shares)):
            others = np.arange(len(shares)) != i
            clean = (shares[others], labels[others])
            rows.append(class_standardised(shares[[i]], labels[[i]], *clean, self._least))
        return np.concatenate(rows)

    @property
    def _least(self) -> float:
        return 0.5 / len(self.factors)
