"""Data sets through flwr-datasets: real partitioners over small data sets, no network."""

import socket
from typing import Any, NoReturn

import flwr_datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from flwr_datasets.partitioner import NaturalIdPartitioner

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import hub, load
from fl_shield.simulations.datasets.shakespeare import VOCABULARY

GLYPHS = list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def handwriting() -> Dataset:
    rng = np.random.default_rng(0)
    writers = ["f0"] * 30 + ["f1"] * 40 + ["few"] * 10 + ["f2"] * 30
    pictures = rng.integers(0, 256, (len(writers), 28, 28), dtype=np.uint8)
    columns = {
        "image": list(pictures),
        "writer_id": writers,
        "hsf_id": [0] * len(writers),
        "character": rng.integers(0, 62, len(writers)).tolist(),
    }
    features = Features(
        image=Image(),
        writer_id=Value("string"),
        hsf_id=Value("int64"),
        character=ClassLabel(names=GLYPHS),
    )
    return Dataset.from_dict(columns, features=features)


def speech() -> Dataset:
    rng = np.random.default_rng(0)
    rows: dict[str, list[str]] = {"character_id": [], "x": [], "y": []}
    for role in ("A", "B", "C"):
        text = "".join(rng.choice(list(VOCABULARY), 680))
        for i in range(600):
            rows["character_id"].append(role)
            rows["x"].append(text[i : i + 80])
            rows["y"].append(text[i + 80])
    return Dataset.from_dict(rows)


@pytest.fixture
def hub_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets flwr-datasets serve a data set of ours under any name."""

    def serve(dataset: Dataset) -> None:
        class Served:
            def __init__(self, dataset: str, partitioners: dict[str, NaturalIdPartitioner]) -> None:
                assert dataset in ("flwrlabs/femnist", "flwrlabs/shakespeare")
                self.partitioner = partitioners["train"]
                self.partitioner.dataset = served

            def load_partition(self, partition_id: int, split: str) -> Dataset:
                assert split == "train"
                return self.partitioner.load_partition(partition_id)

        served = dataset
        monkeypatch.setattr(flwr_datasets, "FederatedDataset", Served)
        monkeypatch.setattr(hub, "reachable", lambda url: True)

    return serve


def test_femnist_by_writer_split_nine_to_one(hub_of: Any) -> None:
    dataset = handwriting()
    hub_of(dataset)
    data = load("femnist", n_clients=2, n_clean=5)
    assert set(data.client_names) < {"f0", "f1", "f2"}
    sizes = {"f0": 27, "f1": 36, "f2": 27}
    assert [len(client) for client in data.clients] == [sizes[n] for n in data.client_names]
    name = data.client_names[0]
    mine = [row for row in dataset if row["writer_id"] == name]
    known = {
        (np.asarray(row["image"]) / np.float32(255)).astype(np.float32).tobytes(): row["character"]
        for row in mine
    }
    for x, y in zip(data.clients[0].x, data.clients[0].y, strict=True):
        assert known[x.tobytes()] == y


def test_shakespeare_is_cut_in_order_without_overlap(hub_of: Any) -> None:
    dataset = speech()
    hub_of(dataset)
    data = load("shakespeare", n_clients=1, n_clean=5)
    own = [row for row in dataset if row["character_id"] == data.client_names[0]]
    train = ["".join(VOCABULARY[t] for t in x) for x in data.clients[0].x]
    assert train == [row["x"] for row in own[:480]]
    assert [VOCABULARY[y] for y in data.clients[0].y] == [row["y"] for row in own[:480]]
    # 80 windows behind the cut share characters with the last training window
    test = ["".join(VOCABULARY[t] for t in x) for x in data.test.x]
    assert test == [row["x"] for row in own[560:]]


def test_without_network_it_fails_at_once_and_names_three_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*args: Any) -> NoReturn:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(
        flwr_datasets, "FederatedDataset", lambda **kw: pytest.fail("the hub was asked")
    )
    for name in ("femnist", "shakespeare"):
        with pytest.raises(DatasetError, match="no network") as caught:
            load(name)
        for way in ("--data-dir", "npz", "flwr-datasets"):
            assert way in str(caught.value)


def test_offline_mode_without_a_cached_copy_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(**kwargs: Any) -> NoReturn:
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(flwr_datasets, "FederatedDataset", offline)
    with pytest.raises(DatasetError, match="offline mode is enabled") as caught:
        load("femnist")
    assert "\n" not in str(caught.value)
