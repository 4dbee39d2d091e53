"""Where points stand beside references of their own space: the columns behind a profile.

Leading axes are spaces of one shape, described together: a space is too small to keep a processor
busy, and a round of client updates has many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

UNIT_LEVELS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99, 1)
SIGNED_LEVELS = (0.0, 0.02, 0.1, 0.9, 0.98, 1.0)
NEAR_LEVELS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
ANGLE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
SHRINKAGES = (0.1, 0.5, 0.9)
BEYOND = (2.0, 3.0, 5.0)

NULL = 1e-9
"""An axis with less than this share of the largest one's variance is no axis of the references."""


@dataclass(frozen=True)
class Geometry:
    """Columns and keys of n points.

    Attributes
    ----------
    columns : (..., n, 72) tensor
    keys : (..., n, 12) tensor
        Scalars that are also standardised by the references' own leave-one-out values.
    """

    columns: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Units:
    """What the references show in each unit: (..., 1, d), or (..., n, d) with a group a point.

    Attributes
    ----------
    mean, deviation, low, high : tensors
        ``deviation`` is shrunk towards that of the typical unit.
    silent : tensor
        1 where every reference is zero, else 0.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    silent: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, low: Tensor, high: Tensor, count: int) -> Self:
        """Units from moments and ranges of groups of ``count`` references."""
        typical = variance.mean(-1, keepdim=True).clamp_min(1e-10)
        deviation = (((count - 1) * variance + 2 * typical) / (count + 1)).sqrt()
        silent = (torch.maximum(high, -low) <= 1e-6).to(mean.dtype)
        return cls(mean, deviation, low, high, silent)


@dataclass(frozen=True)
class Span:
    """Points relative to the references' covariance.

    Attributes
    ----------
    whitened : (..., n, 3) tensor
        Squared Mahalanobis distance for each of :data:`SHRINKAGES`.
    total, outside : (..., n) tensors
        Squared distance to the centre, and to the references' span.
    trace, rank : (..., n) tensors
        Total variance of the references, and effective rank as a share of their number.
    """

    whitened: Tensor
    total: Tensor
    outside: Tensor
    trace: Tensor
    rank: Tensor


def lower_median(x: Tensor) -> Tensor:
    """Lower median of the last axis."""
    return ordered(x)[..., (x.shape[-1] - 1) // 2]


def ordered(x: Tensor) -> Tensor:
    """Sort the last axis; numpy's sort is several times as fast as torch's, which keeps indices."""
    if x.requires_grad:
        return x.sort(-1).values  # gradients need the indices
    return torch.from_numpy(np.sort(x.numpy(), axis=-1))


def in_order(x: Tensor) -> Tensor:
    """Sort the last axis in place, or a copy where gradients flow."""
    if x.requires_grad:
        return ordered(x)
    x.numpy().sort(axis=-1)
    return x


def pairs(square: Tensor) -> Tensor:
    """Flatten the upper triangle of (..., m, m), without the diagonal, to (..., m (m - 1) / 2)."""
    rows, columns = torch.triu_indices(square.shape[-1], square.shape[-1], 1)
    return square[..., rows, columns]


def _levels(rising: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles of the last axis, which is in order; linear between order statistics."""
    low, high, weight = _places(levels, rising.shape[-1])
    return torch.lerp(rising[..., low], rising[..., high], weight.to(rising.dtype))


@cache
def _places(levels: tuple[float, ...], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order statistics of n below and above each level, and how far it lies between them."""
    place = torch.tensor(levels, dtype=torch.float64, device="cpu") * (n - 1)
    low = place.floor().long()
    return low, place.ceil().long(), place - low


def unit_columns(points: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """Deviations of single units, 32 columns and 3 keys."""
    d = points.shape[-1]
    z = in_order((points - units.mean).div_(units.deviation))
    sizes = in_order(z.abs())
    square = z * z
    mean_square = square.mean(-1)
    rms = torch.log1p(mean_square.sqrt())
    kurtosis = square.norm(dim=-1).pow(2) / d / mean_square.clamp_min(1e-12).pow(2)
    excess = torch.clamp(points, units.low, units.high).sub_(points).abs_()
    within = torch.searchsorted(sizes, _beyond(sizes), right=True).to(z.dtype)
    scalars = [
        *(1 - within / d).unbind(-1),
        rms,
        torch.log1p(kurtosis),
        z.mean(-1),
        _silent_energy(points, units.silent),
        units.silent.mean(-1).expand_as(rms),
        torch.sign(excess).mean(-1),
        torch.log1p((excess / units.deviation).mean(-1)),
    ]
    signed = torch.asinh(_levels(z, SIGNED_LEVELS))
    columns = torch.cat(
        [torch.log1p(_levels(sizes, UNIT_LEVELS)), signed, torch.stack(scalars, -1)], dim=-1
    )
    keys = torch.stack([rms, torch.log1p(sizes[..., -1]), scalars[-1]], dim=-1)
    return columns, keys


def _silent_energy(points: Tensor, silent: Tensor) -> Tensor:
    """Share of each point's energy on silent units."""
    if not silent.any():
        return torch.zeros_like(points[..., 0])
    energy = points * points
    return (energy * silent).sum(-1) / energy.sum(-1).clamp_min(1e-12)


def _beyond(sizes: Tensor) -> Tensor:
    return (
        torch.tensor(BEYOND, dtype=sizes.dtype, device=sizes.device)
        .expand(*sizes.shape[:-1], -1)
        .contiguous()
    )


def neighbour_columns(distances: Tensor, angles: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Levels of typical distances and angles to references (..., n, m): 24 columns and 2 keys."""
    near = torch.log(distances.clamp_min(1e-4))
    mean = cosines.mean(-1)
    variance = (cosines - mean[..., None]).pow(2).sum(-1) / (cosines.shape[-1] - 1)
    plain = [cosines.amax(-1), cosines.amin(-1), mean, variance.sqrt()]
    columns = torch.cat(
        [
            _levels(ordered(near), NEAR_LEVELS),
            _levels(ordered(angles), ANGLE_LEVELS),
            torch.stack(plain, -1),
        ],
        dim=-1,
    )
    return columns, torch.stack([near.amin(-1), angles.amax(-1)], dim=-1)


def span_columns(span: Span, d: int) -> tuple[Tensor, Tensor]:
    """Logarithms of distances within and off the references' span: 8 columns, 5 keys."""
    total, outside, trace = span.total, span.outside, span.trace
    distances = 0.5 * torch.log(span.whitened / d + 1e-9)
    centre_distance = 0.5 * torch.log(total / trace + 1e-9)
    residual = 0.5 * torch.log(outside / trace + 1e-9)
    in_span = 0.5 * torch.log((total - outside).clamp_min(0) / trace + 1e-9)
    share = outside / total.clamp_min(1e-12)
    rest = torch.stack([centre_distance, residual, in_span, share, span.rank], dim=-1)
    columns = torch.cat([distances, rest], dim=-1)
    return columns, columns[..., :5]


def _share_below(x: Tensor, level: float) -> Tensor:
    """Share of the last axis below a level; a comparison that writes floats counts fastest."""
    return torch.lt(x.detach(), level, out=torch.empty_like(x)).mean(-1)


def shape_of(x: Tensor) -> Tensor:
    """Shape of each point by itself, (..., d) to (..., 8)."""
    d = x.shape[-1]
    l2 = x.norm(dim=-1).clamp_min(1e-12)
    size = x.abs()
    l1, peak = size.sum(-1), size.amax(-1)
    energy = (size / l2[..., None]).square()
    fourth = energy.norm(dim=-1).square().clamp_min(1e-12)
    return torch.stack(
        [
            torch.log(l2),
            torch.log((l1 / l2).clamp_min(1e-12)),
            torch.log((1 / fourth) / d),
            torch.log((peak / l2 * d**0.5).clamp_min(1e-12)),
            _share_below(energy, 1e-3 / d),
            torch.log(fourth * d),
            torch.sign(x).mean(-1),
            x.mean(-1) / l2 * d**0.5,
        ],
        dim=-1,
    )
