"""IBD-PSC: an answer that survives when norm layers are amplified is suspicious."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from fl_shield.activations import Activations
from fl_shield.detectors.contract import MultiPass, Rule
from fl_shield.errors import ShieldError
from fl_shield.training import evaluating
from fl_shield.types import Flags, Floats, Ints

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers whose scale and shift are amplified: batch and instance norms are ``_NormBase``."""


def norm_layers(model: nn.Module, x: NDArray[Any]) -> tuple[str, ...]:
    """Names of the norm layers with parameters of their own, in the order of use, the last first.

    The order is that in which one forward pass calls them, not that in which they were built.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LayerNorm(3))
    >>> norm_layers(net, np.zeros((1, 4), np.float32))
    ('2', '1')
    """
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _m, _x, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.weight is not None
    ]
    try:
        with evaluating(model), torch.inference_mode():
            model(torch.from_numpy(x[:1]))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys(reversed(called)))


def amplified(model: nn.Module, layers: Sequence[str], factor: float) -> dict[str, Tensor]:
    """Scale and shift of the named layers times ``factor``, by parameter name; new tensors.

    Examples
    --------
    >>> amplified(nn.Sequential(nn.LayerNorm(2)), ["0"], 1.5)["0.weight"].tolist()
    [1.5, 1.5]
    """
    modules = dict(model.named_modules())
    return {
        f"{layer}.{name}": parameter.detach() * factor
        for layer in layers
        for name, parameter in modules[layer].named_parameters(recurse=False)
    }


@torch.inference_mode()
def probabilities_with(
    model: nn.Module, overrides: Mapping[str, Tensor], x: NDArray[Any], batch_size: int = 512
) -> Floats:
    """Class probabilities (n, n_classes) with some parameters replaced for the call, eval mode."""
    with evaluating(model):
        parts = [
            functional_call(model, dict(overrides), (batch,))
            for batch in torch.split(torch.from_numpy(x), batch_size)
        ]
    out: Floats = torch.softmax(torch.cat(parts).double(), dim=1).numpy()
    return out


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where amplification starts.

    Attributes
    ----------
    amplification : float
        What scale and shift are multiplied by.
    n_layers : int
        Norm layers of the first model, counted from the output.
    error : float
        Share of clean answers that this changes.
    reached : bool
        Whether ``error`` is above what was asked for; otherwise no start was, and this is the
        largest error found.
    """

    amplification: float
    n_layers: int
    error: float
    reached: bool


def find_start(errors: Mapping[float, Floats], error_rate: float) -> Start:
    """Return the fewest layers, at the mildest amplification, whose error is above a rate.

    Parameters
    ----------
    errors : mapping of float to (L,) float array
        By amplification, in the order to try: the error with 1, 2, ... L layers amplified.
    error_rate : float
        In (0, 1).

    Examples
    --------
    >>> find_start({1.5: np.array([0.1, 0.2]), 2.0: np.array([0.1, 0.7])}, 0.6)
    Start(amplification=2.0, n_layers=2, error=0.7, reached=True)
    """
    for amplification, row in errors.items():
        beyond = np.flatnonzero(row > error_rate)
        if len(beyond):
            k = int(beyond[0])
            error = float(row[k])
            return Start(amplification=amplification, n_layers=k + 1, error=error, reached=True)
    best = max(reversed(list(errors)), key=lambda factor: float(errors[factor].max()))
    k = int(errors[best].argmax())
    return Start(amplification=best, n_layers=k + 1, error=float(errors[best][k]), reached=False)


@dataclass(kw_only=True, eq=False)
class IbdPsc(MultiPass):
    """Suspects inputs whose answer stays certain when norm layers near the output are amplified.

    The score is the mean probability of the answer over ``n_models`` amplified models. Clean
    inputs come without labels, so a changed answer counts as an error. Where no number of layers
    reaches the error rate, the next amplification is tried; where none does, the setting with the
    largest error stays, and ``start_.reached`` says so. The victim is copied, never written to.

    Attributes
    ----------
    amplifications : tuple of float
        Factors to try, the mildest first.
    error_rate : float
        Share of clean answers that the first model has to change, in (0, 1).
    n_models : int
        Models with one amplified layer more each, as far as there are layers.
    start_ : Start
        After ``fit``: where amplification starts.
    layers_ : tuple of str
        After ``fit``: the norm layers, from the output.

    References
    ----------
    L. Hou et al., "IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling
    Consistency", ICML 2024, section 4 (omega 1.5, xi 0.6, n 5); the ladder of amplifications is
    the recalibration that transformers need.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    >>> IbdPsc().fit(net, x).score(x[:2]).shape
    (2,)
    """

    amplifications: tuple[float, ...] = (1.5, 2.0, 3.0)
    error_rate: float = 0.6
    n_models: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.amplifications or min(self.amplifications) <= 1:
            raise ValueError(
                f"amplifications must be above 1, got {self.amplifications}; 1.5 is usual"
            )
        if not 0 < self.error_rate < 1:
            raise ValueError(f"error_rate must be in (0, 1), got {self.error_rate}; 0.6 is usual")
        if self.n_models < 1:
            raise ValueError(f"n_models must be >= 1, got {self.n_models}; 5 is usual")

    @property
    def n_passes(self) -> int:
        """One for the answer and one an amplified model."""
        return 1 + self.n_models

    def _prepared(self, model: nn.Module) -> nn.Module:
        return deepcopy(model).eval()

    def _open(self, model_or_view: nn.Module | Activations, clean: Any) -> NDArray[Any]:
        references = super()._open(model_or_view, clean)
        self.layers_ = norm_layers(self._model, references)
        if not self.layers_:
            raise ShieldError(
                f"{type(self._model).__name__} calls no norm layer with scale and shift, and "
                "IBD-PSC amplifies nothing else; use strip or scale_up"
            )
        self._changed = self._changes(references)
        return references

    def _learn(self, references: NDArray[Any]) -> Rule[NDArray[Any]]:
        start = self.start_ = self._start(self._changed)
        return lambda x: self._consistency(x, start)

    def _start(self, changed: Mapping[float, Flags]) -> Start:
        return find_start({a: rows.mean(1) for a, rows in changed.items()}, self.error_rate)

    def _changes(self, x: NDArray[Any]) -> dict[float, Flags]:
        """Whose answers (L, m) change with 1 .. L layers amplified, by amplification."""
        answers = self._answers(x)
        out = {}
        for factor in self.amplifications:
            rows = [self._amplified(x, factor, k).argmax(1) != answers for k in self._counts]
            out[factor] = np.stack(rows)
        return out

    def _out_of_fit(self, references: NDArray[Any]) -> Floats:
        """Score each reference from the start that the other m - 1 choose, (m,)."""
        starts = [
            self._start({a: np.delete(rows, i, axis=1) for a, rows in self._changed.items()})
            for i in range(len(references))
        ]
        keys = {(s.amplification, s.n_layers): s for s in starts}
        told = {key: self._consistency(references, start) for key, start in keys.items()}
        own = [told[s.amplification, s.n_layers][i] for i, s in enumerate(starts)]
        return np.array(own)

    def _consistency(self, x: NDArray[Any], start: Start) -> Floats:
        answers = self._answers(x)
        counts = range(start.n_layers, min(start.n_layers + self.n_models, len(self.layers_) + 1))
        parts = [
            self._amplified(x, start.amplification, k)[np.arange(len(x)), answers] for k in counts
        ]
        means: Floats = np.mean(parts, axis=0)
        return means

    @property
    def _counts(self) -> range:
        return range(1, len(self.layers_) + 1)

    def _answers(self, x: NDArray[Any]) -> Ints:
        answers: Ints = probabilities_with(self._model, {}, x).argmax(1)
        return answers

    def _amplified(self, x: NDArray[Any], factor: float, n_layers: int) -> Floats:
        overrides = amplified(self._model, self.layers_[:n_layers], factor)
        return probabilities_with(self._model, overrides, x)
