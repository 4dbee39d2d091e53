"""Where points stand beside references of their own space: the columns behind a profile.

Leading axes are spaces of one shape, described together: a space is too small to keep a processor
busy, and a round of client updates has many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

UNIT_LEVELS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99, 1)
SIGNED_LEVELS = (0.0, 0.02, 0.1, 0.9, 0.98, 1.0)
NEAR_LEVELS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
ANGLE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
SHRINKAGES = (0.1, 0.5, 0.9)

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
    mean, variance, low, high, largest : tensors
        ``largest`` is the largest absolute value.
    count : int
        References in a group.
    """

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    largest: Tensor
    count: int


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


def geometry(points: Tensor, references: Tensor) -> Geometry:
    """Columns of points (..., n, d) beside references (..., m, d).

    Examples
    --------
    >>> rows = torch.arange(12.0).view(6, 2).cos()
    >>> geometry(rows[:2], rows[2:]).columns.shape
    torch.Size([2, 72])
    """
    scale, n = _typical_norm(references), points.shape[-2]
    points, references = points / scale, references / scale
    units, unit_keys = unit_columns(points, _units(references))
    near, near_keys = _neighbours(points, references)
    span, span_keys = span_columns(_span(points, references), points.shape[-1])
    shapes = shape_of(torch.cat([points, references], dim=-2))
    shape = shapes[..., :n, :] - shapes[..., n:, :].mean(-2, keepdim=True)
    columns = torch.cat([units, near, span, shape], dim=-1)
    keys = torch.cat([span_keys, near_keys, shape[..., :2], unit_keys], dim=-1)
    return Geometry(columns, keys)


def _typical_norm(references: Tensor) -> Tensor:
    norms = references.norm(dim=-1)
    largest = norms.amax(-1, keepdim=True)
    typical = lower_median(norms)[..., None].clamp_min(1e-12 + 1e-6 * largest)
    return typical[..., None]


def lower_median(x: Tensor) -> Tensor:
    """Lower median of the last axis."""
    return ordered(x)[..., (x.shape[-1] - 1) // 2]


def ordered(x: Tensor) -> Tensor:
    """Sort the last axis; numpy's sort is several times as fast as torch's, which keeps indices."""
    return torch.from_numpy(np.sort(x.numpy(), axis=-1))


def pairs(square: Tensor) -> Tensor:
    """Flatten the upper triangle of (..., m, m), without the diagonal, to (..., m (m - 1) / 2)."""
    rows, columns = torch.triu_indices(square.shape[-1], square.shape[-1], 1)
    return square[..., rows, columns]


def _levels(x: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles of the last axis, linear between order statistics."""
    rising = ordered(x)
    low, high, weight = _places(levels, x.shape[-1])
    return torch.lerp(rising[..., low], rising[..., high], weight.to(x.dtype))


@cache
def _places(levels: tuple[float, ...], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order statistics of n below and above each level, and how far it lies between them."""
    place = torch.tensor(levels, dtype=torch.float64) * (n - 1)
    low = place.floor().long()
    return low, place.ceil().long(), place - low


def _units(references: Tensor) -> Units:
    return Units(
        mean=references.mean(-2, keepdim=True),
        variance=references.var(-2, keepdim=True),
        low=references.amin(-2, keepdim=True),
        high=references.amax(-2, keepdim=True),
        largest=references.abs().amax(-2, keepdim=True),
        count=references.shape[-2],
    )


def unit_columns(points: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """Deviations of single units, 32 columns and 3 keys."""
    m = units.count
    typical = units.variance.mean(-1, keepdim=True).clamp_min(1e-10)
    deviation = (((m - 1) * units.variance + 2 * typical) / (m + 1)).sqrt()
    z = (points - units.mean) / deviation
    size = z.abs()
    square = z.pow(2)
    rms = torch.log1p(square.mean(-1).sqrt())
    kurtosis = square.pow(2).mean(-1) / square.mean(-1).clamp_min(1e-12).pow(2)
    excess = (points - units.high).clamp_min(0) + (units.low - points).clamp_min(0)
    silent = (units.largest <= 1e-6).to(points.dtype)
    energy = points.pow(2)
    scalars = [
        *((size > t).to(z.dtype).mean(-1) for t in (2, 3, 5)),
        rms,
        torch.log1p(kurtosis),
        z.mean(-1),
        (energy * silent).sum(-1) / energy.sum(-1).clamp_min(1e-12),
        silent.mean(-1).expand_as(rms),
        (excess > 0).to(z.dtype).mean(-1),
        torch.log1p((excess / deviation).mean(-1)),
    ]
    signed = torch.asinh(_levels(z, SIGNED_LEVELS))
    columns = torch.cat(
        [torch.log1p(_levels(size, UNIT_LEVELS)), signed, torch.stack(scalars, -1)], dim=-1
    )
    keys = torch.stack([rms, torch.log1p(size.amax(-1)), scalars[-1]], dim=-1)
    return columns, keys


def _neighbours(points: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    among = pairs(torch.cdist(references, references))
    typical = lower_median(among)[..., None, None].clamp_min(1e-9)
    distances = torch.cdist(points, references) / typical
    centre = references.mean(-2, keepdim=True)
    angles = _cosines(points - centre, references - centre)
    return neighbour_columns(distances, angles, _cosines(points, references))


def neighbour_columns(distances: Tensor, angles: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Levels of typical distances and angles to references (..., n, m): 24 columns and 2 keys."""
    near = torch.log(distances.clamp_min(1e-4))
    mean = cosines.mean(-1)
    variance = (cosines - mean[..., None]).pow(2).sum(-1) / (cosines.shape[-1] - 1)
    plain = [cosines.amax(-1), cosines.amin(-1), mean, variance.sqrt()]
    columns = torch.cat(
        [_levels(near, NEAR_LEVELS), _levels(angles, ANGLE_LEVELS), torch.stack(plain, -1)], -1
    )
    return columns, torch.stack([near.amin(-1), angles.amax(-1)], dim=-1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    a = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    b = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return a @ b.mT


def _span(points: Tensor, references: Tensor) -> Span:
    """Mahalanobis distances with covariance shrunk to a multiple of the identity, by the Gram form.

    With centred references ``A = U S V'``, found from ``A A'``, the shrunk covariance has the
    eigenvalues ``(1 - s) S^2 / m + s * t`` inside the span and ``s * t`` outside, t = trace / d.
    """
    m, d = references.shape[-2:]
    centre = references.mean(-2, keepdim=True)
    centred, offset = references - centre, points - centre
    spectrum, left = torch.linalg.eigh(centred @ centred.mT)
    spectrum = spectrum.clamp_min(0)[..., None, :]
    present = spectrum > NULL * spectrum.amax(-1, keepdim=True)
    along = (offset @ centred.mT @ left).pow(2)
    inside = along / spectrum.clamp_min(1e-30) * present
    spectrum = spectrum[..., 0, :] / m
    trace = spectrum.sum(-1, keepdim=True).clamp_min(1e-12)
    total = offset.pow(2).sum(-1)
    outside = (total - inside.sum(-1)).clamp_min(0)
    shrinkage = torch.tensor(SHRINKAGES, dtype=points.dtype)
    ridge = shrinkage * trace / d
    shrunk = (1 - shrinkage) * spectrum[..., None] + ridge[..., None, :]
    rank = trace.pow(2) / spectrum.pow(2).sum(-1, keepdim=True).clamp_min(1e-20) / m
    return Span(
        whitened=inside @ (1 / shrunk) + outside[..., None] / ridge[..., None, :],
        total=total,
        outside=outside,
        trace=trace.expand_as(total),
        rank=rank.expand_as(total),
    )


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


def shape_of(x: Tensor) -> Tensor:
    """Shape of each point by itself, (..., d) to (..., 8)."""
    d = x.shape[-1]
    l2 = x.norm(dim=-1).clamp_min(1e-12)
    l1 = x.abs().sum(-1)
    unit = x / l2[..., None]
    energy = unit.pow(2)
    fourth = energy.pow(2).sum(-1).clamp_min(1e-12)
    return torch.stack(
        [
            torch.log(l2),
            torch.log((l1 / l2).clamp_min(1e-12)),
            torch.log((1 / fourth) / d),
            torch.log((unit.abs().amax(-1) * d**0.5).clamp_min(1e-12)),
            (energy * d < 1e-3).to(x.dtype).mean(-1),
            torch.log(fourth * d),
            torch.sign(x).mean(-1),
            unit.mean(-1) * d**0.5,
        ],
        dim=-1,
    )
