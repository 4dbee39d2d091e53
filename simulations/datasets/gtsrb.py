"""GTSRB: photographs of German traffic signs.

References
----------
J. Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic sign
recognition", Neural Networks 32, 2012, section 2.
"""

from __future__ import annotations

import numpy as np

from fl_shield.simulations.datasets.archive import read_labelled
from fl_shield.simulations.datasets.corpus import Corpus, Request, common_pool
from fl_shield.simulations.datasets.parts import Parts, PartsRequest, draw_parts, unavailable
from fl_shield.simulations.datasets.photographs import find_file
from fl_shield.types import Samples

N_SIGNS = 43

WAYS = (
    "point --data-dir at the folder that holds gtsrb/*.npz with x (n, 32, 32, 3) bytes, y and "
    "split (0 = train, 1 = test); it cannot be fetched"
)


def read_gtsrb(request: Request) -> Corpus:
    """Traffic signs as one pool of float32 photographs (n, 3, 32, 32) in [0, 1], 43 classes.

    Parameters
    ----------
    request : Request
        As in :func:`gtsrb_parts`.
    """
    return common_pool("gtsrb", "image", gtsrb_parts(request.parts))


def gtsrb_parts(request: PartsRequest) -> Parts:
    """Train and test of the traffic signs, float32 (n, 3, 32, 32) in [0, 1].

    Parameters
    ----------
    request : PartsRequest
        ``data_dir``: the folder that holds ``gtsrb/*.npz`` (``x`` uint8 (n, 32, 32, 3), ``y``,
        ``split`` with 0 = train, 1 = test), or that folder itself.
    """
    where = request.data_dir
    path = None if where is None else find_file(where, "gtsrb", "*.npz")
    if path is None:
        raise unavailable("gtsrb", where or "this machine", WAYS)
    train, test = draw_parts(request, *read_labelled(path, shape=(32, 32, 3)))
    return Parts(train=_channels_first(train), test=_channels_first(test), n_classes=N_SIGNS)


def _channels_first(pictures: Samples) -> Samples:
    x = pictures.x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return Samples(x=x, y=pictures.y)
