"""Backdoored classifiers, trained many at once, and what they say of clean and triggered inputs.

A victim is trained on its data set with triggered copies appended, from a draw of its own or from a
clean model of the same network (a *warm start*). Its references and clean points come from data it
never saw. Triggered points count where they reach the label that the attacker wants: a trigger that
misses does no harm and leaves no mark.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.activations import read_activations
from fl_shield.attacks import attackable, wanted_labels
from fl_shield.detectors import DETECTORS, MULTI_PASS
from fl_shield.errors import ShieldError
from fl_shield.simulations.episodes.clean_models import (
    WEIGHT_DECAY,
    Workplace,
    pool_of,
    recipe_of,
    training_device,
)
from fl_shield.simulations.episodes.planting import Victim, plant
from fl_shield.simulations.episodes.population import VictimSetting
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import reference_index
from fl_shield.simulations.pools import Pool
from fl_shield.simulations.victims.stacked import train_stacked
from fl_shield.stages import find_stages
from fl_shield.training import logits_of
from fl_shield.triggers import visibility
from fl_shield.types import Flags, Floats, Ints, Samples

N_REFERENCES = 50
N_CLEAN = 100
N_TRIGGERED = 60
N_JUDGED = 400
"""Test examples that attack success is taken from."""

PEER_SHOTS = (20,)
"""Clean inputs that detectors of several passes are given."""


def train_victims(
    settings: Sequence[VictimSetting], place: Workplace, longer: float = 1.0
) -> list[Victim]:
    """Train victims of one data set, kind of network and start together.

    Backdoors of one network come from one training: their victims share the model.

    Parameters
    ----------
    settings : sequence of VictimSetting
        Alike in ``pool``, ``architecture``, ``start`` and ``evaluation``.
    place : Workplace
    longer : float
        Factor of the recipe's steps.
    """
    pool = pool_of(settings[0].pool, place)
    recipe = recipe_of(pool.name, settings[0].architecture)
    warm = settings[0].start == "warm"
    networks = dict.fromkeys(setting.network() for setting in settings)
    planted = [plant(network, pool, place) for network in networks]
    firsts = [victims[0] for victims in planted]
    n_steps = recipe.n_warm_steps if warm else recipe.n_steps
    train_stacked(
        [v.model for v in firsts],
        [v.training for v in firsts],
        [v.rng for v in firsts],
        n_steps=round(longer * n_steps),
        batch_size=recipe.batch_size,
        lr=recipe.warm_lr if warm else recipe.lr,
        weight_decay=WEIGHT_DECAY,
        half=recipe.half,
        device=training_device(),
    )
    trained = {victim.setting: victim for victims in planted for victim in victims}
    return [trained[setting] for setting in settings]


def simulate_victims(settings: Sequence[VictimSetting], place: Workplace) -> list[Recording]:
    """Train victims that are alike together, and record each; see :func:`train_victims`."""
    started = time.perf_counter()
    victims = train_victims(settings, place)
    seconds = (time.perf_counter() - started) / len(victims)
    pool = pool_of(settings[0].pool, place)
    return [record(victim, pool, seconds) for victim in victims]


def record(victim: Victim, pool: Pool, seconds: float) -> Recording:
    """Run a victim over clean and stamped test inputs and keep its activations.

    Parameters
    ----------
    victim : Victim
    pool : Pool
    seconds : float
        What its training took.
    """
    setting, model = victim.setting, victim.model
    test = pool.test.take(victim.rng.permutation(len(pool.test)))
    references, clean, rest = _parts(test, (N_REFERENCES, N_CLEAN, N_JUDGED))
    open_to = attackable(rest.y, setting.target_label, setting.scheme)
    aimed = rest.take(open_to if open_to.any() else rest.y != setting.target_label)
    stamped = victim.trigger.stamp(aimed.x)
    wanted = wanted_labels(aimed.y, setting.target_label, setting.scheme, pool.n_classes)
    reached = logits_of(model, stamped).argmax(1).numpy() == wanted
    shown = _shown(reached, setting.backdoored)
    layers = find_stages(model)
    return Recording(
        references=read_activations(model, references.x, layers),
        clean=read_activations(model, clean.x, layers),
        triggered=read_activations(model, stamped[shown], layers),
        reached=reached[shown] if setting.backdoored else np.ones(len(shown), np.bool_),
        facts=_facts(victim, test, aimed, reached, seconds),
        peer_scores=_peer_scores(victim, references, np.concatenate([clean.x, stamped[shown]])),
    )


def _peer_scores(victim: Victim, references: Samples, points: NDArray[Any]) -> dict[str, Floats]:
    """What the detectors of several passes say of the points, of victims kept for evaluation."""
    if not victim.setting.evaluation:
        return {}
    found = {}
    for n_shots in PEER_SHOTS:
        index = reference_index(victim.setting.manifest(), n_shots, len(references))
        for name in MULTI_PASS:
            detector = DETECTORS[name]()
            try:
                detector.fit(victim.model, references.x[index])
            except ShieldError:  # the method does not take such inputs, or such a network
                continue
            both = np.stack([detector.score(points), detector.p_values(points)])
            found[f"{name}@{n_shots}"] = both
    return found


def _parts(samples: Samples, sizes: Sequence[int]) -> list[Samples]:
    ends = np.cumsum(sizes)
    return [samples.take(slice(int(e - n), int(e))) for e, n in zip(ends, sizes, strict=True)]


def _shown(reached: Flags, backdoored: bool) -> Ints:
    """Which stamped inputs are recorded: successes first, then a few failures."""
    if not backdoored:
        return np.arange(len(reached))[:N_TRIGGERED]
    failed = np.flatnonzero(~reached)[: N_TRIGGERED // 4]
    return np.concatenate([np.flatnonzero(reached)[:N_TRIGGERED], failed])


def _facts(
    victim: Victim, test: Samples, aimed: Samples, reached: Flags, seconds: float
) -> dict[str, Any]:
    setting = victim.setting
    judged = test.take(slice(0, 1000))
    right = logits_of(victim.model, judged.x).argmax(1).numpy() == judged.y
    seen = visibility(victim.trigger, aimed.x)
    return {
        **setting.manifest(),
        "domain": setting.domain,
        "accuracy": float(right.mean()),
        "asr": float(reached.mean()) if setting.backdoored else None,
        "mean_change": seen.mean_change,
        "share_changed": seen.share_changed,
        "seconds": seconds,
    }
