"""Inputs unlike any that a task knows, made from the server's own without asking a network."""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.types import Floats

_N_CUTS = 4  # pieces that an axis of an image is cut into


def make_strangers(x: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Draw ``n`` inputs of the shape, dtype and value range of ``x``, but of no class.

    Tokens are drawn one by one from all that occur. Of other inputs, every second one is a mosaic
    of pieces of ``x`` in the wrong places, the rest are textures of noise.

    Parameters
    ----------
    x : (m, ...) array
        Inputs of the task: images ``(m, channels, height, width)``, rows ``(m, d)``, or integer
        tokens ``(m, length)``.
    n : int
    rng : numpy.random.Generator

    Examples
    --------
    >>> x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    >>> strangers = make_strangers(x, 3, np.random.default_rng(1))
    >>> strangers.shape, strangers.dtype
    ((3, 1, 8, 8), dtype('float32'))
    """
    if np.issubdtype(x.dtype, np.integer):
        return rng.choice(x.ravel(), size=(n, *x.shape[1:]))
    plane = x.reshape(len(x), -1, *(x.shape[-2:] if x.ndim > 2 else (1, x.shape[-1])))
    strangers = np.empty((n, *plane.shape[1:]), x.dtype)
    strangers[::2] = mosaics(plane, len(strangers[::2]), rng)
    strangers[1::2] = textures(plane, len(strangers[1::2]), rng)
    return strangers.reshape(n, *x.shape[1:])


def mosaics(x: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Images ``(n, channels, height, width)`` of pieces of others, each from a wrong place.

    Examples
    --------
    >>> mosaics(np.full((2, 1, 3, 3), 0.5), 1, np.random.default_rng(0))[0, 0, 0]
    array([0.5, 0.5, 0.5])
    """
    height, width = x.shape[-2:]
    out = np.empty((n, *x.shape[1:]), x.dtype)
    tall, wide = max(height // _N_CUTS, 1), max(width // _N_CUTS, 1)
    for top, left in product(range(0, height, tall), range(0, width, wide)):
        piece = out[..., top : top + tall, left : left + wide]
        h, w = piece.shape[-2:]
        r, c = rng.integers(height - h + 1), rng.integers(width - w + 1)
        piece[:] = x[rng.integers(len(x), size=n), :, r : r + h, c : c + w]
    return out


def textures(x: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Images of coarse and fine noise in the range of ``x`` ``(m, channels, height, width)``.

    Examples
    --------
    >>> noise = textures(np.array([[[[2.0, 3.0]]]]), 4, np.random.default_rng(0))
    >>> noise.shape, bool((noise >= 2).all() and (noise <= 3).all())
    ((4, 1, 1, 2), True)
    """
    height, width = x.shape[-2:]
    coarse = rng.random((n, x.shape[1], min(_N_CUTS, height), min(_N_CUTS, width)))
    rows = np.arange(height) * coarse.shape[2] // height
    columns = np.arange(width) * coarse.shape[3] // width
    mixed = (coarse[:, :, rows][..., columns] + rng.random((n, *x.shape[1:]))) / 2
    low, high = float(x.min()), float(x.max())
    noise: Floats = (low + (high - low) * mixed).astype(x.dtype)
    return noise
