"""Points beside clean references of their own space, as 128 comparable numbers.

Raw coordinates do not compare between networks; how a point *stands beside a few clean
references* does. A profile holds, for each point, deviations of single units, distances and
angles to the references, what lies outside their span, the point's own shape, scalar statistics
that the space itself does not hold (logits, the norm of a client's update), and a little context.
Nearly every number is relative to what the references show among themselves, so it is free of
the order and scale of units. The columns named in :data:`ROTATION_INVARIANT` are free of any
rotation as well. What a view lacks is masked with zeros, not faked.

The profiles of the references themselves are always leave-one-out, or they look too normal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl_shield.types import Floats, View

KINDS = ("activation", "update", "head", "probe", "stamp")
"""What a view shows: inputs in a layer, one tensor's update, the head's update, the shift of
clean probes' activations, the shift of stamped probes' probabilities."""

STATISTICS = (
    "largest_logit",
    "confidence",
    "margin",
    "energy",
    "entropy",
    "head_cosine",
    "row_space",
    "clipped_change",
    "norm",
    "peer_cosine",
    "nearest_cosine",
    "nearest_distance",
    "peak",
    "row_peak",
    "norm_share",
    "shift_peak",
)
"""Slots of a view's scalar statistics: eight for inputs, eight for client updates."""

LIMIT = 8.0
"""Every column is clipped to [-LIMIT, LIMIT]."""

MIN_REFERENCES = 3

_UNIT_LEVELS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99, 1)
_SIGNED_LEVELS = (0.0, 0.02, 0.1, 0.9, 0.98, 1.0)
_NEAR_LEVELS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
_ANGLE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_SHRINKAGES = (0.1, 0.5, 0.9)
_KEYS = 12  # scalars that are also standardised by the references' own leave-one-out values

COLUMNS: tuple[str, ...] = (
    *(f"unit_{q:g}" for q in _UNIT_LEVELS),
    *(f"signed_{q:g}" for q in _SIGNED_LEVELS),
    *("beyond_2", "beyond_3", "beyond_5", "unit_rms", "unit_kurtosis", "unit_mean"),
    *("silent_energy", "silent_units", "out_of_range", "range_excess"),
    *(f"near_{q:g}" for q in _NEAR_LEVELS),
    *(f"angle_{q:g}" for q in _ANGLE_LEVELS),
    *("cosine_max", "cosine_min", "cosine_mean", "cosine_std"),
    *(f"mahalanobis_{s:g}" for s in _SHRINKAGES),
    *("centre_distance", "residual", "in_span", "residual_share", "effective_rank"),
    *(
        "norm_ratio",
        "l1_l2",
        "participation",
        "peak_ratio",
        "near_zero",
        "kurtosis",
        "sign",
        "mean",
    ),
    *(f"z_{name}" for name in STATISTICS),
    *(f"rank_{name}" for name in STATISTICS),
    *(
        f"z_{name}"
        for name in (
            *("mahalanobis_0.1", "mahalanobis_0.5", "mahalanobis_0.9", "centre_distance"),
            *("residual", "nearest", "cosine_max", "norm_ratio", "l1_l2", "unit_rms"),
            *("unit_max", "range_excess"),
        )
    ),
    *(f"kind_{kind}" for kind in KINDS),
    *("depth", "log_references", "log_units", "has_statistics", "few_units", "spread", "constant"),
)
"""Names of the columns, in order; a test holds that they are 128 and distinct."""

N_COLUMNS = len(COLUMNS)

ROTATION_INVARIANT = frozenset(
    name
    for name in COLUMNS
    if name.startswith(("near_", "angle_", "cosine_", "mahalanobis_", "kind_", "rank_"))
    or name in {"centre_distance", "residual", "in_span", "residual_share", "effective_rank"}
    or name in {"norm_ratio", "depth", "log_references", "log_units", "has_statistics"}
    or name in {"few_units", "spread", "constant", *(f"z_{s}" for s in STATISTICS)}
    or name in {f"z_{s}" for s in ("centre_distance", "residual", "nearest", "cosine_max")}
    or name in {f"z_mahalanobis_{s:g}" for s in _SHRINKAGES} | {"z_norm_ratio"}
) - {"near_zero"}


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Profiles of a view's points and, leave-one-out, of its references.

    Attributes
    ----------
    points : (n, 128) float32 array
    references : (m, 128) float32 array
    """

    points: Floats
    references: Floats


def profile(view: View) -> Profiles:
    """Describe each point of a view by 128 numbers that compare between spaces.

    Parameters
    ----------
    view : View
        Points (n, d) and at least three references (m, d).

    Returns
    -------
    Profiles
        Profiles of the points beside all references, and of each reference beside the others.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean, odd = rng.normal(size=(20, 6)), rng.normal(size=(2, 6)) + 9
    >>> both = profile(View(name="demo", points=odd, references=clean))
    >>> column = COLUMNS.index("centre_distance")
    >>> bool(both.points[:, column].min() > both.references[:, column].max())
    True
    """
    points, references = _checked(view)
    m = len(references)
    others = ~torch.eye(m, dtype=torch.bool)
    held_out = references.expand(m, -1, -1)[others].view(m, m - 1, -1)
    geometry = _geometry(points[None], references[None])
    geometry_loo = _geometry(references[:, None], held_out)
    keys = _standardised(geometry.keys[0], geometry_loo.keys[:, 0])
    numbers, numbers_loo = _statistics(view, len(points), m)
    context = _context(view, m)
    return Profiles(
        points=_assemble(geometry.columns[0], numbers, keys.points, context),
        references=_assemble(geometry_loo.columns[:, 0], numbers_loo, keys.references, context),
    )


def _checked(view: View) -> tuple[Tensor, Tensor]:
    points = torch.as_tensor(np.asarray(view.points, dtype=np.float64))
    references = torch.as_tensor(np.asarray(view.references, dtype=np.float64))
    if points.ndim != 2 or references.ndim != 2 or points.shape[1] != references.shape[1]:
        raise ValueError(
            f"view {view.name!r} needs points (n, d) and references (m, d), "
            f"got {tuple(points.shape)} and {tuple(references.shape)}"
        )
    if len(references) < MIN_REFERENCES:
        raise ValueError(
            f"view {view.name!r} has {len(references)} references; "
            f"give at least {MIN_REFERENCES}, better 20"
        )
    if view.kind not in KINDS:
        raise ValueError(f"view kind must be one of {', '.join(KINDS)}, got {view.kind!r}")
    if not (torch.isfinite(points).all() and torch.isfinite(references).all()):
        raise ValueError(f"view {view.name!r} holds NaN or Inf; reject such points before")
    return points, references


@dataclass(frozen=True)
class _Geometry:
    columns: Tensor  # (b, n, 76)
    keys: Tensor  # (b, n, 12)


def _geometry(points: Tensor, references: Tensor) -> _Geometry:
    """Columns of points (b, n, d) beside references (b, m, d)."""
    scale = _typical_norm(references)
    points, references = points / scale, references / scale
    units, unit_keys = _unit_columns(points, references)
    near, near_keys = _neighbour_columns(points, references)
    span, span_keys = _span_columns(points, references)
    shape, shape_keys = _shape_columns(points, references)
    columns = torch.cat([units, near, span, shape], dim=-1)
    keys = torch.cat([span_keys, near_keys, shape_keys, unit_keys], dim=-1)
    return _Geometry(columns, keys)


def _typical_norm(references: Tensor) -> Tensor:
    norms = references.norm(dim=-1)
    typical = norms.median(dim=1).values[:, None, None]
    return typical.clamp_min(1e-12 + 1e-6 * norms.amax(dim=1)[:, None, None])


def _levels(x: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles of the last axis, linear between order statistics."""
    ordered = x.sort(dim=-1).values
    place = torch.tensor(levels, dtype=x.dtype) * (x.shape[-1] - 1)
    low = place.floor().long()
    high = place.ceil().long()
    quantiles: Tensor = torch.lerp(ordered[..., low], ordered[..., high], place - low)
    return quantiles


def _unit_columns(points: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    m = references.shape[1]
    mean = references.mean(1, keepdim=True)
    variance = references.var(1, keepdim=True)
    typical = variance.mean(-1, keepdim=True).clamp_min(1e-10)
    deviation = ((m - 1) * variance + 2 * typical) / (m + 1)
    z = (points - mean) / deviation.sqrt()
    size = z.abs()
    rms = z.pow(2).mean(-1).sqrt()
    kurtosis = z.pow(4).mean(-1) / z.pow(2).mean(-1).clamp_min(1e-12).pow(2)
    low, high = references.amin(1, keepdim=True), references.amax(1, keepdim=True)
    excess = (points - high).clamp_min(0) + (low - points).clamp_min(0)
    silent = (references.abs() <= 1e-6).all(1, keepdim=True).to(points.dtype)
    energy = points.pow(2)
    scalars = [
        *((size > t).to(z.dtype).mean(-1) for t in (2, 3, 5)),
        torch.log1p(rms),
        torch.log1p(kurtosis),
        z.mean(-1),
        (energy * silent).sum(-1) / energy.sum(-1).clamp_min(1e-12),
        silent.mean(-1).expand_as(rms),
        (excess > 0).to(z.dtype).mean(-1),
        torch.log1p((excess / deviation.sqrt()).mean(-1)),
    ]
    signed = torch.asinh(_levels(z, _SIGNED_LEVELS))
    columns = torch.cat(
        [torch.log1p(_levels(size, _UNIT_LEVELS)), signed, torch.stack(scalars, -1)], dim=-1
    )
    keys = torch.stack([torch.log1p(rms), torch.log1p(size.amax(-1)), scalars[-1]], dim=-1)
    return columns, keys


def _neighbour_columns(points: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(points, references)
    among = torch.cdist(references, references)
    off = ~torch.eye(references.shape[1], dtype=torch.bool)
    typical = among[:, off].median(dim=1).values[:, None, None].clamp_min(1e-9)
    near = torch.log((distances / typical).clamp_min(1e-4))
    centre = references.mean(1, keepdim=True)
    angles = _cosines(points - centre, references - centre)
    cosines = _cosines(points, references)
    plain = [cosines.amax(-1), cosines.amin(-1), cosines.mean(-1), cosines.std(-1)]
    columns = torch.cat(
        [_levels(near, _NEAR_LEVELS), _levels(angles, _ANGLE_LEVELS), torch.stack(plain, -1)], -1
    )
    return columns, torch.stack([near.amin(-1), angles.amax(-1)], dim=-1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    a = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    b = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.matmul(a, b.transpose(-1, -2))


def _span_columns(points: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Mahalanobis distances with covariance shrunk to a multiple of the identity, by the Gram form.

    With centred references ``A = U S V'``, found from ``A A'``, the shrunk covariance has the
    eigenvalues ``(1 - s) S^2 / m + s * t`` inside the span and ``s * t`` outside, t = trace / d.
    """
    m, d = references.shape[1:]
    centre = references.mean(1, keepdim=True)
    centred = references - centre
    spectrum, left = torch.linalg.eigh(torch.matmul(centred, centred.transpose(-1, -2)))
    spectrum, present = spectrum.clamp_min(0), spectrum > 1e-9 * spectrum.amax(-1, keepdim=True)
    offset = points - centre
    along = torch.matmul(torch.matmul(offset, centred.transpose(-1, -2)), left).pow(2)
    inside = along / spectrum.clamp_min(1e-30)[:, None] * present[:, None]
    spectrum = spectrum / m
    trace = spectrum.sum(-1, keepdim=True).clamp_min(1e-12)
    total = offset.pow(2).sum(-1)
    outside = (total - inside.sum(-1)).clamp_min(0)
    distances = []
    for shrinkage in _SHRINKAGES:
        ridge = shrinkage * trace / d
        whitened = (inside / ((1 - shrinkage) * spectrum + ridge)[:, None]).sum(-1)
        distances.append(0.5 * torch.log((whitened + outside / ridge) / d + 1e-9))
    centre_distance = 0.5 * torch.log(total / trace + 1e-9)
    residual = 0.5 * torch.log(outside / trace + 1e-9)
    in_span = 0.5 * torch.log(inside.sum(-1) / trace + 1e-9)
    share = outside / total.clamp_min(1e-12)
    rank = (trace.squeeze(-1).pow(2) / spectrum.pow(2).sum(-1).clamp_min(1e-20)) / m
    rank_column = rank[:, None].expand_as(total)
    columns = torch.stack([*distances, centre_distance, residual, in_span, share, rank_column], -1)
    return columns, torch.stack([*distances, centre_distance, residual], -1)


def _shape_columns(points: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    own, typical = _shape(points), _shape(references).mean(1, keepdim=True)
    columns = own - typical
    return columns, columns[..., :2]


def _shape(x: Tensor) -> Tensor:
    d = x.shape[-1]
    l2 = x.norm(dim=-1).clamp_min(1e-12)
    l1 = x.abs().sum(-1)
    unit = x / l2[..., None]
    energy = unit.pow(2)
    return torch.stack(
        [
            torch.log(l2),
            torch.log((l1 / l2).clamp_min(1e-12)),
            torch.log((1 / energy.pow(2).sum(-1).clamp_min(1e-12)) / d),
            torch.log((unit.abs().amax(-1) * d**0.5).clamp_min(1e-12)),
            (energy * d < 1e-3).to(x.dtype).mean(-1),
            torch.log(unit.pow(4).sum(-1).clamp_min(1e-12) * d),
            torch.sign(x).mean(-1),
            unit.mean(-1) * d**0.5,
        ],
        dim=-1,
    )


def _standardised(points: Tensor, references: Tensor) -> Profiles:
    """Z-scores of points (n, k) and, leave-one-out, of references (m, k)."""
    mean, spread = references.mean(0), _spread(references.std(0), references)
    m = len(references)
    mean_loo = (references.sum(0) - references) / (m - 1)
    square_loo = (references.pow(2).sum(0) - references.pow(2)) / (m - 1)
    variance_loo = (square_loo - mean_loo.pow(2)).clamp_min(0) * ((m - 1) / max(m - 2, 1))
    spread_loo = _spread(variance_loo.sqrt(), references)
    z, z_loo = (points - mean) / spread, (references - mean_loo) / spread_loo
    return Profiles(points=torch.asinh(z).numpy(), references=torch.asinh(z_loo).numpy())


def _spread(deviation: Tensor, values: Tensor) -> Tensor:
    return deviation.clamp_min(1e-3 * values.abs().mean(0).clamp_min(1e-3))


def _statistics(view: View, n: int, m: int) -> tuple[Floats, Floats]:
    """Standardised statistics and their ranks among the references: (n, 32) and (m, 32)."""
    width = len(STATISTICS)
    if view.statistics is None or view.reference_statistics is None:
        return np.zeros((n, 2 * width)), np.zeros((m, 2 * width))
    own = torch.as_tensor(np.asarray(view.statistics, dtype=np.float64))
    clean = torch.as_tensor(np.asarray(view.reference_statistics, dtype=np.float64))
    if own.shape != (n, width) or clean.shape != (m, width):
        raise ValueError(
            f"view {view.name!r} needs statistics {(n, width)} and {(m, width)}, "
            f"got {tuple(own.shape)} and {tuple(clean.shape)}"
        )
    masked = (~torch.isfinite(own)).any(0) | (~torch.isfinite(clean)).any(0)
    own, clean = own.masked_fill(masked, 0), clean.masked_fill(masked, 0)
    z = _standardised(own, clean)
    ranks, ranks_loo = _ranks(own, clean), _ranks(clean, clean) * (m / (m - 1))
    keep = (~masked).numpy().astype(np.float64)
    joined = np.concatenate([z.points * keep, ranks.numpy() * keep], axis=1)
    joined_loo = np.concatenate([z.references * keep, ranks_loo.numpy() * keep], axis=1)
    return joined, joined_loo


def _ranks(values: Tensor, references: Tensor) -> Tensor:
    """Share of references below minus share above, in [-1, 1]."""
    return torch.sign(values[:, None] - references[None]).mean(1)


def _context(view: View, m: int) -> Floats:
    references = np.asarray(view.references, dtype=np.float64)
    d = references.shape[1]
    norm = np.linalg.norm(references, axis=1).mean()
    spread = np.linalg.norm(references - references.mean(0), axis=1).mean()
    scalars = [
        view.depth,
        np.log(m) / 4,
        np.log(d) / 6,
        float(view.statistics is not None),
        float(d < 8),
        np.log((spread + 1e-9) / (norm + 1e-9)),
        1.0,
    ]
    context: Floats = np.array([*(float(view.kind == kind) for kind in KINDS), *scalars])
    return context


def _assemble(geometry: Tensor, numbers: Floats, keys: Floats, context: Floats) -> Floats:
    repeated = np.broadcast_to(context, (len(numbers), len(context)))
    joined = np.concatenate([geometry.numpy(), numbers, keys, repeated], axis=1)
    clean: Floats = np.nan_to_num(joined, nan=0.0, posinf=LIMIT, neginf=-LIMIT)
    return clean.clip(-LIMIT, LIMIT).astype(np.float32)
