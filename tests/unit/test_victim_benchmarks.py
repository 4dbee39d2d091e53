"""The benchmarks of how victims are made: which they compare, and that both sides are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_shield.activations import Activations
from fl_shield.detector import MetaShield
from fl_shield.simulations.benchmarks.victims_per_minute import drawn, measured
from fl_shield.simulations.benchmarks.warm_starts import PEERS, aucs
from fl_shield.simulations.episodes.clean_models import RECIPES, Recipe, Workplace
from fl_shield.simulations.episodes.recording import Recording

TINY = Recipe(n_train=400, n_steps=60, n_warm_steps=20, lr=5e-3, warm_lr=3e-3)


def test_whole_networks_are_drawn_of_one_kind() -> None:
    found = drawn("digits", "mlp", 8)
    assert len(found) == 8
    assert all(v.architecture == "mlp" and v.start == "scratch" and v.backdoored for v in found)
    assert {v.network() for v in found} == {found[0].network(), found[4].network()}
    assert len(drawn("cartpole", "policy-mlp", 3)) == 4  # networks of two


def test_both_ways_train_the_same_backdoors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "digits", TINY)
    found = measured("digits/mlp", 4, Workplace(data_dir=None, cache=tmp_path))
    assert (found.n_victims, found.n_networks) == (4, 1)
    assert found.ratio == found.one_by_one.seconds / found.together.seconds
    assert 0 <= found.together.asr <= 1
    assert 0 <= found.one_by_one.accuracy <= 1


def test_detectors_are_asked_about_one_recording() -> None:
    def part(n: int, seed: int, shift: float = 0.0) -> Activations:
        rows = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32) + shift
        return Activations(layers={"head": rows}, logits=rows[:, :3])

    facts = {"seed": 1, "pool": "gtsrb", "domain": "cv", "architecture": "cnn", "family": "patch"}
    facts |= {"poison_rate": 0.2}
    recording = Recording(
        references=part(50, 0),
        clean=part(30, 1),
        triggered=part(20, 2, shift=8.0),
        reached=np.ones(20, np.bool_),
        facts=facts,
        peer_scores={},
    )
    found = aucs(recording, MetaShield.from_pretrained("inputs").weights)
    assert set(found) == {"metashield", *PEERS}
    assert found["mahalanobis"] == 1.0
