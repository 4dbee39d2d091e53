"""Figures of merit of detectors and defences, with confidence intervals."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from fl_shield.types import Flags, Floats, Ints


def auroc(labels: Ints, scores: Floats) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative, ties half.

    Parameters
    ----------
    labels : (n,) int array
        1 = triggered or malicious, 0 = clean or benign; both must occur.
    scores : (n,) float array
        Higher = more suspicious.

    Examples
    --------
    >>> auroc(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.4]))
    0.75
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("auroc needs positives and negatives; report such a task apart")
    return float(roc_auc_score(labels, scores))


def tpr_at_fpr(labels: Ints, scores: Floats, fpr: float) -> float:
    """Share of positives above the score that at most ``fpr`` of the negatives exceed.

    Examples
    --------
    >>> tpr_at_fpr(np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.4, 0.9]), fpr=0.0)
    0.5
    """
    negatives = np.sort(scores[labels == 0])[::-1]
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    threshold = negatives[allowed] if allowed < len(negatives) else -np.inf
    return float((scores[labels == 1] > threshold).mean())


def rates(labels: Ints, flags: Flags) -> dict[str, float]:
    """False rejection, false acceptance and F2 of flags, NaN where a class does not occur.

    Returns
    -------
    dict
        ``frr``: clean points flagged; ``far``: triggered points let through; ``f2``: recall
        weighs four times precision (MBDS, section on metrics).

    Examples
    --------
    >>> rates(np.array([0, 0, 1, 1]), np.array([False, True, True, True]))
    {'frr': 0.5, 'far': 0.0, 'f2': 0.9090909090909091}
    """
    positive, negative = labels == 1, labels == 0
    hits, alarms = int((flags & positive).sum()), int((flags & negative).sum())
    misses = int(positive.sum()) - hits
    weight = 5 * hits + 4 * misses + alarms
    return {
        "frr": alarms / int(negative.sum()) if negative.any() else float("nan"),
        "far": misses / int(positive.sum()) if positive.any() else float("nan"),
        "f2": 5 * hits / weight if weight else float("nan"),
    }


def bootstrap_interval(
    values: Floats, rng: np.random.Generator, level: float = 0.95, n_draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, such as an AUC averaged over victims.

    Examples
    --------
    >>> low, high = bootstrap_interval(np.array([0.9, 0.95, 1.0]), np.random.default_rng(0))
    >>> 0.9 <= low <= 0.95 <= high <= 1.0
    True
    """
    draws = rng.choice(values, size=(n_draws, len(values)), replace=True).mean(axis=1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
