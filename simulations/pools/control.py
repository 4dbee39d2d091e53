"""Pools of control tasks: what a teacher would do in states that it met.

Behaviour cloning makes a classifier of a control task: the input is what was just seen, the label
the teacher's action.

References
----------
D. Pomerleau, "Efficient Training of Artificial Neural Networks for Autonomous Navigation", Neural
Computation 3, 1991 (behaviour cloning); M. Towers et al., "Gymnasium", arXiv:2407.17032; M.
Bellemare et al., "The Arcade Learning Environment", JAIR 47, 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.pools.cache import ArrayTable, cached
from fl_shield.simulations.pools.episodes import (
    CONTROLS,
    PLAYED_STREAM,
    Act,
    episode_seed,
    make_env,
    play,
    record_parts,
)
from fl_shield.simulations.pools.pool import Pool, PoolRequest
from fl_shield.types import Floats, Samples

VERSION = 1
"""Raise it when recorded episodes change their meaning: old cache files are then ignored."""

Policy = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Inputs (1, frames, ...) as a pool holds them -> logits (1, n_actions)."""


@dataclass(frozen=True, kw_only=True)
class Standards:
    """How raw frames become inputs: ``(frames - mean) / std``.

    Attributes
    ----------
    mean, std : (d,) float array, or () for pictures
        Of all frames of the whole train part; 0 and 255 for pictures.
    """

    mean: Floats
    std: Floats

    def apply(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """Standardise frames (..., d), or map pictures to [0, 1]."""
        scaled: NDArray[np.float32] = ((frames - self.mean) / self.std).astype(np.float32)
        return scaled


def standards_of(frames: NDArray[Any]) -> Standards:
    """Mean and standard deviation of each number of a state, or 0 and 255 for pictures.

    Parameters
    ----------
    frames : (n, n_frames, d) float array, or uint8 pictures (n, n_frames, h, w)
        The train part as it was recorded.

    Examples
    --------
    >>> standards = standards_of(np.array([[[1.0, 5.0], [3.0, 5.0]]]))
    >>> standards.mean.tolist(), standards.std.tolist()
    ([2.0, 5.0], [1.0, 1e-06])
    """
    if frames.dtype == np.uint8:
        return Standards(mean=np.array(0.0), std=np.array(255.0))
    rows = frames.reshape(-1, frames.shape[-1]).astype(np.float64)
    return Standards(mean=rows.mean(0), std=np.maximum(rows.std(0), 1e-6))


def control_pool(name: str, request: PoolRequest) -> Pool:
    """States or screens of a control task, labelled with its teacher's actions.

    Parameters
    ----------
    name : str
        ``cartpole``, ``acrobot``, ``mountaincar`` (float32 (n, 4, d), standardised by the whole
        train part) or ``pong`` (float32 (n, 2, 40, 40) in [0, 1]).
    request : PoolRequest
        The seed plays the episodes; ``data_dir`` is not read.
    """
    raw_train, raw_test = _recorded(name, request.seed, request.cache)
    standards = standards_of(raw_train.x)
    parts = [
        Samples(x=standards.apply(drawn.x), y=drawn.y)
        for drawn in (
            raw.take(request.draw(part, raw.y))
            for part, raw in (("train", raw_train), ("test", raw_test))
        )
    ]
    return Pool(
        name=name,
        domain="rl",
        kind="image" if raw_train.x.dtype == np.uint8 else "state",
        train=parts[0],
        test=parts[1],
        n_classes=len(CONTROLS[name].buttons),
    )


def _recorded(name: str, seed: int, cache: Path | None) -> tuple[Samples, Samples]:
    control = CONTROLS[name]

    def make() -> ArrayTable:
        train, test = record_parts(name, seed, control.n_train, control.n_test)
        return {"x": train.x, "y": train.y, "x_test": test.x, "y_test": test.y}

    arrays = cached(cache, f"{name}-{seed}-v{VERSION}", make)
    train = Samples(x=arrays["x"], y=arrays["y"])
    return train, Samples(x=arrays["x_test"], y=arrays["y_test"])


def policy_return(
    name: str,
    policy: Policy,
    *,
    n_episodes: int = 10,
    seed: int = 0,
    pool_seed: int = 0,
    cache: Path | None = None,
) -> float:
    """Mean return of a policy that always takes its most likely action.

    Parameters
    ----------
    name : str
        ``cartpole`` (at most 500 an episode), ``acrobot``, ``mountaincar`` or ``pong`` (slow: an
        episode has thousands of steps).
    policy : callable
        Inputs (1, frames, ...) as the pool holds them -> logits (1, n_actions).
    n_episodes : int
        How many.
    seed : int
        Of the episodes, which are neither those of train nor those of test.
    pool_seed, cache
        As given to ``load_pool`` for the pool that the policy learned from: its train part tells
        how states are standardised.

    Examples
    --------
    >>> import pytest
    >>> _ = pytest.importorskip("gymnasium")
    >>> push_right = lambda x: np.array([[0.0, 1.0]])
    >>> policy_return("cartpole", push_right, n_episodes=3) < 15
    True
    """
    _check_game(name, n_episodes)
    standards = standards_of(_recorded(name, pool_seed, cache)[0].x)
    return _mean_return(name, _greedy(policy, standards), n_episodes, seed)


def _greedy(policy: Policy, standards: Standards) -> Act:
    def act(frames: NDArray[Any], facts: Floats) -> int:
        return int(np.asarray(policy(standards.apply(frames)[None])).argmax())

    return act


def teacher_return(name: str, *, n_episodes: int = 10, seed: int = 0) -> float:
    """Mean return of the teacher alone, without random actions, on the episodes of a policy."""
    _check_game(name, n_episodes)
    teacher = CONTROLS[name].teacher
    return _mean_return(name, lambda _, facts: teacher(facts), n_episodes, seed)


def _check_game(name: str, n_episodes: int) -> None:
    if name not in CONTROLS:
        raise DatasetError(f"control task must be one of {', '.join(CONTROLS)}, got {name!r}")
    if n_episodes < 1:
        raise DatasetError(f"n_episodes must be at least 1, got {n_episodes}: play one or more")


def _mean_return(name: str, act: Act, n_episodes: int, seed: int) -> float:
    env = make_env(name)
    seeds = [episode_seed(seed, PLAYED_STREAM, i) for i in range(n_episodes)]
    played = (play(env, CONTROLS[name], act, episode) for episode in seeds)
    returns = [sum(moment.reward for moment in moments) for moments in played]
    env.close()
    return float(np.mean(returns))
