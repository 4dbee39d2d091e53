"""Pools of pictures from small packs written here, and through a hub that is made up."""

import io
import socket
from pathlib import Path
from typing import Any, NoReturn

import flwr_datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from numpy.typing import NDArray
from PIL import Image as Pictures

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import hub_splits, jpegpack
from fl_shield.simulations.datasets.jpegpack import decode, decode_cached, read_pack, shrink
from fl_shield.simulations.pools import load_pool

SIDES = {"cifar10": 32, "tiny-imagenet": 64}
FOLDERS = {"cifar10": "cifar10", "tiny-imagenet": "tiny_imagenet"}


def colours(n: int) -> NDArray[np.uint8]:
    """Colours that JPEG keeps apart, (n, 3)."""
    i = np.arange(n)
    return np.stack([20 + 7 * i, 240 - 7 * i, 40 + 60 * (i % 3)], axis=1).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Pictures.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def pack(n: int, side: int, shared: bool = False) -> dict[str, Any]:
    """Plain coloured pictures, every fourth of them for the test."""
    files = [jpeg(np.broadcast_to(c, (side, side, 3)).copy()) for c in colours(n)]
    header = files[0][:600] if shared else b""
    if shared:
        assert all(file.startswith(header) and file.endswith(b"\xff\xd9") for file in files)
        files = [file[600:-2] for file in files]
    return {
        "header": np.frombuffer(header, np.uint8),
        "body": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "y": (np.arange(n) % 3).astype(np.uint8),
        "split": (np.arange(n) % 4 == 0).astype(np.uint8),
        "classes": np.array(["a", "b", "c"]),
    }


def write(folder: Path, name: str = "cifar10", **changed: Any) -> Path:
    arrays = {**pack(20, SIDES[name]), **changed}
    path = folder / FOLDERS[name] / "some_jpegpack.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet"])
@pytest.mark.parametrize("shared", [False, True])
def test_packs_are_decoded_to_32_pixels(name: str, shared: bool, tmp_path: Path) -> None:
    write(tmp_path, name, **pack(20, SIDES[name], shared))
    pool = load_pool(name, data_dir=tmp_path)
    assert pool.train.x.shape == (15, 3, 32, 32)
    assert (pool.n_classes, pool.domain, pool.kind) == (3, "cv", "image")
    assert pool.train.x.dtype == np.float32
    picture = np.flatnonzero(np.arange(20) % 4 != 0)
    expected = colours(20)[picture][:, :, None, None] / 255
    assert np.abs(pool.train.x - expected).max() < 0.03
    assert np.array_equal(pool.train.y, picture % 3)
    assert np.array_equal(pool.test.y, np.arange(0, 20, 4) % 3)


def test_only_the_drawn_pictures_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    decoded: list[int] = []
    true_decode = jpegpack._decode_one

    def noted(pack: Any, i: int, side: int) -> NDArray[np.uint8]:
        decoded.append(i)
        return true_decode(pack, i, side)

    monkeypatch.setattr(jpegpack, "_decode_one", noted)
    load_pool("cifar10", data_dir=tmp_path, n_train=4, n_test=2)
    assert len(decoded) == len(set(decoded)) == 6


def test_the_folder_itself_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path)
    pool = load_pool("cifar10", data_dir=path.parent, n_train=3, n_test=2)
    assert len(pool.train) == 3


def test_a_picture_in_both_parts_stays_in_test(tmp_path: Path) -> None:
    files = [jpeg(np.full((32, 32, 3), v, np.uint8)) for v in (0, 50, 100, 100)]
    write(
        tmp_path,
        body=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        y=np.array([0, 1, 2, 2]),
        split=np.array([0, 0, 0, 1]),
    )
    pool = load_pool("cifar10", data_dir=tmp_path)
    assert (len(pool.train), len(pool.test)) == (2, 1)
    assert sorted(pool.train.y.tolist()) == [0, 1]


def test_areas_are_averaged() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    expected = [
        [
            [np.rint(pixels[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()) for j in range(4)]
            for i in range(4)
        ]
        for c in range(3)
    ]
    assert np.array_equal(shrink(pixels, 2), expected)


def test_decoding_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpegpack, "CHUNK", 4)
    some, index = read_pack(write(tmp_path)), np.arange(10)
    folder = tmp_path / "cache"
    true_decode = jpegpack.decode
    n_calls = [0]

    def interrupted(*args: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == 3:
            raise KeyboardInterrupt
        return true_decode(*args)

    monkeypatch.setattr(jpegpack, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_cached(some, index, 32, cache=folder)
    assert len(list(folder.iterdir())) == 2
    x = decode_cached(some, index, 32, cache=folder)
    assert n_calls[0] == 4
    assert np.array_equal(x, decode(some, index, 32))


def test_another_file_is_never_read_from_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    write(tmp_path)
    before = load_pool("cifar10", data_dir=tmp_path, cache=folder)
    turned = pack(20, 32)
    turned["body"] = np.frombuffer(
        b"".join(jpeg(np.full((32, 32, 3), v, np.uint8)) for v in range(0, 200, 10)), np.uint8
    )
    sizes = [len(jpeg(np.full((32, 32, 3), v, np.uint8))) for v in range(0, 200, 10)]
    write(tmp_path, **{**turned, "offset": np.cumsum([0, *sizes])})
    after = load_pool("cifar10", data_dir=tmp_path, cache=folder)
    assert not np.array_equal(before.train.x, after.train.x)


BROKEN: dict[str, dict[str, Any]] = {
    "it lacks offset": {"offset": None},
    "offsets of .* must rise": {"offset": np.arange(21)[::-1]},
    "must rise within": {"offset": np.arange(21) * 10**6},
    "flat integer arrays": {"y": np.zeros(20)},
    "flat uint8 arrays": {"body": np.zeros(9, np.int64)},
    "Object arrays cannot be loaded": {"classes": np.array([{}], dtype=object)},
    "20 pictures, 3 labels": {"y": np.zeros(3, np.uint8)},
    r"labels of cifar10's train part must be in 0\.\.2": {"y": np.full(20, 9, np.uint8)},
    "has no test picture": {"split": np.zeros(20, np.uint8)},
    "has no train picture": {"split": np.ones(20, np.uint8)},
    r"its size is \(64, 64\)": pack(20, 64),
    "picture 1 of .* cannot be decoded": {"header": np.frombuffer(b"GIF89a", np.uint8)},
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_broken_packs_are_refused_in_one_sentence(complaint: str, tmp_path: Path) -> None:
    write(tmp_path, **BROKEN[complaint])
    with pytest.raises(DatasetError, match=complaint):
        load_pool("cifar10", data_dir=tmp_path)


def test_half_a_picture_is_no_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [jpeg(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))[:-400] for _ in range(4)]
    write(
        tmp_path,
        body=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        y=np.zeros(4, np.uint8),
        split=np.array([0, 0, 1, 1]),
    )
    with pytest.raises(DatasetError, match=r"picture 0 of .* cannot be decoded"):
        load_pool("cifar10", data_dir=tmp_path)


# Traffic signs -----------------------------------------------------------------------------------


def signs(folder: Path, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8),
        "y": (np.arange(50) % 43).astype(np.uint8),
        "split": (np.arange(50) >= 40).astype(np.uint8),
        **changed,
    }
    (folder / "gtsrb").mkdir()
    np.savez(folder / "gtsrb" / "signs.npz", **arrays)
    return folder


def test_signs_have_their_channels_first(tmp_path: Path) -> None:
    pool = load_pool("gtsrb", data_dir=signs(tmp_path))
    assert pool.train.x.shape == (40, 3, 32, 32)
    assert (len(pool.test), pool.n_classes) == (10, 43)
    with np.load(tmp_path / "gtsrb" / "signs.npz", allow_pickle=False) as file:
        assert np.allclose(pool.train.x[7, 2] * 255, file["x"][7, :, :, 2], atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"x": np.zeros((50, 32, 32), np.uint8)},
        {"x": np.zeros((50, 32, 32, 3), np.float32)},
        {"y": np.zeros(3, np.uint8)},
        {"split": np.zeros(3, np.uint8)},
        {"y": np.array([{}] * 50, dtype=object)},
    ],
)
def test_broken_signs_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read as pictures"):
        load_pool("gtsrb", data_dir=signs(tmp_path, **changed))


def test_signs_cannot_be_fetched() -> None:
    with pytest.raises(DatasetError, match="it cannot be fetched"):
        load_pool("gtsrb")


# The hub -----------------------------------------------------------------------------------------


def fetched(n: int, side: int, column: str) -> Dataset:
    pictures = np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    rows = {column: list(pictures), "label": [i % 3 for i in range(n)]}
    features = Features({column: Image(), "label": ClassLabel(names=list("abc"))})
    return Dataset.from_dict(rows, features=features)


@pytest.fixture
def hub_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets flwr-datasets serve our splits under one name."""

    def serve(repository: str, splits: dict[str, Dataset]) -> None:
        class Served:
            def __init__(self, dataset: str, partitioners: Any, shuffle: bool) -> None:
                assert (dataset, shuffle) == (repository, False)

            def load_split(self, split: str) -> Dataset:
                return splits[split]

        monkeypatch.setattr(flwr_datasets, "FederatedDataset", Served)
        monkeypatch.setattr(hub_splits, "reachable", lambda url: True)

    return serve


@pytest.mark.parametrize(
    ("name", "repository", "test", "side", "column"),
    [
        ("cifar10", "uoft-cs/cifar10", "test", 32, "img"),
        ("tiny-imagenet", "zh-plus/tiny-imagenet", "valid", 64, "image"),
    ],
)
def test_pictures_can_be_fetched(
    hub_of: Any, name: str, repository: str, test: str, side: int, column: str
) -> None:
    hub_of(repository, {"train": fetched(30, side, column), test: fetched(12, side, column)})
    pool = load_pool(name, n_train=9)
    assert pool.train.x.shape == (9, 3, 32, 32)
    assert np.bincount(pool.train.y).tolist() == [3, 3, 3]
    assert (len(pool.test), pool.n_classes) == (12, 3)
    if side == 32:
        first = np.asarray(fetched(12, side, column)[0][column])
        assert np.allclose(pool.test.x[0] * 255, first.transpose(2, 0, 1), atol=1e-4)


def test_texts_can_be_fetched(hub_of: Any) -> None:
    features = Features(sentence=Value("string"), label=Value("int64"))
    train, held = (
        Dataset.from_dict({"sentence": s, "label": [1, 0]}, features=features)
        for s in (["a fine film", "a dull film"], ["fine !", "a bore"])
    )
    hub_of("stanfordnlp/sst2", {"train": train, "validation": held})
    pool = load_pool("sst2")
    assert pool.words == ("<padding>", "<unknown>", "a", "film", "dull", "fine")
    assert pool.test.x[:, -2:].tolist() == [[0, 5], [2, 1]]


def test_a_changed_hub_is_told(hub_of: Any) -> None:
    rows = Dataset.from_dict({"words": ["a"], "label": [0]})
    hub_of("fancyzhx/ag_news", {"train": rows, "test": rows})
    with pytest.raises(DatasetError, match="have columns words, label and none of text, sentence"):
        load_pool("ag-news")


def test_a_fetch_that_fails_names_the_other_way(
    hub_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of("uoft-cs/cifar10", {})

    def fails(**_: Any) -> NoReturn:
        raise ConnectionError("refused")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", fails)
    with pytest.raises(DatasetError, match=r"could not be fetched \(refused\) .* point --data-dir"):
        load_pool("cifar10")


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet", "ag-news", "sst2"])
def test_without_a_network_it_fails_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> NoReturn:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DatasetError, match="could not be fetched: no network"):
        load_pool(name)
