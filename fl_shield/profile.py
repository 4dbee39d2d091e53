"""Points beside clean references of their own space, as 135 comparable numbers.

Raw coordinates do not compare between networks; how a point *stands beside a few clean
references* does. A profile holds, for each point, deviations of single units, distances and
angles to the references, what lies outside their span, the point's own shape, scalar statistics
that the space itself does not hold (logits, the norm of a client's update), a little context, and
how suspect the class is that the model gives the point.
Nearly every number is relative to what the references show among themselves, so it is free of
the order and scale of units. The columns named in :data:`ROTATION_INVARIANT` are free of any
rotation as well. What a view lacks is masked with zeros, not faked.

The profiles of the references themselves are always leave-one-out, or they look too normal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_shield.columns import KINDS, LIMIT, SLOTS, STATISTICS
from fl_shield.frame import beside, frame
from fl_shield.geometry import Geometry
from fl_shield.leave_one_out import leave_one_out
from fl_shield.standing import Ranks, Scale, z_of_each
from fl_shield.types import Floats, View

MIN_REFERENCES = 3

_POINTS = 256  # points that are described at a time: what is worked out of one is much larger


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Profiles of a view's points and, leave-one-out, of its references.

    Attributes
    ----------
    points : (n, 135) float32 array, or (n, V, 135) of V views
    references : (m, 135) or (m, V, 135) float32 array
    """

    points: Floats
    references: Floats


def profile(view: View) -> Profiles:
    """Describe each point of a view by 135 numbers that compare between spaces.

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
    >>> from fl_shield.columns import COLUMNS
    >>> rng = np.random.default_rng(0)
    >>> clean, odd = rng.normal(size=(20, 6)), rng.normal(size=(2, 6)) + 9
    >>> both = profile(View(name="demo", points=odd, references=clean))
    >>> column = COLUMNS.index("centre_distance")
    >>> bool(both.points[:, column].min() > both.references[:, column].max())
    True
    """
    both = profiles([view])
    return Profiles(points=both.points[:, 0], references=both.references[:, 0])


def profiles(views: Sequence[View]) -> Profiles:
    """Describe the same points by what each of several views shows of them.

    Views of one width are worked together: a view alone is too small to keep a processor busy.

    Parameters
    ----------
    views : sequence of View
        At least one, all of n points and m references.

    Returns
    -------
    Profiles
        Of points (n, V, 135) and of references (m, V, 135), the views in their order.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = {d: (rng.normal(size=(2, d)), rng.normal(size=(20, d))) for d in (9, 6)}
    >>> both = profiles([View(name="demo", points=p, references=r) for p, r in rows.values()])
    >>> both.points.shape, both.references.shape
    ((2, 2, 135), (20, 2, 135))
    """
    fitted = Profiler(views)
    points = fitted.points([checked(view)[0] for view in views], _told(views))
    return Profiles(points=points, references=fitted.references)


class Profiler:
    """References of several views, worked out once, beside which any points are then profiled.

    Parameters
    ----------
    views : sequence of View
        At least one, all of n points and m references. Of the points it matters only which
        statistics they have.

    Attributes
    ----------
    references : (m, V, 135) float32 array
        Leave-one-out profiles of the references.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean, odd = rng.normal(size=(20, 6)), rng.normal(size=(2, 6)) + 9
    >>> view = View(name="demo", points=odd, references=clean)
    >>> fitted, none = Profiler([view]), torch.full((1, 2, 23), torch.nan)
    >>> bool((fitted.points([torch.from_numpy(odd)], none) == profiles([view]).points).all())
    True
    """

    def __init__(self, views: Sequence[View]) -> None:
        spaces = [checked(view) for view in views]
        numbers = {(len(points), len(references)) for points, references in spaces}
        if len(numbers) != 1:
            raise ValueError(
                "views must show the same points beside the same references; "
                f"got {sorted(numbers) or 'no views'} as numbers of both"
            )
        rows = [references for _, references in spaces]
        m = len(rows[0])
        self._groups = _alike(rows)
        self._back = torch.tensor([i for group in self._groups for i in group]).argsort()
        stacks = [torch.stack([rows[i] for i in group]) for group in self._groups]
        self._frames = [frame(stack) for stack in stacks]
        own = self._joined([leave_one_out(stack) for stack in stacks])
        clean, self._masked = _clean_statistics(views)
        beside_own, as_is = _parts(clean)
        self._keys, self._scale = Scale.of(own.keys), Scale.of(beside_own)
        self._ranks = Ranks.of(beside_own)
        self._context = torch.from_numpy(np.stack([_context(view, m) for view in views]))
        ranks = self._ranks.rank(beside_own) * (m / (m - 1))
        told = torch.cat([z_of_each(beside_own), ranks], dim=-1)
        joined = _joined(own.columns, told, z_of_each(own.keys), self._context, as_is)
        self.references: Floats = joined.float().numpy()

    def points(self, rows: Sequence[Tensor], statistics: Tensor) -> Floats:
        """Profile points, each by itself.

        Parameters
        ----------
        rows : sequence of (n, d) tensors
            Finite points of each view, as wide as its references.
        statistics : (V, n, 23) tensor
            NaN in slots that the views lack.

        Returns
        -------
        (n, V, 135) float32 array
        """
        n = statistics.shape[1]
        blocks = [slice(first, first + _POINTS) for first in range(0, max(n, 1), _POINTS)]
        found = [self.live([r[b] for r in rows], statistics[:, b]).float() for b in blocks]
        out: Floats = torch.cat(found).numpy()
        return out

    def live(self, rows: Sequence[Tensor], statistics: Tensor) -> Tensor:
        """Profile points as :meth:`points` does, as a tensor that gradients flow through.

        The references are what they were; ranks, shares and what is clipped have no gradient.

        Returns
        -------
        (n, V, 135) float64 tensor

        Examples
        --------
        >>> from fl_shield.columns import COLUMNS
        >>> rng = np.random.default_rng(0)
        >>> clean, odd = rng.normal(size=(20, 6)), torch.full((1, 6), 3.0, requires_grad=True)
        >>> view = View(name="demo", points=clean, references=clean)
        >>> found = Profiler([view]).live([odd], torch.full((1, 1, 23), torch.nan))
        >>> found[0, 0, COLUMNS.index("centre_distance")].backward()
        >>> bool((odd.grad > 0).all())
        True
        """
        found = []
        for group, among in zip(self._groups, self._frames, strict=True):
            stack = torch.stack([rows[i] for i in group]).to(among.centre.dtype)
            found.append(beside(stack, among))
        own = self._joined(found)
        known = statistics.masked_fill(self._masked, 0)  # 0 beside 0s gives 0
        own_scale, as_is = _parts(known)
        told = torch.cat([self._scale.z(own_scale), self._ranks.rank(own_scale)], dim=-1)
        return _joined(own.columns, told, self._keys.z(own.keys), self._context, as_is)

    def without_first(self, views: Sequence[View]) -> Profiler:
        """Leave out the first reference, to describe it as ``references[0]`` does.

        Parameters
        ----------
        views : sequence of View
            The same as were given.

        Examples
        --------
        >>> rows = np.random.default_rng(0).normal(size=(9, 12))
        >>> view = View(name="demo", points=rows[:1], references=rows)
        >>> among, none = Profiler([view]), torch.full((1, 1, 23), torch.nan)
        >>> found = among.without_first([view]).points([torch.from_numpy(rows[:1])], none)
        >>> bool(np.allclose(found[0], among.references[0], atol=1e-5))
        True
        """
        rest = Profiler([_without_first(view) for view in views])
        stacks = [among.references.to(among.centre.dtype) for among in self._frames]
        own = self._joined([leave_one_out(stack) for stack in stacks])
        rest._keys, rest._context = Scale.of(own.keys[:, 1:]), self._context
        return rest

    @property
    def n_bytes(self) -> int:
        """Memory of everything that is kept of the references."""
        kept = (self._frames, self._keys, self._scale, self._ranks, self._masked, self._context)
        return sum(t.nbytes for t in _tensors(kept)) + self.references.nbytes

    def _joined(self, parts: Sequence[Geometry]) -> Geometry:
        columns, keys = (torch.cat([getattr(g, name) for g in parts]) for name in _GEOMETRY)
        return Geometry(columns[self._back], keys[self._back])


_GEOMETRY = ("columns", "keys")


def _without_first(view: View) -> View:
    told = view.reference_statistics
    rest = None if told is None else told[1:]
    return replace(view, references=view.references[1:], reference_statistics=rest)


def _parts(told: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics to be read beside the references' own, and those that are read as they are."""
    return told[..., : len(STATISTICS)], told[..., len(STATISTICS) :]


def _tensors(kept: Any) -> Iterator[Tensor]:
    """Every tensor inside nested sequences and dataclasses."""
    if isinstance(kept, Tensor):
        yield kept
        return
    parts = kept if isinstance(kept, list | tuple) else vars(kept).values()
    for part in parts:
        yield from _tensors(part)


def _alike(spaces: Sequence[Tensor]) -> list[list[int]]:
    """Indices of spaces (m, d) in groups of one width."""
    widths = [rows.shape[1] for rows in spaces]
    order = sorted(range(len(spaces)), key=widths.__getitem__)
    return [list(group) for _, group in groupby(order, key=widths.__getitem__)]


def checked(view: View) -> tuple[Tensor, Tensor]:
    """Points (n, d) and references (m, d) of a view in double precision.

    Raises
    ------
    ValueError
        Where shapes disagree, references are fewer than :data:`MIN_REFERENCES`, the kind is
        unknown or a number is not finite.
    """
    points = torch.as_tensor(np.ascontiguousarray(view.points, dtype=np.float64))
    references = torch.as_tensor(np.ascontiguousarray(view.references, dtype=np.float64))
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


def _told(views: Sequence[View]) -> Tensor:
    """Statistics of points, (V, n, 23)."""
    return torch.stack([_checked_statistics(view)[0] for view in views])


def _clean_statistics(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    """Statistics of references (V, m, 23), and which slots a view lacks: those are zeros."""
    told = [_checked_statistics(view) for view in views]
    own, clean = (torch.stack(rows) for rows in zip(*told, strict=True))
    masked = ~(own.isfinite().all(1, keepdim=True) & clean.isfinite().all(1, keepdim=True))
    return clean.masked_fill(masked, 0), masked


def _checked_statistics(view: View) -> tuple[Tensor, Tensor]:
    """Statistics of points (n, 23) and references (m, 23), NaN where a view has none."""
    n, m, width = len(view.points), len(view.references), len(SLOTS)
    if view.statistics is None or view.reference_statistics is None:
        missing = torch.full((n + m, width), torch.nan, dtype=torch.float64)
        return missing[:n], missing[n:]
    own = torch.as_tensor(np.asarray(view.statistics, dtype=np.float64))
    clean = torch.as_tensor(np.asarray(view.reference_statistics, dtype=np.float64))
    if own.shape != (n, width) or clean.shape != (m, width):
        raise ValueError(
            f"view {view.name!r} needs statistics {(n, width)} and {(m, width)}, "
            f"got {tuple(own.shape)} and {tuple(clean.shape)}"
        )
    return own, clean


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


def _joined(
    columns: Tensor, told: Tensor, keys: Tensor, context: Tensor, classes: Tensor
) -> Tensor:
    """Every column (n, V, 135), within the limits."""
    repeated = context[:, None].expand(-1, columns.shape[1], -1)
    joined = torch.cat([columns, told, keys, repeated, classes], dim=-1).transpose(0, 1)
    return joined.nan_to_num(nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp(-LIMIT, LIMIT)
