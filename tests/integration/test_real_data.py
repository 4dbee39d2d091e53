"""The real data beside the checkout: by writer, by role, and shared out among clients."""

import os
from pathlib import Path

import numpy as np
import pytest

from fl_shield.rng import keyed
from fl_shield.simulations.datasets import (
    EXAMPLES_PER_CLIENT,
    FederatedData,
    fingerprint,
    load,
)
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.task import open_task
from fl_shield.simulations.victims import build_model, default_model, default_training
from fl_shield.training import accuracy, train
from fl_shield.types import Samples

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("FL_SHIELD_DATA", BESIDE))

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="no real data beside the checkout: set FL_SHIELD_DATA"
    ),
]


def rows(*parts: Samples) -> list[bytes]:
    return [x.tobytes() for part in parts for x in part.x]


@pytest.fixture(scope="module")
def femnist() -> FederatedData:
    return load("femnist", data_dir=DATA)


def test_femnist_has_a_hundred_writers_dark_on_white(femnist: FederatedData) -> None:
    sizes = [len(client) for client in femnist.clients]
    assert len(sizes) == 100
    assert min(sizes) >= 18
    assert 0.85 < sum(sizes) / (sum(sizes) + len(femnist.test)) < 0.95
    assert np.median(femnist.test.x) == 1.0
    assert {int(y) for client in femnist.clients for y in client.y} == set(range(62))


def test_femnist_duplicates_are_gone(femnist: FederatedData) -> None:
    test = set(rows(femnist.test))
    train = rows(*femnist.clients)
    assert len(set(train)) == len(train)
    assert test.isdisjoint(train)
    assert set(rows(femnist.clean)).isdisjoint(test.union(train))
    assert len(set(femnist.clean.y.tolist())) == 20


def test_femnist_npz_is_repeatable(femnist: FederatedData) -> None:
    again = load("femnist", data_dir=DATA / "femnist")
    assert fingerprint(again) == fingerprint(femnist)
    assert fingerprint(load("femnist", data_dir=DATA, seed=1)) != fingerprint(femnist)


def test_leaf_json_holds_the_same_pictures_as_npz() -> None:
    leaf = load("femnist", data_dir=DATA / "femnist" / "leaf_json", n_clients=100)
    npz = load("femnist", data_dir=DATA, n_clients=290)
    by_name = dict(zip(npz.client_names, npz.clients, strict=True))
    shared = [
        (client, by_name[name])
        for name, client in zip(leaf.client_names, leaf.clients, strict=True)
        if name in by_name and len(by_name[name]) == len(client)
    ]
    assert len(shared) > 20
    differences = [len(_pictures(a) ^ _pictures(b)) for a, b in shared]
    # a picture that two writers own stays with one of them, depending on who else is there
    assert np.mean([d == 0 for d in differences]) > 0.8


def _pictures(samples: Samples) -> set[tuple[int, bytes]]:
    pixels = (samples.x * 255).round().astype(np.uint8)
    return {(int(y), x.tobytes()) for x, y in zip(pixels, samples.y, strict=True)}


def test_femnist_is_learned_by_the_default_model(femnist: FederatedData) -> None:
    model = build_model(default_model("femnist"), femnist, seed=0)
    pooled = Samples.join(femnist.clients[:30])
    train(model, pooled, default_training("femnist"), keyed(0, 0))
    assert accuracy(model, femnist.test) > 0.6


def test_shakespeare_reads_as_text() -> None:
    data = load("shakespeare", data_dir=DATA, n_clients=50)
    text = "".join(data.vocabulary[t] for t in data.clients[0].x[:, 0])
    assert len(data.clients) == 50
    assert 0.1 < text.count(" ") / len(text) < 0.3
    assert set(rows(*data.clients)).isdisjoint(rows(data.test))


def test_leafs_own_shakespeare_has_five_roles_so_clean_is_cut_out() -> None:
    path = DATA / "shakespeare" / "leaf_json" / "fluid_leaf_5roles_train.json.gz"
    data = load("shakespeare", data_dir=path)
    assert len(data.clients) == 5
    assert set(rows(data.clean)).isdisjoint(rows(*data.clients, data.test))


# Common pools ------------------------------------------------------------------------------------

POOLED = {"cifar10": ((3, 32, 32), 10), "gtsrb": ((3, 32, 32), 43), "ag-news": ((32,), 4)}


@pytest.fixture(scope="module", params=POOLED)
def pooled(request: pytest.FixtureRequest) -> FederatedData:
    return load(str(request.param), data_dir=DATA)


def test_common_pools_are_shared_among_twenty(pooled: FederatedData) -> None:
    assert (pooled.input_shape, pooled.n_classes) == POOLED[pooled.name]
    sizes = [len(client) for client in pooled.clients]
    assert sum(sizes) == 20 * EXAMPLES_PER_CLIENT[pooled.name]
    assert min(sizes) < 0.8 * np.mean(sizes)
    labels = {int(y) for client in pooled.clients for y in client.y}
    assert labels == set(range(pooled.n_classes))
    held = rows(*pooled.clients, pooled.clean, pooled.test)
    assert len(set(held)) == len(held)


def test_common_pools_are_learned_by_the_default_model(pooled: FederatedData) -> None:
    model = build_model(default_model(pooled.name), pooled, seed=0)
    everything = Samples.join(pooled.clients)
    train(model, everything, default_training(pooled.name), keyed(0, 0))
    assert (
        accuracy(model, pooled.test) > {"cifar10": 0.4, "gtsrb": 0.6, "ag-news": 0.75}[pooled.name]
    )


@pytest.mark.parametrize("name", POOLED)
def test_default_triggers_are_seen_on_real_inputs(name: str) -> None:
    task = open_task(Scenario(dataset=name, data_dir=str(DATA)))
    others = task.data.test.take(task.data.test.y != 0)
    axes = tuple(range(1, others.x.ndim))
    changed = np.abs(task.stamped.x - others.x).max(axes)
    # a few photographs are as bright in that corner
    assert (changed > 0.2).mean() > 0.95
