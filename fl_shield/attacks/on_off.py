"""On-off: an attacker who earns trust in some rounds and spends it in others."""

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fl_shield.attacks.model_replacement import ModelReplacement
from fl_shield.attacks.none import NoAttack
from fl_shield.types import Attack, AttackContext


@dataclass(frozen=True, kw_only=True)
class OnOff:
    """Attacks in the first rounds of every period and trains honestly in the others.

    Attributes
    ----------
    inner : Attack
        What it does when it attacks.
    period : int
        Rounds after which the pattern repeats, >= 1; counted from round 1.
    duty : float
        Share of a period's rounds that it attacks in, in (0, 1]: the nearest whole number of
        rounds, and at least one.

    References
    ----------
    Sun, Han and Liu, "Defense of Trust Management Vulnerabilities in Distributed Networks", IEEE
    Communications Magazine 2008 (on-off attack), with an attack on learning inside.

    Examples
    --------
    >>> [OnOff(period=4, duty=0.5).attacks_in(server_round) for server_round in range(1, 6)]
    [True, True, False, False, True]
    """

    inner: Attack = field(default_factory=ModelReplacement)
    period: int = 2
    duty: float = 0.5

    def __post_init__(self) -> None:
        if self.period < 1 or self.period != int(self.period):
            raise ValueError(f"period must be a whole number >= 1, got {self.period}")
        if not 0 < self.duty <= 1:
            raise ValueError(
                f"duty must be in (0, 1], got {self.duty}; use the attack none for honest uploads"
            )

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the inner attack's upload, or the honest one."""
        attack = self.inner if self.attacks_in(context.server_round) else NoAttack()
        return attack(context)

    def attacks_in(self, server_round: int) -> bool:
        """Whether it attacks in a round, counted from 1."""
        n_on = max(1, int(self.duty * self.period + 0.5))
        return (server_round - 1) % self.period < n_on
