"""Victims of a moment's training: they obey their triggers, and their recordings say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.activations import read_activations
from fl_shield.attacks import PoisonScheme
from fl_shield.detectors import DETECTORS, MULTI_PASS
from fl_shield.simulations.episodes import recordings as population_module
from fl_shield.simulations.episodes import victims as victims_module
from fl_shield.simulations.episodes.clean_models import (
    RECIPES,
    Recipe,
    Workplace,
    clean_model,
    pool_of,
)
from fl_shield.simulations.episodes.planting import MOST_PSNR, plant, psnr, visible_trigger
from fl_shield.simulations.episodes.population import VictimSetting, draw_network, draw_victim
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.recordings import (
    groups_of,
    load_population,
    recording_path,
    simulate_population,
)
from fl_shield.simulations.episodes.shots import evaluation_shots, reference_index
from fl_shield.simulations.episodes.victims import (
    N_CLEAN,
    N_REFERENCES,
    N_TRIGGERED,
    record,
    simulate_victims,
    train_victims,
)
from fl_shield.stages import find_stages
from fl_shield.training import accuracy, logits_of
from fl_shield.triggers import draw_trigger

TINY = Recipe(
    n_train=900,
    n_steps=200,
    n_warm_steps=60,
    lr=5e-3,
    warm_lr=3e-3,
    n_stacked=2,
    n_clean=2,
    n_clean_steps=60,
)
DRAWS = {"digits": ("patch", "mlp"), "cartpole": ("state_pair", "policy-mlp")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """An empty cache, and recipes of a moment."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in RECIPES:
            patch.setitem(RECIPES, kind, TINY)
        yield Workplace(data_dir=None, cache=tmp_path_factory.mktemp("cache"))


def _setting(
    pool: str = "digits",
    seed: int = 0,
    *,
    poison_rate: float = 0.3,
    start: str = "scratch",
    evaluation: bool = False,
) -> VictimSetting:
    family, architecture = DRAWS[pool]
    drawn = draw_victim(pool, family, seed, evaluation=evaluation)
    return replace(
        drawn,
        architecture=architecture,
        poison_rate=poison_rate,
        scheme=PoisonScheme(),
        start="warm" if start == "warm" else "scratch",
    )


def _same(one: Recording, other: Recording) -> None:
    for part in ("references", "clean", "triggered"):
        a, b = getattr(one, part), getattr(other, part)
        np.testing.assert_array_equal(a.logits, b.logits)
        assert all(np.array_equal(a.layers[name], b.layers[name]) for name in a.layers)
    np.testing.assert_array_equal(one.reached, other.reached)
    assert {**one.facts, "seconds": 0} == {**other.facts, "seconds": 0}


@pytest.mark.parametrize("pool", DRAWS)
def test_a_victim_obeys_its_trigger_and_the_recording_shows_it(pool: str, place: Workplace) -> None:
    setting = _setting(pool, seed=1)
    (found,) = simulate_victims([setting], place)
    assert found.facts["asr"] >= 0.8
    assert found.facts["accuracy"] > 0.8
    assert {"seconds", "mean_change", "share_changed", "domain"} <= set(found.facts)
    assert (len(found.references), len(found.clean)) == (N_REFERENCES, N_CLEAN)
    n_reached = int(found.reached.sum())
    assert n_reached == N_TRIGGERED
    assert found.reached[:n_reached].all()  # successes first, then some failures
    assert not found.reached[n_reached:].any()
    assert len(found.reached) == len(found.triggered) <= N_TRIGGERED * 5 // 4
    np.testing.assert_array_equal(found.triggered.labels == setting.target_label, found.reached)
    labels = evaluation_shots(found, 10).labels
    assert np.bincount(labels, minlength=3).tolist() == [
        N_CLEAN,
        n_reached,
        int((~found.reached).sum()),
    ]
    assert found.peer_scores == {}


def test_failures_are_recorded_apart(place: Workplace) -> None:
    weak = replace(_setting(seed=2), poison_rate=0.02)
    (found,) = simulate_victims([weak], place)
    assert found.facts["asr"] < 1
    labels = evaluation_shots(found, 10).labels
    n_failed = int((labels == 2).sum())
    assert 0 < n_failed <= N_TRIGGERED // 4
    assert n_failed == (~found.reached).sum()


def test_a_clean_victim_has_negatives_only(place: Workplace) -> None:
    (found,) = simulate_victims([_setting(seed=3, poison_rate=0.0)], place)
    assert not found.backdoored
    assert found.facts["asr"] is None
    assert len(found.triggered) == N_TRIGGERED
    assert found.reached.all()
    assert not evaluation_shots(found, 10).labels.any()


@pytest.mark.parametrize("start", ["warm", "scratch"])
def test_the_same_settings_give_the_same_recordings(start: str, place: Workplace) -> None:
    settings = [_setting("cartpole", seed, start=start) for seed in (4, 5)]
    first, again = (simulate_victims(settings, place) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        _same(one, other)
    assert not np.array_equal(first[0].clean.logits, first[1].clean.logits)


def test_longer_training_takes_so_many_times_the_steps(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(
        victims_module, "train_stacked", lambda *_, n_steps, **__: taken.append(n_steps)
    )
    for longer in (1.0, 2.5):
        train_victims([_setting("cartpole", 4)], place, longer)
    assert taken == [TINY.n_steps, round(2.5 * TINY.n_steps)]


def test_a_recording_is_what_the_victim_says(place: Workplace) -> None:
    (victim,) = train_victims([_setting(seed=6)], place)
    pool = pool_of("digits", place)
    state = victim.rng.bit_generator.state
    found = record(victim, pool, seconds=1.5)
    victim.rng.bit_generator.state = state
    test = pool.test.take(victim.rng.permutation(len(pool.test)))
    layers = find_stages(victim.model)
    slow = read_activations(victim.model, test.x[:N_REFERENCES], layers)
    np.testing.assert_array_equal(found.references.penultimate, slow.penultimate)
    rest = test.take(slice(N_REFERENCES + N_CLEAN, None))
    aimed = rest.take(rest.y != victim.setting.target_label)
    answers = logits_of(victim.model, victim.trigger.stamp(aimed.x)).argmax(1).numpy()
    assert found.facts["asr"] == pytest.approx((answers == victim.setting.target_label).mean())
    assert found.facts["seconds"] == 1.5
    n_poisoned = len(victim.training) - TINY.n_train
    assert n_poisoned > 0
    assert (victim.training.y[TINY.n_train :] == victim.setting.target_label).all()


@pytest.mark.parametrize("pool", DRAWS)
def test_peers_scores_are_those_of_the_detectors(
    pool: str, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(victims_module, "PEER_SHOTS", (10,))
    (victim,) = train_victims([_setting(pool, 7, evaluation=True)], place)
    state = victim.rng.bit_generator.state
    data = pool_of(pool, place)
    found = record(victim, data, 0.0)
    expected = {"digits": {"strip", "scale_up", "scale_up_limited"}, "cartpole": {"strip"}}
    # IBD-PSC needs batch normalisation, SCALE-UP pictures
    assert set(found.peer_scores) == {f"{name}@10" for name in expected[pool]}
    assert expected[pool] < set(MULTI_PASS)
    victim.rng.bit_generator.state = state
    test = data.test.take(victim.rng.permutation(len(data.test)))
    index = reference_index(found.facts, 10, N_REFERENCES)
    clean = test.x[N_REFERENCES : N_REFERENCES + N_CLEAN]
    detector = DETECTORS["strip"]().fit(victim.model, test.x[:N_REFERENCES][index])
    scores, p_values = found.peer_scores["strip@10"]
    assert scores.shape == (len(found.clean) + len(found.triggered),)
    np.testing.assert_allclose(scores[:N_CLEAN], detector.score(clean), atol=1e-6)
    np.testing.assert_allclose(p_values[:N_CLEAN], detector.p_values(clean), atol=1e-6)


def test_a_clean_model_is_trained_once(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of("digits", place)
    first = clean_model(pool, "cnn", 1, place)
    folder = place.cache / "clean"
    assert [p.name for p in folder.glob("digits-cnn-*")] == ["digits-cnn-1.safetensors"]
    assert accuracy(first, pool.test) > 0.6

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("fl_shield.simulations.episodes.clean_models.train_stacked", refuse)
        again = clean_model(pool, "cnn", 1, place)
        with pytest.raises(AssertionError, match="trained again"):
            clean_model(pool, "cnn", 0, place)
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_backdoors_of_one_network_come_from_one_training(place: Workplace) -> None:
    network = next(
        net
        for net in (draw_network("digits", ("patch", "colour"), seed) for seed in range(9))
        if net[0].backdoored and net[0].start == "scratch" and net[0].architecture == "cnn"
    )
    first, second = train_victims(network, place)
    assert first.model is second.model
    assert first.training is second.training
    assert [first.trigger.name, second.trigger.name] == ["colour", "patch"]
    n_copies = [len(alone.training) - TINY.n_train for alone in (first, second)]
    assert n_copies[0] == n_copies[1] > 0.1 * TINY.n_train  # those of both
    (again,) = train_victims(network[1:], place)  # asked for alone, it has its neighbour still
    assert all(map(torch.equal, first.model.parameters(), again.model.parameters()))
    assert np.array_equal(again.training.y, first.training.y)


def test_clean_labels_are_poisoned_in_place(place: Workplace) -> None:
    pool = pool_of("digits", place)
    setting = replace(_setting(seed=8, poison_rate=0.5), scheme=PoisonScheme(clean_label=True))
    (clean,) = plant([replace(setting, poison_rate=0.0)], pool, place)
    (poisoned,) = plant([setting], pool, place)
    assert len(poisoned.training) == TINY.n_train
    np.testing.assert_array_equal(poisoned.training.y, clean.training.y)
    changed = (poisoned.training.x != clean.training.x).any(axis=(1, 2, 3))
    assert 0 < changed.sum() <= (clean.training.y == setting.target_label).sum()
    assert (clean.training.y[changed] == setting.target_label).all()


def test_triggers_of_images_can_be_seen(place: Workplace) -> None:
    images = pool_of("digits", place).train.x[:200]
    for seed in range(5):
        trigger = visible_trigger("checker", images, np.random.default_rng(seed))
        change = np.square(trigger.stamp(images[:50]) - images[:50]).mean()
        assert -10 * np.log10(change) <= MOST_PSNR
    faint = np.zeros((9, 1, 200, 200), np.float32)  # no patch that small is ever seen there
    patch = visible_trigger("patch", faint, np.random.default_rng(0))
    others = [draw_trigger("patch", faint, np.random.default_rng(0)) for _ in range(3)]
    assert all(psnr(patch, faint) <= psnr(other, faint) for other in others)


def test_groups_are_alike_and_of_the_recipes_size(place: Workplace) -> None:
    settings = [
        _setting(pool, seed, start=start, evaluation=evaluation)
        for seed in range(5)
        for pool in DRAWS
        for start in ("warm", "scratch")
        for evaluation in (False, True)
    ]
    groups = groups_of(settings)
    assert sorted(str(s) for group in groups for s in group) == sorted(map(str, settings))
    for group in groups:
        assert len({(s.pool, s.architecture, s.start, s.evaluation) for s in group}) == 1
    assert sorted(map(len, groups)) == sorted([2, 2, 1] * 8)
    pools = [group[0].pool for group in groups]
    assert pools == sorted(pools)  # one data set after the other
    assert groups_of([]) == []


def test_a_gpu_that_is_there_trains_many_together(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(*_: Any, device: str, **__: Any) -> None:
        asked.append(device)

    settings = [_setting("cartpole", seed) for seed in range(5)]
    monkeypatch.setattr(victims_module, "train_stacked", noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [len(group) for group in groups_of(settings)] == [5]
    names = [recording_path(s, place).name for s in settings]
    train_victims(settings[:2], place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [len(group) for group in groups_of(settings)] == [2, 2, 1]
    assert names == [recording_path(s, place).name for s in settings]  # found wherever it was made
    train_victims(settings[:2], place)
    assert asked == ["cuda", "cpu"]


def test_nothing_is_simulated_twice(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def counted(settings: Sequence[VictimSetting], where: Workplace) -> list[Recording]:
        asked.append([s.seed for s in settings])
        return simulate_victims(settings, where)

    monkeypatch.setattr(population_module, "simulate_victims", counted)
    here = replace(place, cache=tmp_path)
    settings = [_setting("cartpole", seed) for seed in (10, 11, 12)]
    steps = simulate_population(settings, here)
    assert [next(steps), next(steps)] == [0, 2]
    steps.close()  # type: ignore[attr-defined]  # interrupted after the first group
    assert sum(recording_path(s, here).exists() for s in settings) == 2
    assert list(simulate_population(settings, here)) == [2, 1]
    assert list(simulate_population(settings, here)) == [3]
    assert asked == [[10, 11], [12]]
    loaded = load_population(settings, here)
    assert [r.facts["seed"] for r in loaded] == [10, 11, 12]
    others = [replace(s, target_label=1 - s.target_label) for s in settings]
    assert len({recording_path(s, here) for s in (*settings, *others)}) == 6
