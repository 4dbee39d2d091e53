"""Packs of JPEG pictures: one npz with the bytes of all pictures, decoded only where drawn.

Arrays: ``header`` (bytes that all pictures share, or none), ``body`` (uint8), ``offset`` (n + 1,):
picture ``i`` is ``header + body[offset[i]:offset[i + 1]]``, and the end marker where there is a
shared header; ``y`` and ``split`` (n,) with 0 = train, 1 = test; ``classes``: the labels' names.
Nothing is unpickled, and a picture of another size than expected is refused before it is decoded.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.cache import ArrayTable, cached
from fl_shield.types import Ints

ARRAYS = ("header", "body", "offset", "y", "split", "classes")
END_MARKER = b"\xff\xd9"
CHUNK = 2000
"""Pictures of one cache file: an interrupted decoding goes on behind the last whole chunk."""
VERSION = 1
"""Raise it when decoded pictures change their meaning: old cache files are then ignored."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class JpegPack:
    """Pictures that are still compressed.

    Attributes
    ----------
    path : Path
        Where they come from.
    header, body : bytes
        See the module's docstring.
    offset : (n + 1,) int64 array
    y, split : (n,) int64 arrays
    n_classes : int
    """

    path: Path
    header: bytes
    body: bytes
    offset: Ints
    y: Ints
    split: Ints
    n_classes: int

    def __post_init__(self) -> None:
        steps = np.diff(self.offset)
        inside = len(self.offset) > 1 and self.offset[0] >= 0 and self.offset[-1] <= len(self.body)
        if not inside or (steps <= 0).any():
            raise DatasetError(
                f"offsets of {self.path} must rise within its {len(self.body)} bytes: copy it again"
            )
        if not len(self.y) == len(self.split) == len(steps):
            raise DatasetError(
                f"{self.path} holds {len(steps)} pictures, {len(self.y)} labels and "
                f"{len(self.split)} split marks: they must be equally many; copy it again"
            )

    def jpeg(self, i: int) -> bytes:
        """Bytes of picture ``i`` as a whole JPEG file."""
        tail = END_MARKER if self.header else b""
        return self.header + self.compressed(i) + tail

    def compressed(self, i: int) -> bytes:
        """Bytes of picture ``i`` without what all share."""
        return self.body[self.offset[i] : self.offset[i + 1]]

    def digest(self) -> str:
        """What a cache file is known by: 12 hexadecimal digits of the packed bytes."""
        whole = hashlib.sha256(self.header + self.body + self.offset.tobytes())
        return whole.hexdigest()[:12]


def read_pack(path: Path) -> JpegPack:
    """Read a pack without decoding a picture.

    Parameters
    ----------
    path : Path
        An npz file, see the module's docstring.

    Raises
    ------
    DatasetError
        For a file that is broken, pickled or of another kind.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            absent = [name for name in ARRAYS if name not in file.files]
            if absent:
                raise ValueError(f"it lacks {', '.join(absent)}")
            arrays = {name: file[name] for name in ARRAYS}
        return JpegPack(
            path=path,
            header=_bytes(arrays["header"]),
            body=_bytes(arrays["body"]),
            offset=_integers(arrays["offset"]),
            y=_integers(arrays["y"]),
            split=_integers(arrays["split"]),
            n_classes=len(arrays["classes"]),
        )
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path} cannot be read as a pack of JPEG pictures ({error}): copy it again"
        ) from error


def _bytes(array: NDArray[Any]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"header and body must be flat uint8 arrays, got {array.dtype}")
    return array.tobytes()


def _integers(array: NDArray[Any]) -> Ints:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"offset, y and split must be flat integer arrays, got {array.dtype}")
    return array.astype(np.int64)


def decode(pack: JpegPack, index: Ints, side: int, factor: int = 1) -> Bytes:
    """Decode the pictures at ``index``, shape (k, 3, side / factor, side / factor) uint8.

    Parameters
    ----------
    pack : JpegPack
        Pictures of ``side`` x ``side``.
    index : (k,) int array
        Which ones, in this order.
    side : int
        Pixels of an edge.
    factor : int
        Each square of ``factor`` x ``factor`` pixels is averaged to one.
    """
    small = side // factor
    out = np.empty((len(index), 3, small, small), dtype=np.uint8)
    for row, i in enumerate(index):
        pixels = _decode_one(pack, int(i), side).transpose(2, 0, 1)
        out[row] = shrink(pixels, factor) if factor > 1 else pixels
    return out


def shrink(pixels: Bytes, factor: int) -> Bytes:
    """Average squares of ``factor`` x ``factor`` pixels, (..., h, w) -> (..., h / f, w / f).

    Parameters
    ----------
    pixels : (..., h, w) uint8 array
        Edges are multiples of ``factor``.
    factor : int
        Edge of a square; halves are rounded to even.

    Examples
    --------
    >>> shrink(np.array([[0, 4, 10, 10], [0, 4, 10, 14]], np.uint8), 2).tolist()
    [[2, 11]]
    """
    *rest, height, width = pixels.shape
    squares = pixels.reshape(*rest, height // factor, factor, width // factor, factor)
    means: Bytes = np.rint(squares.mean(axis=(-3, -1))).astype(np.uint8)
    return means


def _decode_one(pack: JpegPack, i: int, side: int) -> Bytes:
    from PIL import Image, UnidentifiedImageError  # only photographs need it

    try:
        with Image.open(io.BytesIO(pack.jpeg(i)), formats=("JPEG",)) as picture:
            if picture.size != (side, side):
                raise ValueError(f"its size is {picture.size} and must be {(side, side)}")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise DatasetError(
            f"picture {i} of {pack.path} cannot be decoded ({error}): copy the file again"
        ) from error


def decode_cached(
    pack: JpegPack, index: Ints, side: int, factor: int = 1, cache: Path | None = None
) -> Bytes:
    """Like :func:`decode`, with the decoded pictures kept in ``cache`` chunk by chunk."""
    if cache is None:
        return decode(pack, index, side, factor)
    known = pack.digest()
    parts = []
    for start in range(0, len(index), CHUNK):
        chunk = index[start : start + CHUNK]
        which = hashlib.sha256(np.asarray(chunk, np.int64).tobytes()).hexdigest()[:16]
        name = f"pictures-{known}-{side}-{factor}-{which}-v{VERSION}"
        parts.append(cached(cache, name, _later(pack, chunk, side, factor))["x"])
    return np.concatenate(parts)


def _later(pack: JpegPack, chunk: Ints, side: int, factor: int) -> Any:
    def make() -> ArrayTable:
        return {"x": decode(pack, chunk, side, factor)}

    return make
