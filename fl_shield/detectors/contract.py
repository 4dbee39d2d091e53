"""What all published detectors share: reading, leave-one-out calibration, p-values, flags.

A detector says how points are read (:meth:`Calibrated._read`) and how a rule is learned from
clean references (:meth:`Calibrated._learn`); everything else stands here. References are always
scored by a rule that did not see them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import Activations, Layers, read_activations
from fl_shield.calibration import conformal_p_values, promise, threshold_at
from fl_shield.errors import NotFittedError, ShieldError
from fl_shield.profile import MIN_REFERENCES
from fl_shield.stages import find_stages
from fl_shield.training import logits_of
from fl_shield.types import Flags, Floats, Ints

Kind = Literal["image", "text", "state"]
"""Images (n, channels, height, width) in [0, 1], int tokens (n, length), any other floats."""

R = TypeVar("R", Activations, NDArray[Any])
Rule = Callable[[R], Floats]
"""What a fit leaves behind: points -> suspicion (n,)."""

MAX_REFITS = 50
"""References are scored leave-one-out up to this number, in so many folds beyond it."""

ROUNDING = 1e-6
"""How far a pixel may lie outside [0, 1]."""


def kind_of(x: NDArray[Any]) -> Kind:
    """What inputs (n, ...) are, by dtype and shape.

    Examples
    --------
    >>> kind_of(np.zeros((2, 1, 8, 8))), kind_of(np.zeros((2, 80), np.int64))
    ('image', 'text')
    """
    if np.issubdtype(x.dtype, np.integer):
        return "text"
    return "image" if x.ndim == 4 else "state"


def probabilities(model: nn.Module, x: NDArray[Any]) -> Floats:
    """Class probabilities (n, n_classes) of inputs (n, ...), in eval mode."""
    out: Floats = torch.softmax(logits_of(model, x).double(), dim=1).numpy()
    return out


def canonical_order(rows: NDArray[Any]) -> Ints:
    """Order of rows (m, ...) that depends on their values only, so that chance falls alike.

    Examples
    --------
    >>> canonical_order(np.array([[2, 0], [1, 5], [1, 3]])).tolist()
    [2, 1, 0]
    """
    order: Ints = np.lexsort(rows.reshape(len(rows), -1).T[::-1])
    return order


@dataclass(kw_only=True, eq=False)
class Calibrated(ABC, Generic[R]):
    """A detector whose p-values rest on out-of-fit scores of its clean references.

    Attributes
    ----------
    fpr_budget : float
        Share of clean points that may be flagged, in (0, 1); sets ``threshold_``.
    reference_scores_ : (m,) float array
        After ``fit``: each reference scored by a rule that was learned without it.
    threshold_ : float
        After ``fit``: flags are scores strictly above; ``inf`` = never.
    guarantee_ : str
        After ``fit``: what ``threshold_`` promises.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "text", "state")
    """Inputs that the method takes."""

    fpr_budget: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.fpr_budget < 1:
            raise ValueError(f"fpr_budget must be in (0, 1), got {self.fpr_budget}; 0.05 is usual")

    @property
    @abstractmethod
    def n_passes(self) -> int:
        """Forward passes of the model that scoring one input costs, at most."""

    def fit(self, model_or_view: nn.Module | Activations, clean: Any = None) -> Self:
        """Learn from clean references only; forgets earlier fits.

        Parameters
        ----------
        model_or_view : nn.Module or Activations
            The model to watch; one-pass detectors also take its activations on clean inputs.
        clean : (m, ...) array, optional
            Clean inputs of the model, m >= 4; unused without a model.
        """
        self._rule: Rule[R] | None = None
        references = self._open(model_or_view, clean)
        rule = self._learn(references)
        self.reference_scores_ = self._out_of_fit(references)
        self.threshold_ = threshold_at(self.reference_scores_, self.fpr_budget)
        self.guarantee_ = promise(len(references), self.fpr_budget, "references")
        self._rule = rule
        return self

    def score(self, points: Any) -> Floats:
        """Suspicion of inputs (n, ...) or of activations, shape (n,); higher is worse."""
        rule = getattr(self, "_rule", None)
        if rule is None:
            raise NotFittedError(f"call {type(self).__name__}.fit(model, clean) before score")
        scores: Floats = np.asarray(rule(self._read(points)), dtype=np.float64)
        return scores

    def p_values(self, points: Any) -> Floats:
        """Conformal p-value of each point, shape (n,), in (0, 1]; small = suspicious."""
        scores = self.score(points)
        return conformal_p_values(self.reference_scores_, scores)

    def predict(self, points: Any) -> Flags:
        """True where the score is above ``threshold_``, shape (n,)."""
        flags: Flags = self.score(points) > self.threshold_
        return flags

    @abstractmethod
    def _open(self, model_or_view: nn.Module | Activations, clean: Any) -> R:
        """Remember what reads points later, and read the references."""

    @abstractmethod
    def _read(self, points: Any) -> R:
        """Turn what a user gives to ``score`` into what a rule takes."""

    @abstractmethod
    def _learn(self, references: R) -> Rule[R]:
        """Make a rule of clean references."""

    def _out_of_fit(self, references: R) -> Floats:
        """Score each reference by the rule that all others (or all other folds) make, (m,)."""
        m = len(references)
        scores = np.empty(m)
        fold = np.arange(m) % MAX_REFITS
        for held in range(min(m, MAX_REFITS)):
            out = fold == held
            scores[out] = self._learn(_taken(references, ~out))(_taken(references, out))
        return scores


@dataclass(kw_only=True, eq=False)
class OnePass(Calibrated[Activations]):
    """A detector that reads the activations of one forward pass.

    Attributes
    ----------
    layers : sequence of str, or "auto"
        Watched modules, the head last; unused where activations are given.
    """

    layers: Layers = "auto"

    @property
    def n_passes(self) -> int:
        """One forward pass an input."""
        return 1

    def _open(self, model_or_view: nn.Module | Activations, clean: Any) -> Activations:
        if isinstance(model_or_view, Activations):
            self._model: nn.Module | None = None
            self._layers: tuple[str, ...] = ()
            references = model_or_view
        elif isinstance(model_or_view, nn.Module):
            check_number(0 if clean is None else len(clean))
            self._model = model_or_view
            auto = isinstance(self.layers, str)
            self._layers = find_stages(self._model) if auto else tuple(self.layers)
            references = read_activations(self._model, np.asarray(clean), self._layers)
        else:
            raise TypeError(
                f"fit takes a torch module with clean inputs, or Activations, "
                f"got {type(model_or_view).__name__}"
            )
        check_number(len(references))
        self._shape = _widths(references)
        return _finite(references)

    def _read(self, points: Any) -> Activations:
        if not isinstance(points, Activations):
            if self._model is None:
                raise ShieldError(
                    f"{type(self).__name__} was fitted on activations and cannot run a model over "
                    f"{type(points).__name__}; score Activations, or fit(model, clean)"
                )
            points = read_activations(self._model, np.asarray(points), self._layers)
        if _widths(points) != self._shape:
            raise ValueError(
                f"points have the layers {_widths(points)} and the references {self._shape}: "
                "watch the same layers of one model"
            )
        return _finite(points)


@dataclass(kw_only=True, eq=False)
class MultiPass(Calibrated[NDArray[Any]]):
    """A detector that runs the model several times over changed copies of each input."""

    def _open(self, model_or_view: nn.Module | Activations, clean: Any) -> NDArray[Any]:
        if not isinstance(model_or_view, nn.Module):
            raise TypeError(
                f"{type(self).__name__} runs the model several times over each input: "
                f"call fit(model, clean), got {type(model_or_view).__name__}"
            )
        check_number(0 if clean is None else len(clean))
        self._model = self._prepared(model_or_view)
        references = np.asarray(clean)
        self._kind = kind_of(references)
        self._shape = references.shape[1:]
        return self._read(references)

    def _prepared(self, model: nn.Module) -> nn.Module:
        """Return the network that later passes run, the victim itself unless a method copies it."""
        return model

    def _read(self, points: Any) -> NDArray[Any]:
        x = np.asarray(points)
        kind = kind_of(x)
        if kind not in self.kinds:
            raise ShieldError(
                f"{type(self).__name__} takes {' or '.join(self.kinds)} inputs, got {kind} "
                f"({x.dtype} {x.shape}); use a detector whose kinds include {kind!r}"
            )
        if (kind, x.shape[1:]) != (self._kind, self._shape):
            raise ValueError(
                f"references are {self._kind} {self._shape}, got {kind} {x.shape[1:]}: "
                "score inputs of the shape that fit was given"
            )
        return _checked_inputs(x, kind)


def check_number(n: int) -> None:
    """Refuse too few clean inputs for a leave-one-out calibration."""
    if n <= MIN_REFERENCES:
        raise ValueError(
            f"fit needs more than {MIN_REFERENCES} clean inputs, got {n}; 20 are a good number"
        )


def standardised(values: Floats, among: Floats) -> Floats:
    """Values minus the mean of ``among`` (m,), over their standard deviation, never over zero.

    Examples
    --------
    >>> standardised(np.array([5.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [3.0]
    """
    centre = float(np.mean(among))
    spread = max(float(np.std(among, ddof=1)), 1e-6 * abs(centre), 1e-12)
    out: Floats = (values - centre) / spread
    return out


def _taken(references: R, index: Flags) -> R:
    if isinstance(references, Activations):
        return references.take(index)
    return references[index]


def _widths(activations: Activations) -> dict[str, int]:
    widths = {name: rows.shape[1] for name, rows in activations.layers.items()}
    return widths | {"logits": activations.logits.shape[1]}


def _finite(activations: Activations) -> Activations:
    for name, rows in {**activations.layers, "logits": activations.logits}.items():
        if not np.isfinite(rows).all():
            raise ValueError(f"activations of {name} hold NaN or Inf; reject such points before")
    return activations


def _checked_inputs(x: NDArray[Any], kind: Kind) -> NDArray[Any]:
    if kind != "text" and not np.isfinite(x).all():
        raise ValueError(f"{kind} inputs hold NaN or Inf; reject such points before")
    if kind == "image" and len(x) and (x.min() < -ROUNDING or x.max() > 1 + ROUNDING):
        raise ValueError(
            f"images must be in [0, 1], got [{x.min():g}, {x.max():g}]; give raw pixels and let "
            "the model normalise them in its first layer"
        )
    return x
