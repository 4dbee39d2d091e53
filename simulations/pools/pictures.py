"""Pools of pictures: digits, glyphs, FEMNIST, CIFAR-10, GTSRB and Tiny ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.digits import read_digits
from fl_shield.simulations.datasets.femnist import read_femnist
from fl_shield.simulations.datasets.glyphs import read_glyphs
from fl_shield.simulations.pools.archive import read_labelled
from fl_shield.simulations.pools.hub import fetch_split, fetched_pictures
from fl_shield.simulations.pools.jpegpack import JpegPack, decode_cached, read_pack
from fl_shield.simulations.pools.pool import (
    EVERYONE,
    Pool,
    PoolRequest,
    apart,
    draw_parts,
    missing,
)
from fl_shield.types import Samples

N_WRITERS = 100
"""Writers of generated glyphs."""

N_SIGNS = 43


def digits_pool(request: PoolRequest) -> Pool:
    """Scikit-learn's digits, (n, 1, 8, 8) in 10 classes; see :func:`.digits.read_digits`."""
    return _joined(request, read_digits, n_owners=1)


def glyphs_pool(request: PoolRequest) -> Pool:
    """Generated glyphs of 100 writers, (n, 1, 28, 28) in 62 classes, as in :mod:`.glyphs`."""
    return _joined(request, read_glyphs, n_owners=N_WRITERS)


def femnist_pool(request: PoolRequest) -> Pool:
    """FEMNIST of all writers, (n, 1, 28, 28) in 62 classes, 1 = paper; see :mod:`.femnist`.

    Train and test are LEAF's own parts of every writer, so both hold all writers.
    """
    return _joined(request, read_femnist, n_owners=EVERYONE)


def _joined(request: PoolRequest, read: Callable[[Request], Corpus], n_owners: int) -> Pool:
    corpus = read(Request(n_owners=n_owners, seed=request.seed, data_dir=request.data_dir))
    train = Samples.join([owner.train for owner in corpus.owners])
    test = Samples.join([owner.test for owner in corpus.owners])
    train, test = draw_parts(request, train, test)
    return Pool(
        name=corpus.name,
        domain="cv",
        kind="image",
        train=train,
        test=test,
        n_classes=corpus.n_classes,
    )


def cifar10_pool(request: PoolRequest) -> Pool:
    """CIFAR-10, float32 (n, 3, 32, 32) in 10 classes.

    Parameters
    ----------
    request : PoolRequest
        ``data_dir``: the folder that holds ``cifar10/*jpegpack.npz``, or that folder itself.
        None: ``uoft-cs/cifar10`` through flwr-datasets.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, section 3.
    """
    ways = _ways("cifar10", "cifar10", "uoft-cs/cifar10")
    if request.data_dir is None:
        return _fetched(request, "cifar10", "uoft-cs/cifar10", "test", ways)
    return _unpacked(request, "cifar10", request.data_dir, "cifar10", ways, side=32)


def tiny_imagenet_pool(request: PoolRequest) -> Pool:
    """Tiny ImageNet at half its size, float32 (n, 3, 32, 32), areas averaged.

    Parameters
    ----------
    request : PoolRequest
        ``data_dir``: the folder that holds ``tiny_imagenet/*jpegpack.npz``, or that folder itself;
        as many classes as the pack has. None: all 200 classes of ``zh-plus/tiny-imagenet``
        through flwr-datasets, its official validation part as test.

    References
    ----------
    Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
    """
    ways = _ways("tiny-imagenet", "tiny_imagenet", "zh-plus/tiny-imagenet")
    if request.data_dir is None:
        return _fetched(request, "tiny-imagenet", "zh-plus/tiny-imagenet", "valid", ways)
    folder = "tiny_imagenet"
    return _unpacked(request, "tiny-imagenet", request.data_dir, folder, ways, side=64)


def _ways(name: str, folder: str, repository: str) -> str:
    return (
        f"point data_dir at the folder that holds {folder}/*jpegpack.npz, or leave it out on a "
        f"machine with a network to fetch {repository} through flwr-datasets"
    )


def _fetched(request: PoolRequest, name: str, repository: str, test: str, ways: str) -> Pool:
    parts = [
        (part, fetch_split(name, repository, split, ways))
        for part, split in (("train", "train"), ("test", test))
    ]
    (train, held), n_classes = fetched_pictures(request, parts, side=32)
    train, held = draw_parts(replace(request, n_train=None, n_test=None), train, held)
    return Pool(name=name, domain="cv", kind="image", train=train, test=held, n_classes=n_classes)


def _unpacked(
    request: PoolRequest, name: str, data_dir: Path, folder: str, ways: str, side: int
) -> Pool:
    path = find_file(data_dir, folder, "*jpegpack.npz")
    if path is None:
        raise missing(name, data_dir, ways)
    pack = read_pack(path)
    train, test = (_drawn(request, pack, part, side) for part in ("train", "test"))
    return Pool(
        name=name, domain="cv", kind="image", train=train, test=test, n_classes=pack.n_classes
    )


def _drawn(request: PoolRequest, pack: JpegPack, part: str, side: int) -> Samples:
    """Drawn pictures of one part, 32 x 32, those that stand in both parts left to test."""
    rows = [np.flatnonzero(pack.split == mark) for mark in (0, 1)]
    kept = apart(*([pack.compressed(int(i)) for i in index] for index in rows))
    which = 0 if part == "train" else 1
    index = rows[which][kept[which]]
    if len(index) == 0:
        raise DatasetError(f"{pack.path} has no {part} picture: copy it again")
    index = index[request.draw(part, pack.y[index])]
    x = decode_cached(pack, index, side, factor=side // 32, cache=request.cache)
    return Samples(x=x.astype(np.float32) / np.float32(255), y=pack.y[index])


def gtsrb_pool(request: PoolRequest) -> Pool:
    """German traffic signs, float32 (n, 3, 32, 32) in 43 classes.

    Parameters
    ----------
    request : PoolRequest
        ``data_dir``: the folder that holds ``gtsrb/*.npz`` (``x`` uint8 (n, 32, 32, 3), ``y``,
        ``split`` with 0 = train, 1 = test), or that folder itself.

    References
    ----------
    J. Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic
    sign recognition", Neural Networks 32, 2012, section 2.
    """
    ways = (
        "point data_dir at the folder that holds gtsrb/*.npz with x (n, 32, 32, 3) bytes, y and "
        "split (0 = train, 1 = test); it cannot be fetched"
    )
    where = request.data_dir
    path = None if where is None else find_file(where, "gtsrb", "*.npz")
    if path is None:
        raise missing("gtsrb", where or "this machine", ways)
    parts = read_labelled(path, shape=(32, 32, 3))
    train, test = draw_parts(request, *parts)
    train, test = (
        Samples(x=p.x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255), y=p.y)
        for p in (train, test)
    )
    return Pool(name="gtsrb", domain="cv", kind="image", train=train, test=test, n_classes=N_SIGNS)


def find_file(data_dir: Path, folder: str, *patterns: str) -> Path | None:
    """First file of a data set in ``data_dir/folder`` or ``data_dir``, or None.

    Parameters
    ----------
    data_dir : Path
        The folder of all data sets, or of one.
    folder : str
        The data set's own folder.
    *patterns : str
        Names with wildcards, the preferred one first.
    """
    for base in (data_dir / folder, data_dir):
        for pattern in patterns:
            found = min(base.glob(pattern), default=None) if base.is_dir() else None
            if found is not None:
                return found
    return None
