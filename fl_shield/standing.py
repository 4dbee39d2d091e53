"""Where numbers stand among the references' own: z-scores on a soft scale, and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fl_shield.geometry import ordered


@dataclass(frozen=True)
class Scale:
    """Mean and spread of what references (V, m, k) show.

    Attributes
    ----------
    mean, spread : (V, 1, k) tensors
        ``spread`` is at least a thousandth of the mean size.

    Examples
    --------
    >>> rows = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> Scale.of(rows).z(torch.tensor([[[2.0]]])).tolist()
    [[[0.0]]]
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, references: Tensor) -> Self:
        """Scale of references (V, m, k)."""
        spread = references.std(1, keepdim=True)
        return cls(references.mean(1, keepdim=True), spread.clamp_min(_least(references)))

    def z(self, points: Tensor) -> Tensor:
        """Z-scores of points (V, n, k), logarithmic far out."""
        return torch.asinh((points - self.mean) / self.spread)


def z_of_each(references: Tensor) -> Tensor:
    """Z-score of each reference (V, m, k) on the scale of the others.

    Examples
    --------
    >>> rows = torch.tensor([[[1.0], [2.0], [3.0], [9.0]]])
    >>> alone = Scale.of(rows[:, :3]).z(rows[:, 3:])
    >>> bool(torch.isclose(z_of_each(rows)[0, 3, 0], alone[0, 0, 0]))
    True
    """
    m = references.shape[1]
    mean = (references.sum(1, keepdim=True) - references) / (m - 1)
    square = (references.pow(2).sum(1, keepdim=True) - references.pow(2)) / (m - 1)
    variance = (square - mean.pow(2)).clamp_min(0) * ((m - 1) / max(m - 2, 1))
    return torch.asinh((references - mean) / variance.sqrt().clamp_min(_least(references)))


def _least(references: Tensor) -> Tensor:
    return 1e-3 * references.abs().mean(1, keepdim=True).clamp_min(1e-3)


@dataclass(frozen=True)
class Ranks:
    """What references show, in order.

    Attributes
    ----------
    rising : (V, k, m) tensor

    Examples
    --------
    >>> beside = Ranks.of(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]))
    >>> beside.rank(torch.tensor([[[3.0]]])).tolist()
    [[[0.25]]]
    """

    rising: Tensor

    @classmethod
    def of(cls, references: Tensor) -> Self:
        """Sort references (V, m, k)."""
        return cls(ordered(references.mT.contiguous()))

    def rank(self, points: Tensor) -> Tensor:
        """Share of references below points (V, n, k) minus share above, in [-1, 1]."""
        asked, m = points.mT.contiguous(), self.rising.shape[-1]
        below = torch.searchsorted(self.rising, asked)
        not_above = torch.searchsorted(self.rising, asked, right=True)
        return ((below + not_above - m).to(points.dtype) / m).mT
