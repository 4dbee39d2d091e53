"""Sign flip: an untargeted attack that pushes the model away from where training goes."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import train_local
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class SignFlip:
    """Uploads ``G - scale * (honest - G)``: the honest update, turned round.

    Attributes
    ----------
    scale : float
        Length of the flipped update against the honest one, > 0. With 4, one attacker cancels
        four honest clients.

    References
    ----------
    Li et al., "RSA: Byzantine-Robust Stochastic Aggregation", AAAI 2019, section 5.
    """

    scale: float = 4.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the flipped model; integer tensors stay honest."""
        honest = train_local(context, context.data)
        return move(context.global_arrays, honest, -self.scale)
