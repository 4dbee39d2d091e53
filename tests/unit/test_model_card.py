"""What is told of weights: the table over held-out tasks, the card, and how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_shield.detector import Adapted
from fl_shield.meta import Episode, MetaConfig, Progress
from fl_shield.metrics import auroc, tpr_at_fpr
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.meta_training import Parts
from fl_shield.simulations.model_card import facts_of, loss_figure, table, write_card
from fl_shield.weights import blank_weights

WEIGHTS = blank_weights(config=MetaConfig(n_hidden=4, n_inner_steps=1))


def _episode(seed: int, *, family: str = "shift", domain: str = "cv-toy") -> Episode:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [8, 4])
    query = rng.normal(size=(12, 2, 135)).astype(np.float32)
    query[labels == 1, :, :30] += 2
    support = rng.normal(size=(6, 2, 135)).astype(np.float32)
    return Episode(support=support, query=query, labels=labels, family=family, domain=domain)


def test_a_table_against_a_loop() -> None:
    episodes = [_episode(0), _episode(1), _episode(2, family="none"), _episode(3, domain="fl-a")]
    rows = table(WEIGHTS, episodes)
    assert [(r["domain"], r["family"], r["n_tasks"]) for r in rows] == [
        ("cv-toy", "none", 1),
        ("cv-toy", "shift", 2),
        ("fl-a", "shift", 1),
    ]
    aucs, tprs, flagged = [], [], []
    for episode in episodes[:2]:
        adapted = Adapted(WEIGHTS, episode.support)
        odds = adapted.score(episode.query).log_odds
        aucs.append(auroc(episode.labels, odds))
        tprs.append(tpr_at_fpr(episode.labels, odds, 0.05))
        flagged.append((adapted.p_values(odds[:8], "tasks") <= 0.05).mean())
    assert rows[1]["auc"] == pytest.approx(np.mean(aucs))
    assert rows[1]["tpr_at_fpr_5"] == pytest.approx(np.mean(tprs))
    assert rows[1]["benign_flagged"] == pytest.approx(np.mean(flagged))


def test_each_kind_of_task_has_its_own_null() -> None:
    calm = {"inputs": torch.full((99,), 1e6), "updates": torch.full((99,), -1e6)}
    calm["first updates"] = calm["inputs"]
    weights = replace(WEIGHTS, nulls=calm)
    first = replace(_episode(1, domain="fl-b"), settled=False)
    rows = table(weights, [_episode(0), _episode(0, domain="fl-a"), first])
    assert [r["benign_flagged"] for r in rows] == [0, 1, 0]


def test_tasks_without_triggered_points_have_no_auc_and_are_left_out_of_a_mean() -> None:
    clean = replace(_episode(0), labels=np.zeros(12, np.int64))
    (alone,) = table(WEIGHTS, [clean])
    assert alone["auc"] is alone["tpr_at_fpr_5"] is None
    assert 0 <= alone["benign_flagged"] <= 1
    (both,) = table(WEIGHTS, [clean, _episode(1)])
    assert both["n_tasks"] == 2
    assert both["auc"] == table(WEIGHTS, [_episode(1)])[0]["auc"]
    assert table(WEIGHTS, []) == []


def test_the_facts_give_the_command_that_makes_the_weights_again() -> None:
    curriculum = Curriculum(
        domains=("rl", "fl"), n_victims=30, n_digits=2, n_glyphs=8, n_zoo=1, seed=4
    )
    parts = Parts(training=[], held_out=[])
    config = MetaConfig(n_epochs=7, n_inner_steps=2)
    facts = facts_of(curriculum, parts, config, seconds=12.4)
    command = facts["command"].split()
    told = dict(zip(command[2::2], command[3::2], strict=True))
    assert command[:2] == ["fl-shield", "meta-train"]
    assert told == {
        "--out": "runs/meta",
        "--domains": "rl,fl",
        "--victims": "30",
        "--digits": "2",
        "--glyphs": "8",
        "--zoo": "1",
        "--rounds": "3",
        "--draws": "1",
        "--epochs": "7",
        "--inner-steps": "2",
        "--batch-size": "16",
        "--outer-lr": "0.003",
        "--representation": "profile",
        "--seed": "4",
    }
    n_clean = sum(not v.backdoored for v in curriculum.victims())
    n = len(curriculum.victims())
    assert f"{n - n_clean} backdoored and {n_clean} clean victims on cartpole" in facts["sources"]
    assert "12 federations of 3 rounds" in facts["sources"]
    assert "(2 of them in six ways of the arena and none)" in facts["sources"]
    assert facts["tasks"] == "0 sources for training, 0 held out"
    assert "12" in facts.values()
    with_files = facts_of(replace(curriculum, with_files=True), parts, config, 0.0)
    assert with_files["command"].endswith("--data-dir DIR")


def test_no_victims_are_said_to_be_on_no_data() -> None:
    only = Curriculum(domains=("fl",), n_victims=5, n_digits=2, n_glyphs=0)
    facts = facts_of(only, Parts(training=[], held_out=[]), MetaConfig(), 0.0)
    assert facts["sources"].startswith("0 backdoored and 0 clean victims on no data; 2 federations")


def test_a_card_tells_facts_and_every_row(tmp_path: Path) -> None:
    rows = [
        {"domain": "cv-a", "family": "patch", "n_tasks": 3, "auc": 0.98765},
        {"domain": "rl-b", "family": "none", "n_tasks": 1, "auc": None},
    ]
    rows = [{**row, "tpr_at_fpr_5": row["auc"], "benign_flagged": 0.05} for row in rows]
    write_card(tmp_path, WEIGHTS, rows, {"command": "do it", "tasks": "4"})
    card = (tmp_path / "MODEL_CARD.md").read_text().splitlines()
    assert "- **command**: do it" in card
    assert "| cv-a | patch | 3 | 0.988 | 0.988 | 0.050 |" in card
    assert "| rl-b | none | 1 | – | – | 0.050 |" in card
    told = json.loads((tmp_path / "metashield.json").read_text())
    assert told["held_out"] == rows
    assert told["config"] == asdict(WEIGHTS.config)
    assert told["tasks"] == "4"
    assert len(told["date"]) == 10


def test_losses_are_drawn_by_epoch() -> None:
    history = [Progress(epoch=i, loss=1.0 / (i + 1), validation_loss=0.5) for i in range(3)]
    (axes,) = loss_figure(history).axes
    assert [line.get_label() for line in axes.lines] == ["training", "held-out sources"]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [1, 2, 3]
    assert np.asarray(axes.lines[1].get_ydata()).tolist() == [0.5] * 3
