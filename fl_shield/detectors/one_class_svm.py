"""A one-class support vector machine: one of the plain backbones of the ablation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.svm import OneClassSVM

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.detectors.knn import unit_scale
from fl_shield.types import Floats


@dataclass(kw_only=True, eq=False)
class OneClassSupport(OnePass):
    """Suspects inputs outside a region that holds most references, radial kernel.

    Penultimate activations in standardised units; the kernel's width is the number of units times
    their variance.

    Attributes
    ----------
    nu : float
        Share of references that may lie outside, in (0, 1].

    References
    ----------
    B. Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", Neural
    Computation 2001, section 3.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"head": rows}, logits=rows)
    >>> far = Activations(layers={"head": rows + 9}, logits=rows)
    >>> bool(OneClassSupport().fit(seen).predict(far).all())
    True
    """

    nu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nu <= 1:
            raise ValueError(f"nu must be in (0, 1], got {self.nu}; 0.1 is the default")

    def _learn(self, references: Activations) -> Rule[Activations]:
        rows = np.asarray(references.penultimate, dtype=np.float64)
        centre, scale = rows.mean(0), unit_scale(rows)
        machine = OneClassSVM(nu=self.nu, gamma="scale").fit((rows - centre) / scale)

        def rule(points: Activations) -> Floats:
            away: Floats = -machine.decision_function((points.penultimate - centre) / scale)
            return away

        return rule
