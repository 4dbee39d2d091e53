"""From episodes to shipped weights, and the command that does it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fl_shield.cli.meta_train import app
from fl_shield.detector import Adapted, MetaShield, blank_weights
from fl_shield.errors import ScenarioError
from fl_shield.meta import Episode, MetaConfig
from fl_shield.simulations.episodes.sources import Curriculum
from fl_shield.simulations.meta_training import (
    HOLD_OUT,
    N_NULL,
    calibrated,
    column_scales,
    fit_weights,
    kind_of,
    loss_figure,
    split_sources,
    table,
    with_null,
)

CONFIG = MetaConfig(n_hidden=8, n_inner_steps=1, n_epochs=4, n_support=8, n_query=12)


def _episode(seed: int, domain: str = "fl-toy") -> Episode:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 10)
    query = rng.normal(size=(20, 3, 128)).astype(np.float32)
    query[labels == 1, :, :20] += 3
    support = rng.normal(size=(10, 3, 128)).astype(np.float32)
    return Episode(support=support, query=query, labels=labels, family="shift", domain=domain)


SOURCES = [[_episode(2 * i), _episode(2 * i + 1, "cv-toy")] for i in range(2 * HOLD_OUT)]


def test_sources_are_held_out_whole() -> None:
    split = split_sources(SOURCES)
    assert len(split.held_out) == 4
    assert len(split.training) == 4 * HOLD_OUT - 4
    assert all(any(e is h for h in split.held_out) for e in SOURCES[HOLD_OUT])


def test_columns_are_standardised_by_training_rows() -> None:
    mean, scale = column_scales([_episode(0)])
    rows = [part.reshape(-1, 128)[::3] for part in (_episode(0).support, _episode(0).query)]
    np.testing.assert_allclose(mean.numpy(), np.concatenate(rows).mean(0), atol=1e-5)
    np.testing.assert_allclose(scale.numpy(), np.concatenate(rows).std(0) + 0.05, atol=1e-5)


def test_training_calibrating_and_describing() -> None:
    split = split_sources(SOURCES)
    found = list(fit_weights(split, CONFIG, seed=0, card={"seed": "0"}))
    history = [progress for progress, _ in found]
    assert history[-1].validation_loss < history[0].validation_loss
    honest = [replace(e, labels=np.zeros_like(e.labels), family="none") for e in split.held_out]
    calm = [replace(e, query=e.query[:10], labels=e.labels[:10]) for e in honest]
    weights = calibrated(found[-1][1], [*split.held_out, *calm])
    assert {name: len(null) for name, null in weights.nulls.items()} == {
        "inputs": N_NULL,
        "updates": N_NULL,
        "first updates": N_NULL,
    }
    rows = table(weights, split.held_out)
    assert [row["domain"] for row in rows] == ["cv-toy", "fl-toy"]
    assert all(row["auc"] > 0.9 for row in rows)
    flagged = np.mean([row["benign_flagged"] for row in rows])
    assert flagged == pytest.approx(0.05, abs=0.05)  # the null comes from these very points
    odd = replace(split.held_out[0], query=split.held_out[0].query + 50)
    attacked = calibrated(weights, [*split.held_out, *calm, odd])  # attacked rounds do not count
    assert torch.equal(attacked.nulls["updates"], weights.nulls["updates"])
    drawn = np.asarray(loss_figure(history).axes[0].lines[0].get_ydata())
    assert drawn[0] == pytest.approx(history[0].loss)
    odds = Adapted(weights, split.held_out[0].support).score(split.held_out[0].query).log_odds
    assert np.isfinite(odds).all()


def test_kinds() -> None:
    assert kind_of(replace(_episode(0), settled=False)) == "first updates"
    assert [kind_of(_episode(0)), kind_of(_episode(0, "cv-toy"))] == ["updates", "inputs"]


def test_the_command_makes_weights_that_load(tmp_path: Path) -> None:
    out, cache = tmp_path / "meta", tmp_path / "cache"
    arguments = ["--out", str(out), "--victims", "7", "--digits", "0", "--glyphs", "0"]
    arguments += ["--epochs", "1", "--workers", "1", "--cache", str(cache)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    detector = MetaShield.load(out / "metashield.safetensors")
    assert detector.weights.config.n_epochs == 1
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in manifest] == list(range(7))
    assert "--victims 7" in (out / "MODEL_CARD.md").read_text()
    assert (out / "training_loss.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}  # resumed


def test_a_curriculum_without_sources_says_what_to_do() -> None:
    with pytest.raises(ScenarioError, match="at least 2 sources"):
        Curriculum(n_victims=0, n_digits=0, n_glyphs=0)


def test_another_null_takes_the_place_of_one() -> None:
    before = calibrated(blank_weights(config=CONFIG), split_sources(SOURCES).held_out)
    scores = [np.arange(50.0), np.arange(50.0, 101.0)]
    after = with_null(before, "updates", scores)
    assert float(after.nulls["updates"].median()) == pytest.approx(50)
    assert torch.equal(after.nulls["inputs"], before.nulls["inputs"])
    assert with_null(before, "updates", [np.zeros(0)]) is before
