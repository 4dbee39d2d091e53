"""Min-max and min-sum against a fine grid over the strength, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import nn

from fl_shield.attacks import MinMax, MinSum
from fl_shield.attacks.gamma_search import Direction, largest_gamma
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Attack, AttackContext, Samples, TrainingConfig

GLOBAL = {"weight": np.ones((1, 2), np.float32), "bias": np.ones(1, np.float32)}
Gamma = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], float]


def _context(uploads: tuple[Arrays, ...]) -> AttackContext:
    """An attacker who is told what benign clients upload."""
    nothing = Samples(x=np.zeros((0, 2), np.float32), y=np.zeros(0, np.int64))
    return AttackContext(
        model=nn.Linear(2, 1),
        global_arrays=GLOBAL,
        data=nothing,
        peers=(nothing,),
        trigger=default_trigger("patch", np.zeros((1, 1, 8, 8), np.float32)),
        target_label=0,
        training=TrainingConfig(),
        n_clients=10,
        rng=np.random.default_rng(0),
        benign_uploads=uploads,
    )


def _upload(a: float, b: float, c: float) -> dict[str, NDArray[Any]]:
    """The upload whose update is (a, b) on the weight and c on the bias."""
    weight, bias = np.array([[1 + a, 1 + b]], np.float32), np.array([1 + c], np.float32)
    return {"weight": weight, "bias": bias}


def _update(arrays: Arrays) -> NDArray[Any]:
    return np.concatenate([(arrays[n] - a).ravel() for n, a in GLOBAL.items()]).astype(float)


def _random_uploads(n: int, seed: int) -> tuple[Arrays, ...]:
    rng = np.random.default_rng(seed)
    return tuple(_upload(*(rng.normal(0.3, 1.0, size=3))) for _ in range(n))


def _grid_gamma(is_allowed: Callable[[float], bool], step: float = 1e-3) -> float:
    """Largest allowed strength on a fine grid, walking up from 0."""
    gamma = 0.0
    while gamma < 20 and is_allowed(gamma + step):
        gamma += step
    return gamma


def _min_max_by_grid(benign: NDArray[Any], mean: NDArray[Any], away: NDArray[Any]) -> float:
    limit = cdist(benign, benign).max()
    return _grid_gamma(lambda g: bool(cdist(benign, [mean + g * away]).max() <= limit))


def _min_sum_by_grid(benign: NDArray[Any], mean: NDArray[Any], away: NDArray[Any]) -> float:
    limit = max(sum(np.sum((a - b) ** 2) for b in benign) for a in benign)
    return _grid_gamma(
        lambda g: bool(sum(np.sum((mean + g * away - b) ** 2) for b in benign) <= limit)
    )


DIRECTIONS: Mapping[Direction, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "unit": lambda benign: -benign.mean(axis=0) / np.linalg.norm(benign.mean(axis=0)),
    "std": lambda benign: -np.sqrt(benign.var(axis=0)),
    "sign": lambda benign: -np.sign(benign.mean(axis=0)),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("make", "by_grid"), [(MinMax, _min_max_by_grid), (MinSum, _min_sum_by_grid)]
)
def test_the_halving_search_finds_the_strength_of_a_fine_grid(
    make: Callable[..., Attack], by_grid: Gamma, direction: Direction
) -> None:
    for seed, n in ((0, 2), (1, 5), (2, 9)):
        uploads = _random_uploads(n, seed)
        benign = np.array([_update(u) for u in uploads])
        mean, away = benign.mean(axis=0), DIRECTIONS[direction](benign)
        gamma = by_grid(benign, mean, away)
        assert gamma > 0.1
        crafted = _update(make(direction=direction)(_context(uploads)))
        found = (crafted - mean) @ away / (away @ away)
        assert found == pytest.approx(gamma, abs=1.1e-3)
        np.testing.assert_allclose(crafted, mean + found * away, atol=1e-5)


def test_min_max_and_min_sum_by_hand() -> None:
    """Updates 0 and 4 on one weight: mean 2, unit direction -1.

    Min-max: the farther one (4) may be 4 away, so gamma = 2 and the update is 0. Min-sum:
    (2 - g)^2 + (2 + g)^2 = 8 + 2 g^2 may be 16, so g = 2 as well. With 0, 0 and 3: mean 1; the
    farther (3) 3 away, g = 1; sums 9 and 18: 2 (1 - g)^2 + (2 + g)^2 = 6 + 3 g^2 = 18, g = 2.
    With -3.9 and 4.1 g = 4, forty times the length of the mean: the direction has length 1.
    """
    two = (_upload(0, 0, 0), _upload(4, 0, 0))
    three = (_upload(0, 0, 0), _upload(0, 0, 0), _upload(3, 0, 0))
    wide = (_upload(-3.9, 0, 0), _upload(4.1, 0, 0))
    cases = (
        (MinMax(), wide, -3.9),
        (MinMax(), two, 0),
        (MinSum(), two, 0),
        (MinMax(), three, 0),
        (MinSum(), three, -1),
    )
    for attack, uploads, expected in cases:
        np.testing.assert_allclose(_update(attack(_context(uploads))), [expected, 0, 0], atol=1e-4)


@pytest.mark.parametrize("limit", [0.0, 1e-3, 0.7, 4.9, 5.1, 9.99, 10.0, 13.7, 19.9])
def test_the_search_reaches_everything_from_zero_to_twice_its_start(limit: float) -> None:
    """Copies whose first step is a quarter of the start never come below half of it."""
    found = largest_gamma(lambda gamma: gamma <= limit, 10.0, 1e-5)
    assert limit - 2e-5 <= found <= limit
    assert largest_gamma(lambda gamma: True, 10.0, 1e-5) == pytest.approx(20, abs=2e-5)


def test_equal_benign_updates_leave_min_max_nowhere_to_go() -> None:
    same = (_upload(1, 2, 3),) * 3
    for attack in (MinMax(), MinSum(), MinMax(direction="std"), MinSum(direction="sign")):
        np.testing.assert_allclose(_update(attack(_context(same))), [1, 2, 3], atol=1e-4)
