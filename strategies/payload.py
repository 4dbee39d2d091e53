"""From the bytes of a ``.npy`` payload to an array: nothing is allocated or unpickled on trust."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from fl_shield.errors import InvalidReplyError

MAX_INTEGER = 2**53
"""Largest integer that an average in float64 still holds exactly."""

_NPY_MAGIC = b"\x93NUMPY"
_NUMPY_STYPE = "numpy.ndarray"
_MAX_HEADER = 4096


def decode(name: str, array: Array, like: NDArray[Any]) -> NDArray[Any]:
    """Decode one array of a reply: a read-only view of its bytes, shaped like the global one.

    Parameters
    ----------
    name : str
        What the global model calls it, for the error message.
    array : flwr.app.Array
        Declared shape and dtype, and the bytes of a ``.npy`` file.
    like : array
        The global model's array of that name.

    Raises
    ------
    InvalidReplyError
        If the declaration, the header or the length break the contract.

    Examples
    --------
    >>> decode("w", Array(np.arange(3.0)), np.zeros(3))
    array([0., 1., 2.])
    """
    if array.stype != _NUMPY_STYPE or not isinstance(array.data, bytes):
        raise InvalidReplyError(f"array {name!r} is not in numpy's format")
    if array.dtype != str(like.dtype):
        raise InvalidReplyError(f"array {name!r} must be {like.dtype}, got {array.dtype[:40]!r}")
    if tuple(array.shape) != like.shape:
        raise InvalidReplyError(
            f"array {name!r} must have shape {like.shape}, got {str(tuple(array.shape))[:60]}"
        )
    data, header = array.data, _npy_header(like.dtype.str, like.shape)
    if len(data) == len(header) + like.nbytes and data.startswith(header):
        values = np.frombuffer(data, like.dtype, like.size, len(header)).reshape(like.shape)
    else:
        values = _decode_unusual(name, data, like)
    return values


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Header that this numpy writes for a C-ordered array."""
    buffer = BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _decode_unusual(name: str, data: bytes, like: NDArray[Any]) -> NDArray[Any]:
    """Decode an array whose header was written by another numpy, or in Fortran order."""
    fields, start = _parsed_header(name, data)
    expected = {"descr": like.dtype.str, "shape": like.shape}
    if {key: fields.get(key) for key in expected} != expected:
        raise InvalidReplyError(f"array {name!r} declares one shape or dtype and carries another")
    if len(data) - start != like.nbytes:
        raise InvalidReplyError(
            f"array {name!r} must carry {like.nbytes} bytes, got {len(data) - start}"
        )
    flat = np.frombuffer(data, like.dtype, like.size, start)
    fortran = fields.get("fortran_order") is True
    shaped = flat.reshape(like.shape[::-1]).T if fortran else flat.reshape(like.shape)
    values: NDArray[Any] = shaped.copy(order="C")
    values.flags.writeable = False
    return values


def _parsed_header(name: str, data: bytes) -> tuple[Mapping[str, Any], int]:
    broken = InvalidReplyError(f"array {name!r} does not carry a readable .npy header")
    if not data.startswith(_NPY_MAGIC) or len(data) < 12:
        raise broken
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), _MAX_HEADER):
        raise broken
    try:
        fields = ast.literal_eval(data[8 + width : start].decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise broken from error
    if not isinstance(fields, dict):
        raise broken
    return fields, start


def checked_norm(name: str, values: NDArray[Any], max_norm: float) -> float:
    """Euclidean norm of one array: finite in one pass only if every value is.

    Parameters
    ----------
    name : str
        What the global model calls it, for the error message.
    values : array
        Floating point; of anything else the norm is 0 and only its range is checked.
    max_norm : float
        Largest norm, so that nothing which reads the array overflows.

    Raises
    ------
    InvalidReplyError
        If a value is NaN, infinite, or an integer that an average would not hold exactly.

    Examples
    --------
    >>> checked_norm("w", np.array([3.0, 4.0]), 1e7)
    5.0
    """
    if values.dtype.kind == "f":
        flat = values.ravel().astype(np.promote_types(values.dtype, np.float32), copy=False)
        with np.errstate(all="ignore"):
            energy = float(np.dot(flat, flat))
        if energy <= max_norm**2:
            return float(np.sqrt(energy))
        n_bad = values.size - int(np.isfinite(values).sum())
        if n_bad:
            raise InvalidReplyError(f"array {name!r} holds {n_bad} NaN or infinite values")
        raise InvalidReplyError(f"the norm of array {name!r} is beyond {max_norm:g}")
    if values.dtype.itemsize == 8 and values.size:
        largest = max(int(values.max()), -int(values.min()))
        if largest > MAX_INTEGER:
            raise InvalidReplyError(f"array {name!r} holds integers beyond 2**53")
    return 0.0
