"""Everything the shipped detector learns from, as a list of sources, simulated once and cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from fl_shield.errors import ScenarioError
from fl_shield.meta import Episode
from fl_shield.simulations.episodes.cache import key_of, load_episodes, save_episodes
from fl_shield.simulations.episodes.calm import calm_settings
from fl_shield.simulations.episodes.rounds import (
    FederationSetting,
    draw_setting,
    simulate_federation,
)
from fl_shield.simulations.episodes.victims import VictimSetting, draw_victim, simulate_victim
from fl_shield.types import Representation

N_CALM_ROUNDS = 24
"""Rounds of an attack-free federation."""

Source = FederationSetting | VictimSetting


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How much is simulated of each kind.

    Attributes
    ----------
    n_victims : int
        Digits victims.
    n_digits, n_glyphs : int
        Federations of each data set.
    n_rounds : int
        Attacked rounds of each federation; every one is attacked in five ways and none.
    seed : int
    representation : {"profile", "pca"}
        What the detector reads of a view.
    """

    n_victims: int = 300
    n_digits: int = 16
    n_glyphs: int = 44
    n_rounds: int = 3
    seed: int = 0
    representation: Representation = "profile"

    def __post_init__(self) -> None:
        for name in ("n_victims", "n_digits", "n_glyphs", "seed"):
            if getattr(self, name) < 0:
                raise ScenarioError(f"{name} must be >= 0, got {getattr(self, name)}")
        n_sources = self.n_victims + self.n_digits + self.n_glyphs
        if self.n_rounds < 1 or n_sources < 2:
            raise ScenarioError(
                f"meta-training needs at least 2 sources and 1 round of each, got {n_sources} and "
                f"{self.n_rounds}; ask for more victims or federations"
            )

    def calm_settings(self) -> list[FederationSetting]:
        """Attack-free federations that the null distribution of updates is taken from."""
        return calm_settings(
            -(-self.n_glyphs // 8), -(-self.n_digits // 8), N_CALM_ROUNDS, self.seed
        )

    def sources(self) -> list[Source]:
        """Every source, the slow ones first."""
        first = self.seed * 100_000
        federations = [("glyphs", i) for i in range(self.n_glyphs)]
        federations += [("digits", i) for i in range(self.n_digits)]
        drawn: list[Source] = [draw_setting(d, first + i, self.n_rounds) for d, i in federations]
        drawn += [draw_victim(first + i) for i in range(self.n_victims)]
        return [replace(source, representation=self.representation) for source in drawn]


def path_of(source: Source, cache: Path) -> Path:
    """Where the episodes of a source are cached."""
    return cache / f"{key_of(source.manifest())}.npz"


def simulate(source: Source, cache: Path) -> Path:
    """Simulate one source unless its episodes are cached already."""
    path = path_of(source, cache)
    if not path.exists():
        torch.set_num_threads(1)
        if isinstance(source, FederationSetting):
            save_episodes(path, list(simulate_federation(source)))
        else:
            save_episodes(path, simulate_victim(source))
    return path


def simulate_all(sources: Sequence[Source], cache: Path, n_workers: int = 1) -> Iterator[Source]:
    """Simulate what is not cached yet, in processes, and yield each source as it is done."""
    waiting = [s for s in sources if not path_of(s, cache).exists()]
    yield from (s for s in sources if path_of(s, cache).exists())
    if n_workers <= 1:
        for source in waiting:
            simulate(source, cache)
            yield source
        return
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(simulate, source, cache): source for source in waiting}
        for future in as_completed(pending):
            future.result()
            yield pending[future]


def load_all(sources: Sequence[Source], cache: Path) -> list[list[Episode]]:
    """Episodes of each source, from the cache."""
    return [load_episodes(path_of(source, cache)) for source in sources]
