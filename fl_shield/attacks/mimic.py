"""Mimic: all malicious clients copy one benign client, and so over-represent it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import BenignStatistics, benign_statistics
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class Mimic:
    """Uploads what one benign client uploads: the one farthest along the benign updates' main axis.

    No update can be told from a benign one; where clients differ in what they hold, the
    aggregate drifts to the copied one. Where the malicious clients have to estimate, all copy the
    honest model of one of them; a lone attacker then just is honest.

    References
    ----------
    Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR
    2022, section 4 and appendix B (mimic). There the axis is learned over a number of rounds and
    the copied client then stays the same; here both come from the round at hand, since an attack
    keeps no state. The absolute projection is compared, as in the paper; its code compares the
    projection itself, whose sign is that of a random start.

    Examples
    --------
    >>> Mimic()
    Mimic()
    """

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return a copy of the chosen upload, tensor by tensor."""
        benign = benign_statistics(context)
        upload = benign.uploads[most_extreme(benign)]
        return {name: np.array(upload[name]) for name in context.global_arrays}


def most_extreme(benign: BenignStatistics) -> int:
    """Index of the benign update with the largest projection on their first principal axis.

    The axis z maximises ``z' sum_i (u_i - mean)(u_i - mean)' z``; the projection is ``|z' u_i|``.
    Equal ones (and updates that are all the same) go to the first.
    """
    n = len(benign.uploads)
    products, along_mean = np.zeros((n, n)), np.zeros(n)
    for name, updates in benign.updates():
        residuals = (updates - benign.mean[name]).reshape(n, -1)
        products += residuals @ residuals.T
        along_mean += residuals @ benign.mean[name].ravel()
    # z = residuals' a / sqrt(value), from the small (n, n) side of the decomposition
    axis = np.linalg.eigh(products)[1][:, -1]
    return int(np.argmax(np.abs(products @ axis + along_mean @ axis)))
