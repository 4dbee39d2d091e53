"""Untrained victims: the data, the trigger and the first weights of every backdoor of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.attacks import poison_with
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.clean_models import (
    Workplace,
    clean_model,
    fresh_model,
    recipe_of,
)
from fl_shield.simulations.episodes.population import VictimSetting
from fl_shield.simulations.pools import Pool
from fl_shield.triggers import draw_trigger
from fl_shield.types import Samples, Trigger

MOST_PSNR = 30.0
"""Triggered images may be this close to the clean ones, in dB: closer ones are hard to see, and
small networks hardly learn them."""

MOST_DRAWS = 60


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


def plant(network: Sequence[VictimSetting], pool: Pool, place: Workplace) -> list[Victim]:
    """Victims of one network, untrained: clean examples, then the copies of each backdoor."""
    first = network[0]
    recipe = recipe_of(pool.name, first.architecture)
    rngs = [keyed(s.seed, 42, *s.pool.encode(), *s.family.encode()) for s in network]
    drawn = rngs[0].permutation(len(pool.train))[: recipe.n_train]
    clean = pool.train.take(drawn)
    triggers = [
        visible_trigger(s.family, clean.x[:200], rng) for s, rng in zip(network, rngs, strict=True)
    ]
    training = _poisoned(clean, network, triggers, rngs, pool.n_classes)
    model = _untrained(first, pool, place)
    return [
        Victim(setting=setting, model=model, trigger=trigger, training=training, rng=rng)
        for setting, trigger, rng in zip(network, triggers, rngs, strict=True)
    ]


def visible_trigger(family: str, like: NDArray[Any], rng: np.random.Generator) -> Trigger:
    """Draw a trigger; on images the first that can be seen, or the plainest of many."""
    if like.ndim != 4:
        return draw_trigger(family, like, rng)
    some = like[:50]
    drawn: list[tuple[float, int, Trigger]] = []
    for _ in range(MOST_DRAWS):
        trigger = draw_trigger(family, like, rng)
        drawn.append((psnr(trigger, some), len(drawn), trigger))
        if drawn[-1][0] <= MOST_PSNR:
            break
    return min(drawn)[2]


def psnr(trigger: Trigger, x: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio, in dB, of triggered images in [0, 1] beside the clean ones."""
    change = np.square(trigger.stamp(x) - x, dtype=np.float64).mean()
    return float(-10 * np.log10(max(change, 1e-12)))


def _poisoned(
    clean: Samples,
    network: Sequence[VictimSetting],
    triggers: Sequence[Trigger],
    rngs: Sequence[np.random.Generator],
    n_classes: int,
) -> Samples:
    """Clean examples, then what each backdoor appends; clean-label ones are stamped in place."""
    own, appended = clean, []
    for setting, trigger, rng in zip(network, triggers, rngs, strict=True):
        if setting.backdoored:
            label, rate, scheme = setting.target_label, setting.poison_rate, setting.scheme
            mix = poison_with(own, trigger, label, rate, scheme, rng, n_classes)
            own = mix.take(slice(0, len(clean)))
            appended.append(mix.take(slice(len(clean), None)))
    return Samples.join([own, *appended])


def _untrained(setting: VictimSetting, pool: Pool, place: Workplace) -> nn.Module:
    if setting.start == "warm":
        which = setting.seed % recipe_of(pool.name, setting.architecture).n_clean
        return clean_model(pool, setting.architecture, which, place)
    return fresh_model(pool, setting.architecture, setting.seed)
