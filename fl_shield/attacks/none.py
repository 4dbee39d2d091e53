"""No attack: honest local training, the reference of every other attack."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.local import train_local
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class NoAttack:
    """Trains on the client's own clean examples and uploads the result."""

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the honestly trained arrays."""
        return train_local(context, context.data)
