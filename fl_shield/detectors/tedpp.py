"""TED++: how near, layer by layer, an input stays to references of the class it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.types import Floats, Ints

N_COMPONENTS = 2
TUBE_SHARE = 0.5

LEAST_RATIO = 1e-2
"""Least share of the variance that an axis of the outlier score is taken to explain."""


def tube_radii(distances: Floats, labels: Ints, share: float = TUBE_SHARE) -> dict[int, float]:
    """Radius of the tube around each class of one layer.

    For each reference the ``ceil(share * m)``-th smallest distance to the others of its class of
    m; the class takes the largest. A class of one has no such distance and borrows the largest
    radius of all; where every class has one, all references count as one class.

    Parameters
    ----------
    distances : (m, m) float array
        Between references.
    labels : (m,) int array
        Their predicted classes.
    share : float
        In (0, 1].

    Examples
    --------
    >>> line = np.array([[0.0], [1.0], [3.0], [9.0]])
    >>> tube_radii(cdist(line, line), np.array([0, 0, 0, 1]))
    {0: 3.0, 1: 3.0}
    """
    own = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    radii = {c: _radius(distances, members, share) for c, members in own.items()}
    if all(np.isnan(r) for r in radii.values()):
        radii = dict.fromkeys(radii, _radius(distances, np.arange(len(labels)), share))
    widest = float(np.nanmax(list(radii.values())))
    return {c: widest if np.isnan(r) else r for c, r in radii.items()}


def _radius(distances: Floats, members: Ints, share: float) -> float:
    if len(members) < 2:
        return float("nan")
    within = distances[np.ix_(members, members)].copy()
    np.fill_diagonal(within, np.inf)
    nth = min(int(np.ceil(share * len(members))), len(members) - 1)
    return float(np.sort(within, axis=1)[:, nth - 1].max())


def nearest_ranks(distances: Floats, same: Floats, radius: Floats) -> Floats:
    """Rank, from 1, of the nearest reference of the same class among all references, (n,).

    Parameters
    ----------
    distances : (n, m) float array
        To the references; ``inf`` takes a reference out (a reference beside itself).
    same : (n, m) bool array
        Which references have the point's class.
    radius : (n,) float array
        Where the nearest one is farther, the rank is the worst there is.

    Examples
    --------
    >>> nearest_ranks(np.array([[1.0, 2.0, 3.0]]), np.array([[False, True, False]]), np.ones(1) * 9)
    array([2.])
    >>> nearest_ranks(np.array([[1.0, 2.0, 3.0]]), np.array([[False, True, False]]), np.ones(1))
    array([3.])
    """
    nearest = np.where(same, distances, np.inf).min(1)
    ranks: Floats = 1.0 + (distances < nearest[:, None]).sum(1)
    out_of_tube = nearest > radius
    ranks[out_of_tube] = np.isfinite(distances).sum(1)[out_of_tube]
    return ranks


@dataclass(frozen=True, kw_only=True)
class Bank:
    """References by layer, their predicted classes and the tubes around them.

    Attributes
    ----------
    layers : mapping of str to (m, d) float array
    labels : (m,) int array
    radii : mapping of str to mapping of int to float
        Tube radius by layer and class.
    """

    layers: Mapping[str, Floats]
    labels: Ints
    radii: Mapping[str, Mapping[int, float]]

    @classmethod
    def of(cls, references: Activations, share: float = TUBE_SHARE) -> Bank:
        """Bank of clean references."""
        layers = {n: np.asarray(r, dtype=np.float64) for n, r in references.layers.items()}
        labels = references.labels
        radii = {n: tube_radii(cdist(rows, rows), labels, share) for n, rows in layers.items()}
        return cls(layers=layers, labels=labels, radii=radii)

    def own_ranks(self) -> Floats:
        """Rank trajectory (m, L) of each reference beside the others."""
        distances = {}
        for name, rows in self.layers.items():
            distances[name] = cdist(rows, rows)
            np.fill_diagonal(distances[name], np.inf)
        return self._ranks(distances, self.labels)

    def ranks(self, points: Activations) -> Floats:
        """Rank trajectory (n, L) of points."""
        distances = {
            name: cdist(np.asarray(points.layers[name], dtype=np.float64), rows)
            for name, rows in self.layers.items()
        }
        return self._ranks(distances, points.labels)

    def _ranks(self, distances: Mapping[str, Floats], labels: Ints) -> Floats:
        last = distances[tuple(distances)[-1]]
        present = (labels[:, None] == self.labels) & np.isfinite(last)
        classes = np.where(present.any(1), labels, self.labels[last.argmin(1)])
        same = classes[:, None] == self.labels
        columns = [
            nearest_ranks(
                distances[name],
                same,
                np.array([self.radii[name][int(c)] for c in classes]),
            )
            for name in self.layers
        ]
        return np.stack(columns, axis=1)


def axis_outlier_scores(points: Floats, references: Floats, n_components: int) -> Floats:
    """Outlier score of PCA: distances to the principal axes, each over its explained share, (n,).

    Columns of points (n, L) and references (m, L) are standardised by the references; a constant
    column keeps its own unit (one rank). Axes point to where their largest loading is positive.

    References
    ----------
    C. Aggarwal, "Outlier Analysis", 2015, section 3.3, in the form of PyOD's detector PCA, which
    the published method calls.
    """
    mean, spread = references.mean(0), references.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    clean = (references - mean) / spread
    _, singular, axes = np.linalg.svd(clean, full_matrices=False)
    k = min(n_components, len(axes))
    shares = singular**2 / max(float((singular**2).sum()), 1e-12)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    axes = axes[:k] * signs[:k, None]
    distances = cdist((points - mean) / spread, axes)
    scores: Floats = (distances / np.maximum(shares[:k], LEAST_RATIO)).sum(1)
    return scores


@dataclass(kw_only=True, eq=False)
class TedPlusPlus(OnePass):
    """Suspects inputs whose nearest same-class reference ranks unlike those of references.

    A class without a reference is replaced by that of the nearest reference in the last layer.
    The published contamination of 0.1 gives way to ``fpr_budget``.

    Attributes
    ----------
    tube_share : float
        Share of a class that a tube around each reference reaches, in (0, 1].
    n_components : int
        Principal axes of the outlier score.

    References
    ----------
    N. Le et al., "TED++: Submanifold-Aware Backdoor Detection via Layerwise Tubular-Neighbourhood
    Screening", ICDM 2025, arXiv:2510.14299; X. Mo et al., "Robust Backdoor Detection for Deep
    Learning via Topological Evolution Dynamics", IEEE S&P 2024, for the ranks.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"a": rows, "head": rows}, logits=rows)
    >>> TedPlusPlus().fit(seen).score(seen).shape
    (20,)
    """

    tube_share: float = TUBE_SHARE
    n_components: int = N_COMPONENTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tube_share <= 1:
            raise ValueError(f"tube_share must be in (0, 1], got {self.tube_share}; 0.5 is usual")
        if self.n_components < 1:
            raise ValueError(f"n_components must be >= 1, got {self.n_components}; 2 is usual")

    def _learn(self, references: Activations) -> Rule[Activations]:
        bank = Bank.of(references, self.tube_share)
        own = bank.own_ranks()
        return lambda points: axis_outlier_scores(bank.ranks(points), own, self.n_components)
