"""The server's own clean examples, in whatever form they are at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_shield.types import Samples

CleanData = Samples | tuple[NDArray[Any] | Tensor, NDArray[Any] | Tensor]


def as_samples(clean_data: CleanData) -> Samples:
    """Clean examples as arrays, from samples or an (x, y) pair of arrays or tensors.

    Examples
    --------
    >>> as_samples((np.zeros((3, 2)), [0, 1, 0])).x.dtype
    dtype('float32')
    """
    if isinstance(clean_data, Samples):
        return clean_data
    x, y = (np.asarray(part) for part in clean_data)
    if x.dtype == np.float64:
        x = x.astype(np.float32)
    return Samples(x=x, y=y.astype(np.int64))
