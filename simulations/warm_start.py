"""A global model that honest clients have trained already: where a federation may start from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fl_shield.attacks.arithmetic import is_floating
from fl_shield.simulations.clients import honest_update
from fl_shield.simulations.scenario import Scenario, participants
from fl_shield.simulations.task import FederatedTask
from fl_shield.training import get_arrays
from fl_shield.types import Arrays

HONEST_SETTINGS = (
    "dataset",
    "data_dir",
    "partition",
    "alpha",
    "n_clients",
    "clients_per_round",
    "model",
    "n_clean",
    "n_test",
    "seed",
    "warm_rounds",
)
"""Settings of a scenario that its honest rounds depend on, beside how clients train."""

WARM_ROUND = 1 << 20
"""Number of the first warm round in the streams of a scenario: beyond every real one."""

VERSION = 1
"""Raise it when honest training changes its meaning: models on disk are then ignored."""


def warm_arrays(task: FederatedTask, cache: Path) -> Arrays:
    """Model after the scenario's ``warm_rounds`` of honest FedAvg, from disk where it is there.

    Parameters
    ----------
    task : FederatedTask
        With no warm rounds, the initial weights come back.
    cache : Path
        Folder of warm models; a model is written whole or not at all.
    """
    scenario = task.scenario
    if scenario.warm_rounds == 0:
        return get_arrays(task.new_model())
    path = cache / f"warm-{honest_digest(scenario)}.safetensors"
    if not path.exists():
        _save(_trained(task), path)
    saved = load_file(path)
    return {name: saved[name] for name in get_arrays(task.new_model())}


def honest_digest(scenario: Scenario) -> str:
    """Digest of all that the honest rounds of a scenario depend on.

    Examples
    --------
    >>> attacked = Scenario(attack="lp", defense="shield", warm_rounds=3)
    >>> honest_digest(attacked) == honest_digest(Scenario(warm_rounds=3))
    True
    """
    values = scenario.to_dict()
    facts = {name: values[name] for name in (*HONEST_SETTINGS, "training")}
    text = json.dumps({**facts, "version": VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def averaged(uploads: list[Arrays], n_examples: list[int]) -> Arrays:
    """Mean of models by example counts; integer tensors are those of the first."""
    shares = np.array(n_examples, dtype=np.float64) / sum(n_examples)
    return {
        name: np.tensordot(shares, np.stack([u[name] for u in uploads]), 1).astype(array.dtype)
        if is_floating(array)
        else array
        for name, array in uploads[0].items()
    }


def _trained(task: FederatedTask) -> Arrays:
    """Honest rounds, with other draws than the rounds of the scenario itself."""
    scenario = task.scenario.with_(malicious_per_round=None)
    model = task.new_model()
    arrays: Arrays = get_arrays(model)
    for i in range(scenario.warm_rounds):
        asked = participants(scenario, WARM_ROUND + i)
        uploads = [
            honest_update(task, model, arrays, server_round=WARM_ROUND + i, partition=p)[1]
            for p in asked
        ]
        arrays = averaged(uploads, [len(task.data.clients[p]) for p in asked])
    return arrays


def _save(arrays: Arrays, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(dict(arrays), draft)
    draft.replace(path)
