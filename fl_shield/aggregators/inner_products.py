"""Inner products and distances of long single-precision vectors, in double precision."""

import numpy as np

from fl_shield.types import Floats

_CHUNK = 1 << 16
"""Columns that are widened to double precision at a time: the copies stay small."""


def inner_products(a: Floats, b: Floats) -> Floats:
    """Inner product of every row of ``a`` ``(n, P)`` with every row of ``b`` ``(m, P)``.

    Returns
    -------
    (n, m) float64 array
        Exact to double precision: what is left after large parts cancel still counts.

    Examples
    --------
    >>> inner_products(np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 4.0]], np.float32))
    array([[11.]])
    """
    out: Floats = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        out += a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
    return out


def squared_distances(updates: Floats) -> Floats:
    """Squared distance of every two updates ``(n, P)``: ``(n, n)``, float64.

    Products are taken in double precision around the median of each parameter. Around the mean,
    one client a thousand times louder than the others would drown the distances between those,
    and so decide whom a rule trusts without being trusted.

    Examples
    --------
    >>> squared_distances(np.array([[0.0, 0.0], [3.0, 4.0]]))
    array([[ 0., 25.],
           [25.,  0.]])
    """
    n, size = updates.shape
    gram = np.zeros((n, n))
    for start in range(0, size, _CHUNK):
        block = updates[:, start : start + _CHUNK].astype(np.float64)
        block -= np.median(block, axis=0)
        gram += block @ block.T
    squared = np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram
    np.fill_diagonal(squared, 0.0)
    positive: Floats = np.maximum(squared, 0.0)
    return positive
