"""Views of client updates: what each update does to each tensor, and to clean and stamped probes.

An update is read once and leaves a :class:`Sketch`: a seeded random projection of every tensor's
delta (64 numbers at most), a few scalars, and the shifts it causes on the server's probes. The
sketches of a round are then centred and scaled by the round's own medians, so that rounds,
federations and architectures compare, and stand beside references: a core of the round itself,
updates accepted in earlier rounds, and benign updates that the server simulates on its own
clean examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.columns import SLOTS
from fl_shield.rng import keyed
from fl_shield.types import Arrays, Floats, View

N_DIRECTIONS = 64
"""Numbers kept of each tensor's delta."""

MOST_CORE = 256
"""Members of a round's core, at most: what is worked out of references grows with their cube."""

_PAIRS = 1 << 18  # pairs of updates that are compared at a time


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One trainable tensor of the global model as the sketcher sees it."""

    name: str
    shape: tuple[int, ...]
    depth: float
    is_head: bool

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)

    @property
    def view_name(self) -> str | None:
        """Name of the layer's view; None for the head's bias, which shows the mix of labels only.

        So does the energy of the head's rows. Honest clients differ in their labels more than in
        anything else: as views these accused whoever owned an unusual mix.
        """
        if self.is_head:
            return f"head:{self.name}" if len(self.shape) >= 2 else None
        return f"update:{self.name}"


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What is kept of one update.

    Attributes
    ----------
    vectors : mapping of view name to (d,) float array
    norms : mapping of view name to float
        Euclidean norm of what the view shows.
    peaks, row_peaks : mapping of view name to float
        Largest coordinate beside the root mean square, and the largest row's share of energy.
    total : float
        Euclidean norm of the whole update.
    """

    vectors: Mapping[str, Floats]
    norms: Mapping[str, float]
    peaks: Mapping[str, float]
    row_peaks: Mapping[str, float]
    total: float


def find_update_layers(arrays: Arrays) -> tuple[Layer, ...]:
    """Trainable tensors: floating point, not a running statistic, in the model's order.

    Examples
    --------
    >>> model = {"fc.weight": np.zeros((3, 4), np.float32), "fc.bias": np.zeros(3, np.float32)}
    >>> [(layer.name, layer.is_head) for layer in find_update_layers(model)]
    [('fc.weight', True), ('fc.bias', True)]
    """
    named = [
        (name, array.shape)
        for name, array in arrays.items()
        if np.issubdtype(array.dtype, np.floating)
        and array.size
        and not name.endswith(("running_mean", "running_var"))
    ]
    if not named:
        raise ValueError("the global model has no floating-point tensors to watch")
    matrices = [i for i, (_, shape) in enumerate(named) if len(shape) >= 2]
    head = matrices[-1] if matrices else len(named)
    last = max(len(named) - 1, 1)
    return tuple(
        Layer(name=name, shape=shape, depth=i / last, is_head=i >= head)
        for i, (name, shape) in enumerate(named)
    )


class Sketcher:
    """Turns updates of one global model into sketches, by projections drawn from a seed.

    A tensor with at most 64 numbers is kept whole; a larger one is multiplied by random signs
    and folded into 64 sums (a count sketch), which keeps inner products in expectation and
    costs one pass. The signs come from the server's secret seed.

    Parameters
    ----------
    arrays : Arrays
        The global model; only names, shapes and dtypes matter.
    seed : int
        Same seed, same projection.

    Attributes
    ----------
    layers : tuple of Layer
        Trainable tensors, in the model's order.
    signs : list of (at least size,) float32 array or None
        Of each layer, None where it is kept whole.
    """

    def __init__(self, arrays: Arrays, seed: int = 0) -> None:
        self.layers = find_update_layers(arrays)
        self.signs = [_signs(layer.size, keyed(seed, i)) for i, layer in enumerate(self.layers)]
        dtypes = {arrays[layer.name].dtype for layer in self.layers}
        largest = max(layer.size for layer in self.layers)
        self._deltas = {dtype: np.empty(largest, dtype) for dtype in dtypes}

    def sketch(self, global_arrays: Arrays, update: Arrays) -> Sketch:
        """Sketch of one update, given as the arrays a client sent."""
        vectors: dict[str, Floats] = {}
        norms: dict[str, float] = {}
        peaks: dict[str, float] = {}
        row_peaks: dict[str, float] = {}
        total = 0.0
        for layer, signs in zip(self.layers, self.signs, strict=True):
            delta = self._delta(update[layer.name], global_arrays[layer.name])
            row_energy = _row_energy(delta, layer.shape)
            energy = float(row_energy.sum())
            total += energy
            name = layer.view_name
            if name is None:
                continue
            vectors[name] = _folded(delta, signs)
            norms[name] = float(np.sqrt(energy))
            peaks[name] = _peak(delta, energy)
            row_peaks[name] = float(row_energy.max() / max(energy, 1e-30))
        return Sketch(
            vectors=vectors,
            norms=norms,
            peaks=peaks,
            row_peaks=row_peaks,
            total=float(np.sqrt(total)),
        )

    def _delta(self, array: NDArray[Any], start: NDArray[Any]) -> NDArray[Any]:
        """Flat difference, in memory that the next call overwrites."""
        flat = np.ravel(array)
        room = self._deltas[start.dtype][: flat.size]
        np.subtract(flat, np.ravel(start), out=room)
        return room


def _signs(size: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
    if size <= N_DIRECTIONS:
        return None
    padded = -(-size // N_DIRECTIONS) * N_DIRECTIONS
    bits = rng.integers(0, 2, size=padded, dtype=np.int8)
    return (bits * 2 - 1).astype(np.float32)


def _folded(delta: NDArray[Any], signs: NDArray[np.float32] | None) -> Floats:
    if signs is None:
        kept: Floats = delta.astype(np.float64)
        return kept
    whole = delta.size // N_DIRECTIONS * N_DIRECTIONS
    shape = (-1, N_DIRECTIONS)
    out: Floats = np.einsum(
        "bk,bk->k", delta[:whole].reshape(shape), signs[:whole].reshape(shape)
    ).astype(np.float64)
    rest = delta.size - whole
    out[:rest] += delta[whole:] * signs[whole : delta.size]
    return out


def _peak(delta: NDArray[Any], energy: float) -> float:
    largest = max(float(delta.max()), -float(delta.min()))
    return largest / max(float(np.sqrt(energy / delta.size)), 1e-30)


def _row_energy(delta: NDArray[Any], shape: tuple[int, ...]) -> Floats:
    rows = delta.reshape(shape[0], -1) if shape else delta.reshape(1, 1)
    energy: Floats = np.einsum("rc,rc->r", rows, rows).astype(np.float64)
    return energy


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A group of updates relative to the group's own medians: comparable between rounds.

    Attributes
    ----------
    points : mapping of view name to (n, d) float array
        Sketches minus the group's coordinate-wise median, over the median distance to it.
    statistics : mapping of view name to (n, 23) float array
    distances : (n,) float array
        Mean log-distance to the group's centre over the views; orders the core.
    owners : tuple of str
        Who sent each update; empty where nobody did.
    """

    points: Mapping[str, Floats]
    statistics: Mapping[str, Floats]
    distances: Floats
    owners: tuple[str, ...]

    def take(self, index: NDArray[np.intp]) -> Standing:
        """Return the members at ``index``."""
        return Standing(
            points={name: p[index] for name, p in self.points.items()},
            statistics={name: s[index] for name, s in self.statistics.items()},
            distances=self.distances[index],
            owners=tuple(self.owners[i] for i in index),
        )


def standing(sketches: Sequence[Sketch], owners: Sequence[str] = ()) -> Standing:
    """Relate a group of updates (a round, or simulated ones) to the group's own medians.

    Parameters
    ----------
    sketches : sequence of Sketch
    owners : sequence of str
        Who sent each; nobody, where left out.
    """
    names = list(sketches[0].vectors)
    norms = {name: np.array([s.norms[name] for s in sketches]) for name in names}
    total = np.array([s.total for s in sketches]) + 1e-12
    points, statistics, distances = {}, {}, []
    for name in names:
        raw = np.stack([s.vectors[name] for s in sketches])
        centre = np.median(raw, axis=0)
        away = np.linalg.norm(raw - centre, axis=1)
        scale = max(float(np.median(away)), 1e-12)
        points[name] = (raw - centre) / scale
        statistics[name] = _update_statistics(
            raw, centre, scale, _scalars(sketches, name, norms[name], total)
        )
        distances.append(np.log(away / scale + 1e-6))
    return Standing(
        points=points,
        statistics=statistics,
        distances=np.mean(distances, axis=0),
        owners=tuple(owners) or ("",) * len(sketches),
    )


def _scalars(
    sketches: Sequence[Sketch], name: str, norms: Floats, total: Floats
) -> dict[str, Floats]:
    peaks = np.array([s.peaks[name] for s in sketches])
    row_peaks = np.array([s.row_peaks[name] for s in sketches])
    logs = {
        "norm": np.log(norms + 1e-12),
        "peak": np.log(peaks + 1e-12),
        "row_peak": np.log(row_peaks + 1e-12),
        "norm_share": np.log(norms / total + 1e-12),
    }
    if name.startswith("stamp:"):
        logs = {"norm": logs["norm"], "shift_peak": logs["peak"]}
    return {slot: values - np.median(values) for slot, values in logs.items()}


def _update_statistics(
    raw: Floats, centre: Floats, scale: float, scalars: Mapping[str, Floats]
) -> Floats:
    n = len(raw)
    nearest_cosine, nearest_square = _nearest((raw - centre) / scale)
    alone = n < 2
    out = np.full((n, len(SLOTS)), np.nan)
    toward = raw @ centre / (np.linalg.norm(raw, axis=1) * np.linalg.norm(centre) + 1e-12)
    columns = {
        "peer_cosine": toward,
        "nearest_cosine": np.zeros(n) if alone else nearest_cosine,
        "nearest_distance": np.zeros(n) if alone else 0.5 * np.log(nearest_square + 1e-6),
        **scalars,
    }
    for slot, values in columns.items():
        out[:, SLOTS.index(slot)] = values
    return out


def _nearest(residual: Floats) -> tuple[Floats, Floats]:
    """Largest cosine and least squared distance (n,) of each point (n, d) to another one.

    A few points at a time: all pairs of a large round would take more memory than its sketches.
    """
    n = len(residual)
    lengths = np.linalg.norm(residual, axis=1) + 1e-9
    cosine, distance = np.empty(n), np.empty(n)
    step = max(_PAIRS // n, 1)
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        own = np.arange(part.start, part.stop)
        gram = residual[part] @ residual.T
        cosines = gram / np.outer(lengths[part], lengths)
        square = np.maximum(lengths[part, None] ** 2 + lengths[None] ** 2 - 2 * gram, 0)
        cosines[own - first, own] = -1
        square[own - first, own] = np.inf
        cosine[part], distance[part] = cosines.max(1), square.min(1)
    return cosine, distance


def joined(groups: Sequence[Standing]) -> Standing:
    """All members of several groups, in order; only views that every group has."""
    names = [n for n in groups[0].points if all(n in g.points for g in groups)]
    return Standing(
        points={n: np.concatenate([g.points[n] for g in groups]) for n in names},
        statistics={n: np.concatenate([g.statistics[n] for g in groups]) for n in names},
        distances=np.concatenate([g.distances for g in groups]),
        owners=tuple(owner for g in groups for owner in g.owners),
    )


def core_of(group: Standing) -> NDArray[np.intp]:
    """Indices of the half of a round that stands nearest its centre (at least one).

    With fewer than half of a round malicious, the coordinate-wise median stays among the
    benign updates, and so does most of the core. Of a half of more than :data:`MOST_CORE`
    updates as many stand for all, evenly from the nearest to the farthest of them.
    """
    keep = max(len(group.distances) // 2 + 1, 1)
    order = np.argsort(group.distances, kind="stable")[:keep]
    if keep > MOST_CORE:
        order = order[np.linspace(0, keep - 1, MOST_CORE).round().astype(np.intp)]
    return np.sort(order)


def update_views(
    clients: Standing, references: Standing, depths: Mapping[str, float]
) -> list[View]:
    """One view a tensor (and probe): a round's clients beside references of the same kind."""
    return [
        View(
            name=name,
            points=clients.points[name],
            references=references.points[name],
            statistics=clients.statistics[name],
            reference_statistics=references.statistics[name],
            kind=name.split(":", 1)[0],
            depth=depths.get(name, 1.0),
        )
        for name in clients.points
        if name in references.points
    ]


def view_depths(layers: Sequence[Layer]) -> dict[str, float]:
    """Depth of each tensor's view, by view name."""
    depths = {layer.view_name: layer.depth for layer in layers if layer.view_name is not None}
    for group in ("local", "wide", "word"):
        depths.update({f"stamp:{group}-contrast": 0.0, f"stamp:{group}-evidence": 0.5})
    return depths
