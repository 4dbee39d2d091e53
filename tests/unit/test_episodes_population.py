"""Which victims there are: drawn from seeds, whatever else is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fl_shield.attacks import PoisonScheme
from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.pool_facts import ALONE, FAMILIES, POOLS, families_of
from fl_shield.simulations.episodes.population import (
    ALONE_SHARE,
    CLEAN_SHARE,
    draw_network,
    draw_victim,
    evaluation_victims,
    training_victims,
)
from fl_shield.simulations.pools import POOLS as LOADERS
from fl_shield.simulations.victims.zoo import ARCHITECTURES
from fl_shield.triggers import HELD_OUT_FAMILIES

ALL = dict.fromkeys(POOLS, 40)


def test_every_pool_can_be_loaded_and_has_networks_that_take_its_inputs() -> None:
    assert set(POOLS) == set(LOADERS)
    for facts in POOLS.values():
        assert set(facts.architectures) <= set(ARCHITECTURES[facts.kind])
        assert facts.domain in ("cv", "nlp", "rl")
    assert POOLS["pong"].kind == "image"
    assert POOLS["pong"].domain == "rl"


def test_the_seed_gives_the_victim_whatever_is_drawn_besides() -> None:
    both = training_victims({"digits": 9, "cartpole": 9}, seed=1)
    assert both == training_victims({"digits": 9, "cartpole": 9}, seed=1)
    other_way = training_victims({"cartpole": 9, "digits": 9}, seed=1)
    assert both == [*other_way[9:], *other_way[:9]]
    assert both[:9] == training_victims({"digits": 9}, seed=1)
    assert both[12] in draw_network("cartpole", ("state_value", "state_pattern"), both[12].seed)
    assert both != training_victims({"digits": 9, "cartpole": 9}, seed=2)


def test_backdoors_of_one_network_know_each_other() -> None:
    drawn = training_victims({"gtsrb": 47, "sst2": 30, "cartpole": 8}, seed=1)
    for pool, k in (("gtsrb", 4), ("sst2", 3), ("cartpole", 2)):
        own = [v for v in drawn if v.pool == pool and v.family not in ALONE["image"]]
        assert len(own) % k == 0
        for i in range(0, len(own), k):
            network = own[i : i + k]
            assert {v.family for v in network} == {network[0].family, *network[0].beside}
            assert len({(v.seed, v.architecture, v.start, v.backdoored) for v in network}) == 1
            assert all(v.network() == network[0].network() for v in network)
            assert set(network[0].network()) == set(network)
            assert all(0.05 <= v.poison_rate <= 0.25 for v in network if v.backdoored)
            assert all(v.manifest()["beside"] == v.beside for v in network)
    alone = next(v for v in drawn if v.family in ALONE["image"])
    assert alone.network() == (alone,)
    assert "beside" not in alone.manifest()


def test_more_victims_are_the_same_and_others() -> None:
    few, many = (training_victims({"glyphs": n}, seed=3) for n in (5, 12))
    assert all(victim in many for victim in few)
    small, large = (evaluation_victims(["digits", "sst2"], n, seed=3) for n in (1, 4))
    assert all(victim in large for victim in small)


def test_held_out_families_are_never_learned_from() -> None:
    learned = training_victims(ALL, seed=0)
    assert not {v.family for v in learned} & set(HELD_OUT_FAMILIES)
    for pool, facts in POOLS.items():
        seen, unseen = (families_of(pool, held_out=held_out) for held_out in (False, True))
        assert sorted(seen + unseen + facts.unfit) == sorted(FAMILIES[facts.kind])
        assert {v.family for v in learned if v.pool == pool} == set(seen)
        assert unseen


def test_families_take_turns() -> None:
    families = families_of("ag-news", held_out=False)
    drawn = training_victims({"ag-news": 3 * len(families)}, seed=0)
    assert Counter(v.family for v in drawn) == dict.fromkeys(families, 3)
    alone = [v.family for v in training_victims({"gtsrb": 40}, seed=0)[-10:]]
    assert alone == [ALONE["image"][i % len(ALONE["image"])] for i in range(10)]


def test_what_changes_a_whole_image_is_alone_in_its_network() -> None:
    drawn = training_victims({"gtsrb": 58, "sst2": 12}, seed=0)
    alone = [v for v in drawn if v.family in ALONE["image"]]
    assert len(alone) == 14 == int(ALONE_SHARE * 58)
    assert Counter(v.family for v in alone) == dict.fromkeys(ALONE["image"], 2)
    assert all(v.network() == (v,) for v in alone)
    assert not {v.seed for v in alone} & {v.seed for v in drawn if v not in alone}


def test_no_victim_is_on_both_sides() -> None:
    learned = training_victims(ALL, seed=4)
    judged = evaluation_victims(list(POOLS), 3, seed=4)
    assert not any(v.evaluation for v in learned)
    assert all(v.evaluation for v in judged)
    assert not {v.seed for v in learned} & {v.seed for v in judged}
    names = [(v.pool, v.family, v.seed) for v in judged]
    assert len(set(names)) == len(names)  # what a table tells victims apart by


def test_judged_victims_are_backdoored_from_all_classes_to_one() -> None:
    judged = evaluation_victims(list(POOLS), 4, seed=0)
    assert all(v.backdoored and v.scheme == PoisonScheme() for v in judged)
    assert all(v.start == "scratch" and not v.beside for v in judged)
    for pool in POOLS:
        own = Counter(v.family for v in judged if v.pool == pool)
        held_out = families_of(pool, held_out=True)
        assert [own[family] for family in held_out] == [4] * len(held_out)
        assert sum(own.values()) - 4 * len(held_out) == 4


def test_training_victims_are_of_every_kind() -> None:
    drawn = training_victims({"digits": 400, "sst2": 400}, seed=0)
    clean = np.mean([not v.backdoored for v in drawn])
    assert clean == pytest.approx(CLEAN_SHARE, abs=0.06)
    labels = Counter(v.scheme.labels for v in drawn)
    assert set(labels) == {"all_to_one", "all_to_all", "source_specific"}
    assert labels["all_to_one"] > 0.7 * len(drawn)
    assert all(0.05 <= v.poison_rate <= 0.5 for v in drawn if v.backdoored)
    assert {v.target_label for v in drawn if v.pool == "digits"} == set(range(10))
    warm = np.mean([v.start == "warm" for v in drawn if v.pool == "digits"])
    assert warm == pytest.approx(POOLS["digits"].warm_share, abs=0.1)
    for v in drawn:
        assert v.architecture in POOLS[v.pool].architectures
        if v.scheme.source_label is not None:
            assert v.scheme.source_label != v.target_label
            assert v.pool != "sst2"  # with two classes there is nothing to be specific about


def test_a_manifest_tells_everything() -> None:
    setting = draw_victim("cartpole", "state_pair", 2)
    told = setting.manifest()
    assert told["source"] == "victim"
    assert replace(setting, seed=3).manifest() == {**told, "seed": 3}
    assert setting.domain == "rl"


def test_an_unknown_data_set_names_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"one of digits, glyphs.*got 'mnist'"):
        draw_victim("mnist", "patch", 0)
