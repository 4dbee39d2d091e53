"""Verdicts on activations, one pass and no model: the part of a guard that works anywhere."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fl_shield.activations import Activations, head_beside, views_beside
from fl_shield.calibration import Guarantee, promise, smallest_p_value
from fl_shield.detector import Adapted
from fl_shield.errors import GuardError
from fl_shield.profile import Profiler
from fl_shield.types import Flags, Floats
from fl_shield.weights import Weights

Promised = Guarantee | Literal["auto"]

LEAST = 4
"""Fewest clean inputs that can be adapted to."""

FEW = 10
"""With fewer clean inputs a warning says so."""

LARGEST = 1e15
"""A number beyond this, or one that is none, marks its input: squares must stay finite."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a model answers to n inputs, and what to think of each.

    Attributes
    ----------
    outputs : object
        What the model returned, untouched.
    flags : (n,) bool array
        True = suspicious: the p-value is within the budget, or the input is not ``valid``.
    p_values : (n,) float array
        In (0, 1].
    scores : (n,) float array
        Suspicion in [0, 1].
    log_odds : (n,) float array
        What scores are the logistic of; infinite for an input that is not ``valid``.
    contributions : (n, V) float array
        What each watched layer adds to the log-odds; zeros for an input that is not ``valid``.
    valid : (n,) bool array
        False where an activation or a logit is NaN, infinite or beyond 1e15. Such an input is
        flagged, with score 1 and the smallest p-value there is.
    """

    outputs: Any
    flags: Flags
    p_values: Floats
    scores: Floats
    log_odds: Floats
    contributions: Floats
    valid: Flags

    def __len__(self) -> int:
        return len(self.flags)


def chosen(n_references: int, fpr_budget: float, guarantee: Promised) -> tuple[Guarantee, str]:
    """Which guarantee p-values rest on, and in one sentence what it promises.

    ``auto`` takes ``references`` where their number can promise the budget, else ``tasks``.

    Examples
    --------
    >>> chosen(20, 0.05, "auto")
    ('references', 'FPR 0.05 if clean points are exchangeable with the 20 references')
    >>> chosen(20, 0.01, "auto")[0]
    'tasks'
    """
    if guarantee not in ("auto", "references", "tasks"):
        raise GuardError(f"guarantee must be auto, references or tasks, got {guarantee!r}")
    if guarantee != "auto":
        return guarantee, promise(n_references, fpr_budget, guarantee)
    if smallest_p_value(n_references) <= fpr_budget:
        return "references", promise(n_references, fpr_budget, "references")
    cannot = promise(n_references, fpr_budget, "references")
    return "tasks", f"{cannot}; {promise(n_references, fpr_budget, 'tasks')}"


class Judge:
    """A detector adapted to clean activations of one model; points cost a few products each.

    Parameters
    ----------
    references : Activations
        Of at least four clean inputs, of more than one predicted class.
    weights : Weights
        The meta-learned detector.
    fpr_budget : float
        Share of clean inputs that may be flagged, in (0, 1).
    guarantee : {"auto", "references", "tasks"}
        See :func:`chosen`.
    n_inner_steps : int, optional
        Steps of the adaptation; None takes the meta-trained number.

    Examples
    --------
    >>> from fl_shield.detector import MetaShield
    >>> rng = np.random.default_rng(0)
    >>> rows = {"fc1": rng.normal(size=(20, 8)), "fc2": rng.normal(size=(20, 6))}
    >>> clean = Activations(layers=rows, logits=rng.normal(size=(20, 3)))
    >>> judge = Judge(clean, MetaShield.from_pretrained("inputs").weights)
    >>> judge.judge(clean.take(slice(0, 2))).scores.shape
    (2,)
    """

    def __init__(
        self,
        references: Activations,
        weights: Weights,
        *,
        fpr_budget: float = 0.05,
        guarantee: Promised = "auto",
        n_inner_steps: int | None = None,
    ) -> None:
        _check(references, fpr_budget, weights)
        self.asked = guarantee
        self.guarantee, self.promise_ = chosen(len(references), fpr_budget, guarantee)
        _warn(len(references), fpr_budget, self.guarantee, self.promise_)
        self.references, self.weights = references, weights
        self.fpr_budget, self.n_inner_steps = fpr_budget, n_inner_steps
        self.head = head_beside(references)
        with torch.inference_mode(False), torch.device("cpu"):
            self._profiler = Profiler(views_beside(references.take(slice(0, 1)), references))
            self._adapted = Adapted(weights, self._profiler.references, n_inner_steps)
        nothing = self._adapted.p_values(np.array([np.inf]), self.guarantee)
        self.smallest_p_value = float(nothing[0])
        self._widths = _widths(references)

    @property
    def n_bytes(self) -> int:
        """Memory of the references, the detector and all that was worked out, the head apart."""
        kept = [*self.references.layers.values(), self.references.logits]
        own = sum(a.nbytes for a in kept) + sum(t.nbytes for t in self.weights.tensors().values())
        adapted = sum(p.nbytes for p in self.weights.params.values())  # a second set of values
        return own + adapted + self._profiler.n_bytes + self.head.n_bytes

    def judge(self, points: Activations, outputs: Any = None) -> Judgement:
        """Judge each of n inputs by itself; ``outputs`` are handed through."""
        self._check_widths(points)
        valid = _valid(points)
        usable = points if valid.all() else _mended(points, valid, self.references)
        told = torch.from_numpy(self.head.statistics(usable.logits, usable.penultimate))
        rows = [torch.from_numpy(np.ascontiguousarray(a)) for a in usable.layers.values()]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            profiles = self._profiler.points(rows, told.expand(len(rows), -1, -1))
            found = self._adapted.score(profiles)
        log_odds = np.where(valid, found.log_odds, np.inf)
        p_values = self._adapted.p_values(log_odds, self.guarantee)
        return Judgement(
            outputs=outputs,
            flags=(p_values <= self.fpr_budget + 1e-9) | ~valid,
            p_values=p_values,
            scores=np.where(valid, found.scores, 1.0),
            log_odds=log_odds,
            contributions=np.where(valid[:, None], found.contributions, 0.0),
            valid=valid,
        )

    def _check_widths(self, points: Activations) -> None:
        widths = _widths(points)
        if widths != self._widths:
            raise GuardError(
                f"these activations have the widths {widths} and the references "
                f"{self._widths}: watch the same layers of the same model, in the same order"
            )


def _widths(activations: Activations) -> list[tuple[str, int]]:
    sizes = [(name, np.shape(rows)[1]) for name, rows in activations.layers.items()]
    return [*sizes, ("logits", np.shape(activations.logits)[1])]


def _valid(points: Activations) -> Flags:
    """Which inputs have nothing but numbers of reasonable size, (n,)."""
    out: Flags = np.ones(len(points), dtype=np.bool_)
    for rows in (*points.layers.values(), points.logits):
        with np.errstate(invalid="ignore"):
            out &= np.abs(rows).max(axis=1, initial=0) <= LARGEST  # NaN is not below anything
    return out


def _mended(points: Activations, valid: Flags, references: Activations) -> Activations:
    """Points with those that are not valid replaced by a reference, so that nothing overflows."""
    return Activations(
        layers={
            name: np.where(valid[:, None], rows, references.layers[name][:1])
            for name, rows in points.layers.items()
        },
        logits=np.where(valid[:, None], points.logits, references.logits[:1]),
        head=points.head,
    )


def _check(references: Activations, fpr_budget: float, weights: Weights) -> None:
    n = len(references)
    if not 0 < fpr_budget < 1:
        raise GuardError(f"fpr_budget must be in (0, 1), got {fpr_budget}")
    if weights.config.representation != "profile":
        raise GuardError(
            f"this detector reads {weights.config.representation!r} and a guard gives profiles; "
            "take one that was meta-trained with --representation profile"
        )
    if n < LEAST:
        raise GuardError(f"a guard needs at least {LEAST} clean inputs, got {n}; 20 are good")
    if references.logits.shape[1] < 2:
        raise GuardError(
            f"logits must be (n, n_classes) with two classes at least, got "
            f"{references.logits.shape}; give a binary model's logit z as two columns, 0 and z"
        )
    bad = int((~_valid(references)).sum())
    if bad:
        raise GuardError(
            f"{bad} of {n} clean inputs give activations or logits that are NaN, infinite or "
            f"beyond {LARGEST:g}; leave them out, or mend the model"
        )
    labels = np.unique(references.labels)
    if len(labels) == 1:
        raise GuardError(
            f"all {n} clean inputs are predicted as class {labels[0]}, and the calibration would "
            "hold for that class alone; give clean inputs of several classes"
        )


def _warn(n: int, fpr_budget: float, guarantee: Guarantee, promised: str) -> None:
    if n < FEW:
        warnings.warn(f"{n} clean inputs are few: give {FEW} or more, 20 are good", stacklevel=4)
    if guarantee == "references" and smallest_p_value(n) > fpr_budget:
        warnings.warn(
            f"{promised}, so nothing but broken inputs will be flagged: give more clean inputs, "
            "a larger fpr_budget, or guarantee='tasks'",
            stacklevel=4,
        )
