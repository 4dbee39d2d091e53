"""What an inspector remembers, written down and read again: it judges as if it had not stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import nn

from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.recollection import Recollection, recall, recollection_of
from fl_shield.strategies import ShieldedStrategy, load_checkpoint, save_checkpoint, to_record
from fl_shield.training import get_arrays
from fl_shield.types import Arrays, Inspection, Samples
from fl_shield.weights import ODDS_NULL, Weights

N_CLIENTS = 8
NAMES = [f"client-{i}" for i in range(N_CLIENTS)]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


GLOBAL: Arrays = get_arrays(_model())


def _clean() -> Samples:
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    return Samples(x=x, y=np.arange(12) % 3)


def _round(seed: int) -> list[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    return [
        {n: (a + rng.normal(size=a.shape) / 10).astype(np.float32) for n, a in GLOBAL.items()}
        for _ in range(N_CLIENTS)
    ]


def _detector(weights: Weights) -> MetaShield:
    nulls = {**weights.nulls, ODDS_NULL: torch.linspace(-6, 6, 101)}
    return MetaShield(replace(weights, nulls=nulls))


def _seen(inspector: Inspector, seed: int) -> Inspection:
    return inspector.inspect(dict(GLOBAL), _round(seed), np.ones(N_CLIENTS), None, NAMES)


def _taught(weights: Weights) -> Inspector:
    inspector = Inspector(_model(), _clean(), _detector(weights), probes=False)
    for seed in (1, 2):
        _seen(inspector, seed)
        inspector.remember(np.arange(N_CLIENTS) > 1, np.linspace(1, 0, N_CLIENTS))
    return inspector


def _written(recollection: Recollection) -> Recollection:
    arrays = load(save(dict(recollection.arrays)))
    facts = json.loads(json.dumps([recollection.owners, recollection.suspects]))
    suspects = tuple((name, doubt) for name, doubt in facts[1])
    return Recollection(arrays=arrays, owners=tuple(facts[0]), suspects=suspects)


def test_whoever_is_given_a_memory_judges_as_its_owner(toy_weights: Weights) -> None:
    taught = _taught(toy_weights)
    heir = Inspector(_model(), _clean(), _detector(toy_weights), probes=False)
    recall(heir, _written(recollection_of(taught)))
    assert heir.is_settled
    assert heir.suspects is not None
    assert len(heir.suspects) == N_CLIENTS - 1  # whoever was not doubted is none
    expected, found = _seen(taught, 3), _seen(heir, 3)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.p_values, expected.p_values)
    stranger = _seen(Inspector(_model(), _clean(), _detector(toy_weights), probes=False), 3)
    assert np.abs(stranger.scores - expected.scores).max() > 1e-3


def test_who_remembers_nothing_has_nothing_to_give(toy_weights: Weights) -> None:
    fresh = Inspector(_model(), _clean(), _detector(toy_weights), probes=False)
    nothing = recollection_of(fresh)
    assert (dict(nothing.arrays), nothing.owners, nothing.suspects) == ({}, (), ())
    recall(fresh, nothing)
    assert not fresh.is_settled


def test_a_checkpoint_keeps_it(toy_weights: Weights, tmp_path: Path) -> None:
    def new(inspector: Inspector | None) -> ShieldedStrategy:
        clean = (_clean().x, _clean().y)
        return ShieldedStrategy(FedAvg(), model=_model(), clean_data=clean, inspector=inspector)

    taught = _taught(toy_weights)
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, new(taught), 2, to_record(GLOBAL))
    resumed = new(Inspector(_model(), _clean(), _detector(toy_weights), probes=False))
    load_checkpoint(path, resumed)
    told = resumed.recollection_
    assert resumed.inspector is not None
    assert told.suspects == ()  # given when the first round opens
    resumed._open(GLOBAL)
    found, expected = resumed.recollection_, recollection_of(taught)
    assert found.suspects == expected.suspects
    assert found.owners == expected.owners
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
