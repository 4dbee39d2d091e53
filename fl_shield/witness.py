"""The second witness: what clients say of their own activations, believed only against them.

A client that reports activations (see :func:`fl_shield.strategies.report_activations`) is not
trusted: it can report anything, such as activations of the model it received. So a report can
add suspicion and never takes any away; an attacker gains nothing by sending a beautiful one, and
an honest client loses nothing by sending none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fl_shield.detector import Adapted
from fl_shield.types import ActivationReport, Floats, View
from fl_shield.weights import Weights

MIN_REPORTS = 4
"""With fewer readable reports in a round there is nothing to compare a report with."""

TOLERANCE = 2.0
"""Robust standard deviations above the round's median that a report may lie without effect."""


def witness_evidence(
    weights: Weights,
    reports: Sequence[ActivationReport | None],
    references: Mapping[str, Floats],
) -> Floats:
    """Log-odds that each client's report adds to its update's, shape (n,), never negative.

    Every reported row is scored by the detector beside the server's own clean activations under
    the global model. All clients have trained away from that model, so a report counts only by
    how far its mean log-odds lie above the round's median, in robust standard deviations.

    Parameters
    ----------
    weights : Weights
        The meta-learned detector.
    reports : sequence of ActivationReport or None
        One a client; None = no report.
    references : mapping of str to (m, d) float array
        The server's clean activations by layer. Layers it lacks, or of another width, are not
        read.
    """
    odds = [None if r is None else _log_odds(weights, r, references) for r in reports]
    readable = np.array([o for o in odds if o is not None])
    evidence = np.zeros(len(reports))
    if len(readable) < MIN_REPORTS:
        return evidence
    centre = float(np.median(readable))
    spread = 1.4826 * float(np.median(np.abs(readable - centre))) + 0.5
    for i, own in enumerate(odds):
        if own is not None:
            evidence[i] = max(0.0, (own - centre) / spread - TOLERANCE)
    return evidence


def _log_odds(
    weights: Weights, report: ActivationReport, references: Mapping[str, Floats]
) -> float | None:
    readable = {
        name: rows
        for name, rows in report.layers.items()
        if name in references
        and rows.ndim == 2
        and rows.shape[1] == references[name].shape[1]
        and np.isfinite(rows).all()
    }
    n_rows = min(map(len, readable.values()), default=0)
    if n_rows == 0:
        return None
    both = weights.represent(
        [
            View(name=f"layer:{name}", points=rows[:n_rows], references=references[name])
            for name, rows in readable.items()
        ]
    )
    return float(Adapted(weights, both.references).score(both.points).log_odds.mean())
