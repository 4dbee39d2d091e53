"""What an update shows of itself and among the others, as tensors that gradients flow through.

An attacker who holds the shield trains against it. :class:`LiveSketcher`, :class:`LiveProbes` and
:class:`Company` say of one update, given as the tensors that it is trained with, what
:class:`~fl_shield.updates.Sketcher`, :class:`~fl_shield.probes.Probes` and
:func:`~fl_shield.updates.standing` say of the arrays that a client sent; tests hold the numbers
equal. Which stamps are measured on every input is found without a gradient.

References
----------
A. Athalye, N. Carlini, D. Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
section 4: why a defence has to be attacked through its own gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.activations import watching
from fl_shield.columns import SLOTS
from fl_shield.probes import CONTRAST, FAINTEST, FINALISTS, N_CLEAN, stamps
from fl_shield.rng import keyed
from fl_shield.stages import find_layers
from fl_shield.training import evaluating
from fl_shield.types import Arrays
from fl_shield.updates import N_DIRECTIONS, Layer, Sketch, Sketcher

Tensors = Mapping[str, Tensor]
"""Tensors of one model by name."""

_SCALARS = ("norm", "peak", "row_peak", "norm_share")


@dataclass(frozen=True, kw_only=True)
class LiveSketch:
    """The numbers of a :class:`~fl_shield.updates.Sketch`, as tensors.

    Attributes
    ----------
    vectors : mapping of view name to (d,) float64 tensor
    norms, peaks, row_peaks : mapping of view name to () float64 tensor
    total : () float64 tensor
    """

    vectors: Tensors
    norms: Tensors
    peaks: Tensors
    row_peaks: Tensors
    total: Tensor

    def with_shifts(self, shifts: Tensors, faintest_peak: float) -> LiveSketch:
        """Sketch that shows the shifts of probes too, in this order."""
        one = torch.ones((), dtype=torch.float64)
        norms = {name: shift.norm() for name, shift in shifts.items()}
        peaks = {name: shift.amax().clamp_min(0) + faintest_peak for name, shift in shifts.items()}
        return LiveSketch(
            vectors={**self.vectors, **shifts},
            norms={**self.norms, **norms},
            peaks={**self.peaks, **peaks},
            row_peaks={**self.row_peaks, **dict.fromkeys(shifts, one)},
            total=self.total,
        )

    def detached(self) -> Sketch:
        """The same numbers without a graph."""
        return Sketch(
            vectors={name: v.detach().numpy() for name, v in self.vectors.items()},
            norms={name: v.item() for name, v in self.norms.items()},
            peaks={name: v.item() for name, v in self.peaks.items()},
            row_peaks={name: v.item() for name, v in self.row_peaks.items()},
            total=self.total.item(),
        )


class LiveSketcher:
    """Sketches an upload as :class:`~fl_shield.updates.Sketcher` does, with a gradient.

    Parameters
    ----------
    arrays : Arrays
        The global model, from which updates are measured.
    seed : int
        Same seed, same projection.

    Examples
    --------
    >>> zeros = {"fc.weight": np.zeros((2, 2), np.float32)}
    >>> own = {"fc.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)}
    >>> LiveSketcher(zeros).sketch(own).total.backward()
    >>> [round(float(slope), 2) for slope in own["fc.weight"].grad.diag()]
    [0.6, 0.8]
    """

    def __init__(self, arrays: Arrays, seed: int = 0) -> None:
        sketcher = Sketcher(arrays, seed)
        self.layers = sketcher.layers
        self._signs = [None if s is None else torch.from_numpy(s) for s in sketcher.signs]
        self._start = {layer.name: torch.from_numpy(arrays[layer.name]) for layer in self.layers}

    def sketch(self, tensors: Tensors) -> LiveSketch:
        """Sketch an upload; tensors that are not named have not moved."""
        vectors: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        peaks: dict[str, Tensor] = {}
        row_peaks: dict[str, Tensor] = {}
        lengths = []
        for layer, signs in zip(self.layers, self._signs, strict=True):
            start = self._start[layer.name]
            delta = (tensors.get(layer.name, start) - start).flatten().double()
            lengths.append(delta.norm())
            name = layer.view_name
            if name is None:
                continue
            vectors[name] = _folded(delta, signs)
            norms[name] = lengths[-1]
            peaks[name] = delta.abs().amax() / (delta.norm() / layer.size**0.5).clamp_min(1e-30)
            row_peaks[name] = _row_peak(delta, layer)
        return LiveSketch(
            vectors=vectors,
            norms=norms,
            peaks=peaks,
            row_peaks=row_peaks,
            total=torch.stack(lengths).norm(),
        )


def _folded(delta: Tensor, signs: Tensor | None) -> Tensor:
    if signs is None:
        return delta
    padded = torch.nn.functional.pad(delta, (0, len(signs) - len(delta)))
    return (padded * signs).view(-1, N_DIRECTIONS).sum(0)


def _row_peak(delta: Tensor, layer: Layer) -> Tensor:
    energy = delta.square().view(layer.shape[0] if layer.shape else 1, -1).sum(1)
    return energy.amax() / energy.sum().clamp_min(1e-30)


class LiveProbes:
    """Runs an upload on clean and stamped probes as :class:`~fl_shield.probes.Probes` does.

    Parameters
    ----------
    model : nn.Module
        Scratch network of the global architecture; its own weights do not matter.
    clean : array (m, ...)
        Clean inputs; the first :data:`~fl_shield.probes.N_CLEAN` of them are probed.
    global_arrays : Arrays
        Every shift is measured from this model's answers.
    seed : int
        Draws word triggers.
    """

    def __init__(
        self, model: nn.Module, clean: NDArray[Any], global_arrays: Arrays, *, seed: int = 0
    ) -> None:
        self._model = model
        self._layer = find_layers(model, 1)
        self._start = {name: torch.from_numpy(array) for name, array in global_arrays.items()}
        probed = clean[:N_CLEAN]
        groups = stamps(probed, clean, keyed(seed, 77))
        bounds = itertools.pairwise(np.cumsum([0, *map(len, groups.values())]).tolist())
        self._groups = dict(zip(groups, bounds, strict=True))
        self._clean = torch.from_numpy(probed)
        copies = [copy for group in groups.values() for copy in group]
        self._stamped = torch.from_numpy(np.stack(copies))
        with torch.no_grad():
            self._base = self._answers(self._start, torch.arange(len(copies)))

    def shifts(self, tensors: Tensors) -> dict[str, Tensor]:
        """Shifts that an upload causes, by view name, each a (d,) float64 tensor."""
        state = {**self._start, **tensors}
        finalists = self._finalists(state)
        which = torch.cat(list(finalists.values()))
        own, base = self._answers(state, which), self._base
        chance, evidence = _shift(own.stamped, base.stamped[which])
        drift, _ = _shift(own.clean, base.clean)
        found = {
            "probe:activation": own.activation - base.activation,
            "probe:logits": own.logits - base.logits,
        }
        sizes = [len(members) for members in finalists.values()]
        parts = zip(
            finalists, torch.split(chance, sizes), torch.split(evidence, sizes), strict=True
        )
        for name, own_chance, own_evidence in parts:
            shift = own_chance.mean(1)
            found[f"stamp:{name}"] = shift.amax(0)
            found[f"stamp:{name}{CONTRAST}"] = (shift - drift.mean(0)).amax(0)
            found[f"stamp:{name}-evidence"] = own_evidence.mean(1).amax(0)
        return found

    @torch.no_grad()
    def _finalists(self, state: Tensors) -> dict[str, Tensor]:
        """Stamps of each group that move the first clean input most, by either criterion."""
        _, logits = self._run(state, self._stamped[:, 0])
        shifts = _shift(logits.log_softmax(1), self._base.stamped[:, 0])
        found = {}
        for name, (start, end) in self._groups.items():
            largest = [shift[start:end].amax(1) for shift in shifts]
            order = [
                row.argsort(descending=True, stable=True)[: FINALISTS[name]] for row in largest
            ]
            found[name] = torch.from_numpy(np.unique(torch.cat(order))) + start
        return found

    def _answers(self, state: Tensors, which: Tensor) -> _Answers:
        """Answers to the clean inputs, and to all of them under some of the stamps."""
        n = len(self._clean)
        rows, logits = self._run(
            state, torch.cat([self._clean, self._stamped[which].flatten(0, 1)])
        )
        chances = logits.log_softmax(1)
        return _Answers(
            activation=rows[:n].mean(0).double(),  # as rounded there: idle units tie
            logits=(logits[:n] - logits[:n].mean(1, keepdim=True)).mean(0),
            clean=chances[:n],
            stamped=chances[n:].view(len(which), n, -1),
        )

    def _run(self, state: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads, and logits in double precision, in eval mode."""
        with evaluating(self._model), watching(self._model, self._layer, live=True) as seen:
            logits: Tensor = torch.func.functional_call(self._model, dict(state), (x,))
        return seen[self._layer[0]], logits.double()


@dataclass(frozen=True, kw_only=True)
class _Answers:
    activation: Tensor  # (units,), mean over the clean inputs
    logits: Tensor  # (classes,), centred, mean over the clean inputs
    clean: Tensor  # (n, classes) log-probabilities
    stamped: Tensor  # (stamps, n, classes) log-probabilities


def _shift(after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Shift of probabilities, and of log-probabilities held above the faintest."""
    evidence = after.clamp_min(FAINTEST) - before.clamp_min(FAINTEST)
    return after.exp() - before.exp(), evidence


class Company:
    """The other updates of a round, among which one more is to stand.

    The numbers are those that :func:`~fl_shield.updates.standing` gives the one update in the
    group of all: it moves the group's medians itself.

    Parameters
    ----------
    others : sequence of Sketch
        At least one.

    Attributes
    ----------
    names : tuple of str
        Views, in order.

    Examples
    --------
    >>> zeros = {"w": np.zeros(2, np.float32)}
    >>> rows = np.array([[1, 0], [3, 0], [2, 4], [100, 0]], np.float32)
    >>> company = Company([Sketcher(zeros).sketch(zeros, {"w": row}) for row in rows])
    >>> points, _ = company.beside(LiveSketcher(zeros).sketch({"w": torch.tensor([2.0, 1.0])}))
    >>> points["update:w"].tolist()  # medians (2, 0), distances 1, 1, 4, 98 and its own 1
    [0.0, 1.0]
    """

    def __init__(self, others: Sequence[Sketch]) -> None:
        if not others:
            raise ValueError(
                "an update stands among at least one other, got none; guess some by honest training"
            )
        self.names = tuple(others[0].vectors)
        self._widths = [len(others[0].vectors[name]) for name in self.names]
        shape = (len(self.names), len(others), max(self._widths))
        self._raw = torch.zeros(
            shape, dtype=torch.float64
        )  # zeros beyond a view's width say nothing
        for i, (name, width) in enumerate(zip(self.names, self._widths, strict=True)):
            rows = np.stack([sketch.vectors[name] for sketch in others])
            self._raw[i, :, :width] = torch.from_numpy(rows)
        scalars = np.array([[_scalars_of(s, name) for s in others] for name in self.names])
        self._logs = torch.from_numpy(np.log(scalars + 1e-12))
        self._stamps = torch.tensor([name.startswith("stamp:") for name in self.names])

    def beside(self, own: LiveSketch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Where one more update stands: its point (d,) and statistics (23,) by view name."""
        rows = [
            torch.nn.functional.pad(own.vectors[name], (0, self._raw.shape[-1] - width))
            for name, width in zip(self.names, self._widths, strict=True)
        ]
        raw = torch.cat([torch.stack(rows)[:, None], self._raw], dim=1)
        centre = _median(raw, 1)
        away = (raw - centre).norm(dim=-1)
        scale = _median(away, 1).clamp_min(1e-12)
        residual = (raw - centre) / scale[..., None]
        told = {
            "peer_cosine": _cosine(raw[:, 0], centre[:, 0]),
            **_nearest(residual),
            **self._scalars(own),
        }
        missing = torch.full((len(self.names),), torch.nan, dtype=torch.float64)
        statistics = torch.stack([told.get(slot, missing) for slot in SLOTS], dim=-1)
        points = zip(self.names, residual[:, 0], self._widths, strict=True)
        return (
            {name: row[:width] for name, row, width in points},
            dict(zip(self.names, statistics, strict=True)),
        )

    def _scalars(self, own: LiveSketch) -> dict[str, Tensor]:
        """Logarithms of four scalars (V,) minus the group's medians."""
        scalars = torch.stack([torch.stack(_scalars_of(own, name)) for name in self.names])
        logs = torch.log(scalars + 1e-12)
        centred = logs - _median(torch.cat([logs[:, None], self._logs], dim=1), 1)[:, 0]
        found = dict(zip(_SCALARS, centred.unbind(-1), strict=True))
        apart = {slot: found[slot].masked_fill(self._stamps, torch.nan) for slot in _SCALARS[1:]}
        peak = found["peak"].masked_fill(~self._stamps, torch.nan)
        return {"norm": found["norm"], **apart, "shift_peak": peak}


def _scalars_of(sketch: Any, name: str) -> list[Any]:
    """Norm, peak, row peak and share of the whole norm, of a sketch of either kind."""
    norm = sketch.norms[name]
    return [norm, sketch.peaks[name], sketch.row_peaks[name], norm / (sketch.total + 1e-12)]


def _median(x: Tensor, axis: int) -> Tensor:
    """Median along an axis, which stays: the mean of the two in the middle of an even number."""
    rising, n = x.sort(axis).values, x.shape[axis]
    return rising.narrow(axis, (n - 1) // 2, 2 - n % 2).mean(axis, keepdim=True)


def _cosine(rows: Tensor, others: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=-1) * others.norm(dim=-1)
    return (rows * others).sum(-1) / (lengths + 1e-12)


def _nearest(residual: Tensor) -> dict[str, Tensor]:
    """Cosine and log-distance of the first of each view's updates to the nearest other one."""
    lengths = residual.norm(dim=-1) + 1e-9
    first, rest = lengths[:, :1], lengths[:, 1:]
    products = (residual[:, :1] * residual[:, 1:]).sum(-1)
    square = (first.square() + rest.square() - 2 * products).clamp_min(0)
    return {
        "nearest_cosine": (products / (first * rest)).amax(1),
        "nearest_distance": 0.5 * torch.log(square.amin(1) + 1e-6),
    }
