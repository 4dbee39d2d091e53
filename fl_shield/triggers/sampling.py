"""Reading images at other places: bilinear sampling, and shifts by whole pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample


def pixel_places(size: tuple[int, int]) -> Tensor:
    """Column and row of each pixel, -1 to 1 from the first centre to the last, (2, height, width).

    Examples
    --------
    >>> pixel_places((1, 3))[0].tolist()
    [[-1.0, 0.0, 1.0]]
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flip(0)


def sampled(x: NDArray[Any], places: Tensor) -> NDArray[Any]:
    """Images read at other places, bilinearly; beyond the border the border repeats itself.

    Parameters
    ----------
    x : (n, channels, height, width) array
        In [0, 1].
    places : (2, height, width) tensor
        Where each pixel comes from, see :func:`pixel_places`.
    """
    if len(x) == 0:
        return x.copy()
    images = torch.from_numpy(np.array(x, dtype=np.float64, order="C"))
    grid = places.permute(1, 2, 0).expand(len(x), -1, -1, -1)
    read = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    moved: NDArray[Any] = read.clamp(0, 1).numpy().astype(x.dtype)
    return moved


def shifted(x: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Images ``(n, channels, height, width)`` shifted by whole pixels; the border repeats itself.

    Examples
    --------
    >>> shifted(np.array([[[[1, 2, 3]]]]), 0, 1).ravel().tolist()
    [1, 1, 2]
    """
    height, width = x.shape[-2:]
    from_row = np.clip(np.arange(height) - rows, 0, height - 1)
    from_column = np.clip(np.arange(width) - columns, 0, width - 1)
    found: NDArray[Any] = x[..., from_row[:, None], from_column]
    return found
