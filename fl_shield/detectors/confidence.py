"""The null column: how sure the model is of its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from fl_shield.activations import Activations
from fl_shield.detectors.contract import OnePass, Rule
from fl_shield.types import Floats


def confidence_log_odds(logits: Floats) -> Floats:
    """Log-odds of the largest softmax probability of logits (n, n_classes), shape (n,).

    The order of points is that of the probability itself, but certain answers do not tie at 1.

    Examples
    --------
    >>> confidence_log_odds(np.log([[0.5, 0.25, 0.25]])).tolist()
    [0.0]
    """
    rising = np.sort(np.asarray(logits, dtype=np.float64), axis=1)
    if rising.shape[1] < 2:
        return np.zeros(len(rising))
    odds: Floats = rising[:, -1] - logsumexp(rising[:, :-1], axis=1)
    return odds


@dataclass(kw_only=True, eq=False)
class Confidence(OnePass):
    """Suspects answers of high confidence; a detector has to beat this to have found anything.

    References
    ----------
    D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017, section 3; as a null model of backdoor detectors it
    takes the other sign.

    Examples
    --------
    >>> logits = np.array([[0.0, 1], [0, 2], [1, 0], [3, 0], [0, 9]])
    >>> seen = Activations(layers={"head": logits}, logits=logits)
    >>> Confidence().fit(seen.take(slice(0, 4))).score(seen.take(slice(4, 5))).tolist()
    [9.0]
    """

    def _learn(self, references: Activations) -> Rule[Activations]:
        return lambda points: confidence_log_odds(points.logits)
