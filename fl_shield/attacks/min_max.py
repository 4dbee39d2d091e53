"""Min-max: as far from the benign mean as the two benign updates farthest apart allow."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import benign_statistics
from fl_shield.attacks.gamma_search import (
    Direction,
    Distances,
    away_from_benign,
    check_search,
    distances_along,
    go_away,
    largest_gamma,
)
from fl_shield.types import AttackContext


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """Uploads ``G + mean + gamma * direction``, with the largest gamma that stays hidden.

    Hidden: its largest distance to a benign update is at most the largest distance between
    two of them.

    All malicious clients send the same. With one benign update to go by (a lone attacker who has
    to estimate) gamma is 0 and the upload is honest: give it ``context.benign_uploads``.

    Attributes
    ----------
    direction : {"unit", "std", "sign"}
        Where to go: ``-mean / |mean|``, ``-std`` or ``-sign(mean)`` of the benign updates.
    gamma_init, tolerance : float
        Where the halving search starts and when it stops; it reaches at most twice the former.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021, section IV (AGR-agnostic attacks).

    Examples
    --------
    >>> MinMax(direction="std").gamma_init
    10.0
    """

    direction: Direction = "unit"
    gamma_init: float = 10.0
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_search(self.direction, self.gamma_init, self.tolerance)

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the benign mean, pushed away as far as it goes."""
        benign = benign_statistics(context)
        direction = away_from_benign(benign, self.direction)
        distances = distances_along(benign, direction)
        return go_away(benign, direction, self.gamma(distances))

    def gamma(self, distances: Distances) -> float:
        """Largest strength that the rule allows."""
        limit = float(distances.between.max())
        return largest_gamma(
            lambda gamma: float(distances.at(gamma).max()) <= limit, self.gamma_init, self.tolerance
        )
