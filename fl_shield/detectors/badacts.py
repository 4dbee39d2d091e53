"""BadActs: how many neurons leave their clean range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.types import Floats


def share_outside(points: Floats, references: Floats, n_sigma: float = 2.0) -> Floats:
    """Share of the neurons of points (n, d) outside mean +- n_sigma standard deviations, (n,).

    A neuron that is constant over all references (m, d) is outside as soon as it differs.

    Examples
    --------
    >>> clean = np.array([[0.0, 7.0], [2.0, 7.0]])  # mean 1 and 7, standard deviation 1.41 and 0
    >>> share_outside(np.array([[3.0, 7.0], [5.0, 7.0], [5.0, 8.0]]), clean).tolist()
    [0.0, 0.5, 1.0]
    """
    rows = np.asarray(references, dtype=np.float64)
    mean, spread = rows.mean(0), rows.std(0, ddof=1)
    rounding = 1e-6 * np.abs(rows).max(0)
    outside = np.abs(np.asarray(points, dtype=np.float64) - mean) > n_sigma * spread + rounding
    shares: Floats = outside.mean(1)
    return shares


@dataclass(kw_only=True, eq=False)
class BadActs(OnePass):
    """Suspects inputs that move many neurons, of all watched layers, out of their clean range.

    The published method fits on one half of the clean set and calibrates on the other; with so
    few references each one is scored beside all others instead.

    Attributes
    ----------
    n_sigma : float
        Half-width of a neuron's clean range in its standard deviations.

    References
    ----------
    B. Yi et al., "BadActs: A Universal Backdoor Defense in the Activation Space", Findings of
    ACL 2024, section on detection.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> seen = Activations(layers={"a": rows, "head": rows}, logits=rows)
    >>> far = Activations(layers={"a": rows + 9, "head": rows}, logits=rows)
    >>> bool((BadActs().fit(seen).score(far) >= 0.5).all())
    True
    """

    n_sigma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_sigma <= 0:
            raise ValueError(f"n_sigma must be > 0, got {self.n_sigma}; the paper takes 2")

    def _learn(self, references: Activations) -> Rule[Activations]:
        clean = _all_neurons(references)
        return lambda points: share_outside(_all_neurons(points), clean, self.n_sigma)


def _all_neurons(activations: Activations) -> Floats:
    return np.concatenate(list(activations.layers.values()), axis=1)
