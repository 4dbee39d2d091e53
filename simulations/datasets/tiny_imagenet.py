"""Tiny-ImageNet, or some of its classes: photographs of things, shrunk to 32 x 32.

References
----------
Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
"""

from __future__ import annotations

from fl_shield.simulations.datasets.corpus import Corpus, Request, common_pool
from fl_shield.simulations.datasets.photographs import Album, read_album

TINY_IMAGENET = Album(
    name="tiny-imagenet",
    folder="tiny_imagenet",
    repository="zh-plus/tiny-imagenet",
    held="valid",
    side=64,
)


def read_tiny_imagenet(request: Request) -> Corpus:
    """Tiny-ImageNet as one pool of float32 photographs (n, 3, 32, 32) in [0, 1].

    Parameters
    ----------
    request : Request
        ``data_dir``: the folder that holds ``tiny_imagenet/*jpegpack.npz``, or that folder itself.
        None: ``zh-plus/tiny-imagenet`` through flwr-datasets, all 200 classes.
    """
    return common_pool("tiny-imagenet", "image", read_album(TINY_IMAGENET, request.parts))
