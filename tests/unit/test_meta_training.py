"""From episodes to shipped weights, and the command that does it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fl_shield.cli.meta_train import app
from fl_shield.detector import Adapted, MetaShield
from fl_shield.errors import ScenarioError
from fl_shield.meta import Episode, MetaConfig
from fl_shield.simulations.episodes.clean_models import RECIPES, Recipe
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.tasks import FEDERATED, Task, is_validation
from fl_shield.simulations.meta_training import (
    FAMILY_TURNS,
    HOLD_OUT,
    MOST_TURNS,
    Parts,
    balanced,
    best_length,
    column_scales,
    episodes_of,
    fit_weights,
)
from fl_shield.simulations.model_card import loss_figure, table
from fl_shield.simulations.null_distributions import (
    N_NULL,
    calibrated,
    kind_of,
    refit,
    with_null,
)
from fl_shield.weights import blank_weights

CONFIG = MetaConfig(n_hidden=8, n_inner_steps=1, n_epochs=4, n_support=8, n_query=12)


def _episode(seed: int, domain: str = "fl-toy") -> Episode:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 10)
    query = rng.normal(size=(20, 3, 135)).astype(np.float32)
    query[labels == 1, :, :20] += 3
    support = rng.normal(size=(10, 3, 135)).astype(np.float32)
    return Episode(support=support, query=query, labels=labels, family="shift", domain=domain)


VICTIM = {"domain": "cv", "pool": "toy", "family": "patch", "architecture": "cnn"}
TASKS = [
    Task(episodes=(_episode(2 * i), _episode(2 * i + 1, "cv-toy")), facts=FEDERATED)
    for i in range(2 * HOLD_OUT)
]


def test_tasks_are_held_out_whole() -> None:
    split = Parts.of(TASKS)
    assert len(TASKS) == 2 * HOLD_OUT
    first, second = split.held_out
    assert len(split.training) == len(TASKS) - 2
    assert not [t for t in split.training if t is first or t is second]
    assert episodes_of(split.held_out) == [*first.episodes, *second.episodes]


def test_validation_has_its_own_families_and_networks() -> None:
    def validates(**facts: str) -> bool:
        return is_validation(Task(episodes=(), facts={**VICTIM, **facts}))

    assert validates(family="colour")
    assert validates(architecture="vit")
    assert not validates()
    assert not is_validation(TASKS[0])


def test_the_length_of_a_run_is_found_without_the_validation() -> None:
    unseen = [replace(t, facts={**VICTIM, "family": "colour"}) for t in TASKS[:3]]
    history = best_length([*TASKS[3:], *unseen], CONFIG, seed=0)
    assert [p.epoch for p in history] == [0, 1, 2, 3]
    assert all(np.isfinite(p.validation_loss) for p in history)


def test_domains_take_part_alike() -> None:
    domains = ["rl-cartpole"] * 50 + ["cv-gtsrb"] * 12 + ["cv-digits"] * 8 + ["nlp-sst2"] * 30
    kinds = [(domain, "any") for domain in domains]
    turns = balanced(kinds, np.random.default_rng(0))
    often = Counter(domains[i].partition("-")[0] for i in turns)
    assert often == {"rl": 50, "cv": 50, "nlp": 50}
    assert set(turns) == set(range(100))
    each = Counter(turns)
    assert {each[i] for i in range(50)} == {1}
    assert {each[i] for i in range(50, 70)} == {2, 3}
    assert turns == balanced(kinds, np.random.default_rng(0))
    rare = balanced([("rl", "")] * 50 + [("cv", "")] * 2, np.random.default_rng(0))
    assert Counter(rare)[51] == MOST_TURNS
    assert balanced([("fl-digits", "lp")] * 4, np.random.default_rng(0)) == [0, 1, 2, 3]


def test_families_of_a_domain_take_part_alike() -> None:
    kinds = [("cv-a", "patch")] * 20 + [("cv-b", "ghost")] * 8 + [("cv-b", "shear")] * 2
    turns = balanced(kinds, np.random.default_rng(0))
    often = Counter(kinds[i][1] for i in turns)
    assert often == {"patch": 20, "ghost": 20, "shear": 2 * FAMILY_TURNS}
    attacks = [("fl-a", "lp")] * 5 + [("fl-a", "badnets")]
    assert balanced(attacks, np.random.default_rng(0)) == [0, 1, 2, 3, 4, 5]


def test_columns_are_standardised_by_training_rows() -> None:
    mean, scale = column_scales([_episode(0)])
    rows = [part.reshape(-1, 135)[::3] for part in (_episode(0).support, _episode(0).query)]
    np.testing.assert_allclose(mean.numpy(), np.concatenate(rows).mean(0), atol=1e-5)
    np.testing.assert_allclose(scale.numpy(), np.concatenate(rows).std(0) + 0.05, atol=1e-5)


def _calm(task: Task) -> Task:
    """The benign half of a task, as rounds that nobody attacks."""
    benign = (replace(e, query=e.query[:10], labels=e.labels[:10] * 0) for e in task.episodes)
    return replace(task, episodes=tuple(benign))


def test_scales_by_turns_are_those_of_all_rows_at_once() -> None:
    episodes = [_episode(seed) for seed in range(3)]
    turns = [0, 2, 2, 0, 2]
    mean, scale = column_scales(episodes, turns)
    rows = np.concatenate(
        [
            part.reshape(-1, part.shape[-1])[::3]
            for i in turns
            for part in (episodes[i].support, episodes[i].query)
        ]
    ).astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scale, rows.std(0) + 0.05, rtol=1e-6)


def test_training_calibrating_and_describing() -> None:
    split = Parts.of(TASKS)
    held_out = episodes_of(split.held_out)
    training = episodes_of(split.training)
    found = list(fit_weights(training, held_out, CONFIG, seed=0, card={"seed": "0"}))
    history = [progress for progress, _ in found]
    assert history[-1].validation_loss < history[0].validation_loss
    calm = [_calm(task) for task in split.held_out]
    weights = calibrated(found[-1][1], Parts(training=[], held_out=calm), refit(CONFIG, 0))
    assert len(weights.nulls["updates"]) == len(weights.nulls["first updates"]) == N_NULL
    rows = table(weights, held_out)
    assert [row["domain"] for row in rows] == ["cv-toy", "fl-toy"]
    assert all(row["auc"] > 0.9 for row in rows)
    flagged = np.mean([row["benign_flagged"] for row in rows])
    assert flagged == pytest.approx(0.05, abs=0.06)  # the null comes from these very points
    odd = replace(held_out[0], query=held_out[0].query + 50)
    attacked = [*calm, Task(episodes=(odd,), facts=FEDERATED)]  # attacked rounds do not count
    again = calibrated(weights, Parts(training=[], held_out=attacked), refit(CONFIG, 0))
    assert torch.equal(again.nulls["updates"], weights.nulls["updates"])
    drawn = np.asarray(loss_figure(history).axes[0].lines[0].get_ydata())
    assert drawn[0] == pytest.approx(history[0].loss)
    odds = Adapted(weights, held_out[0].support).score(held_out[0].query).log_odds
    assert np.isfinite(odds).all()


def test_kinds() -> None:
    assert kind_of(replace(_episode(0), settled=False)) == "first updates"
    assert [kind_of(_episode(0)), kind_of(_episode(0, "cv-toy"))] == ["updates", "inputs"]


def test_the_command_makes_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(n_train=1000, n_steps=60, n_warm_steps=50, lr=5e-3, warm_lr=2e-3)
    monkeypatch.setitem(RECIPES, "state", recipe)
    out, cache = tmp_path / "meta", tmp_path / "cache"
    arguments = ["--out", str(out), "--domains", "rl", "--victims", "12", "--draws", "1"]
    arguments += ["--pools", "cartpole,mountaincar"]
    arguments += ["--epochs", "1", "--workers", "1", "--cache", str(cache)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    detector = MetaShield.load(out / "metashield.safetensors")
    assert detector.weights.config.n_epochs == 1
    assert "inputs@20" in detector.weights.nulls
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {row["pool"] for row in manifest} == {"cartpole", "mountaincar"}
    assert "--victims 12" in (out / "MODEL_CARD.md").read_text()
    assert (out / "training_loss.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}  # resumed


def test_a_curriculum_without_sources_says_what_to_do() -> None:
    with pytest.raises(ScenarioError, match="at least 2 sources"):
        Curriculum(n_victims=0, n_digits=0, n_glyphs=0)
    with pytest.raises(ScenarioError, match="domains must be some of cv, nlp, rl, fl, got 'audio'"):
        Curriculum(domains=("audio",))


def test_another_null_takes_the_place_of_one() -> None:
    before = blank_weights(config=CONFIG)
    scores = [np.arange(50.0), np.arange(50.0, 101.0)]
    after = with_null(before, "updates", scores)
    assert float(after.nulls["updates"].median()) == pytest.approx(50)
    assert torch.equal(after.nulls["inputs"], before.nulls["inputs"])
    assert with_null(before, "updates", [np.zeros(0)]) is before
