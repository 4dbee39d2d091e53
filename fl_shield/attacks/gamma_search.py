"""How far a crafted update may go from the benign mean and stay among the benign updates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.benign_statistics import BenignStatistics
from fl_shield.types import Floats

Direction = Literal["unit", "std", "sign"]
"""Away from the benign mean: against it, against the benign spread, or against its signs."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Squared L2 distances among n benign updates, and from ``mean + gamma * direction`` to each.

    Attributes
    ----------
    between : (n, n) float array
        Among the benign updates.
    from_mean : (n,) float array
        From their mean.
    slope : (n,) float array
        Inner product of the direction with ``mean - update``.
    square : float
        Squared norm of the direction.
    """

    between: Floats
    from_mean: Floats
    slope: Floats
    square: float

    def at(self, gamma: float) -> Floats:
        """Squared distances ``(n,)`` from ``mean + gamma * direction`` to each benign update."""
        return self.from_mean + 2 * gamma * self.slope + gamma**2 * self.square


def away_from_benign(benign: BenignStatistics, direction: Direction) -> dict[str, Floats]:
    """Direction of the perturbation by tensor: ``-mean / |mean|``, ``-std`` or ``-sign(mean)``.

    References
    ----------
    Shejwalkar and Houmansadr, NDSS 2021, section IV (perturbation vectors).
    """
    if direction == "std":
        return {name: -std for name, std in benign.std.items()}
    if direction == "sign":
        return {name: -np.sign(mean) for name, mean in benign.mean.items()}
    norm = np.sqrt(sum(float(np.square(mean).sum()) for mean in benign.mean.values()))
    return {name: -mean / norm if norm > 0 else mean for name, mean in benign.mean.items()}


def distances_along(benign: BenignStatistics, direction: Mapping[str, Floats]) -> Distances:
    """Sum up what every candidate's distances follow from, one tensor at a time.

    Parameters
    ----------
    benign : BenignStatistics
        The n benign updates and their mean.
    direction : mapping of str to float array
        Direction of the perturbation, by trainable tensor.
    """
    n = len(benign.uploads)
    products, slope, square = np.zeros((n, n)), np.zeros(n), 0.0
    for name, updates in benign.updates():
        residuals = (updates - benign.mean[name]).reshape(n, -1)
        flat = direction[name].ravel()
        products += residuals @ residuals.T
        slope -= residuals @ flat
        square += float(flat @ flat)
    own = np.diag(products)
    between = np.maximum(own[:, None] + own[None, :] - 2 * products, 0.0)
    np.fill_diagonal(between, 0.0)
    return Distances(between=between, from_mean=own.copy(), slope=slope, square=square)


def largest_gamma(
    is_allowed: Callable[[float], bool], gamma_init: float, tolerance: float
) -> float:
    """Largest strength that is allowed, by the published halving search, in ``[0, 2 gamma_init)``.

    Starts at ``gamma_init``, goes up after a success and down after a failure, by half of
    ``gamma_init`` first and half as much each time, until it is within ``tolerance`` of the last
    success (0 where there was none).

    Parameters
    ----------
    is_allowed : callable
        True up to some strength, False beyond.
    gamma_init, tolerance : float
        Where to start, and when to stop; > 0.

    References
    ----------
    Shejwalkar and Houmansadr, NDSS 2021, algorithm 1, with the first step of its code: half of
    it, as some copies have it, would never come below ``gamma_init / 2``.

    Examples
    --------
    >>> round(largest_gamma(lambda gamma: gamma <= 3.3, 10.0, 1e-5), 4)
    3.3
    """
    gamma, step, allowed = gamma_init, gamma_init / 2, 0.0
    while abs(allowed - gamma) > tolerance and step > 0:
        if is_allowed(gamma):
            allowed = gamma
            gamma += step
        else:
            gamma -= step
        step /= 2
    return allowed


def go_away(
    benign: BenignStatistics, direction: Mapping[str, Floats], gamma: float
) -> dict[str, NDArray[Any]]:
    """Return the upload ``G + mean + gamma * direction``."""
    update = {name: benign.mean[name] + gamma * direction[name] for name in benign.mean}
    return benign.craft(update)


def check_search(direction: str, gamma_init: float, tolerance: float) -> None:
    """Raise ValueError unless the settings of a search can work."""
    if direction not in get_args(Direction):
        known = ", ".join(get_args(Direction))
        raise ValueError(f"direction must be one of {known}, got {direction!r}")
    if not 0 < tolerance < gamma_init < float("inf"):
        raise ValueError(
            f"tolerance must be > 0 and below gamma_init, got {tolerance} and {gamma_init}"
        )
