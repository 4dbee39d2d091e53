"""Distance to one Gaussian fitted to penultimate activations, its covariance shrunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.live import constant, doubled, library
from fl_shield.types import Floats

SHRINKAGE = 0.5


def shrunk_distances(points: Floats, references: Floats, shrinkage: float = SHRINKAGE) -> Floats:
    """Mahalanobis distance of points to the references' Gaussian, shape (n,).

    The covariance is ``(1 - shrinkage) S + shrinkage * trace(S) / d * I`` with the sample
    covariance S. Computed in the references' span, so that the cost is m * m * d, not d * d * d.

    Parameters
    ----------
    points : (n, d) float array
        Or a tensor, through which gradients then flow.
    references : (m, d) float array
        m >= 2.
    shrinkage : float
        In (0, 1].

    Examples
    --------
    >>> square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # covariance 2/3 I
    >>> shrunk_distances(np.array([[2.0, 0.0]]), square).round(3).tolist()
    [2.449]
    """
    rows = np.asarray(references, dtype=np.float64)
    centre = rows.mean(0)
    _, singular, axes = np.linalg.svd(rows - centre, full_matrices=False)
    variance = singular**2 / (len(rows) - 1)
    ridge = shrinkage * max(variance.sum() / rows.shape[1], 1e-12)
    own = doubled(points)
    centre, axes, variance = (constant(a, own) for a in (centre, axes, variance))
    offset = own - centre
    inside = offset @ axes.T
    outside = ((offset - inside @ axes) ** 2).sum(1)
    shrunk = (1 - shrinkage) * variance + ridge
    distances: Floats = library(own).sqrt((inside**2 / shrunk).sum(1) + outside / ridge)
    return distances


@dataclass(kw_only=True, eq=False)
class ShrunkGaussian(OnePass):
    """What detectors by :func:`shrunk_distances` share: the shrinkage.

    Attributes
    ----------
    shrinkage : float
        Weight of the multiple of the identity in the covariance, in (0, 1]: with 0 the covariance
        of few references has no inverse.
    """

    shrinkage: float = SHRINKAGE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise ValueError(
                f"shrinkage must be in (0, 1], got {self.shrinkage}; {SHRINKAGE} is the default"
            )


@dataclass(kw_only=True, eq=False)
class Mahalanobis(ShrunkGaussian):
    """Suspects inputs far from the clean references in penultimate space.

    One Gaussian for all classes, because few-shot references are often fewer than classes.

    Attributes
    ----------
    shrinkage : float
        Weight of the multiple of the identity in the covariance, in (0, 1].

    References
    ----------
    K. Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018, section 2.1, with one class; O. Ledoit, M. Wolf, "A
    well-conditioned estimator for large-dimensional covariance matrices", 2004, for the form of
    the shrinkage (here at a fixed weight).

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> far = Activations(layers={"head": rows + 9}, logits=rows)
    >>> bool(Mahalanobis().fit(seen).predict(far).all())
    True
    """

    def _learn(self, references: Activations) -> Rule[Activations]:
        return lambda points: shrunk_distances(
            points.penultimate, references.penultimate, self.shrinkage
        )
