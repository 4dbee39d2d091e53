"""Geometry of each reference beside all the others, without a copy of the others for each.

Every function gives what :mod:`fl_shield.frame` would give for one reference beside the rest,
for all references at once: means, spectra and medians of "all but one" follow from those of all.
So the cost is one pass over the references and one eigendecomposition instead of m, and memory
stays at (m, d). A test compares each column with the slow way.
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
    neighbour_columns,
    ordered,
    pairs,
    shape_of,
    span_columns,
    unit_columns,
)

EXACT = 1e-13
"""A difference this small beside what it was taken from is rounding, and stands for zero."""


@dataclass(frozen=True)
class _Group:
    """References (..., m, d), their typical norm without each one (..., m, 1), inner products."""

    rows: Tensor
    scale: Tensor
    centred: Tensor
    gram: Tensor

    @property
    def rest(self) -> int:
        """How many are left when one is out."""
        return self.rows.shape[-2] - 1


def leave_one_out(references: Tensor) -> Geometry:
    """Geometry of each of the references (..., m, d) beside the m - 1 others of its space.

    Examples
    --------
    >>> from fl_shield.frame import geometry
    >>> rows = torch.arange(20.0, dtype=torch.float64).view(5, 4).sin()
    >>> slow = geometry(rows[:1], rows[1:])
    >>> bool(torch.allclose(leave_one_out(rows).columns[:1], slow.columns))
    True
    """
    centred = references - references.mean(-2, keepdim=True)
    group = _Group(
        rows=references,
        scale=_typical_norms(references.norm(dim=-1))[..., None],
        centred=centred,
        gram=centred @ centred.mT,
    )
    units, unit_keys = unit_columns(references / group.scale, _units(group))
    near, near_keys = _neighbours(group)
    span, span_keys = span_columns(_span(group), references.shape[-1])
    shape = _shapes(group)
    columns = torch.cat([units, near, span, shape], dim=-1)
    keys = torch.cat([span_keys, near_keys, shape[..., :2], unit_keys], dim=-1)
    return Geometry(columns, keys)


def _difference(whole: Tensor, part: Tensor) -> Tensor:
    """Subtract, at least zero and exactly zero where only rounding is left."""
    left = whole - part
    return left * (left > EXACT * whole)


def _typical_norms(norms: Tensor) -> Tensor:
    """Lower median norm of the others, clamped as a single group's is; shape (..., m)."""
    k = (norms.shape[-1] - 2) // 2
    rising = ordered(norms)
    typical = torch.where(
        norms <= rising[..., k, None], rising[..., k + 1, None], rising[..., k, None]
    )
    return typical.clamp_min(1e-12 + 1e-6 * _largest_of_others(norms[..., None])[..., 0])


def _largest_of_others(values: Tensor) -> Tensor:
    """Largest value of each column (..., m, d) in the other rows."""
    top = values.topk(2, dim=-2).values
    largest, second = top[..., :1, :], top[..., 1:, :]
    return torch.where(values == largest, second, largest)


def _units(group: _Group) -> Units:
    m, rest = group.rest + 1, group.rest
    left = group.centred.pow(2)
    variance = _difference(left.sum(-2, keepdim=True), left * (m / rest)) / (rest - 1)
    mean = (group.rows.sum(-2, keepdim=True) - group.rows) / rest
    high, low = _largest_of_others(group.rows), -_largest_of_others(-group.rows)
    return Units.of(
        mean=mean / group.scale,
        variance=variance / group.scale.pow(2),
        low=low / group.scale,
        high=high / group.scale,
        count=rest,
    )


def _neighbours(group: _Group) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(group.rows, group.rows)
    typical = torch.maximum(_typical_distances(distances), 1e-9 * group.scale[..., 0])
    norms = group.rows.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    cosines = (group.rows / norms) @ (group.rows / norms).mT
    return neighbour_columns(
        _others(distances) / typical[..., None], _others(_angles(group)), _others(cosines)
    )


def _others(square: Tensor) -> Tensor:
    """Drop the diagonal of (..., m, m): what each row shows of the others, (..., m, m - 1)."""
    m = square.shape[-1]
    after = square.flatten(-2)[..., 1:].view(*square.shape[:-2], m - 1, m + 1)
    return after[..., :-1].reshape(*square.shape[:-1], m - 1)


def _typical_distances(distances: Tensor) -> Tensor:
    """Lower median distance between two of the others, shape (..., m).

    Of all pairs in order, the median of those without a reference stands as many places after the
    k-th as pairs with that reference stand before it: at most m - 1.
    """
    m = distances.shape[-1]
    upper = distances.triu(1)  # rounding may tell the two triangles apart
    rising, own = ordered(pairs(upper)), ordered(_others(upper + upper.mT))
    k = ((m - 1) * (m - 2) // 2 - 1) // 2
    near = rising[..., k : k + m].contiguous()
    place = torch.searchsorted(near, own.flatten(-2)).view_as(own) - torch.arange(m - 1)
    return near.gather(-1, (place.cummax(-1).values <= 0).sum(-1))


def _angles(group: _Group) -> Tensor:
    """Cosines of each reference and each other one, both from the centre of the others."""
    gram, rest = group.gram, group.rest
    own = gram.diagonal(dim1=-2, dim2=-1)
    column, row = own[..., :, None], own[..., None, :]
    shift = column / rest
    dot = gram + shift
    square = row + 2 * gram / rest + shift / rest
    length = square.clamp_min(0).sqrt() * (square > EXACT * (row + shift / rest))
    dot = dot * (dot.abs() > EXACT * (gram.abs() + shift))
    least = 1e-12 * group.scale
    return dot / torch.maximum(column.sqrt(), least) / torch.maximum(length, least)


def _span(group: _Group) -> Span:
    """Mahalanobis distances by removing one point from the scatter of all, a rank-one change.

    With scatter S of all and a point u from their centre, the others have the scatter
    S - b u u' and the point lies b u from their centre, b = m / (m - 1); the inverse follows by
    Sherman and Morrison. The others span all but one direction when u' S^-1 u = 1 / b.
    """
    rest = group.rest
    b = (rest + 1) / rest
    spectrum, coordinates = _spectrum(group)
    spectrum = spectrum[..., None, :]
    own = group.gram.diagonal(dim1=-2, dim2=-1)
    total = b**2 * own
    trace = _difference(own.sum(-1, keepdim=True), b * own) / rest
    trace = torch.maximum(trace, 1e-12 * group.scale[..., 0].pow(2))
    square = coordinates.pow(2)
    outside = _outside(spectrum, square, trace * rest, b)
    outside = torch.where(outside > (1 - EXACT) * total, total, outside)
    ridge = torch.tensor(SHRINKAGES, dtype=own.dtype) * trace[..., None] / group.rows.shape[-1]
    beyond = (outside < total)[..., None]
    within = _whitened(spectrum, square, ridge, rest)
    twice = 2 * b * (square * spectrum).sum(-1)
    curve = _difference(spectrum.pow(2).sum(-1) + b**2 * own.pow(2), twice)
    energy = torch.maximum(curve / rest**2, 1e-20 * group.scale[..., 0].pow(4))
    return Span(
        whitened=torch.where(beyond, within, total[..., None] / ridge),
        total=total,
        outside=outside,
        trace=trace,
        rank=trace.pow(2) / energy / rest,
    )


def _whitened(spectrum: Tensor, square: Tensor, ridge: Tensor, rest: int) -> Tensor:
    """Squared Mahalanobis distances of each point for ridges (..., m, 3)."""
    b = (rest + 1) / rest
    g = (1 - torch.tensor(SHRINKAGES, dtype=ridge.dtype)) / rest
    shrunk = g[:, None] * spectrum[..., None, :] + ridge[..., None]
    w = (square[..., None, :] / shrunk).sum(-1)
    return b**2 * w / (1 - g * b * w).clamp_min(1e-15)


def _spectrum(group: _Group) -> tuple[Tensor, Tensor]:
    """Spectrum (..., k) of the scatter, and references (..., m, k) in its axes; k = min(m, d)."""
    m, d = group.rows.shape[-2:]
    if d < m:
        spectrum, axes = torch.linalg.eigh(group.centred.mT @ group.centred)
        return spectrum.clamp_min(0), group.centred @ axes
    spectrum, left = torch.linalg.eigh(group.gram)
    spectrum = spectrum.clamp_min(0)
    return spectrum, left * spectrum.sqrt()[..., None, :]


def _outside(spectrum: Tensor, square: Tensor, most: Tensor, b: float) -> Tensor:
    """Squared distance of each point to the span of the others, shape (..., m)."""
    top = spectrum.amax(-1)
    cut = torch.maximum(NULL * torch.minimum(most, top), EXACT * top)[..., None]
    present = spectrum > cut
    inverse = present / spectrum.clamp_min(1e-300)
    leverage = b * (square * inverse).sum(-1)
    curvature = (square * inverse.pow(2)).sum(-1)
    smallest = (1 - leverage) / (b * curvature).clamp_min(1e-300)
    alone = (curvature > 0) & (smallest <= cut[..., 0])
    absent = b**2 * (square * ~present).sum(-1)
    return absent + torch.where(alone, 1 / curvature.clamp_min(1e-300), 0.0)


def _shapes(group: _Group) -> Tensor:
    """Shape of each reference minus the mean shape of the others, (..., m, 8)."""
    shape = shape_of(group.rows / group.scale.mean(-2, keepdim=True))
    columns = shape - (shape.sum(-2, keepdim=True) - shape) / group.rest
    norms = group.rows.norm(dim=-1)[..., None, :]
    logs = torch.log((norms / group.scale).clamp_min(1e-12))  # (..., m, m): row i in i's scale
    own = logs.diagonal(dim1=-2, dim2=-1)
    columns[..., 0] = own - (logs.sum(-1) - own) / group.rest
    return columns
