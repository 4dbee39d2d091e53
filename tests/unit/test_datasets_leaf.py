"""LEAF json folders: tiny ones written here, good and broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import load
from fl_shield.simulations.datasets.femnist import images
from fl_shield.simulations.datasets.leaf import find_leaf, read_leaf, read_shard


def record(user: int, n: int, first: int = 0) -> dict[str, list[Any]]:
    """Pictures whose first pixels spell user and number, so that none occurs twice."""
    pixels = [[user / 100, (first + i) / 1000] + [1.0] * 782 for i in range(n)]
    return {"x": pixels, "y": [i % 62 for i in range(n)]}


def write_shard(path: Path, users: dict[str, dict[str, list[Any]]]) -> None:
    shard = {
        "users": list(users),
        "num_samples": [len(r["y"]) for r in users.values()],
        "user_data": users,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as stream:
        json.dump(shard, stream)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six writers in three shards, one gzipped; one more writer has too few pictures."""
    for shard, suffix in enumerate([".json", ".json.gz", ".json"]):
        users = {f"f{u}": u for u in (2 * shard, 2 * shard + 1)}
        train = {name: record(u, 24 + u) for name, u in users.items()}
        test = {name: record(u, 3, first=500) for name, u in users.items()}
        if shard == 0:
            train["few"], test["few"] = record(9, 19), record(9, 3, first=500)
        write_shard(tmp_path / "train" / f"all_data_{shard}_train_9{suffix}", train)
        write_shard(tmp_path / "test" / f"all_data_{shard}_test_9{suffix}", test)
    return tmp_path


def test_a_leaf_folder_becomes_a_federation(folder: Path) -> None:
    data = load("femnist", data_dir=folder, n_clients=4, n_clean=5)
    sizes = {f"f{u}": 24 + u for u in range(6)}
    assert set(data.client_names) < set(sizes)
    assert [len(client) for client in data.clients] == [sizes[n] for n in data.client_names]
    assert len(data.test) == 4 * 3
    assert data.input_shape == (1, 28, 28)
    for name, client in zip(data.client_names, data.clients, strict=True):
        assert np.allclose(client.x[:, 0, 0, 0], int(name[1:]) / 100)
    # clean examples come from the two writers who are no clients
    held = {f"f{round(float(v) * 100)}" for v in data.clean.x[:, 0, 0, 0]}
    assert held.isdisjoint(data.client_names)


def test_writers_with_few_pictures_are_left_out(folder: Path) -> None:
    everyone = load("femnist", data_dir=folder)
    assert sorted(everyone.client_names) == [f"f{u}" for u in range(6)]


def test_the_seed_draws_the_writers(folder: Path) -> None:
    drawn = {load("femnist", data_dir=folder, n_clients=3, seed=s).client_names for s in range(8)}
    again = load("femnist", data_dir=folder, n_clients=3, seed=0).client_names
    assert again in drawn
    assert len(drawn) > 1


def test_too_many_clients_are_refused_with_the_number_there_is(folder: Path) -> None:
    with pytest.raises(DatasetError, match="7 clients were asked for and femnist has 6 owners"):
        load("femnist", data_dir=folder, n_clients=7)


def test_reading_stops_when_there_are_enough(folder: Path) -> None:
    files = find_leaf(folder)
    assert files is not None
    for seed in range(4):
        rng = np.random.default_rng(seed)
        first = rng.permutation(3)[0]
        owners = read_leaf(files, images, 1, np.random.default_rng(seed))
        assert len(owners) == 1
        assert owners[0].name in {f"f{2 * first}", f"f{2 * first + 1}"}


@pytest.mark.parametrize("inside", ["", "femnist", "femnist/data", "femnist/leaf_json"])
def test_shards_are_found_where_leaf_leaves_them(tmp_path: Path, inside: str) -> None:
    for u in range(2):
        name = f"f{u}"
        write_shard(tmp_path / inside / "train" / f"{u}.json", {name: record(u, 40)})
        write_shard(tmp_path / inside / "test" / f"{u}.json", {name: record(u, 3, 500)})
    data = load("femnist", data_dir=tmp_path, n_clients=1, n_clean=3)
    assert data.client_names[0] in ("f0", "f1")


def test_a_user_in_two_shards_is_refused(folder: Path) -> None:
    write_shard(folder / "train" / "copy.json", {"f0": record(0, 30)})
    with pytest.raises(DatasetError, match="'f0' occurs twice"):
        load("femnist", data_dir=folder)


def shard(**changes: Any) -> str:
    good = {"users": ["u"], "num_samples": [1], "user_data": {"u": {"x": [[0.0] * 784], "y": [1]}}}
    return json.dumps(good | changes)


def with_record(x: Any, y: Any) -> str:
    return shard(user_data={"u": {"x": x, "y": y}})


BROKEN = {
    "not json": ("{", "cannot be read as LEAF json"),
    "deep": ("[" * 100_000, "cannot be read as LEAF json"),
    "a list": ("[]", "a LEAF shard is a json object"),
    "no users": (shard(users=None), "lacks a list 'users'"),
    "no user_data": (shard(user_data=[]), "lacks a list 'users' or an object 'user_data'"),
    "absent user": (shard(users=["v"]), "user 'v'"),
    "unhashable user": (shard(users=[["v"]]), "needs lists x and y"),
    "unequal": (with_record([[0.0] * 784], [1, 2]), "lists x and y of one length"),
    "short picture": (with_record([[0.0] * 783], [1]), "not of this data set"),
    "ragged": (with_record([[0.0] * 784, [0.0]], [1, 1]), "not of this data set"),
    "bright": (with_record([[1.5] * 784], [1]), r"pixels must be in \[0, 1\]"),
    "nan": (with_record([[float("nan")] * 784], [1]), "pixels must be"),
    "words": (with_record(["word"], [1]), "not of this data set"),
    "large label": (with_record([[0.0] * 784], [62]), "labels must be integers in 0..61"),
    "huge label": (with_record([[0.0] * 784], [10**30]), "labels must be integers"),
    "half label": (with_record([[0.0] * 784], [0.5]), "labels must be integers"),
}


@pytest.mark.parametrize(("text", "rule"), BROKEN.values(), ids=BROKEN)
def test_broken_shards_are_named_with_the_rule(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=rule) as caught:
        list(read_shard(path, images))
    assert "broken.json" in str(caught.value)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress(shard().encode())[:-10])
    with pytest.raises(DatasetError, match="cannot be read as LEAF json"):
        list(read_shard(path, images))


def test_a_plain_file_called_gz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plain.json.gz"
    path.write_text(shard())
    with pytest.raises(DatasetError, match="cannot be read as LEAF json"):
        list(read_shard(path, images))
