"""Gaussian noise: an upload that has learned nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import BenignStatistics, benign_statistics
from fl_shield.types import AttackContext, Floats


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Uploads the global model plus independent normal noise on every trainable tensor.

    Each malicious client draws its own.

    Attributes
    ----------
    std : float, optional
        Standard deviation of the noise, > 0: the attack as published, with 200 (a variance of
        40,000). By default each parameter's noise is as large as what benign clients change it
        by (:func:`benign_spread`), so that its norm is theirs.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, section 5 (Gaussian workers). A spread estimated from honest models: Fang et
    al., USENIX Security 2020, section 4.1, there around their mean.

    Examples
    --------
    >>> GaussianNoise(std=0.1)
    GaussianNoise(std=0.1)
    """

    std: float | None = None

    def __post_init__(self) -> None:
        if self.std is not None and not 0 < self.std < float("inf"):
            raise ValueError(
                f"std must be > 0 and finite, or None for that of benign updates, got {self.std}"
            )

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the noisy global model."""
        benign = benign_statistics(context)
        noise = {}
        for name, spread in benign_spread(benign).items():
            scale = spread if self.std is None else self.std
            noise[name] = scale * context.rng.standard_normal(spread.shape)
        return benign.craft(noise)


def benign_spread(benign: BenignStatistics) -> dict[str, Floats]:
    """Root mean square of each coordinate of the benign updates: their deviation around G.

    Around G and not around their own mean, so that one benign update has a spread too.
    """
    return {name: np.sqrt(benign.mean[name] ** 2 + benign.std[name] ** 2) for name in benign.names}
