"""Clients of a round trained together: the same models as one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.simulations.benchmarks.round_training import main, train_together
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Samples, TrainingConfig


def _samples(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(x=rng.normal(size=(n, 1, 6, 6)).astype(np.float32), y=rng.integers(0, 3, n))


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    )


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(n_epochs=2, batch_size=5, lr=0.1),
        TrainingConfig(n_epochs=2, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.01),
        TrainingConfig(n_epochs=1, batch_size=4, lr=0.5, momentum=0.5, clip_norm=0.3),
    ],
)
def test_together_is_one_by_one(config: TrainingConfig) -> None:
    clients = [_samples(n, seed) for seed, n in enumerate((13, 4, 1, 20))]
    start = get_arrays(_network())
    apart, together = ([set_arrays(_network(), start) for _ in clients] for _ in range(2))
    for i, (model, samples) in enumerate(zip(apart, clients, strict=True)):
        train(model, samples, config, np.random.default_rng(i))
    train_together(together, clients, config, [np.random.default_rng(i) for i in range(4)])
    for slow, fast in zip(apart, together, strict=True):
        for name, array in get_arrays(slow).items():
            np.testing.assert_allclose(get_arrays(fast)[name], array, atol=2e-5)
            assert np.abs(array - start[name]).max() > 1e-4


def test_the_command_times_both_ways_and_writes_what_it_saw(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--repeats", "1", "--out", str(tmp_path / "out.json")])
    finally:
        torch.set_num_threads(threads)
    (found,) = json.loads((tmp_path / "out.json").read_text())["rounds"]
    assert found["table"] == "digits"
    assert found["seconds one by one"] > 0
    assert found["seconds together"] > 0
    assert found["seconds of the probes"] > 0
    assert found["largest difference of a parameter"] < 1e-3


def test_an_unknown_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--scenarios", "digits,nope", "--out", str(tmp_path / "out.json")])
    assert "'nope'" in capsys.readouterr().err
