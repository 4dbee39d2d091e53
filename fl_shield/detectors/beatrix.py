"""Beatrix: correlations of units, of several orders, that leave their clean bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.types import Floats

ORDERS = (1, 2, 3, 4)
MAX_UNITS = 64
N_DEVIATIONS = 10.0
MIN_PER_CLASS = 4

FLOOR = 0.1
"""Least bound that an excess is measured by, as a share of the order's mean bound.

Published code has 1e-6 in absolute terms: then units that few references use, of which few-shot
references have many, drown all others.
"""


def gram_features(maps: Floats, orders: Sequence[int] = ORDERS) -> Floats:
    """Upper triangle of the Gram matrices of feature maps, one after the other by order.

    Order p gives ``sign(G) |G| ** (1 / p)`` with ``G = F ** p @ (F ** p).T``. For pooled
    activations (one position) all odd orders equal the first and all even ones its magnitude.

    Parameters
    ----------
    maps : (n, channels, positions) float array
    orders : sequence of int

    Returns
    -------
    (n, len(orders), channels * (channels + 1) / 2) float array

    Examples
    --------
    >>> gram_features(np.array([[[2.0], [-3.0]]]), (1, 2)).tolist()
    [[[4.0, -6.0, 9.0], [4.0, 6.0, 9.0]]]
    """
    rows = np.asarray(maps, dtype=np.float64)
    upper = np.triu_indices(rows.shape[1])
    grams = []
    for order in orders:
        power = rows**order
        gram = (power @ power.transpose(0, 2, 1))[:, upper[0], upper[1]]
        grams.append(np.sign(gram) * np.abs(gram) ** (1 / order))
    return np.stack(grams, axis=1)


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Clean range of each Gram entry, (orders, entries).

    Attributes
    ----------
    low, high : (orders, entries) float arrays
    """

    low: Floats
    high: Floats

    @classmethod
    def of(cls, grams: Floats, n_deviations: float = N_DEVIATIONS) -> Bands:
        """Median +- n_deviations median absolute deviations of (m, orders, entries)."""
        median = np.median(grams, axis=0)
        reach = n_deviations * np.median(np.abs(grams - median), axis=0)
        return cls(low=median - reach, high=median + reach)

    def excess(self, grams: Floats) -> Floats:
        """Mean relative excess of (n, orders, entries) beyond the bands, by order (n, orders).

        Examples
        --------
        >>> bands = Bands(low=np.array([[1.0]]), high=np.array([[2.0]]))
        >>> bands.excess(np.array([[[1.5]], [[3.0]], [[0.5]]])).round(2).tolist()
        [[0.0], [0.5], [0.5]]
        """
        mean_bound = np.abs([self.low, self.high]).mean((0, 2))[:, None]
        least = FLOOR * np.maximum(mean_bound, 1e-12)
        below = np.maximum(self.low - grams, 0) / np.maximum(np.abs(self.low), least)
        above = np.maximum(grams - self.high, 0) / np.maximum(np.abs(self.high), least)
        means: Floats = (below + above).mean(2)
        return means


@dataclass(kw_only=True, eq=False)
class Beatrix(OnePass):
    """Suspects inputs whose units correlate as no clean reference of the same class shows.

    The published method reads maps of channels and positions; this one reads pooled activations,
    so that each layer is one vector and orders differ by their parity only (each is computed once
    and counts as often as it is asked for). Layers wider than ``max_units`` give evenly spaced
    units. The paper has 30 references a class; here one with fewer than ``min_per_class`` takes
    the bands of all references.

    Attributes
    ----------
    orders : tuple of int
        Powers of the Gram matrices, 1 to 4 as in the paper.
    n_deviations : float
        Half-width of a band in median absolute deviations.
    max_units : int
        Units of one layer that are read at most.
    min_per_class : int
        References that a class needs for bands of its own.

    References
    ----------
    W. Ma et al., "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram Matrices",
    NDSS 2023, section IV.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> far = Activations(layers={"head": rows + 99}, logits=rows)
    >>> bool(Beatrix().fit(seen).predict(far).all())
    True
    """

    orders: tuple[int, ...] = ORDERS
    n_deviations: float = N_DEVIATIONS
    max_units: int = MAX_UNITS
    min_per_class: int = MIN_PER_CLASS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orders or min(self.orders) < 1:
            raise ValueError(f"orders must be positive, got {self.orders}; the paper has 1 to 4")
        if self.n_deviations <= 0 or self.max_units < 1 or self.min_per_class < 2:
            raise ValueError(
                f"n_deviations must be > 0, max_units >= 1 and min_per_class >= 2, got "
                f"{self.n_deviations}, {self.max_units} and {self.min_per_class}"
            )

    def _learn(self, references: Activations) -> Rule[Activations]:
        layers, weights = list(references.layers), self._parities()[1]
        own = self._own(references)

        @cache
        def bands_of(c: int | None) -> dict[str, Bands]:
            return self._bands(references if c is None else references.take(references.labels == c))

        def rule(points: Activations) -> Floats:
            scores = np.zeros(len(points))
            for c in np.unique(points.labels):
                which, bands = points.labels == c, bands_of(int(c) if c in own else None)
                these = points.take(which)
                parts = [bands[name].excess(self._grams(these, name)) for name in layers]
                scores[which] = np.average(np.mean(parts, axis=0), axis=1, weights=weights)
            return scores

        return rule

    def _own(self, references: Activations) -> list[int]:
        """Classes with enough references for bands of their own."""
        classes, counts = np.unique(references.labels, return_counts=True)
        return [int(c) for c in classes[counts >= self.min_per_class]]

    def _bands(self, references: Activations) -> dict[str, Bands]:
        return {
            name: Bands.of(self._grams(references, name), self.n_deviations)
            for name in references.layers
        }

    def _grams(self, activations: Activations, name: str) -> Floats:
        rows = activations.layers[name]
        width = rows.shape[1]
        kept = np.linspace(0, width - 1, min(width, self.max_units)).round().astype(int)
        return gram_features(rows[:, kept, None], self._parities()[0])

    def _parities(self) -> tuple[list[int], list[int]]:
        """One order for each parity that is asked for, and how often it is."""
        odd = sum(order % 2 for order in self.orders)
        both = {1: odd, 2: len(self.orders) - odd}
        return [p for p, n in both.items() if n], [n for n in both.values() if n]
