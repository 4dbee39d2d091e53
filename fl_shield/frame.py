"""References as a frame that points are described in: fitted once, then a few products a point.

Whatever depends on the references alone is worked out by :func:`frame`: their scale, moments,
ranges, distances and principal axes. :func:`beside` then describes points by one product with
the references and one pass over the units. Leading axes are spaces of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_shield.geometry import (
    NULL,
    SHRINKAGES,
    Geometry,
    Span,
    Units,
    lower_median,
    neighbour_columns,
    pairs,
    shape_of,
    span_columns,
    unit_columns,
)


@dataclass(frozen=True)
class Axes:
    """Principal axes of references with covariance shrunk to a multiple of the identity.

    With centred references ``A = U S V'``, found from ``A A'``, the shrunk covariance has the
    eigenvalues ``(1 - s) S^2 / m + s * t`` inside the span and ``s * t`` outside, t = trace / d.

    Attributes
    ----------
    turn : (..., m, m) tensor
        Takes inner products with the centred references to coordinates along the axes.
    weights : (..., m, 3) tensor
        One over the shrunk variance along each axis, for each of
        :data:`fl_shield.geometry.SHRINKAGES`.
    ridge : (..., 1, 3) tensor
        The shrunk variance in every direction off the span.
    trace, rank : (..., 1) tensors
        Total variance, and effective rank as a share of m.
    """

    turn: Tensor
    weights: Tensor
    ridge: Tensor
    trace: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Frame:
    """All that references (..., m, d) say to points beside them, in units of ``scale``.

    Attributes
    ----------
    scale : (..., 1, 1) tensor
        Typical norm of the references.
    units : Units
    centre : (..., 1, d) tensor
    references : (..., m, d) tensor
        As they were given, in single precision where that loses nothing.
    offsets : (..., 1, m) tensor
        Inner products of ``centred`` with the centre.
    lengths, radii : (..., 1, m) tensors
        Norms of the references, infinite for zero, and their distances to the centre.
    typical : (..., 1, 1) tensor
        Median distance between two references.
    axes : Axes
    shape : (..., 1, 8) tensor
        Mean shape of the references.
    """

    scale: Tensor
    units: Units
    centre: Tensor
    references: Tensor
    offsets: Tensor
    lengths: Tensor
    radii: Tensor
    typical: Tensor
    axes: Axes
    shape: Tensor

    @property
    def centred(self) -> Tensor:
        """References from their centre, (..., m, d): worked out again, for they are the most."""
        return self.references.to(self.centre.dtype) / self.scale - self.centre


def geometry(points: Tensor, references: Tensor) -> Geometry:
    """Columns of points (..., n, d) beside references (..., m, d).

    Examples
    --------
    >>> rows = torch.arange(12.0).view(6, 2).cos()
    >>> geometry(rows[:2], rows[2:]).columns.shape
    torch.Size([2, 72])
    """
    return beside(points, frame(references))


def frame(references: Tensor) -> Frame:
    """Work out all that describing points beside references (..., m, d) needs of the references.

    Examples
    --------
    >>> rows = torch.arange(12.0, dtype=torch.float64).view(6, 2).cos()
    >>> frame(rows).centred.shape
    torch.Size([6, 2])
    """
    scale = _typical_norm(references)
    rows = references / scale
    centre = rows.mean(-2, keepdim=True)
    centred = rows - centre
    among = pairs(torch.cdist(rows, rows))
    return Frame(
        scale=scale,
        units=Units.of(
            mean=centre,
            variance=rows.var(-2, keepdim=True),
            low=rows.amin(-2, keepdim=True),
            high=rows.amax(-2, keepdim=True),
            count=rows.shape[-2],
        ),
        centre=centre,
        references=_compact(references),
        offsets=centre @ centred.mT,
        lengths=_lengths(rows),
        radii=centred.norm(dim=-1)[..., None, :],
        typical=lower_median(among)[..., None, None].clamp_min(1e-9),
        axes=_axes(centred),
        shape=shape_of(rows).mean(-2, keepdim=True),
    )


def beside(points: Tensor, frame: Frame) -> Geometry:
    """Columns of points (..., n, d) in a frame; each point by itself.

    Examples
    --------
    >>> rows = torch.arange(12.0, dtype=torch.float64).view(6, 2).cos()
    >>> among = frame(rows[2:])
    >>> bool(torch.equal(beside(rows[:1], among).keys, geometry(rows[:1], rows[2:]).keys))
    True
    """
    points = points / frame.scale
    products = points @ frame.centred.mT
    total = (points - frame.centre).pow(2).sum(-1)
    inner = products - frame.offsets  # of points and references, both from the centre
    units, unit_keys = unit_columns(points, frame.units)
    near, near_keys = _neighbours(points, frame, inner, products, total)
    span, span_keys = span_columns(_span(frame.axes, inner, total), points.shape[-1])
    shape = shape_of(points) - frame.shape
    columns = torch.cat([units, near, span, shape], dim=-1)
    keys = torch.cat([span_keys, near_keys, shape[..., :2], unit_keys], dim=-1)
    return Geometry(columns, keys)


def _compact(rows: Tensor) -> Tensor:
    """Rows in single precision where that loses nothing."""
    single = rows.detach().float()
    return single if torch.equal(single.to(rows.dtype), rows) else rows


def _typical_norm(references: Tensor) -> Tensor:
    norms = references.norm(dim=-1)
    largest = norms.amax(-1, keepdim=True)
    typical = lower_median(norms)[..., None].clamp_min(1e-12 + 1e-6 * largest)
    return typical[..., None]


def _lengths(rows: Tensor) -> Tensor:
    """Norms (..., 1, m), infinite for references at zero: those have no direction."""
    norms = rows.norm(dim=-1)[..., None, :]
    return torch.where(norms <= 1e-9, torch.inf, norms)


def _axes(centred: Tensor) -> Axes:
    m, d = centred.shape[-2:]
    spectrum, left = torch.linalg.eigh(centred @ centred.mT)
    spectrum = spectrum.clamp_min(0)
    present = spectrum > NULL * spectrum.amax(-1, keepdim=True)
    turn = left * (present / spectrum.clamp_min(1e-30).sqrt())[..., None, :]
    variance = spectrum / m
    trace = variance.sum(-1, keepdim=True).clamp_min(1e-12)
    shrinkage = torch.tensor(SHRINKAGES, dtype=centred.dtype)
    ridge = shrinkage * trace / d
    return Axes(
        turn=turn,
        weights=1 / ((1 - shrinkage) * variance[..., None] + ridge[..., None, :]),
        ridge=ridge[..., None, :],
        trace=trace,
        rank=trace.pow(2) / variance.pow(2).sum(-1, keepdim=True).clamp_min(1e-20) / m,
    )


def _neighbours(
    points: Tensor, frame: Frame, inner: Tensor, products: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    square = total[..., None] + frame.radii.pow(2) - 2 * inner
    distances = square.clamp_min(0).sqrt() / frame.typical
    angles = _over(inner, total.sqrt(), frame.radii)
    plain = products + points @ frame.centre.mT
    return neighbour_columns(distances, angles, _over(plain, points.norm(dim=-1), frame.lengths))


def _over(products: Tensor, lengths: Tensor, others: Tensor) -> Tensor:
    """Cosines from inner products (..., n, m) and norms (..., n) and (..., 1, m)."""
    return products / lengths[..., None].clamp_min(1e-12) / others.clamp_min(1e-12)


def _span(axes: Axes, inner: Tensor, total: Tensor) -> Span:
    inside = (inner @ axes.turn).pow(2)
    outside = (total - inside.sum(-1)).clamp_min(0)
    return Span(
        whitened=inside @ axes.weights + outside[..., None] / axes.ridge,
        total=total,
        outside=outside,
        trace=axes.trace.expand_as(total),
        rank=axes.rank.expand_as(total),
    )
