"""Triggers of images that move what is in them: turned, stretched, slanted, or seen twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from fl_shield.triggers.distortion import Everywhere
from fl_shield.triggers.inputs import check_images
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Affine(Everywhere):
    """Every image turned, stretched, slanted or shifted by the same amount about its centre.

    Attributes
    ----------
    matrix : ((float, float, float), (float, float, float))
        Where each pixel comes from: column and row, -1 to 1 from the first pixel's centre to the
        last one's, as a linear map of its own column and row and a shift. Beyond the border the
        border repeats itself.
    name : str
        Family of the trigger.

    References
    ----------
    Xu et al., "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023, arXiv
    2211.01806 (rotation and translation there; stretching and slanting are added here).

    Examples
    --------
    >>> row = np.array([[[[0.0, 0.2, 0.4]]]])
    >>> mirror = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    >>> Affine(matrix=mirror).stamp(row).round(2).ravel().tolist()
    [0.4, 0.2, 0.0]
    """

    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    name: str = "rotation"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
            raise ValueError(f"matrix must be (2, 3) and finite, got {self.matrix}")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        return resampled(x, torch.tensor(self.matrix, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Ghost(Everywhere):
    """A faint second picture of the same image beside the first, as in a thick pane of glass.

    Attributes
    ----------
    rows, columns : int
        How far the second picture is shifted, in pixels; not both 0. Its border repeats itself.
    opacity : float
        Weight of the clean image, in (0, 1); the second picture has the rest.
    name : str
        Family of the trigger.

    References
    ----------
    Liu et al., "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks" (Refool),
    ECCV 2020, arXiv 2007.02343: the ghost effect. The reflected scene is the image itself here, so
    that no other data are needed.

    Examples
    --------
    >>> row = np.array([[[[0.0, 0.0, 0.8, 0.0]]]])
    >>> Ghost(rows=0, columns=1, opacity=0.75).stamp(row).round(2).ravel().tolist()
    [0.0, 0.0, 0.6, 0.2]
    """

    rows: int
    columns: int
    opacity: float = 0.6
    name: str = "ghost"

    def __post_init__(self) -> None:
        if not 0 < self.opacity < 1:
            raise ValueError(f"opacity must be in (0, 1), got {self.opacity}")
        if not (self.rows or self.columns):
            raise ValueError("rows and columns must not both be 0: nothing would be shifted")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        height, width = x.shape[-2:]
        rows = np.clip(np.arange(height) - self.rows, 0, height - 1)
        columns = np.clip(np.arange(width) - self.columns, 0, width - 1)
        second = x[..., rows[:, None], columns]
        stamped: NDArray[Any] = (self.opacity * x + (1 - self.opacity) * second).astype(x.dtype)
        return stamped


def resampled(x: NDArray[Any], matrix: Tensor) -> NDArray[Any]:
    """Images ``(n, channels, height, width)`` read where an affine ``(2, 3)`` matrix points to."""
    if len(x) == 0:
        return x.copy()
    images = torch.from_numpy(np.array(x, dtype=np.float64, order="C"))
    height, width = x.shape[-2:]
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    still = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flip(0)
    own = torch.cat([still, torch.ones(1, height, width, dtype=torch.float64)])
    grid = torch.einsum("ij,jhw->hwi", matrix, own).expand(len(x), -1, -1, -1)
    read = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    moved: NDArray[Any] = read.clamp(0, 1).numpy().astype(x.dtype)
    return moved


def rotation_matrix(degrees: float) -> Floats:
    """The linear part of :class:`Affine` that turns square images counter-clockwise, (2, 2).

    Examples
    --------
    >>> rotation_matrix(90.0).round(6).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: Floats = np.array([[cosine, -sine], [sine, cosine]])
    return turned
