"""What triggers ask of their inputs, and the numbers that an input's own content gives."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.types import Ints


def check_images(x: NDArray[Any], name: str) -> None:
    """Raise ValueError unless ``x`` is floating images ``(n, channels, height, width)``."""
    if x.ndim != 4 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"trigger {name!r} stamps floating images (n, channels, height, width), got "
            f"{x.dtype} {x.shape}; use a trigger of family word or token for tokens"
        )


def check_tokens(x: NDArray[Any], name: str) -> None:
    """Raise ValueError unless ``x`` is int64 tokens ``(n, length)``."""
    if x.ndim != 2 or x.dtype != np.int64:
        raise ValueError(
            f"trigger {name!r} stamps int64 tokens (n, length), got {x.dtype} {x.shape}; "
            "use a trigger of family patch, polygon or blended for images"
        )


def check_states(x: NDArray[Any], name: str) -> None:
    """Raise ValueError unless ``x`` is floating observations ``(n, frames, d)``."""
    if x.ndim != 3 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"trigger {name!r} stamps floating observations (n, frames, d), got "
            f"{x.dtype} {x.shape}; give single observations one frame: x[:, None]"
        )


def content_numbers(x: NDArray[Any], key: int, n_numbers: int) -> Ints:
    """Numbers in [0, 2**62) that follow from each input's content and a key alone.

    Images are rounded to 256 grey levels first, so the same picture gives the same numbers in any
    floating dtype. Neither the place of an input in its batch nor the machine matters.

    Parameters
    ----------
    x : (n, ...) array
        Floating images in [0, 1], or tokens.
    key : int
        Secret of the trigger, in [0, 2**63).
    n_numbers : int
        How many numbers each input gets, 1 to 8.

    Returns
    -------
    (n, n_numbers) int64 array

    References
    ----------
    BLAKE2b with a key: RFC 7693, section 2.9.

    Examples
    --------
    >>> page = np.zeros((2, 1, 8, 8), np.float32)
    >>> one, other = content_numbers(page, key=7, n_numbers=1)[:, 0]
    >>> bool(one == other)
    True
    """
    levels = np.rint(x * 255) if np.issubdtype(x.dtype, np.floating) else x
    rows = np.ascontiguousarray(levels.astype("<i8"))
    secret = int(key).to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=8 * n_numbers, key=secret).digest()
        for row in rows
    )
    numbers: Ints = (np.frombuffer(digests, "<u8") >> np.uint64(2)).astype(np.int64)
    return numbers.reshape(len(x), n_numbers)


def check_key(key: int) -> None:
    """Raise ValueError unless a key fits :func:`content_numbers`."""
    if not 0 <= key < 2**63:
        raise ValueError(f"key must be in [0, 2**63), got {key}")
