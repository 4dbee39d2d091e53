"""Conformal p-values and thresholds, and what they guarantee.

Two guarantees, never mixed up:

- ``references``: a new clean point is exchangeable with the n references, so its conformal
  p-value is at most u with probability at most u, for u no smaller than 1 / (n + 1).
- ``tasks``: the whole task (model, data, references) is exchangeable with the meta-training
  tasks; the null distribution of standardised scores pooled over those tasks reaches far below
  1 / (n + 1), at the price of that stronger assumption.

References
----------
.. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005, ch. 2.
.. [2] R. Barber et al., "Predictive inference with the jackknife+", Ann. Stat. 2021.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fl_shield.types import Floats

Guarantee = Literal["references", "tasks"]

STANDARD_FLOOR = 0.5
"""Log-odds added to the references' spread, so that a near-constant score cannot explode."""


def conformal_p_values(reference_scores: Floats, scores: Floats) -> Floats:
    """Share of references at least as suspicious, the point itself counted: (1 + k) / (n + 1).

    Parameters
    ----------
    reference_scores : (m,) float array
        Out-of-fit scores of clean references.
    scores : (n,) float array

    Returns
    -------
    (n,) float array
        In (0, 1]; never below ``smallest_p_value(m)``.

    Examples
    --------
    >>> conformal_p_values(np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.9])).tolist()
    [0.5, 0.25]
    """
    ordered = np.sort(reference_scores)
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p_values: Floats = (1 + above) / (len(ordered) + 1)
    return p_values


def smallest_p_value(n_references: int) -> float:
    """Smallest conformal p-value that n references can give.

    Examples
    --------
    >>> round(smallest_p_value(20), 3)
    0.048
    """
    return 1 / (n_references + 1)


def threshold_at(reference_scores: Floats, fpr_budget: float) -> float:
    """Score to flag strictly beyond: then the p-value is within the budget; ``inf`` = never flag.

    Examples
    --------
    >>> threshold_at(np.arange(1, 20) / 20, 0.05)
    0.95
    """
    n = len(reference_scores)
    allowed = int(np.floor(fpr_budget * (n + 1) + 1e-9)) - 1
    if allowed < 0:
        return float("inf")
    return float(np.sort(reference_scores)[::-1][min(allowed, n - 1)])


def standardise(log_odds: Floats, reference_log_odds: Floats) -> Floats:
    """Log-odds beside the references' own: minus their mean, over their spread plus a floor."""
    centre = float(np.mean(reference_log_odds))
    spread = float(np.std(reference_log_odds, ddof=1)) if len(reference_log_odds) > 1 else 0.0
    standard: Floats = (log_odds - centre) / (spread + STANDARD_FLOOR)
    return standard


def task_p_values(null: Floats, standard_scores: Floats) -> Floats:
    """Tail probability of standardised scores under the pooled null of the meta-training tasks.

    Parameters
    ----------
    null : (k,) float array
        Ascending quantiles of the null at probabilities ``(i + 0.5) / k``.
    standard_scores : (n,) float array

    Returns
    -------
    (n,) float array
        Linear between quantiles; at least 1 / (k + 1) above the largest one.
    """
    k = len(null)
    levels = (np.arange(k) + 0.5) / k
    below = np.interp(standard_scores, null, levels, left=0.0, right=1.0)
    return np.maximum(1 - below, 1 / (k + 1))


def promise(n_references: int, fpr_budget: float, guarantee: Guarantee) -> str:
    """Say in one sentence what a false-positive budget means with so many references.

    Examples
    --------
    >>> promise(20, 0.01, "references")
    '20 references cannot promise FPR 0.01; the smallest they can is 0.048'
    """
    smallest = smallest_p_value(n_references)
    if guarantee == "tasks":
        return f"FPR {fpr_budget:g} if this task is exchangeable with the meta-training tasks"
    if fpr_budget < smallest:
        return (
            f"{n_references} references cannot promise FPR {fpr_budget:g}; "
            f"the smallest they can is {smallest:.3f}"
        )
    return f"FPR {fpr_budget:g} if clean points are exchangeable with the {n_references} references"
