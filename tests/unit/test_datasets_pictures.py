"""Federations of photographs, from small files written here."""

import io
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import (
    EXAMPLES_PER_CLIENT,
    FederatedData,
    fingerprint,
    jpegpack,
    load,
)
from fl_shield.simulations.pools import load_pool
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.task import open_task
from fl_shield.triggers import visibility

N_PICTURES, N_TEST = 160, 40


def colours(n: int) -> NDArray[np.uint8]:
    """Colours that all differ, (n, 3): red decides the class, green and blue make 260 together."""
    i = np.arange(n)
    return np.stack([20 + 60 * (i % 4), 10 + i, 250 - i], axis=1).astype(np.uint8)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder with photographs of four classes, small and large, and with signs."""
    _write_photographs(tmp_path / "cifar10")
    _write_photographs(tmp_path / "tiny_imagenet", side=64)
    _write_signs(tmp_path / "gtsrb")
    return tmp_path


def _write_photographs(folder: Path, side: int = 32, **changed: Any) -> None:
    files = []
    for colour in colours(N_PICTURES):
        stream = io.BytesIO()
        picture = Image.fromarray(np.broadcast_to(colour, (side, side, 3)).copy())
        picture.save(stream, "JPEG", quality=98, subsampling=0)
        files.append(stream.getvalue())
    arrays = {
        "header": np.zeros(0, np.uint8),
        "body": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "y": np.arange(N_PICTURES) % 4,
        "split": (np.arange(N_PICTURES) >= N_PICTURES - N_TEST).astype(np.uint8),
        "classes": np.array(["plane", "car", "bird", "cat"]),
    }
    folder.mkdir(exist_ok=True)
    np.savez(folder / "some_jpegpack.npz", **{**arrays, **changed})


def _write_signs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    np.savez(
        folder / "signs.npz",
        x=rng.integers(0, 256, (N_PICTURES, 32, 32, 3), dtype=np.uint8),
        y=(np.arange(N_PICTURES) % 43).astype(np.uint8),
        split=(np.arange(N_PICTURES) >= N_PICTURES - N_TEST).astype(np.uint8),
    )


def rows(data: FederatedData) -> list[bytes]:
    return [x.tobytes() for part in (*data.clients, data.test, data.clean) for x in part.x]


@pytest.mark.parametrize(
    ("name", "n_classes"), [("cifar10", 4), ("tiny-imagenet", 4), ("gtsrb", 43)]
)
def test_photographs_are_shared_out_whole(name: str, n_classes: int, data_dir: Path) -> None:
    data = load(name, data_dir=data_dir, n_clients=5, n_clean=8)
    assert (data.kind, data.input_shape, data.n_classes) == ("image", (3, 32, 32), n_classes)
    assert data.client_names == tuple(f"client-{i:03d}" for i in range(5))
    assert sum(map(len, data.clients)) == N_PICTURES - N_TEST - 8
    assert (len(data.clean), len(data.test)) == (8, N_TEST)
    assert len(set(rows(data))) == N_PICTURES
    assert min(map(len, data.clients)) >= 10


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet"])
def test_every_photograph_keeps_its_label_and_its_colours(name: str, data_dir: Path) -> None:
    data = load(name, data_dir=data_dir / name.replace("-", "_"), n_clients=4, n_clean=8)
    for part in (*data.clients, data.test, data.clean):
        middle = part.x[:, :, 16, 16] * 255
        assert np.abs(middle[:, 1] + middle[:, 2] - 260).max() < 5
        assert np.ptp(part.x, axis=(2, 3)).max() < 0.02
        assert (np.rint((middle[:, 0] - 20) / 60).astype(int) == part.y).all()


def test_a_federation_holds_the_pictures_of_the_pool(data_dir: Path) -> None:
    for name in ("cifar10", "gtsrb"):
        data = load(name, data_dir=data_dir, n_clients=3, n_clean=6, examples_per_client=20, seed=4)
        pool = load_pool(name, data_dir=data_dir, n_train=3 * 20 + 6, seed=4)
        held = [x.tobytes() for part in (*data.clients, data.clean) for x in part.x]
        assert sorted(held) == sorted(x.tobytes() for x in pool.train.x)


def test_only_what_is_shared_out_is_decoded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    true_decode = jpegpack._decode_one

    def noted(pack: Any, i: int, side: int) -> NDArray[np.uint8]:
        decoded.append(i)
        return true_decode(pack, i, side)

    monkeypatch.setattr(jpegpack, "_decode_one", noted)
    data = load(
        "cifar10", data_dir=data_dir, n_clients=2, n_clean=4, n_test=7, examples_per_client=15
    )
    assert sum(map(len, data.clients)) == 30
    assert len(decoded) == len(set(decoded)) == 30 + 4 + 7


def test_shares_are_of_the_classes_proportions(data_dir: Path) -> None:
    data = load("cifar10", data_dir=data_dir, n_clients=2, n_clean=4, examples_per_client=20)
    labels = np.concatenate([part.y for part in (*data.clients, data.clean)])
    assert np.bincount(labels).tolist() == [11] * 4


def test_a_cap_still_cuts_the_largest_clients(data_dir: Path) -> None:
    data = load("gtsrb", data_dir=data_dir, n_clients=4, n_clean=6, max_per_client=15)
    assert max(map(len, data.clients)) == 15


def test_usual_sizes_are_known_and_can_be_asked_for() -> None:
    assert set(EXAMPLES_PER_CLIENT) == {
        "cifar10",
        "gtsrb",
        "tiny-imagenet",
        "ag-news",
        "cartpole",
    }
    data = load("digits", n_clients=5, examples_per_client=30)
    assert sum(map(len, data.clients)) == 150
    with pytest.raises(DatasetError, match="examples_per_client must be >= 1, got 0"):
        load("digits", examples_per_client=0)


def test_the_seed_decides_who_holds_what(data_dir: Path) -> None:
    prints = [fingerprint(load("gtsrb", data_dir=data_dir, n_clients=3, seed=s)) for s in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "ag-news"])
def test_files_that_are_not_there_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{name} was not found in .*: point --data-dir") as e:
        load(name, data_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_what_can_be_fetched_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> NoReturn:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("cifar10", "ag-news"):
        with pytest.raises(DatasetError, match=r"could not be fetched: no network .*--data-dir"):
            load(name)
    with pytest.raises(DatasetError, match=r"gtsrb was not found in this machine: .*be fetched"):
        load("gtsrb")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"y": np.full(N_PICTURES, 9)}, r"labels of client .* must be int64 in 0\.\.3"),
        ({"split": np.zeros(N_PICTURES, np.uint8)}, "has no test picture"),
        ({"classes": np.array([{}], dtype=object)}, "cannot be read as a pack"),
    ],
)
def test_broken_packs_are_refused(changed: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    _write_photographs(tmp_path, **changed)
    with pytest.raises(DatasetError, match=complaint):
        load("cifar10", data_dir=tmp_path, n_clients=2)


def test_photographs_have_no_owners(data_dir: Path) -> None:
    with pytest.raises(DatasetError, match="cifar10 has none: use --partition dirichlet"):
        load("cifar10", data_dir=data_dir, partition="natural", n_clients=2)


@pytest.mark.parametrize("name", ["cifar10", "gtsrb"])
def test_a_scenario_has_a_network_and_a_trigger_that_is_seen(name: str, data_dir: Path) -> None:
    scenario = Scenario(dataset=name, data_dir=str(data_dir), n_clients=4, clients_per_round=4)
    assert (scenario.partition, scenario.trigger, scenario.model) == (
        "dirichlet",
        "patch",
        "cifar-cnn",
    )
    task = open_task(scenario)
    clean = task.data.test.take(task.data.test.y != 0)
    changed = np.abs(task.stamped.x - clean.x).max((1, 2, 3))
    assert (changed > 0.2).all()
    seen = visibility(task.trigger, clean.x)
    assert seen.mean_change >= 0.3
    model = task.new_model()
    accuracy, asr = task.evaluate(model, {n: t.numpy() for n, t in model.state_dict().items()})
    assert 0 <= accuracy <= 1
    assert 0 <= asr <= 1
