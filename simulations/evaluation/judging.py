"""One victim judged by one detector from N clean inputs: every figure of merit, in one row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from fl_shield.calibration import conformal_p_values
from fl_shield.metrics import auroc, rates, tpr_at_fpr
from fl_shield.simulations.episodes.shots import Shots
from fl_shield.types import Flags, Floats

FPR_GRID = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""False-positive rates of a row's ROC."""

BUDGETS = (0.05, 0.01)
"""False-positive budgets that thresholds are set for."""

MAIN_SHOTS = 20
"""Clean inputs of the tables."""


class OnePass(Protocol):
    """A detector that reads activations.

    Attributes
    ----------
    reference_scores_ : (m,) float array
        After ``fit``: out-of-fit scores of the references.
    """

    reference_scores_: Floats

    def fit(self, model_or_view: Any, clean: Any = None) -> Any:
        """Learn from clean references."""
        ...

    def score(self, points: Any) -> Floats:
        """Suspicion, (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one detector made of one victim.

    Attributes
    ----------
    detector, split : str
    n_shots : int
        Clean inputs that the detector was given.
    pool, domain, architecture, family : str
        The victim.
    seed : int
    auc, tpr_at_fpr_5 : float
        Clean inputs against triggered ones that the victim obeys; the second by the best
        threshold in hindsight.
    tpr_5, fpr_5, tpr_1, fpr_1 : float
        Flagged shares at p <= 5 % and 1 %: the threshold comes from clean inputs only.
    f2_5 : float
    missed_flagged : float
        Flagged share, at 5 %, of triggered inputs that the victim does not obey; NaN without any.
    fit_seconds, score_seconds : float
        Adaptation, and judging one input.
    roc : tuple of float
        True-positive rates at :data:`FPR_GRID`.
    """

    detector: str
    split: str
    n_shots: int
    pool: str
    domain: str
    architecture: str
    family: str
    seed: int
    auc: float
    tpr_at_fpr_5: float
    tpr_5: float
    fpr_5: float
    tpr_1: float
    fpr_1: float
    f2_5: float
    missed_flagged: float
    fit_seconds: float
    score_seconds: float
    roc: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, NaN as None."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


def judge(
    detector: OnePass, shots: Shots, facts: Mapping[str, Any], *, name: str, split: str
) -> Row | None:
    """Judge one backdoored victim; None where no triggered input reaches the target.

    Parameters
    ----------
    detector : OnePass
    shots : Shots
    facts : mapping
        Of the victim.
    name, split : str
        What the row calls the detector and its weights.
    """
    started = time.perf_counter()
    fitted = detector.fit(shots.references)
    fit_seconds = time.perf_counter() - started
    started = time.perf_counter()
    scores = np.asarray(fitted.score(shots.points))
    score_seconds = (time.perf_counter() - started) / len(shots.points)
    p_values = conformal_p_values(fitted.reference_scores_, scores)
    return row_of(
        shots,
        scores,
        p_values,
        facts,
        name=name,
        split=split,
        seconds=(fit_seconds, score_seconds),
    )


def row_of(
    shots: Shots,
    scores: Floats,
    p_values: Floats,
    facts: Mapping[str, Any],
    *,
    name: str,
    split: str,
    seconds: tuple[float, float] = (float("nan"), float("nan")),
) -> Row | None:
    """Row of scores and p-values (n_points,) in the order of the points of ``shots``."""
    judged = shots.labels < 2
    labels = shots.labels[judged]
    if not labels.any() or labels.all():
        return None
    flags = p_values <= BUDGETS[0]
    at_5, at_1 = (_shares(labels, p_values[judged] <= budget) for budget in BUDGETS)
    missed = flags[shots.labels == 2]
    return Row(
        detector=name,
        split=split,
        n_shots=len(shots.references),
        pool=str(facts["pool"]),
        domain=str(facts["domain"]),
        architecture=str(facts["architecture"]),
        family=str(facts["family"]),
        seed=int(facts["seed"]),
        auc=auroc(labels, scores[judged]),
        tpr_at_fpr_5=tpr_at_fpr(labels, scores[judged], 0.05),
        tpr_5=at_5[0],
        fpr_5=at_5[1],
        tpr_1=at_1[0],
        fpr_1=at_1[1],
        f2_5=rates(labels, flags[judged])["f2"],
        missed_flagged=float(missed.mean()) if len(missed) else float("nan"),
        fit_seconds=seconds[0],
        score_seconds=seconds[1],
        roc=tuple(tpr_at_fpr(labels, scores[judged], fpr) for fpr in FPR_GRID),
    )


def _shares(labels: Any, flags: Flags) -> tuple[float, float]:
    return float(flags[labels == 1].mean()), float(flags[labels == 0].mean())
