"""Pools of pictures: digits, glyphs, FEMNIST, CIFAR-10, GTSRB and Tiny ImageNet."""

from __future__ import annotations

from collections.abc import Callable

from fl_shield.simulations.datasets.cifar10 import cifar10_parts
from fl_shield.simulations.datasets.corpus import Corpus, Request
from fl_shield.simulations.datasets.digits import read_digits
from fl_shield.simulations.datasets.femnist import read_femnist
from fl_shield.simulations.datasets.glyphs import read_glyphs
from fl_shield.simulations.datasets.gtsrb import gtsrb_parts
from fl_shield.simulations.datasets.parts import Parts, PartsRequest, draw_parts
from fl_shield.simulations.datasets.photographs import read_album
from fl_shield.simulations.datasets.tiny_imagenet import TINY_IMAGENET
from fl_shield.simulations.pools.pool import EVERYONE, Pool
from fl_shield.types import Samples

N_WRITERS = 100
"""Writers of generated glyphs."""


def digits_pool(request: PartsRequest) -> Pool:
    """Scikit-learn's digits, (n, 1, 8, 8) in 10 classes; see :func:`.digits.read_digits`."""
    return _joined(request, read_digits, n_owners=1)


def glyphs_pool(request: PartsRequest) -> Pool:
    """Generated glyphs of 100 writers, (n, 1, 28, 28) in 62 classes, as in :mod:`.glyphs`."""
    return _joined(request, read_glyphs, n_owners=N_WRITERS)


def femnist_pool(request: PartsRequest) -> Pool:
    """FEMNIST of all writers, (n, 1, 28, 28) in 62 classes, 1 = paper; see :mod:`.femnist`.

    Train and test are LEAF's own parts of every writer, so both hold all writers.
    """
    return _joined(request, read_femnist, n_owners=EVERYONE)


def _joined(request: PartsRequest, read: Callable[[Request], Corpus], n_owners: int) -> Pool:
    corpus = read(Request(n_owners=n_owners, seed=request.seed, data_dir=request.data_dir))
    train, test = draw_parts(
        request,
        Samples.join([owner.train for owner in corpus.owners]),
        Samples.join([owner.test for owner in corpus.owners]),
    )
    return _images(corpus.name, Parts(train=train, test=test, n_classes=corpus.n_classes))


def cifar10_pool(request: PartsRequest) -> Pool:
    """CIFAR-10, float32 (n, 3, 32, 32) in 10 classes; see :func:`.cifar10.cifar10_parts`."""
    return _images("cifar10", cifar10_parts(request))


def tiny_imagenet_pool(request: PartsRequest) -> Pool:
    """Tiny ImageNet at half its size, float32 (n, 3, 32, 32), areas averaged.

    Parameters
    ----------
    request : PartsRequest
        ``data_dir``: the folder that holds ``tiny_imagenet/*jpegpack.npz``, or that folder itself;
        as many classes as the pack has. None: all 200 classes of ``zh-plus/tiny-imagenet``
        through flwr-datasets, its official validation part as test.

    References
    ----------
    Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
    """
    return _images("tiny-imagenet", read_album(TINY_IMAGENET, request))


def gtsrb_pool(request: PartsRequest) -> Pool:
    """German traffic signs, float32 (n, 3, 32, 32) in 43 classes; see :func:`.gtsrb_parts`."""
    return _images("gtsrb", gtsrb_parts(request))


def _images(name: str, parts: Parts) -> Pool:
    return Pool(
        name=name,
        domain="cv",
        kind="image",
        train=parts.train,
        test=parts.test,
        n_classes=parts.n_classes,
    )
