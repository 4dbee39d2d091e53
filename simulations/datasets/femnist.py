"""FEMNIST: handwritten digits and letters by writer, dark strokes on white paper.

References
----------
S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097, section 3; NIST
Special Database 19.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.simulations.datasets.corpus import Corpus, Owner, Request, missing
from fl_shield.simulations.datasets.hub import fetch, read_partitioner
from fl_shield.simulations.datasets.leaf import find_leaf, read_leaf
from fl_shield.simulations.datasets.npz import find_npz, read_npz
from fl_shield.types import Samples

N_CLASSES = 62
"""0-9, then A-Z, then a-z."""


def read_femnist(request: Request) -> Corpus:
    """FEMNIST by writer: float32 images (n, 1, 28, 28) in [0, 1], 1 = white paper.

    Parameters
    ----------
    request : Request
        ``data_dir``: an npz file, a folder with one, a LEAF folder, or the folder that holds
        ``femnist/``; where both are there, npz is taken. None: ``flwrlabs/femnist`` through
        flwr-datasets. The seed draws the writers.
    """
    rng = request.rng()
    if request.data_dir is None:
        owners = _fetch(request.n_owners, rng)
    else:
        owners = _read(request.data_dir, request.n_owners, rng)
    return Corpus(name="femnist", kind="image", n_classes=N_CLASSES, owners=owners)


def _read(data_dir: Path, n_owners: int, rng: np.random.Generator) -> tuple[Owner, ...]:
    if data_dir.is_file():
        return read_npz(data_dir, images, n_owners, rng)
    for folder in (data_dir / "femnist", data_dir):
        npz = find_npz(folder)
        if npz is not None:
            return read_npz(npz, images, n_owners, rng)
        leaf = find_leaf(folder)
        if leaf is not None:
            return read_leaf(leaf, images, n_owners, rng)
    raise missing("femnist", data_dir)


def _fetch(n_owners: int, rng: np.random.Generator) -> tuple[Owner, ...]:
    partitioner = fetch("femnist", partition_by="writer_id")
    return read_partitioner(partitioner, decode_rows, n_owners, rng, train_share=0.9)


def decode_rows(rows: Any) -> Samples:
    """Samples from rows of ``flwrlabs/femnist``: a picture ``image``, a label ``character``.

    Parameters
    ----------
    rows : datasets.Dataset
        Rows of one writer.
    """
    pictures = [np.asarray(picture.convert("L")) for picture in rows["image"]]
    return images(np.stack(pictures), list(rows["character"]))


def images(x: NDArray[Any] | list[Any], y: NDArray[Any] | list[Any]) -> Samples:
    """Samples from 28x28 pictures: bytes 0..255, or numbers in [0, 1] in LEAF's flat form.

    Parameters
    ----------
    x : (n, 28, 28) or (n, 784) array or nested list
        Pixels; integers are divided by 255.
    y : (n,) array or list
        Labels in 0..61.

    Examples
    --------
    >>> float(images(np.full((1, 28, 28), 255, np.uint8), [3]).x.max())
    1.0
    """
    pixels, labels = np.asarray(x), np.asarray(y)
    scale = 255.0 if pixels.dtype.kind in "ui" and pixels.max(initial=0) > 1 else 1.0
    pixels = (pixels.astype(np.float32) / np.float32(scale)).reshape(-1, 1, 28, 28)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels must be in [0, 1], got {pixels.min()}..{pixels.max()}")
    if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() >= N_CLASSES:
        raise ValueError(f"labels must be integers in 0..{N_CLASSES - 1}")
    return Samples(x=pixels, y=labels.astype(np.int64))
