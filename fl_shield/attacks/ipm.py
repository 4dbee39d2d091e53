"""Inner product manipulation (IPM): a small step against what benign clients agree on."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import benign_statistics
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class InnerProductManipulation:
    """Uploads ``G - epsilon * mean`` of the benign updates; all malicious clients send the same.

    Attributes
    ----------
    epsilon : float
        Length of the step back against the benign mean, > 0. A small one (0.1) stays among the
        benign updates and gets past Krum. The plain mean of n clients, m of them malicious, turns
        round once ``epsilon * m > n - m``.

    References
    ----------
    Xie et al., "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation",
    UAI 2019, section 4.

    Examples
    --------
    >>> InnerProductManipulation(epsilon=0.1)
    InnerProductManipulation(epsilon=0.1)
    """

    epsilon: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(
                f"epsilon must be > 0 and finite, got {self.epsilon}; use the attack none for "
                "honest uploads"
            )

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model a step back from the global one."""
        benign = benign_statistics(context)
        return benign.craft({name: -self.epsilon * mean for name, mean in benign.mean.items()})
