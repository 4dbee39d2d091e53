"""Meta-training on recorded victims and federated rounds, with something left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl_shield.activations import views_beside
from fl_shield.calibration import standardise
from fl_shield.detector import Adapted, Weights
from fl_shield.meta import Episode, MetaConfig, Progress
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import episode_of
from fl_shield.simulations.meta_training import Split as Tasks
from fl_shield.simulations.meta_training import fit_weights, quantiles
from fl_shield.types import Floats

VALIDATION_FAMILIES = ("colour", "sentence", "state_pattern")
VALIDATION_ARCHITECTURES = ("vit", "transformer", "policy-tanh")
"""Unseen by the run that says how long to train; the run that counts learns from them too."""

CALIBRATION = 6
"""Every so many training victims one is kept for calibration: no gradient ever sees it."""

NULL_SHOTS = (5, 7, 10, 14, 20, 30, 50)
"""Numbers of references with a null distribution of their own."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Episodes of one victim, or of one federation, and the facts that splits go by.

    Attributes
    ----------
    episodes : tuple of Episode
    facts : mapping
        ``pool``, ``domain``, ``architecture``, ``family`` and ``evaluation`` of a victim; of a
        federation its domain, ``fl``, and no more.
    recording : Recording, optional
        Of a victim.
    """

    episodes: tuple[Episode, ...]
    facts: Mapping[str, Any]
    recording: Recording | None = None


def victim_task(recording: Recording, n_draws: int, representation: str = "profile") -> Task:
    """Episodes of a recording, each with other references and another number of them."""
    episodes = tuple(episode_of(recording, i) for i in range(n_draws))
    return Task(episodes=episodes, facts=recording.facts, recording=recording)
