"""A Gaussian mixture over principal coordinates: one of the plain backbones of the ablation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule, canonical_order
from fl_shield.rng import keyed
from fl_shield.types import Floats

POINTS_PER_COMPONENT = 5
"""A component is given up before it stands on fewer references than these."""

RIDGE = 0.1
"""Added to each variance, as a share of the mean variance of the coordinates."""


@dataclass(kw_only=True, eq=False)
class MixtureDensity(OnePass):
    """Suspects inputs of low density under a mixture of axis-parallel Gaussians.

    Attributes
    ----------
    n_components : int
        Gaussians at most; one for every five references.
    n_axes : int
        Principal axes of the penultimate activations that are kept, at most m - 1.
    seed : int
        Where the mixture starts from.

    References
    ----------
    C. Bishop, "Pattern Recognition and Machine Learning", 2006, section 9.2.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> far = Activations(layers={"head": rows + 9}, logits=rows)
    >>> bool(MixtureDensity().fit(seen).predict(far).all())
    True
    """

    n_components: int = 2
    n_axes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_components, self.n_axes) < 1:
            raise ValueError(
                f"n_components and n_axes must be >= 1, got {self.n_components} and {self.n_axes}"
            )

    def _learn(self, references: Activations) -> Rule[Activations]:
        rows = np.asarray(references.penultimate, dtype=np.float64)
        rows = rows[canonical_order(rows)]
        centre, axes = rows.mean(0), principal_axes(rows, self.n_axes)
        coordinates = (rows - centre) @ axes.T
        mixture = GaussianMixture(
            n_components=max(1, min(self.n_components, len(rows) // POINTS_PER_COMPONENT)),
            covariance_type="diag",
            reg_covar=RIDGE * float(coordinates.var(0).mean()) + 1e-9,
            random_state=int(keyed(self.seed).integers(2**31)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # few points: a start will do
            mixture.fit(coordinates)

        def rule(points: Activations) -> Floats:
            away: Floats = -mixture.score_samples((points.penultimate - centre) @ axes.T)
            return away

        return rule


def principal_axes(rows: Floats, n_axes: int) -> Floats:
    """First principal axes of rows (m, d), at most m - 1, shape (k, d).

    Examples
    --------
    >>> np.abs(principal_axes(np.array([[0.0, 1.0], [0.0, 3.0], [0.1, 2.0]]), 1)).round(2).tolist()
    [[0.0, 1.0]]
    """
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept: Floats = axes[: min(n_axes, len(rows) - 1)]
    return kept
