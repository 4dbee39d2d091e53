"""Pools: draws, repeats, the cache, and the sets that need no files."""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.cache import ArrayTable, cached
from fl_shield.simulations.datasets.parts import PartsRequest, apart, draw_parts, spread
from fl_shield.simulations.pools import POOLS, Pool, load_pool
from fl_shield.types import Samples


def rows(samples: Samples) -> set[bytes]:
    return {x.tobytes() for x in samples.x}


def same(a: Pool, b: Pool) -> bool:
    return all(
        np.array_equal(p.x, q.x) and np.array_equal(p.y, q.y)
        for p, q in ((a.train, b.train), (a.test, b.test))
    )


@pytest.mark.parametrize("name", ["digits", "glyphs", "roles"])
def test_embedded_pools_keep_their_promises(name: str) -> None:
    pool = load_pool(name, seed=3, n_train=300, n_test=200)
    assert (pool.name, len(pool.train), len(pool.test)) == (name, 300, 200)
    assert rows(pool.train).isdisjoint(rows(pool.test))
    assert len(rows(pool.train)) == 300
    assert pool.train.y.dtype == np.int64
    if pool.kind == "image":
        assert pool.train.x.dtype == np.float32
        assert pool.train.x.min() >= 0
        assert pool.train.x.max() < 2
    else:
        assert pool.train.x.dtype == np.int64
        assert pool.train.x.shape[1:] == (80,)
        assert pool.n_tokens == pool.n_classes == len(pool.words) == 80


def test_the_same_seed_gives_the_same_arrays_and_another_does_not() -> None:
    first = load_pool("digits", seed=1, n_train=50, n_test=20)
    assert same(first, load_pool("digits", seed=1, n_train=50, n_test=20))
    assert not same(first, load_pool("digits", seed=2, n_train=50, n_test=20))


def test_a_smaller_draw_is_the_beginning_of_a_larger_one() -> None:
    few, many = (load_pool("digits", n_train=n, n_test=20) for n in (30, 90))
    assert np.array_equal(many.train.x[:30], few.train.x)


def test_more_than_there_is_gives_the_whole() -> None:
    assert len(load_pool("digits", n_train=10**6).train) == 1438


def test_a_draw_keeps_the_classes_in_proportion() -> None:
    labels = np.repeat(np.arange(43), np.arange(10, 53))
    for seed in range(20):
        drawn = spread(labels, 400, np.random.default_rng(seed))
        assert len(set(drawn.tolist())) == 400
        counts = np.bincount(labels[drawn], minlength=43)
        assert np.abs(counts - 400 * np.arange(10, 53) / len(labels)).max() < 2


def test_repeats_leave_train_and_stay_in_test() -> None:
    train, test = apart([b"1", b"2", b"2", b"3"], [b"3", b"4", b"4"])
    assert train.tolist() == [True, True, False, False]
    assert test.tolist() == [True, True, False]


def test_parts_are_drawn_after_repeats_are_gone() -> None:
    x = np.array([[0], [1], [1], [2], [3]], dtype=np.int64)
    train, test = Samples(x=x, y=np.zeros(5, np.int64)), Samples(x=x[3:4], y=np.ones(1, np.int64))
    kept, held = draw_parts(PartsRequest(n_train=3), train, test)
    assert sorted(kept.x[:, 0].tolist()) == [0, 1, 3]
    assert held.x.tolist() == [[2]]


def test_a_pool_checks_itself() -> None:
    part = Samples(x=np.zeros((2, 3), np.int64), y=np.array([0, 1]))
    pool = Pool(
        name="toy",
        domain="nlp",
        kind="text",
        train=part,
        test=part,
        n_classes=2,
        n_tokens=1,
        words=("a",),
    )
    with pytest.raises(ValueError, match="domain must be one of"):
        replace(pool, domain="audio")
    with pytest.raises(ValueError, match="names each of its tokens"):
        replace(pool, n_tokens=2)
    with pytest.raises(DatasetError, match=r"labels of toy's train part must be in 0\.\.0"):
        replace(pool, n_classes=1)
    with pytest.raises(DatasetError, match=r"ids of toy's test part must be in 0\.\.0, got 0\.\.7"):
        replace(pool, test=Samples(x=np.array([[0, 7]]), y=np.array([0])))
    with pytest.raises(DatasetError, match="toy has no test example"):
        replace(pool, test=part.take(slice(0)))


def test_unknown_names_folders_and_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"pool must be one of digits, .*, got 'mnist'"):
        load_pool("mnist")
    with pytest.raises(DatasetError, match="does not exist"):
        load_pool("cifar10", data_dir=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="n_train must be at least 1, got 0"):
        load_pool("digits", n_train=0)
    with pytest.raises(DatasetError, match="n_test must be at least 1, got -1"):
        load_pool("digits", n_test=-1)


@pytest.mark.parametrize(
    "name", ["femnist", "cifar10", "gtsrb", "tiny-imagenet", "ag-news", "sst2", "shakespeare"]
)
def test_a_missing_set_names_the_ways_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"{name} was not found in .*: point \S*data.dir") as e:
        load_pool(name, data_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_every_pool_has_a_loader() -> None:
    assert len(POOLS) == 14
    assert all(callable(load) for load in POOLS.values())


# The cache ---------------------------------------------------------------------------------------


def squares() -> ArrayTable:
    return {"x": np.arange(4) ** 2}


def never() -> NoReturn:
    raise AssertionError("made again")


def test_the_cache_is_written_whole_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert cached(folder, "squares", squares)["x"].tolist() == [0, 1, 4, 9]
    assert [path.name for path in folder.iterdir()] == ["squares.npz"]
    assert cached(folder, "squares", never)["x"].tolist() == [0, 1, 4, 9]


def test_nothing_is_left_when_making_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached(tmp_path, "x", never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"no archive"])
def test_a_broken_cache_file_says_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.npz is no readable cache file .*: delete it"):
        cached(tmp_path, "x", never)
