"""A little is enough (ALIE): every parameter moves as far as benign clients' own spread hides."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import benign_statistics
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class ALittleIsEnough:
    """Uploads ``G + mean + z * std`` of the benign updates, coordinate by coordinate.

    All malicious clients send the same. The published code subtracts from gradients, which is the
    same direction. A lone attacker who has to estimate has one estimate, so std is 0 and
    the upload is honest: give it ``context.benign_uploads``.

    Attributes
    ----------
    z : float, optional
        Standard deviations to move by, >= 0. By default :func:`largest_hidden_z` of the clients
        of the round and its malicious ones; the experiments of the paper fix 1.5 (MNIST) and
        1 (CIFAR-10).

    References
    ----------
    Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS
    2019, algorithm 3 (preventing convergence). The deviation divides by n, as in its code.

    Examples
    --------
    >>> ALittleIsEnough(z=1.5)
    ALittleIsEnough(z=1.5)
    """

    z: float | None = None

    def __post_init__(self) -> None:
        if self.z is not None and not 0 <= self.z < float("inf"):
            raise ValueError(f"z must be finite and >= 0, or None for the formula, got {self.z}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the shifted benign mean."""
        n_malicious = max(1, len(context.peers))
        z = largest_hidden_z(context.n_clients, n_malicious) if self.z is None else self.z
        benign = benign_statistics(context)
        return benign.craft(
            {name: benign.mean[name] + z * benign.std[name] for name in benign.mean}
        )


def largest_hidden_z(n_clients: int, n_malicious: int) -> float:
    """Standard deviations that a majority of a round still lies beyond: z_max, >= 0.

    With n clients, m of them malicious, a majority needs ``s = floor(n / 2 + 1) - m`` benign
    supporters, and z_max is the normal quantile of ``(n - m - s) / (n - m)``. The paper takes
    m < n / 2 for granted, where one supporter or more is needed. Outside, where the formula is
    infinite, one supporter is kept; where it is negative (few attackers among few clients), it
    is 0: nothing can be hidden.

    Parameters
    ----------
    n_clients : int
        Clients of the round, n >= 1.
    n_malicious : int
        Malicious ones among them, m in 1 .. n.

    Examples
    --------
    >>> round(largest_hidden_z(50, 24), 2)
    1.43
    """
    if not 1 <= n_malicious <= n_clients:
        raise ValueError(
            f"n_malicious must be in 1 .. n_clients={n_clients}, got {n_malicious}; count the "
            "clients of this round"
        )
    n_benign = n_clients - n_malicious
    n_supporters = max(1, n_clients // 2 + 1 - n_malicious)
    if n_supporters >= n_benign:
        return 0.0
    return max(0.0, NormalDist().inv_cdf((n_benign - n_supporters) / n_benign))
