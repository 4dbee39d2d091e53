"""One federation recorded once: what honest clients upload, and what each attack makes of it.

The recorded model moves by the benign updates alone, as under a perfect defence. So honest
training is done once for all attacks, every attack meets the same clean models, and every defence
is asked about the same replies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file, save_file

from fl_shield.simulations.campaign import weights_digest
from fl_shield.simulations.clients import (
    KNOWS_THE_RULE,
    honest_update,
    malicious_upload,
    same_arrays,
    shaped_inputs,
)
from fl_shield.simulations.scenario import Scenario, attackers, malicious_clients, participants
from fl_shield.simulations.task import FederatedTask, open_task
from fl_shield.simulations.warm_start import averaged, honest_digest, warm_arrays
from fl_shield.types import Arrays, Samples

VERSION = 1
"""Raise it when an attack or honest training changes its meaning: old recordings are ignored."""


@dataclass(frozen=True, kw_only=True)
class RecordedRound:
    """One round of a recorded federation under one attack.

    Attributes
    ----------
    server_round : int
        From 1.
    global_arrays : Arrays
        What the clients were sent.
    uploads : mapping of int to Arrays
        By partition, attackers' uploads in the place of their honest ones.
    malicious : tuple of int
        Partitions that attack in this round.
    equal_to_honest : tuple of int
        Attackers whose upload is byte for byte their honest one.
    stamped : Samples, optional
        Test inputs with the trigger that this round's attackers have shaped; None = the scenario's.
    """

    server_round: int
    global_arrays: Arrays
    uploads: Mapping[int, Arrays]
    malicious: tuple[int, ...]
    equal_to_honest: tuple[int, ...]
    stamped: Samples | None = None


class Recording:
    """The rounds of one scenario, from disk where they are there.

    Parameters
    ----------
    scenario : Scenario
        Its defence plays no part.
    cache : Path
        Folder of recordings, shared by all scenarios.
    """

    def __init__(self, scenario: Scenario, cache: Path) -> None:
        undefended = scenario.with_(defense="none", defense_options={})
        self.task: FederatedTask = open_task(undefended)
        self._cache = cache
        self._model = self.task.new_model()
        self._stamped: dict[int, Samples | None] = {}

    @property
    def scenario(self) -> Scenario:
        """What is recorded."""
        return self.task.scenario

    def round(self, server_round: int) -> RecordedRound:
        """Return one round; the honest rounds before it are recorded on the way."""
        arrays, honest = self.honest_round(server_round)
        attacked = self._attacked(server_round, arrays)
        malicious = attackers(self.scenario, server_round)
        return RecordedRound(
            server_round=server_round,
            global_arrays=arrays,
            uploads={**honest, **attacked},
            malicious=malicious,
            equal_to_honest=tuple(p for p in malicious if same_arrays(attacked[p], honest[p])),
            stamped=self._shaped(server_round, arrays),
        )

    def _shaped(self, server_round: int, arrays: Arrays) -> Samples | None:
        """Inputs with the attackers' own trigger: shaped once, the same for every defence."""
        if server_round not in self._stamped:
            self._stamped[server_round] = shaped_inputs(
                self.task, self._model, arrays, server_round
            )
        return self._stamped[server_round]

    def honest_round(self, server_round: int) -> tuple[Arrays, dict[int, Arrays]]:
        """Return the model that a round starts from, and the honest upload of each participant."""
        folder = self._cache / f"honest-{track_digest(self.scenario)}"
        path = folder / f"round-{server_round:03d}.safetensors"
        if not path.exists():
            arrays = self._start(server_round)
            asked = participants(self.scenario, server_round)
            uploads = {p: self._honest(arrays, server_round, p) for p in asked}
            _save({"model": arrays, **{str(p): u for p, u in uploads.items()}}, path)
        parts = _load(path, self.task)
        return parts.pop("model"), {int(p): arrays for p, arrays in parts.items()}

    def _start(self, server_round: int) -> Arrays:
        """Mean of the benign uploads of the round before."""
        if server_round == 1:
            return warm_arrays(self.task, self._cache)
        before, uploads = self.honest_round(server_round - 1)
        malicious = set(malicious_clients(self.scenario))
        benign = [p for p in uploads if p not in malicious]
        if not benign:
            return before
        sizes = [len(self.task.data.clients[p]) for p in benign]
        return averaged([uploads[p] for p in benign], sizes)

    def _honest(self, arrays: Arrays, server_round: int, partition: int) -> Arrays:
        return honest_update(
            self.task, self._model, arrays, server_round=server_round, partition=partition
        )[1]

    def _attacked(self, server_round: int, arrays: Arrays) -> dict[int, Arrays]:
        malicious = attackers(self.scenario, server_round)
        if not malicious:
            return {}
        folder = self._cache / f"{self.scenario.attack}-{attack_digest(self.scenario)}"
        path = folder / f"round-{server_round:03d}.safetensors"
        if not path.exists():
            before = self.honest_round(server_round - 1)[0] if server_round > 1 else None
            uploads = {
                str(p): malicious_upload(
                    self.task,
                    self._model,
                    arrays,
                    server_round=server_round,
                    partition=p,
                    previous_arrays=before,
                )
                for p in malicious
            }
            _save(uploads, path)
        return {int(p): upload for p, upload in _load(path, self.task).items()}


def track_digest(scenario: Scenario) -> str:
    """Digest of all that the honest rounds of a recording depend on."""
    facts = [
        honest_digest(scenario),
        scenario.malicious_fraction,
        scenario.malicious_per_round,
        VERSION,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def attack_digest(scenario: Scenario) -> str:
    """Digest of all that an attack's uploads depend on.

    Examples
    --------
    >>> lp = Scenario(attack="lp")
    >>> attack_digest(lp) == attack_digest(lp.with_(defense="shield", n_rounds=3))
    True
    """
    facts: list[object] = [
        track_digest(scenario),
        scenario.attack,
        dict(scenario.attack_options),
        scenario.trigger,
        scenario.target_label,
        scenario.attack_from,
        weights_digest(scenario.with_(defense="shield"))
        if scenario.attack == KNOWS_THE_RULE
        else "",
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _save(models: Mapping[str, Arrays], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    named = {f"{key}/{name}": a for key, arrays in models.items() for name, a in arrays.items()}
    save_file(named, draft)
    draft.replace(path)


def _load(path: Path, task: FederatedTask) -> dict[str, Arrays]:
    """Models of a file by key, tensors in the order of the network."""
    names = list(task.new_model().state_dict())
    saved = load_file(path)
    keys = dict.fromkeys(full.split("/", 1)[0] for full in saved)
    return {key: {name: saved[f"{key}/{name}"] for name in names} for key in keys}
