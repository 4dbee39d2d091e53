"""CIFAR-10: photographs of ten kinds of things.

References
----------
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, section 3.
"""

from __future__ import annotations

from fl_shield.simulations.datasets.corpus import Corpus, Request, common_pool
from fl_shield.simulations.datasets.parts import Parts, PartsRequest
from fl_shield.simulations.datasets.photographs import Album, read_album

CIFAR10 = Album(name="cifar10", folder="cifar10", repository="uoft-cs/cifar10")


def read_cifar10(request: Request) -> Corpus:
    """CIFAR-10 as one pool of float32 photographs (n, 3, 32, 32) in [0, 1], 10 classes.

    Parameters
    ----------
    request : Request
        As in :func:`cifar10_parts`.
    """
    return common_pool("cifar10", "image", cifar10_parts(request.parts))


def cifar10_parts(request: PartsRequest) -> Parts:
    """Train and test of CIFAR-10, float32 (n, 3, 32, 32) in [0, 1].

    Parameters
    ----------
    request : PartsRequest
        ``data_dir``: the folder that holds ``cifar10/*jpegpack.npz``, or that folder itself.
        None: ``uoft-cs/cifar10`` through flwr-datasets.
    """
    return read_album(CIFAR10, request)
