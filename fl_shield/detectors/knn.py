"""Distance to the k-th nearest clean reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.live import constant, doubled, in_rows
from fl_shield.types import Floats

SPREAD_FLOOR = 0.1
"""Least spread of a unit beside the mean spread: units silent for all references keep a scale."""


def unit_scale(references: Floats) -> Floats:
    """Standard deviation of each unit over references (m, d), floored, shape (d,).

    Examples
    --------
    >>> unit_scale(np.array([[0.0, 5.0], [2.0, 5.0]])).round(3).tolist()
    [1.414, 0.071]
    """
    spread = np.std(np.asarray(references, dtype=np.float64), axis=0, ddof=1)
    floored: Floats = np.maximum(spread, max(SPREAD_FLOOR * spread.mean(), 1e-12))
    return floored


def nearest_distances(points: Floats, references: Floats, k: int) -> Floats:
    """Euclidean distance of points (n, d) to the k-th nearest of (m, d), in standardised units.

    Where there are fewer than k references the farthest counts. Of points that are a tensor the
    distances are one too, through which gradients flow.

    Examples
    --------
    >>> clean = np.array([[0.0], [1.0], [2.0]])  # standard deviation 1
    >>> nearest_distances(np.array([[4.0]]), clean, k=2).tolist()
    [3.0]
    """
    scale = unit_scale(references)
    own = doubled(points)
    distances = _distances(own / constant(scale, own), constant(references / scale, own))
    nth: Floats = in_rows(distances)[:, min(k, len(references)) - 1]
    return nth


def _distances(points: Any, references: Any) -> Any:
    """Euclidean distances (n, m), of arrays or of tensors that gradients flow through."""
    if isinstance(points, Tensor):
        return torch.cdist(points, references, compute_mode="donot_use_mm_for_euclid_dist")
    return cdist(points, references)


@dataclass(kw_only=True, eq=False)
class KNearest(OnePass):
    """Suspects inputs whose k-th nearest clean reference is far in penultimate space.

    Attributes
    ----------
    k : int
        Which neighbour counts, from 1.

    References
    ----------
    Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022,
    section 3; units are standardised here in place of rows of norm one.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> KNearest(k=1).fit(seen).score(seen.take(slice(0, 2))).tolist()
    [0.0, 0.0]
    """

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k counts neighbours from 1, got {self.k}; 1 or 3 suit few-shot use")

    def _learn(self, references: Activations) -> Rule[Activations]:
        return lambda points: nearest_distances(points.penultimate, references.penultimate, self.k)
