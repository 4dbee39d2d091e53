"""Npz files: FEMNIST's duplicates, other owners' names, broken files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import load
from fl_shield.types import Samples


def writers(n_writers: int = 4, n: int = 40, n_test: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (n_writers * n, 28, 28), dtype=np.uint8),
        "y": rng.integers(0, 62, n_writers * n).astype(np.uint8),
        "writer": np.repeat(np.arange(n_writers), n),
        "split": np.tile(np.arange(n) >= n - n_test, n_writers).astype(np.uint8),
        "writer_ids": np.array([f"w{i}" for i in range(n_writers)]),
    }


def rows(samples: Samples) -> set[bytes]:
    return {row.tobytes() for row in samples.x}


def test_names_sizes_and_scale(tmp_path: Path) -> None:
    arrays = writers()
    np.savez(tmp_path / "w.npz", **arrays)
    data = load("femnist", data_dir=tmp_path, n_clients=3, n_clean=10)
    assert set(data.client_names) < {"w0", "w1", "w2", "w3"}
    assert [len(client) for client in data.clients] == [35, 35, 35]
    owner = int(data.client_names[0][1:])
    expected = arrays["x"][(arrays["writer"] == owner) & (arrays["split"] == 0)]
    assert np.allclose(data.clients[0].x[:, 0] * 255, expected, atol=1e-4)


def test_no_picture_is_in_two_places(tmp_path: Path) -> None:
    arrays = writers()
    # LEAF's known fault: one picture twice in train, one in train and test
    arrays["x"][1] = arrays["x"][0]
    arrays["x"][2] = arrays["x"][39]
    np.savez(tmp_path / "w.npz", **arrays)
    data = load("femnist", data_dir=tmp_path, n_clients=4, n_clean=10)
    places = [*map(rows, data.clients), rows(data.test), rows(data.clean)]
    assert len(set.union(*places)) == sum(map(len, places))
    assert sum(map(len, data.clients)) == 4 * 35 - 2 - 10


@pytest.mark.parametrize("partition", ["dirichlet", "iid"])
def test_writers_can_be_pooled(tmp_path: Path, partition: str) -> None:
    np.savez(tmp_path / "w.npz", **writers())
    data = load("femnist", data_dir=tmp_path, partition=partition, n_clients=5, n_clean=10)
    assert sum(map(len, data.clients)) == 4 * 35 - 10
    assert data.client_names == tuple(f"client-00{i}" for i in range(5))


def test_a_cap_holds_for_every_client(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **writers())
    whole = load("femnist", data_dir=tmp_path, n_clients=3)
    capped = load("femnist", data_dir=tmp_path, n_clients=3, max_per_client=12, n_test=7)
    assert [len(client) for client in capped.clients] == [12, 12, 12]
    assert len(capped.test) == 7
    assert all(rows(c) < rows(w) for c, w in zip(capped.clients, whole.clients, strict=True))


def test_tokens_by_role(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "s.npz",
        x=rng.integers(0, 80, (90, 80)),
        y=rng.integers(0, 80, 90),
        role=np.repeat([0, 1, 2], 30),
        split=np.tile(np.arange(30) >= 25, 3).astype(int),
    )
    data = load("shakespeare", data_dir=tmp_path / "s.npz", n_clients=2, n_clean=5)
    assert set(data.client_names) < {"0", "1", "2"}
    assert data.kind == "text"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"x": None}, "lacks x"),
        ({"split": None}, "lacks split"),
        ({"writer": None}, "lacks owner or writer or role"),
        ({"y": np.zeros(3, np.int64)}, "one row an example"),
        ({"writer": np.full(160, 0.5)}, "integers for owner"),
        ({"y": np.full(160, 62)}, "not of this data set"),
        ({"x": np.zeros((160, 27, 27), np.uint8)}, "not of this data set"),
        ({"x": np.array([{}] * 160, dtype=object)}, "without pickle"),
    ],
)
def test_broken_archives_are_named_with_the_rule(
    tmp_path: Path, changes: dict[str, Any], rule: str
) -> None:
    arrays = {k: v for k, v in (writers() | changes).items() if v is not None}
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(DatasetError, match=rule):
        load("femnist", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_files_that_are_no_archive_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as npz"):
        load("femnist", data_dir=tmp_path)


@pytest.mark.parametrize("partition", ["natural", "dirichlet"])
def test_a_file_of_small_writers_only_is_refused(tmp_path: Path, partition: str) -> None:
    np.savez(tmp_path / "w.npz", **writers(n=20))
    with pytest.raises(DatasetError, match="femnist has no owner with 20 or more"):
        load("femnist", data_dir=tmp_path, partition=partition)
