"""Pools of control tasks, and what a policy that learned from one is worth.

See :mod:`fl_shield.simulations.datasets.behaviour` for the examples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.behaviour import (
    Standards,
    control_parts,
    recorded,
    standards_of,
)
from fl_shield.simulations.datasets.episodes import (
    CONTROLS,
    PLAYED_STREAM,
    Act,
    episode_seed,
    make_env,
    play,
)
from fl_shield.simulations.datasets.parts import PartsRequest
from fl_shield.simulations.pools.pool import Pool
from fl_shield.types import Floats

Policy = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Inputs (1, frames, ...) as a pool holds them -> logits (1, n_actions)."""


def control_pool(name: str, request: PartsRequest) -> Pool:
    """States or screens of a control task, labelled with its teacher's actions.

    Parameters
    ----------
    name, request
        As in :func:`~fl_shield.simulations.datasets.behaviour.control_parts`.
    """
    parts = control_parts(name, request)
    return Pool(
        name=name,
        domain="rl",
        kind="image" if parts.train.x.ndim == 4 else "state",
        train=parts.train,
        test=parts.test,
        n_classes=parts.n_classes,
    )


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
    standards = standards_of(recorded(name, pool_seed, cache)[0].x)
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
