"""Federated rounds as meta-learning tasks: simulated once in processes, cached, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from fl_shield.meta import Episode
from fl_shield.simulations.episodes.cache import key_of, load_episodes, save_episodes
from fl_shield.simulations.episodes.rounds import FederationSetting, simulate_federation
from fl_shield.simulations.processes import HERE, Workers, as_done


def path_of(setting: FederationSetting, cache: Path) -> Path:
    """Where the episodes of a federation are cached."""
    return cache / f"{key_of(setting.manifest())}.npz"


def simulate(setting: FederationSetting, cache: Path) -> Path:
    """Simulate one federation unless its episodes are cached already."""
    path = path_of(setting, cache)
    if not path.exists():
        torch.set_num_threads(1)
        save_episodes(path, list(simulate_federation(setting)))
    return path


def simulate_all(
    settings: Sequence[FederationSetting], cache: Path, workers: Workers = HERE
) -> Iterator[FederationSetting]:
    """Simulate what is not cached yet, and yield each setting as it is done."""
    waiting = [s for s in settings if not path_of(s, cache).exists()]
    yield from (s for s in settings if path_of(s, cache).exists())
    yield from as_done(partial(_simulated, cache=cache), waiting, workers)


def _simulated(setting: FederationSetting, cache: Path) -> FederationSetting:
    simulate(setting, cache)
    return setting


def load_all(settings: Sequence[FederationSetting], cache: Path) -> list[list[Episode]]:
    """Episodes of each federation, from the cache."""
    return [load_episodes(path_of(setting, cache)) for setting in settings]
