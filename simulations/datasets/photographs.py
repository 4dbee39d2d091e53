"""Photographs with a train and a test part: packs of JPEG files, or the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.hub_splits import fetch_split, fetched_pictures
from fl_shield.simulations.datasets.jpegpack import JpegPack, decode_cached, read_pack
from fl_shield.simulations.datasets.parts import (
    Parts,
    PartsRequest,
    apart,
    draw_parts,
    unavailable,
)
from fl_shield.types import Samples

SIDE = 32
"""Pixels of an edge, whatever the files hold."""


@dataclass(frozen=True, kw_only=True)
class Album:
    """Where the photographs of one data set are found.

    Attributes
    ----------
    name : str
        Of the data set, for errors.
    folder : str
        Holds ``*jpegpack.npz``, inside the user's folder of data sets.
    repository : str
        On the Hugging Face hub.
    held : str
        The hub's split that is the test part.
    side : int
        Pixels of an edge in the files, a multiple of :data:`SIDE`.
    """

    name: str
    folder: str
    repository: str
    held: str = "test"
    side: int = SIDE

    @property
    def ways(self) -> str:
        """How to get it."""
        return (
            f"point --data-dir at the folder that holds {self.folder}/*jpegpack.npz, or leave it "
            f"out on a machine with a network to fetch {self.repository} through flwr-datasets"
        )


def read_album(album: Album, request: PartsRequest) -> Parts:
    """Drawn photographs, float32 (n, 3, 32, 32) in [0, 1]; only those are decoded.

    Parameters
    ----------
    album : Album
    request : PartsRequest
        ``data_dir``: the folder that holds ``album.folder``, or that folder itself. None: fetch.
    """
    if request.data_dir is None:
        return _fetched(album, request)
    path = find_file(request.data_dir, album.folder, "*jpegpack.npz")
    if path is None:
        raise unavailable(album.name, request.data_dir, album.ways)
    pack = read_pack(path)
    train, test = (_drawn(request, pack, part, album.side) for part in ("train", "test"))
    return Parts(train=train, test=test, n_classes=pack.n_classes)


def _fetched(album: Album, request: PartsRequest) -> Parts:
    parts = [
        (part, fetch_split(album.name, album.repository, split, album.ways))
        for part, split in (("train", "train"), ("test", album.held))
    ]
    drawn, n_classes = fetched_pictures(request, parts, side=SIDE)
    train, test = draw_parts(replace(request, n_train=None, n_test=None), *drawn)
    return Parts(train=train, test=test, n_classes=n_classes)


def _drawn(request: PartsRequest, pack: JpegPack, part: str, side: int) -> Samples:
    """Drawn pictures of one part, 32 x 32, those that stand in both parts left to test."""
    rows = [np.flatnonzero(pack.split == mark) for mark in (0, 1)]
    kept = apart(*([pack.compressed(int(i)) for i in index] for index in rows))
    which = 0 if part == "train" else 1
    index = rows[which][kept[which]]
    if len(index) == 0:
        raise DatasetError(f"{pack.path} has no {part} picture: copy it again")
    index = index[request.draw(part, pack.y[index])]
    x = decode_cached(pack, index, side, factor=side // SIDE, cache=request.cache)
    return Samples(x=x.astype(np.float32) / np.float32(255), y=pack.y[index])


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
