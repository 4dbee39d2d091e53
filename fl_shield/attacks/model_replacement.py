"""Model replacement: a poisoned update, scaled up so that it survives the average."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.local import check_n_epochs
from fl_shield.attacks.poisoning import check_poison_rate
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class ModelReplacement:
    """Uploads ``G + scale * (X - G)``, X trained on the mix from the global model G.

    Only floating tensors are scaled; integer ones, such as batch counters, are those of X.

    Attributes
    ----------
    scale : float, optional
        Boost of the update, > 0. By default the clients of the round over its malicious ones,
        so that the plain average lands near X: with one attacker the paper's n / eta, at server
        learning rate eta = 1; several who each took n would overshoot together.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section 4.2, eq. 3.
    """

    scale: float | None = None
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale must be > 0, or None to share n_clients, got {self.scale}")
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the scaled poisoned model."""
        poisoned = BadNets(poison_rate=self.poison_rate, n_epochs=self.n_epochs)(context)
        shared = context.n_clients / max(1, len(context.peers))
        scale = shared if self.scale is None else self.scale
        return move(context.global_arrays, poisoned, scale)
