"""Far and confident: the plain rule that a learned detector has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_shield.activations import Activations
from fl_shield.detectors.contract import Rule, standardised
from fl_shield.detectors.mahalanobis import Mahalanobis, ShrunkGaussian
from fl_shield.types import Floats


def largest_logit(logits: Floats) -> Floats:
    """Largest logit above the mean of all, which softmax leaves open, shape (n,).

    Examples
    --------
    >>> largest_logit(np.array([[4.0, 1.0, 1.0]])).tolist()
    [2.0]
    """
    rows = np.asarray(logits, dtype=np.float64)
    out: Floats = rows.max(1) - rows.mean(1)
    return out


@dataclass(kw_only=True, eq=False)
class MahalanobisLogit(ShrunkGaussian):
    """Sum of the shrunk Mahalanobis distance and the largest logit, each standardised.

    Each is standardised by its own out-of-fit scores on the references: their mean and standard
    deviation; a reference is standardised by those of the others.

    Attributes
    ----------
    shrinkage : float
        Weight of the multiple of the identity in the covariance, in (0, 1].

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> far = Activations(layers={"head": rows + 9}, logits=rows * 9)
    >>> bool(MahalanobisLogit().fit(seen).predict(far).all())
    True
    """

    def _learn(self, references: Activations) -> Rule[Activations]:
        far, own_far = self._distance()._learn(references), self._own_distances(references)
        own_sure = largest_logit(references.logits)

        def rule(points: Activations) -> Floats:
            distance = standardised(far(points), own_far)
            return distance + standardised(largest_logit(points.logits), own_sure)

        return rule

    def _out_of_fit(self, references: Activations) -> Floats:
        parts = (self._own_distances(references), largest_logit(references.logits))
        return sum((_beside_the_others(part) for part in parts), np.zeros(len(references)))

    def _distance(self) -> Mahalanobis:
        return Mahalanobis(shrinkage=self.shrinkage)

    def _own_distances(self, references: Activations) -> Floats:
        return self._distance()._out_of_fit(references)


def _beside_the_others(scores: Floats) -> Floats:
    """Each of (m,) scores standardised by the m - 1 others."""
    others = [np.delete(scores, i) for i in range(len(scores))]
    rows = [standardised(scores[i : i + 1], other) for i, other in enumerate(others)]
    return np.concatenate(rows)
