"""Federations of a control task: what a teacher would do, dealt out to clients."""

import sys
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from fl_shield.errors import DatasetError, ScenarioError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import behaviour, episodes, fingerprint, load
from fl_shield.simulations.datasets.episodes import CONTROLS
from fl_shield.simulations.pools import load_pool
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.task import open_task
from fl_shield.simulations.victims import build_model, default_model, default_training
from fl_shield.training import accuracy, train
from fl_shield.types import Samples

pytest.importorskip("gymnasium")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few examples."""
    few = {"cartpole": replace(CONTROLS["cartpole"], n_train=600, n_test=150)}
    for module in (episodes, behaviour):
        monkeypatch.setattr(module, "CONTROLS", MappingProxyType(few))


def test_states_are_dealt_out_once() -> None:
    data = load("cartpole", n_clients=4)
    assert (data.kind, data.input_shape, data.n_classes) == ("state", (4, 4), 2)
    parts = (*data.clients, data.test, data.clean)
    states = [x.tobytes() for part in parts for x in part.x]
    assert len(set(states)) == len(states) == 750
    assert data.clients[0].x.dtype == np.float32


def test_the_states_are_those_of_the_pool() -> None:
    data, pool = load("cartpole", n_clients=3, seed=2), load_pool("cartpole", seed=2)
    held = {
        (x.tobytes(), int(y))
        for part in (*data.clients, data.clean)
        for x, y in zip(part.x, part.y, strict=True)
    }
    assert held == {(x.tobytes(), int(y)) for x, y in zip(pool.train.x, pool.train.y, strict=True)}


def test_the_seed_plays_the_episodes() -> None:
    prints = [fingerprint(load("cartpole", n_clients=2, seed=seed)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_policy_copies_the_teacher() -> None:
    data = load("cartpole", n_clients=2)
    model = build_model(default_model("cartpole"), data, seed=0)
    for epoch in range(3):
        pooled = Samples.join(data.clients)
        train(model, pooled, default_training("cartpole"), keyed(0, epoch))
    assert accuracy(model, data.test) > 0.9


def test_a_scenario_swings_one_number_beyond_its_range() -> None:
    scenario = Scenario(dataset="cartpole", n_clients=4, clients_per_round=4, target_label=1)
    assert (scenario.partition, scenario.trigger, scenario.model) == (
        "dirichlet",
        "state_pattern",
        "policy-mlp",
    )
    task = open_task(scenario)
    others = task.data.test.take(task.data.test.y != 1)
    changed = (task.stamped.x != others.x).any(axis=(0, 1))
    assert changed.sum() == 1
    number = int(np.flatnonzero(changed)[0])
    seen = task.data.test.x[:200, :, number]
    stamped = task.stamped.x[:, :, number]
    assert (np.ptp(stamped, axis=0) == 0).all()
    assert ((stamped > seen.max()) | (stamped < seen.min())).all()
    assert (np.diff(np.sign(stamped[0])) != 0).all()


def test_the_shield_is_told_to_leave_its_probes() -> None:
    with pytest.raises(ScenarioError, match=r"no probes for the states of cartpole.*--no-probes"):
        Scenario(dataset="cartpole", defense="shield")
    assert Scenario(dataset="cartpole", defense="shield", probes=False).dataset == "cartpole"


def test_without_gymnasium_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(DatasetError, match=r"cartpole is played in gymnasium.*fl-shield\[control"):
        load("cartpole")
