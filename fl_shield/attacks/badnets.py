"""Data poisoning: honest training on a mix of clean and triggered examples."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.local import check_n_epochs, train_local
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class BadNets:
    """Trains on poisoned data and uploads what comes out.

    Attributes
    ----------
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Gu et al., "BadNets", IEEE Access 2019; poison rate 0.5 as in Zhuang et al., ICLR 2024.
    """

    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the arrays trained on the mix."""
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        return train_local(context, mix, n_epochs=self.n_epochs)
