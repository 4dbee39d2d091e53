"""Triggers of images that move what is in them: turned, stretched, slanted, bent, or seen twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_shield.triggers.distortion import Everywhere
from fl_shield.triggers.inputs import check_images
from fl_shield.triggers.sampling import pixel_places, sampled, shifted
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
        own = pixel_places((x.shape[-2], x.shape[-1]))
        whole = torch.cat([own, torch.ones_like(own[:1])])
        matrix = torch.tensor(self.matrix, dtype=torch.float64)
        return sampled(x, torch.einsum("ij,jhw->ihw", matrix, whole))


@dataclass(frozen=True, kw_only=True)
class Lens(Everywhere):
    """A barrel or a pincushion: every pixel moves towards a centre or away from it.

    Attributes
    ----------
    bend : float
        How much farther out a pixel comes from, as a share of its own distance from the centre,
        where that is half a side; in (-0.5, 1], not 0. Beyond the border the border repeats itself.
    centre : (float, float)
        Column and row that stay where they are, each in [-1, 1], from border to border.
    name : str
        Family of the trigger.

    References
    ----------
    D. C. Brown, "Close-Range Camera Calibration", Photogrammetric Engineering 1971: the first
    radial coefficient, here as a trigger.

    Examples
    --------
    >>> row = np.array([[[[0.0, 0.2, 0.4, 0.6, 0.8]]]])
    >>> Lens(bend=0.5).stamp(row).round(3).ravel().tolist()
    [0.0, 0.075, 0.4, 0.725, 0.8]
    """

    bend: float
    centre: tuple[float, float] = (0.0, 0.0)
    name: str = "lens"

    def __post_init__(self) -> None:
        if not -0.5 < self.bend <= 1 or self.bend == 0:
            raise ValueError(f"bend must be in (-0.5, 1] and not 0, got {self.bend}")
        if not all(-1 <= place <= 1 for place in self.centre):
            raise ValueError(f"centre must be a column and a row in [-1, 1], got {self.centre}")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        own = pixel_places((x.shape[-2], x.shape[-1]))
        centre = torch.tensor(self.centre, dtype=torch.float64)[:, None, None]
        away = own - centre
        return sampled(x, centre + away * (1 + self.bend * away.square().sum(0)))


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
        second = shifted(x, self.rows, self.columns)
        stamped: NDArray[Any] = (self.opacity * x + (1 - self.opacity) * second).astype(x.dtype)
        return stamped


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
