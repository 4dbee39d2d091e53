"""Profiles beside the references' own profiles: how unusual each number is in this very task.

A profile compares between networks, but not all networks spread alike: what is a large residual in
one is everyday in another. So the detector reads each profile twice, as it stands and as z-scores
by the leave-one-out profiles of the task's references. That is conditioning on the references
without a gradient step, and it costs one subtraction a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fl_shield.live import constant, library
from fl_shield.types import Floats

FLOOR = 0.3
"""Added to each spread, so that a column which is near-constant for the references stays calm."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What the references' profiles show in each column and view.

    Attributes
    ----------
    mean, spread : (V, n_columns) float arrays
    """

    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, references: Floats) -> Self:
        """Habits of references (m, V, n_columns), m >= 2."""
        return cls(mean=references.mean(0), spread=references.std(0, ddof=1))

    def beside(self, profiles: Floats) -> Floats:
        """Profiles (n, V, n_columns) and their z-scores: (n, V, 2 n_columns).

        Examples
        --------
        >>> habits = Habits(mean=np.zeros((1, 2)), spread=np.ones((1, 2)))
        >>> habits.beside(np.array([[[0.0, 1.3]]])).round(2).tolist()
        [[[0.0, 1.3, 0.0, 0.88]]]
        """
        out: Floats = self.live(profiles)
        return out

    def live(self, profiles: Any) -> Any:
        """:meth:`beside` of an array, or of a tensor that gradients flow through.

        Examples
        --------
        >>> import torch
        >>> habits = Habits(mean=np.zeros((1, 2)), spread=np.ones((1, 2)))
        >>> habits.live(torch.zeros(3, 1, 2, requires_grad=True)).requires_grad
        True
        """
        xp = library(profiles)
        mean, spread = (constant(a, profiles) for a in (self.mean, self.spread))
        z = xp.arcsinh((profiles - mean) / (spread + FLOOR))
        return xp.concatenate([profiles, z], axis=-1)


def beside_each_other(references: Floats) -> Floats:
    """References (m, V, n_columns) with z-scores by the others: (m, V, 2 n_columns), m >= 3.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(5, 1, 2))
    >>> slow = Habits.of(rows[1:]).beside(rows[:1])
    >>> bool(np.allclose(beside_each_other(rows)[:1], slow))
    True
    """
    rows = np.asarray(references, dtype=np.float64)
    m = len(rows)
    if m < 3:
        raise ValueError(f"conditioning needs at least 3 references, got {m}; give 20")
    centred = rows - rows.mean(0)
    mean = -centred / (m - 1)
    scatter = (centred**2).sum(0) - centred**2 * (m / (m - 1))
    spread = np.sqrt(np.maximum(scatter, 0) / (m - 2))
    z = np.arcsinh((centred - mean) / (spread + FLOOR))
    out: Floats = np.concatenate([rows, z], axis=-1)
    return out
