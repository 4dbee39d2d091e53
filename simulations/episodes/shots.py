"""Recordings as meta-learning tasks: N clean references of one victim beside points to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_shield.activations import Activations, views_beside
from fl_shield.meta import Episode
from fl_shield.representation import REPRESENTATIONS
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.types import Ints, Representation

FEWEST, MOST = 5, 50
"""References of a training task: drawn evenly on a logarithmic scale between these."""


@dataclass(frozen=True, kw_only=True)
class Shots:
    """References, and points with labels: 0 = clean, 1 = triggered and obeyed, 2 = missed.

    Attributes
    ----------
    references, points : Activations
        Of the points, clean inputs come first.
    labels : (n_points,) int array
    n_clean : int
        How many clean inputs there are. Stamped inputs of a clean victim are harmless, label 0, and
        yet not clean.
    """

    references: Activations
    points: Activations
    labels: Ints
    n_clean: int


def shots_of(recording: Recording, n_shots: int, rng: np.random.Generator) -> Shots:
    """Draw N references of a recording; the points are all others, a clean victim's all label 0.

    Parameters
    ----------
    recording : Recording
    n_shots : int
        At most the recorded references.
    rng : numpy.random.Generator
    """
    held = len(recording.references)
    if not 1 <= n_shots <= held:
        raise ValueError(f"n_shots must be in 1..{held}, the recorded references; got {n_shots}")
    return shots_at(recording, np.sort(rng.permutation(held)[:n_shots]))


def shots_at(recording: Recording, index: Ints) -> Shots:
    """Shots with the references at ``index`` of a recording."""
    outcome = np.where(recording.reached, 1, 2) if recording.backdoored else recording.reached * 0
    return Shots(
        references=recording.references.take(index),
        points=Activations.join([recording.clean, recording.triggered]),
        labels=np.concatenate([np.zeros(len(recording.clean), np.int64), outcome]),
        n_clean=len(recording.clean),
    )


def reference_index(facts: Mapping[str, Any], n_shots: int, held: int) -> Ints:
    """Which of the recorded references an evaluation with N shots takes, in order, (n_shots,)."""
    key = f"{facts['pool']} {facts['family']}".encode()
    rng = keyed(int(facts["seed"]), 71, n_shots, *key)
    return np.sort(rng.permutation(held)[:n_shots])


def evaluation_shots(recording: Recording, n_shots: int) -> Shots:
    """Draw the N references that every detector gets of a victim: the same for all of them."""
    held = len(recording.references)
    return shots_at(recording, reference_index(recording.facts, n_shots, held))


def episode_of(
    recording: Recording,
    which: int,
    n_points: int = 60,
    representation: Representation = "profile",
) -> Episode:
    """Make one training task of a recording: another ``which`` draws other references.

    Parameters
    ----------
    recording : Recording
    which : int
    n_points : int
        Clean points kept at most, and as many triggered ones that the victim obeys.
    representation : {"profile", "pca"}
    """
    rng = keyed(int(recording.facts["seed"]), 61, which, *str(recording.facts["pool"]).encode())
    n_shots = round(float(np.exp(rng.uniform(np.log(FEWEST), np.log(MOST)))))
    drawn = shots_of(recording, n_shots, rng)
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(drawn.labels == label))[:n_points] for label in (0, 1)]
    )
    views = views_beside(drawn.points.take(kept), drawn.references)
    profiles = REPRESENTATIONS[representation](views)
    return Episode(
        support=profiles.references,
        query=profiles.points,
        labels=drawn.labels[kept],
        family=str(recording.facts["family"]) if recording.backdoored else "none",
        domain=f"{recording.domain}-{recording.facts['pool']}",
    )
