"""Scenarios refuse the impossible, survive JSON, and draw the same schedule for everybody."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from fl_shield.errors import ScenarioError
from fl_shield.simulations.campaign import plan
from fl_shield.simulations.scenario import (
    PRESETS,
    Scenario,
    attackers,
    malicious_clients,
    participants,
    settings_from,
    stream,
)
from fl_shield.types import TrainingConfig


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": "mnist"}, "mnist"),
        ({"partition": "random"}, "random"),
        ({"model": "resnet"}, "resnet"),
        ({"attack": "flood"}, "flood"),
        ({"trigger": "hat"}, "hat"),
        ({"defense": "moat"}, "moat"),
        ({"mode": "observe"}, "observe"),
        ({"engine": "spark"}, "spark"),
        ({"n_clients": 1, "clients_per_round": 1}, "n_clients must be at least 2, got 1"),
        ({"clients_per_round": 21}, "clients_per_round must be between 1 and the 20 clients"),
        ({"clients_per_round": 0}, "clients_per_round"),
        ({"n_rounds": 0}, "n_rounds must be at least 1, got 0"),
        ({"attack_from": 11}, "attack_from must be between 1 and the 10 rounds, got 11"),
        ({"attack_from": 0}, "attack_from"),
        ({"weights": "all"}, "weights 'all' is unknown; choose one of updates, inputs"),
        ({"fpr_budget": 1.0}, "fpr_budget must be between 0 and 1, got 1.0"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"target_label": -1}, "target_label"),
        ({"n_clean": 3}, "n_clean must be at least 4"),
        ({"n_test": 0}, "n_test"),
        ({"seed": -1}, "seed"),
        ({"malicious_fraction": 1.0}, "malicious_fraction must be in"),
        ({"malicious_fraction": -0.1}, "malicious_fraction must be in"),
        ({"attack": "lp", "malicious_fraction": 0.01}, "no client at all"),
        ({"malicious_per_round": 5}, "malicious_per_round must be between 0 and the 4"),
        ({"malicious_per_round": 3}, "leaves 17 places for 16 benign clients"),
        ({"attack": "lp", "attack_options": {"sauce": 1.0}}, "sauce"),
        ({"attack": "badnets", "attack_options": {"poison_rate": 2.0}}, "badnets"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ScenarioError, match=named):
        Scenario(**changes)


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Scenario().seed = 3  # type: ignore[misc]


def test_defaults_follow_the_data_set() -> None:
    text, image = Scenario(dataset="shakespeare"), Scenario(dataset="digits")
    assert (text.trigger, text.partition) == ("word", "natural")
    assert (image.trigger, image.partition) == ("patch", "dirichlet")
    assert text.model != image.model
    assert text.local_training != image.local_training
    news, states = Scenario(dataset="ag-news"), Scenario(dataset="cartpole")
    assert (news.trigger, news.partition) == ("word", "dirichlet")
    assert (states.trigger, states.partition) == ("state_pattern", "dirichlet")


def test_json_keeps_every_setting() -> None:
    scenario = Scenario(
        dataset="femnist",
        data_dir="somewhere",
        alpha=0.1,
        n_clients=50,
        clients_per_round=7,
        n_rounds=3,
        training=TrainingConfig(n_epochs=3, lr=0.01, clip_norm=2.0),
        attack="model_replacement",
        attack_options={"scale": 5.0},
        malicious_per_round=1,
        defense="shield",
        mode="monitor",
        probes=False,
        weights="inputs",
        seed=9,
        engine="ray",
    )
    again = Scenario.from_json(scenario.to_json())
    assert again == scenario
    assert again.local_training.lr == 0.01


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', '{"colour": 1}'])
def test_json_that_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        Scenario.from_json(text)


def test_all_presets_hold() -> None:
    for settings in PRESETS.values():
        names = [s.name for s in plan(settings, ["lp"], ["none", "shield"], [0])]
        assert names == ["none-none-s0", "lp-none-s0", "lp-shield-s0"]


def test_the_schedule_does_not_depend_on_attack_defence_or_engine() -> None:
    one = Scenario(n_clients=30, clients_per_round=7, seed=4)
    other = one.with_(attack="lp", defense="shield", engine="ray", n_rounds=20, fpr_budget=0.01)
    assert malicious_clients(one) == malicious_clients(other)
    for server_round in range(1, 11):
        assert participants(one, server_round) == participants(other, server_round)


def test_the_schedule_depends_on_seed_and_round() -> None:
    one = Scenario(n_clients=30, clients_per_round=7)
    drawn = {participants(one, r) for r in range(1, 21)}
    assert len(drawn) == 20
    assert participants(one, 1) != participants(one.with_(seed=1), 1)
    assert set().union(*drawn) == set(range(30))


def test_participants_are_distinct_ascending_partitions() -> None:
    scenario = Scenario(n_clients=30, clients_per_round=7)
    for server_round in range(1, 30):
        drawn = participants(scenario, server_round)
        assert list(drawn) == sorted(set(drawn))
        assert len(drawn) == 7
        assert drawn[0] >= 0
        assert drawn[-1] < 30


def test_malicious_per_round_is_exact_and_draws_all_of_them() -> None:
    scenario = Scenario(
        n_clients=30, clients_per_round=7, attack="lp", malicious_per_round=2, n_rounds=40
    )
    malicious = set(malicious_clients(scenario))
    assert len(malicious) == 6
    drawn = [set(participants(scenario, r)) for r in range(1, 41)]
    assert all(len(asked) == 7 for asked in drawn)
    assert all(len(asked & malicious) == 2 for asked in drawn)
    assert set().union(*(asked & malicious for asked in drawn)) == malicious


def test_malicious_per_round_may_be_none_at_all() -> None:
    scenario = Scenario(n_clients=30, clients_per_round=7, malicious_per_round=0)
    malicious = set(malicious_clients(scenario))
    assert not any(set(participants(scenario, r)) & malicious for r in range(1, 20))


def test_attackers_wait_for_their_round_and_need_an_attack() -> None:
    scenario = Scenario(attack="badnets", attack_from=3)
    assert attackers(scenario, 2) == ()
    assert attackers(scenario, 3) == malicious_clients(scenario)
    assert attackers(scenario.with_(attack="none"), 3) == ()


def test_attackers_are_the_malicious_among_the_participants() -> None:
    scenario = Scenario(n_clients=40, clients_per_round=10, attack="badnets")
    for server_round in range(1, 10):
        both = set(malicious_clients(scenario)) & set(participants(scenario, server_round))
        assert set(attackers(scenario, server_round)) == both


def test_named_streams_are_independent() -> None:
    scenario = Scenario()
    draws = [
        stream(scenario, name, *key).random()
        for name in ("malicious", "participants", "client")
        for key in ((), (1,), (1, 2), (2, 1))
    ]
    assert len(set(draws)) == len(draws)


def test_settings_build_on_a_preset() -> None:
    settings = settings_from("demo", {"n_rounds": 3}, {"lr": 0.5}, {"tau": 0.9})
    assert (settings["n_clients"], settings["n_rounds"]) == (20, 3)
    assert settings["training"].lr == 0.5
    assert settings["training"].momentum == PRESETS["demo"]["training"].momentum
    assert settings["attack_options"] == {**PRESETS["demo"]["attack_options"], "tau": 0.9}


@pytest.mark.parametrize(
    ("preset", "given", "training", "named"),
    [
        ("party", {}, {}, "party"),
        (None, {"dataset": "mnist"}, {}, "mnist"),
        (None, {}, {"lr": -1.0}, "lr must be > 0, got -1.0"),
        (None, {}, {"n_epochs": 0}, "n_epochs"),
    ],
)
def test_settings_that_cannot_be_are_named(
    preset: str | None, given: dict[str, Any], training: dict[str, Any], named: str
) -> None:
    with pytest.raises(ScenarioError, match=named):
        settings_from(preset, given, training, {})


def test_a_plan_has_one_reference_a_seed_and_no_cell_twice() -> None:
    scenarios = plan({}, ["none", "lp"], ["none", "shield"], [0, 1])
    names = [s.name for s in scenarios]
    assert names[:4] == ["none-none-s0", "none-shield-s0", "lp-none-s0", "lp-shield-s0"]
    assert len(names) == len(set(names)) == 8


def test_attack_options_go_to_the_attacks_that_know_them() -> None:
    base = {"attack_options": {"scale": 5.0, "poison_rate": 0.3}}
    by_attack = {s.attack: s for s in plan(base, ["badnets", "model_replacement"], ["none"], [0])}
    assert by_attack["none"].attack_options == {}
    assert by_attack["badnets"].attack_options == {"poison_rate": 0.3}
    assert by_attack["model_replacement"].attack_options == {"scale": 5.0, "poison_rate": 0.3}


def test_an_attack_option_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ScenarioError, match="'scale' is known to none of badnets"):
        plan({"attack_options": {"scale": 5.0}}, ["badnets"], ["none"], [0])
