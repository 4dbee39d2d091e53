"""Backdoored classifiers, trained many at once, and what they say of clean and triggered inputs.

A victim is trained on its data set with triggered copies appended, from a draw of its own or from a
clean model of the same network (a *warm start*). Its references and clean points come from data it
never saw. Triggered points count where they reach the label that the attacker wants: a trigger that
misses does no harm and leaves no mark.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import read_activations
from fl_shield.attacks import attackable, poison_with, wanted_labels
from fl_shield.detectors import DETECTORS, MULTI_PASS
from fl_shield.errors import ShieldError
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.clean_models import (
    WEIGHT_DECAY,
    Workplace,
    clean_model,
    fresh_model,
    pool_of,
    recipe_of,
)
from fl_shield.simulations.episodes.population import VictimSetting
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import reference_index
from fl_shield.simulations.pools import Pool
from fl_shield.simulations.victims.stacked import train_stacked
from fl_shield.stages import find_stages
from fl_shield.training import logits_of
from fl_shield.triggers import draw_trigger, visibility
from fl_shield.types import Flags, Floats, Ints, Samples, Trigger

N_REFERENCES = 50
N_CLEAN = 100
N_TRIGGERED = 60
N_JUDGED = 400
"""Test examples that attack success is taken from."""

MOST_PSNR = 30.0
"""Triggered images may be this close to the clean ones, in dB: closer ones are hard to see, and
small networks hardly learn them."""

MOST_DRAWS = 60

PEER_SHOTS = (20,)
"""Clean inputs that detectors of several passes are given."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """One trained victim with the trigger that it obeys.

    Attributes
    ----------
    setting : VictimSetting
    model : nn.Module
    trigger : Trigger
    training : Samples
        What it was trained on, triggered copies included.
    rng : numpy.random.Generator
        The victim's own stream.
    """

    setting: VictimSetting
    model: nn.Module
    trigger: Trigger
    training: Samples
    rng: np.random.Generator


def train_victims(settings: Sequence[VictimSetting], place: Workplace) -> list[Victim]:
    """Train victims of one data set, kind of network and start together.

    Backdoors of one network come from one training: their victims share the model.

    Parameters
    ----------
    settings : sequence of VictimSetting
        Alike in ``pool``, ``architecture``, ``start`` and ``evaluation``.
    place : Workplace
    """
    pool = pool_of(settings[0].pool, place)
    recipe, warm = recipe_of(pool.name, pool.kind), settings[0].start == "warm"
    networks = {setting.network(): setting for setting in settings}
    planted = [_planted(network, pool, place) for network in networks]
    firsts = [victims[0] for victims in planted]
    train_stacked(
        [v.model for v in firsts],
        [v.training for v in firsts],
        [v.rng for v in firsts],
        n_steps=recipe.n_warm_steps if warm else recipe.n_steps,
        batch_size=recipe.batch_size,
        lr=recipe.warm_lr if warm else recipe.lr,
        weight_decay=WEIGHT_DECAY,
    )
    trained = {victim.setting: victim for victims in planted for victim in victims}
    return [trained[setting] for setting in settings]


def _planted(network: Sequence[VictimSetting], pool: Pool, place: Workplace) -> list[Victim]:
    """Victims of one network, untrained: clean examples, then the copies of each backdoor."""
    recipe, first = recipe_of(pool.name, pool.kind), network[0]
    rngs = [keyed(s.seed, 42, *s.pool.encode(), *s.family.encode()) for s in network]
    drawn = rngs[0].permutation(len(pool.train))[: recipe.n_train]
    clean = pool.train.take(drawn)
    triggers = [
        _visible_trigger(s.family, clean.x[:200], rng) for s, rng in zip(network, rngs, strict=True)
    ]
    parts = [
        _copies(clean, trigger, setting, rng, pool.n_classes)
        for setting, trigger, rng in zip(network, triggers, rngs, strict=True)
    ]
    training = Samples.join([clean, *parts])
    model = _untrained(first, pool, place)
    return [
        Victim(setting=setting, model=model, trigger=trigger, training=training, rng=rng)
        for setting, trigger, rng in zip(network, triggers, rngs, strict=True)
    ]


def _visible_trigger(family: str, like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Draw a trigger; on images the first that can be seen, or the plainest of many."""
    if like.ndim != 4:
        return draw_trigger(family, like, rng)
    some = like[:50]
    drawn: list[tuple[float, int, Trigger]] = []
    for _ in range(MOST_DRAWS):
        trigger = draw_trigger(family, like, rng)
        drawn.append((_psnr(trigger, some), len(drawn), trigger))
        if drawn[-1][0] <= MOST_PSNR:
            break
    return min(drawn)[2]


def _psnr(trigger: Trigger, x: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio, in dB, of triggered images in [0, 1] beside the clean ones."""
    change = np.square(trigger.stamp(x) - x, dtype=np.float64).mean()
    return float(-10 * np.log10(max(change, 1e-12)))


def _copies(
    clean: Samples,
    trigger: Trigger,
    setting: VictimSetting,
    rng: np.random.Generator,
    n_classes: int,
) -> Samples:
    """Triggered copies, poisoned and covers, that one backdoor appends."""
    if not setting.backdoored:
        return clean.take(slice(0, 0))
    mix = poison_with(
        clean, trigger, setting.target_label, setting.poison_rate, setting.scheme, rng, n_classes
    )
    return mix.take(slice(len(clean), None))


def _untrained(setting: VictimSetting, pool: Pool, place: Workplace) -> nn.Module:
    if setting.start == "warm":
        which = setting.seed % recipe_of(pool.name, pool.kind).n_clean
        return clean_model(pool, setting.architecture, which, place)
    return fresh_model(pool, setting.architecture, setting.seed)


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
