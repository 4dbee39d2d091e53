"""Null distributions across data sets: who scores whom, and what is pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_shield.activations import Activations
from fl_shield.calibration import standardise, task_p_values
from fl_shield.detector import Adapted
from fl_shield.meta import MetaConfig
from fl_shield.profile import Profiles
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import episode_of
from fl_shield.simulations.episodes.tasks import FEDERATED, Task
from fl_shield.simulations.meta_training import Parts
from fl_shield.simulations.null_distributions import (
    MOST_NETWORKS,
    N_NULL,
    NULL_SHOTS,
    calibrated,
    clean_profiles,
    doubting_nobody,
    folds_of,
    input_null,
    one_a_network,
    quantiles,
    refit,
    remembering,
    with_strictest_null,
)
from fl_shield.types import Floats, Representation
from fl_shield.weights import ODDS_NULL, Weights, blank_weights

POOLS = {"digits": "cv", "gtsrb": "cv", "sst2": "nlp", "cartpole": "rl", "acrobot": "rl"}


def _activations(n: int, seed: int) -> Activations:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 6)).astype(np.float32)
    return Activations(layers={"fc": rows}, logits=rows[:, :3], head=None)


def _task(pool: str, seed: int, family: str = "patch", beside: tuple[str, ...] = ()) -> Task:
    facts = {
        "pool": pool,
        "domain": POOLS[pool],
        "seed": seed,
        "family": family,
        "beside": beside,
        "poison_rate": 0.1,
        "architecture": "mlp",
    }
    recording = Recording(
        references=_activations(60, seed),
        clean=_activations(30, seed + 1),
        triggered=_activations(10, seed + 2),
        reached=np.ones(10, bool),
        facts=facts,
        peer_scores={},
    )
    return Task(episodes=(), facts=facts, recording=recording)


def test_folds_are_whole_data_sets_and_deal_domains_evenly() -> None:
    tasks = [_task(pool, seed) for pool in POOLS for seed in (0, 1)]
    folds = folds_of([*tasks, Task(episodes=(), facts=FEDERATED)])
    pools = [sorted({t.facts["pool"] for t in fold}) for fold in folds]
    assert pools == [["acrobot", "digits"], ["cartpole", "gtsrb"], ["sst2"]]
    assert sum(map(len, folds)) == len(tasks)
    assert len(folds_of(tasks[:4])) == 2
    assert folds_of([]) == []


def test_a_network_counts_once_and_a_data_set_at_most_so_often() -> None:
    shared = [
        _task("digits", 5, f, b) for f, b in (("patch", ("polygon",)), ("polygon", ("patch",)))
    ]
    alone = [_task("digits", 5, "colour"), _task("digits", 6, "colour")]
    kept = one_a_network([*shared, *alone])
    assert [(r.facts["seed"], r.facts["family"]) for r in kept] == [
        *((5, "patch"), (5, "colour"), (6, "colour"))
    ]
    many = [_task("digits", seed) for seed in range(MOST_NETWORKS + 9)]
    assert len(one_a_network([*many, *alone, _task("sst2", 0)])) == MOST_NETWORKS + 1


def test_networks_are_held_out_whole() -> None:
    """Backdoors of one network share its clean inputs: none of them is on the other side."""
    tasks = [
        _task("digits", seed, family, tuple({"patch", "polygon", "colour"} - {family}))
        for seed in range(12)
        for family in ("patch", "polygon", "colour")
    ]
    parts = Parts.of(tasks)
    sides = [{t.network for t in side} for side in (parts.training, parts.held_out)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [10, 2]
    assert len(parts.held_out) == 6


def test_each_data_set_is_scored_by_weights_that_never_saw_it() -> None:
    tasks = [_task(pool, seed) for pool in POOLS for seed in (0, 1)]
    learned: list[set[str]] = []

    def fit(seen: Sequence[Task]) -> Weights:
        learned.append({t.facts["pool"] for t in seen})
        return _weights(len(learned))

    parts = Parts(training=tasks[2:], held_out=tasks[:2])
    found = calibrated(_weights(0), parts, fit)
    folds = folds_of(tasks)
    assert learned == [set(POOLS) - {t.facts["pool"] for t in fold} for fold in folds]
    assert set(found.nulls) == {"inputs", *(f"inputs@{n}" for n in NULL_SHOTS)}
    assert all(len(null) == N_NULL for null in found.nulls.values())
    slow = [
        _standard(_weights(i + 1), task.recording, 20)
        for i, fold in enumerate(folds)
        for task in fold
        if task.recording
    ]
    assert torch.equal(found.nulls["inputs@20"], quantiles(np.concatenate(slow)))
    assert torch.equal(found.nulls["inputs"], found.nulls["inputs@20"])
    assert all(torch.equal(found.params[k], _weights(0).params[k]) for k in found.params)


def test_a_single_data_set_is_calibrated_by_its_held_out_victims() -> None:
    tasks = [_task("digits", seed) for seed in range(4)]

    def never(seen: Sequence[Task]) -> Weights:
        raise AssertionError("nothing to leave out")

    found = calibrated(_weights(0), Parts(training=tasks[:2], held_out=tasks[2:]), never)
    own = [t.recording for t in tasks[2:] if t.recording]
    assert torch.equal(found.nulls["inputs@5"], quantiles(input_null(_weights(0), own, 5)))


def test_recordings_are_profiled_once() -> None:
    calls = []

    def read(recording: Recording, n_shots: int, representation: Representation) -> Profiles:
        calls.append(n_shots)
        return clean_profiles(recording, n_shots, representation)

    remembered = remembering(read)
    first, second = _task("digits", 0).recording, _task("digits", 1).recording
    assert first
    assert second
    one = remembered(first, 5, "profile")
    assert remembered(first, 5, "profile") is one
    assert remembered(second, 5, "profile") is not one
    assert remembered(first, 7, "profile") is not one
    assert calls == [5, 5, 7]
    np.testing.assert_array_equal(one.points, clean_profiles(first, 5, "profile").points)


def test_weights_that_leave_data_sets_out_train_as_long() -> None:
    config = MetaConfig(n_epochs=5, n_inner_steps=1, n_hidden=4, conditioned=False)
    task = _task("digits", 0)
    assert task.recording
    tasks = [replace(task, episodes=(episode_of(task.recording, i),)) for i in range(3)]
    fitted = refit(config, 0)(tasks)
    assert fitted.config.n_epochs == 5


def _weights(seed: int) -> Weights:
    blank = blank_weights()
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(p.shape, generator=generator) * 0.1 if not name.startswith("rate.") else p
        for name, p in blank.params.items()
    }
    return replace(blank, params=params)


def _standard(weights: Weights, recording: Recording, n_shots: int) -> Floats:
    profiles = clean_profiles(recording, n_shots, weights.config.representation)
    adapted = Adapted(weights, profiles.references)
    return standardise(adapted.score(profiles.points).log_odds, adapted.reference_log_odds)


def test_the_strictest_null_holds_in_every_group_and_meets_the_one_before_half_way() -> None:
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(size=400), 3 * rng.normal(size=400)
    once = with_strictest_null(blank_weights(), ODDS_NULL, [narrow, np.zeros(0), wide])
    null = once.null_for(ODDS_NULL, 0)
    assert np.quantile(null, 0.98) >= np.quantile(wide, 0.98) - 0.1
    assert np.quantile(null, 0.02) >= np.quantile(narrow, 0.02) - 0.1  # never below either
    for group in (narrow, wide):
        assert (group[:, None] > null[None, -20]).mean() <= 0.02 + 0.005
    again = with_strictest_null(once, ODDS_NULL, [narrow + 2, wide + 2])
    np.testing.assert_allclose(again.null_for(ODDS_NULL, 0), null + 1, atol=1e-5)
    assert with_strictest_null(once, ODDS_NULL, [np.zeros(0)]) is once


def test_one_federation_in_ten_does_not_set_the_strictest_null() -> None:
    rng = np.random.default_rng(0)
    calm = [rng.normal(size=300) for _ in range(9)]
    odd = rng.normal(size=300) + 50
    nine = with_strictest_null(blank_weights(), ODDS_NULL, [*calm[:8], odd])
    ten = with_strictest_null(blank_weights(), ODDS_NULL, [*calm, odd])
    assert np.quantile(nine.null_for(ODDS_NULL, 0), 0.5) > 40
    assert np.quantile(ten.null_for(ODDS_NULL, 0), 0.99) < 10
    levels = [np.quantile(group, 0.9) for group in calm]
    assert np.quantile(ten.null_for(ODDS_NULL, 0), 0.9) == pytest.approx(max(levels), abs=0.05)


def test_a_null_that_doubts_nobody() -> None:
    weights = doubting_nobody(blank_weights(), ODDS_NULL)
    assert (task_p_values(weights.null_for(ODDS_NULL, 0), np.array([-5.0, 5.0, 1e5])) == 1).all()
