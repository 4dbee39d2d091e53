"""All recordings of a population: simulated in processes, cached, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import torch

from fl_shield.simulations.episodes.cache import key_of
from fl_shield.simulations.episodes.clean_models import Workplace, recipe_of
from fl_shield.simulations.episodes.pool_facts import POOLS
from fl_shield.simulations.episodes.population import VictimSetting
from fl_shield.simulations.episodes.recording import Recording, load_recording, save_recording
from fl_shield.simulations.episodes.victims import simulate_victims
from fl_shield.simulations.processes import HERE, Workers, as_done

SEQUENCES = "extreme, peak, mean"
"""How sequences are read: change it with :func:`fl_shield.activations.pooled_ways`, and recordings
of networks that say one row a step are made again."""


def recording_path(setting: VictimSetting, place: Workplace) -> Path:
    """Where the recording of a victim is kept: by its setting, how it is trained and how read."""
    kind = POOLS[setting.pool].kind
    made = {**setting.manifest(), **asdict(recipe_of(setting.pool, setting.architecture))}
    if kind == "text" or setting.architecture == "vit":
        made["sequences"] = SEQUENCES
    return place.cache / "recordings" / f"{key_of(made, ())}.npz"


def groups_of(settings: Sequence[VictimSetting]) -> list[list[VictimSetting]]:
    """Victims that can train stacked, in groups of as many networks as their recipe names.

    Those of one data set follow each other, so that a process seldom loads another.
    """

    def alike(s: VictimSetting) -> tuple[str, str, str, bool]:
        return s.pool, s.architecture, s.start, s.evaluation

    found = []
    for _, group in groupby(sorted(settings, key=alike), key=alike):
        networks: dict[tuple[VictimSetting, ...], list[VictimSetting]] = {}
        for setting in group:
            networks.setdefault(setting.network(), []).append(setting)
        first = next(iter(networks))[0]
        size = recipe_of(first.pool, first.architecture).n_together
        members = list(networks.values())
        found += [list(chain(*members[i : i + size])) for i in range(0, len(members), size)]
    return found


def simulate_group(settings: Sequence[VictimSetting], place: Workplace) -> int:
    """Simulate and save one group; says how many victims it had."""
    torch.set_num_threads(1)
    for setting, recording in zip(settings, simulate_victims(settings, place), strict=True):
        save_recording(recording_path(setting, place), recording)
    return len(settings)


def simulate_population(
    settings: Sequence[VictimSetting], place: Workplace, workers: Workers = HERE
) -> Iterator[int]:
    """Simulate what is not recorded yet; yields numbers of victims done, those on disk first."""
    waiting = [s for s in settings if not recording_path(s, place).exists()]
    yield len(settings) - len(waiting)
    yield from as_done(partial(simulate_group, place=place), groups_of(waiting), workers)


def load_population(settings: Sequence[VictimSetting], place: Workplace) -> list[Recording]:
    """Load the recordings of a population that has been simulated."""
    return [load_recording(recording_path(setting, place)) for setting in settings]
