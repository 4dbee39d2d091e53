"""Beatrix: correlations of units, of several orders, that leave their clean bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fl_shield.activations import Activations
from fl_shield.detectors.contract import MAX_REFITS, OnePass, Rule
from fl_shield.types import Floats, Ints

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
    n, width, positions = rows.shape
    first, second = np.triu_indices(width)
    grams = []
    for order in orders:
        power = rows**order
        if positions == 1:
            gram = power[:, first, 0] * power[:, second, 0]
        else:
            full = power @ power.transpose(0, 2, 1)
            gram = full.reshape(n, -1)[:, first * width + second]
        grams.append(np.sign(gram) * np.abs(gram) ** (1 / order))
    return np.stack(grams, axis=1)


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Clean range of each Gram entry.

    Attributes
    ----------
    low, high : (orders, entries) float arrays, or (n, orders, entries)
        The second where each of n points has bands of its own.
    """

    low: Floats
    high: Floats

    @classmethod
    def of(cls, grams: Floats, n_deviations: float = N_DEVIATIONS) -> Bands:
        """Median +- n_deviations median absolute deviations of (m, orders, entries)."""
        median = np.median(grams, axis=0)
        reach = n_deviations * np.median(np.abs(grams - median), axis=0)
        return cls(low=median - reach, high=median + reach)

    @classmethod
    def without_each(cls, grams: Floats, rows: Ints, n_deviations: float = N_DEVIATIONS) -> Bands:
        """Bands that each of ``rows`` (r,) meets without itself among (m, orders, entries).

        Without one of them, the median is one of three numbers, so that the deviations from it
        are worked out three times in all and not m times.

        Examples
        --------
        >>> grams = np.array([1.0, 2, 3, 4, 100, 5])[:, None, None]
        >>> bands = Bands.without_each(grams, np.array([5]), 10)
        >>> bands.low.item(), bands.high.item()
        (-7.0, 13.0)
        """
        centres, which = _medians_without_each(grams, rows)
        spreads = []
        for centre in centres:
            medians, place = _medians_without_each(np.abs(grams - centre), rows)
            spreads.append(np.choose(place, medians))
        median, reach = np.choose(which, centres), n_deviations * np.choose(which, spreads)
        return cls(low=median - reach, high=median + reach)

    def excess(self, grams: Floats) -> Floats:
        """Mean relative excess of (n, orders, entries) beyond the bands, by order (n, orders).

        Examples
        --------
        >>> bands = Bands(low=np.array([[1.0]]), high=np.array([[2.0]]))
        >>> bands.excess(np.array([[[1.5]], [[3.0]], [[0.5]]])).round(2).tolist()
        [[0.0], [0.5], [0.5]]
        """
        mean_bound = np.abs([self.low, self.high]).mean((0, -1))[..., None]
        least = FLOOR * np.maximum(mean_bound, 1e-12)
        below = np.maximum(self.low - grams, 0) / np.maximum(np.abs(self.low), least)
        above = np.maximum(grams - self.high, 0) / np.maximum(np.abs(self.high), least)
        means: Floats = (below + above).mean(2)
        return means


def _medians_without_each(values: Floats, rows: Ints) -> tuple[list[Floats], Ints]:
    """Medians (orders, entries) of (m, orders, entries) without a large, a middle or a small value.

    And which of the three applies to each of ``rows``, (r, orders, entries).
    """
    rest = len(values) - 1
    low, high = (rest - 1) // 2, rest // 2
    rising = np.sort(values, axis=0)
    pairs = ((low, high), (low, high + 1), (low + 1, high + 1))
    medians = [(rising[i] + rising[j]) / 2 for i, j in pairs]
    own = values[rows]
    return medians, (own <= rising[low]).astype(np.int64) + (own <= rising[high])


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
        own = self._own(references)

        @cache
        def bands_of(c: int | None) -> dict[str, Bands]:
            return self._bands(references if c is None else references.take(references.labels == c))

        def rule(points: Activations) -> Floats:
            scores = np.zeros(len(points))
            for c in np.unique(points.labels):
                which, bands = points.labels == c, bands_of(int(c) if c in own else None)
                these = points.take(which)
                parts = [bands[name].excess(self._grams(these, name)) for name in bands]
                scores[which] = self._weighted(parts)
            return scores

        return rule

    def _out_of_fit(self, references: Activations) -> Floats:
        """As for all detectors, with the bands of all references at once: many medians saved."""
        labels, m = references.labels, len(references)
        if m > MAX_REFITS:
            return super()._out_of_fit(references)
        groups = {c: np.flatnonzero(labels == c) for c in np.unique(labels)}
        own = [group for group in groups.values() if len(group) > self.min_per_class]
        alone = np.setdiff1d(np.arange(m), np.concatenate([np.zeros(0, np.int64), *own]))
        parts = []
        for name in references.layers:
            grams = self._grams(references, name)
            excess = np.empty(grams.shape[:2])
            for group in own:
                excess[group] = self._beside_the_others(grams[group], np.arange(len(group)))
            excess[alone] = self._beside_the_others(grams, alone)
            parts.append(excess)
        return self._weighted(parts)

    def _beside_the_others(self, grams: Floats, rows: Ints) -> Floats:
        return Bands.without_each(grams, rows, self.n_deviations).excess(grams[rows])

    def _weighted(self, parts: Sequence[Floats]) -> Floats:
        """Mean of excesses (n, orders) over layers and orders, shape (n,)."""
        scores: Floats = np.average(np.mean(parts, axis=0), axis=1, weights=self._parities()[1])
        return scores

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
