"""Meta-learning tasks of all domains in one list, with the facts that splits go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_shield.meta import Episode
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import episode_of
from fl_shield.types import Representation

VALIDATION_FAMILIES = ("colour", "sentence", "state_pattern")
VALIDATION_ARCHITECTURES = ("vit", "transformer", "policy-tanh")
"""Unseen by the run that says how long to train; the run that counts learns from them too."""

LEAST_ASR = 0.7
"""Least attack success of a backdoored victim that is learned from: below it, much of what reaches
the target are natural mistakes, and labels would lie.
"""

FEDERATED: Mapping[str, Any] = {"domain": "fl", "pool": "federation", "evaluation": False}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Episodes of one victim or of one federation.

    Attributes
    ----------
    episodes : tuple of Episode
    facts : mapping
        As in :class:`~fl_shield.simulations.episodes.recording.Recording`; a federation's are
        :data:`FEDERATED`.
    recording : Recording, optional
        Of a victim.
    """

    episodes: tuple[Episode, ...]
    facts: Mapping[str, Any]
    recording: Recording | None = None

    @property
    def network(self) -> tuple[object, ...]:
        """What tells its network apart: victims of one share it; empty for a federation."""
        if self.recording is None:
            return ()
        alone = () if self.facts.get("beside") else (self.facts["family"],)
        return (self.facts["pool"], self.facts["seed"], *alone)


def victim_tasks(
    recordings: Sequence[Recording], n_draws: int, representation: Representation = "profile"
) -> list[Task]:
    """Make a task of each recording, its episodes with other references and numbers of them.

    Backdoored victims whose attack hardly works (:data:`LEAST_ASR`) are left out.
    """
    tasks = []
    for recording in recordings:
        if recording.backdoored and recording.facts["asr"] < LEAST_ASR:
            continue
        drawn = (episode_of(recording, i, representation=representation) for i in range(n_draws))
        tasks.append(Task(episodes=tuple(drawn), facts=recording.facts, recording=recording))
    return tasks


def federated_tasks(episodes: Sequence[Sequence[Episode]]) -> list[Task]:
    """Make a task of each federation."""
    return [Task(episodes=tuple(es), facts=FEDERATED) for es in episodes]


def is_validation(task: Task) -> bool:
    """Whether a task is of a trigger family or a network that validation keeps unseen."""
    facts = task.facts
    return facts["domain"] != "fl" and (
        facts["family"] in VALIDATION_FAMILIES or facts["architecture"] in VALIDATION_ARCHITECTURES
    )
