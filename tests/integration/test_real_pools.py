"""The real data beside the checkout, as pools."""

import os
from pathlib import Path

import numpy as np
import pytest

from fl_shield.simulations.pools import load_pool
from fl_shield.types import Samples

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("FL_SHIELD_DATA", BESIDE))

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="no real data beside the checkout: set FL_SHIELD_DATA"
    ),
]

PICTURES = {
    "femnist": ((1, 28, 28), 62),
    "cifar10": ((3, 32, 32), 10),
    "gtsrb": ((3, 32, 32), 43),
    "tiny-imagenet": ((3, 32, 32), 20),
}
TEXTS = {"ag-news": (32, 4, 5002), "sst2": (24, 2, 5002), "shakespeare": (80, 80, 80)}


def rows(samples: Samples) -> set[bytes]:
    return {x.tobytes() for x in samples.x}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str) -> None:
    shape, n_classes = PICTURES[name]
    pool = load_pool(name, data_dir=DATA, n_train=1200, n_test=600)
    assert pool.train.x.shape == (1200, *shape)
    assert pool.n_classes == n_classes
    assert set(pool.train.y.tolist()) == set(range(n_classes))
    assert pool.train.x.dtype == np.float32
    assert pool.train.x.min() >= 0
    assert 0.9 < pool.train.x.max() <= 1
    assert rows(pool.train).isdisjoint(rows(pool.test))
    assert len(rows(pool.train)) == 1200


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    length, n_classes, n_tokens = TEXTS[name]
    pool = load_pool(name, data_dir=DATA, n_train=3000, n_test=1500)
    assert pool.train.x.shape == (3000, length)
    assert (pool.n_classes, pool.n_tokens) == (n_classes, n_tokens)
    assert rows(pool.train).isdisjoint(rows(pool.test))
    if n_tokens == 5002:
        padded = pool.train.x == 0
        assert (np.diff(padded.astype(int), axis=1) <= 0).all()
        known = pool.test.x[pool.test.x > 0] > 1
        assert 0.85 < known.mean() < 0.99


def test_words_tell_the_class_of_news() -> None:
    pool = load_pool("ag-news", data_dir=DATA)
    counts = np.ones((pool.n_classes, pool.n_tokens))
    for x, y in zip(pool.train.x, pool.train.y, strict=True):
        np.add.at(counts[y], x[x > 1], 1)
    logs = np.log(counts / counts.sum(1, keepdims=True))
    logs[:, :2] = 0
    guessed = logs[:, pool.test.x].sum(2).argmax(0)
    assert (guessed == pool.test.y).mean() > 0.83


def test_the_cache_gives_the_same_pictures(tmp_path: Path) -> None:
    plain = load_pool("tiny-imagenet", data_dir=DATA, n_train=60, n_test=30)
    for _ in range(2):
        kept = load_pool("tiny-imagenet", data_dir=DATA, n_train=60, n_test=30, cache=tmp_path)
        assert np.array_equal(plain.train.x, kept.train.x)
    assert len(list(tmp_path.iterdir())) == 2
