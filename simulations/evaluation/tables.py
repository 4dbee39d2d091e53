"""Rows to tables: means over victims, the worst tenth, pairs by victim, cells, shots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fl_shield.metrics import bootstrap_interval
from fl_shield.rng import keyed
from fl_shield.simulations.evaluation.judging import Row
from fl_shield.types import Floats

Kind = TypeVar("Kind")

EASY = 0.8
"""AUC of confidence alone above which a cell is marked easy and listed apart."""

PEERS = "peers"
"""Split of rows whose detectors were not meta-trained."""

AVERAGED = ("tpr_at_fpr_5", "tpr_5", "fpr_5", "tpr_1", "fpr_1", "f2_5", "missed_flagged")
ENOUGH_TPR, ENOUGH_FPR = 0.9, 0.05


def grouped(rows: Iterable[Kind], key: Callable[[Kind], Hashable]) -> dict[Any, list[Kind]]:
    """Rows by key, in the order of their first appearance."""
    found: dict[Any, list[Kind]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def victim_of(row: Row) -> tuple[str, str, int]:
    """What names a victim: data set, trigger family and seed."""
    return row.pool, row.family, row.seed


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one detector over victims: each victim counts once.

    Parameters
    ----------
    rows : sequence of Row
        At least one.

    Returns
    -------
    dict
        ``auc`` with ``auc_low``, ``auc_high`` (95 %, bootstrap over victims), ``worst_tenth`` (mean
        AUC of the lowest tenth) and the means of :data:`AVERAGED`, NaN left out.
    """
    aucs = np.array([row.auc for row in rows])
    low, high = bootstrap_interval(aucs, keyed(0, 81))
    tenth = np.sort(aucs)[: max(1, len(aucs) // 10)]
    out: dict[str, Any] = {
        "n_victims": len(rows),
        "auc": float(aucs.mean()),
        "auc_low": low,
        "auc_high": high,
        "worst_tenth": float(tenth.mean()),
    }
    for name in AVERAGED:
        out[name] = _mean(np.array([getattr(row, name) for row in rows]))
    out["fit_ms"] = 1e3 * _mean(np.array([row.fit_seconds for row in rows]), none=0.0)
    out["score_us"] = 1e6 * _mean(np.array([row.score_seconds for row in rows]), none=0.0)
    return out


def _mean(values: Floats, none: float | None = None) -> Any:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else none


def by_detector(rows: Sequence[Row], split: str, n_shots: int) -> dict[str, dict[str, Any]]:
    """Summary of every detector on the victims of one split, best AUC first.

    Peers are judged on the same victims as the weights of the split. Beside ``auc``, which is of
    all cells, ``auc_without_easy`` is of the ``n_without_easy`` victims outside the easy ones; None
    where there are none.
    """
    at = [row for row in rows if row.n_shots == n_shots]
    ours = [row for row in at if row.split == split]
    victims = {victim_of(row) for row in ours}
    peers = [row for row in at if row.split == PEERS and victim_of(row) in victims]
    easy = easy_cells([*ours, *peers])
    found = {}
    for name, group in grouped([*ours, *peers], _detector).items():
        rest = [row for row in group if cell_of(row) not in easy]
        hard = {"n_without_easy": len(rest), "auc_without_easy": _auc(rest) if rest else None}
        found[name] = summary(group) | hard
    return dict(sorted(found.items(), key=lambda item: -item[1]["auc"]))


def _detector(row: Row) -> str:
    return row.detector


def cell_of(row: Row) -> tuple[str, str]:
    """Data set and trigger family."""
    return row.pool, row.family


def easy_cells(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Cells whose mean AUC of confidence alone is above :data:`EASY`.

    Parameters
    ----------
    rows : iterable of Row
        Of the victims of one split at one number of shots.
    """
    alone = grouped((row for row in rows if row.detector == "confidence"), cell_of)
    return {cell for cell, group in alone.items() if _auc(group) > EASY}


def paired(rows: Sequence[Row], split: str, n_shots: int, ours: str) -> dict[str, dict[str, Any]]:
    """Our AUC minus each other detector's, victim by victim, with a 95 % interval of the mean.

    ``error_ratio`` is our mean error 1 - AUC over the other's, on the same victims.
    """
    at = [row for row in rows if row.n_shots == n_shots and row.split in (split, PEERS)]
    aucs = {
        name: {victim_of(row): row.auc for row in group}
        for name, group in grouped(at, _detector).items()
    }
    found = {}
    for name, other in aucs.items():
        shared = [victim for victim in aucs[ours] if victim in other]
        if name == ours or not shared:
            continue
        own, theirs = (np.array([a[v] for v in shared]) for a in (aucs[ours], other))
        low, high = bootstrap_interval(own - theirs, keyed(0, 82))
        found[name] = {
            "n_victims": len(shared),
            "difference": float((own - theirs).mean()),
            "low": low,
            "high": high,
            "error_ratio": float((1 - own).mean() / max((1 - theirs).mean(), 1e-9)),
        }
    return found


def cells(
    rows: Sequence[Row], split: str, n_shots: int, ours: str, one_pass: Sequence[str]
) -> list[dict[str, Any]]:
    """One line for each data set and trigger: ours, the best one-pass peer, confidence alone."""
    at = [row for row in rows if row.n_shots == n_shots and row.split in (split, PEERS)]
    found = []
    for (pool, family), group in grouped(at, cell_of).items():
        own = [row for row in group if row.detector == ours]
        if not own:
            continue
        victims = {victim_of(row) for row in own}
        shared = [row for row in group if victim_of(row) in victims]
        aucs = {n: _auc(rs) for n, rs in grouped(shared, _detector).items()}
        best = max((n for n in aucs if n in one_pass), key=lambda n: aucs[n], default=None)
        found.append(
            {
                "pool": pool,
                "family": family,
                "n_victims": len(own),
                "auc": aucs[ours],
                "best_peer": best,
                "best_peer_auc": aucs[best] if best else None,
                "confidence": aucs.get("confidence"),
                "easy": (pool, family) in easy_cells(shared),
            }
        )
    return found


def _auc(rows: Sequence[Row]) -> float:
    return float(np.mean([row.auc for row in rows]))


def by_shots(rows: Sequence[Row], split: str, ours: str) -> dict[int, dict[str, Any]]:
    """Our summary at each number of shots."""
    at = [row for row in rows if row.split == split and row.detector == ours]
    return {n: summary(group) for n, group in sorted(grouped(at, lambda r: r.n_shots).items())}


def shots_needed(shots: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Fewest shots with TPR >= 90 % at a realised FPR <= 5 %; None where no number reaches it.

    Examples
    --------
    >>> rates = {10: {"tpr_5": 0.8, "fpr_5": 0.04}, 20: {"tpr_5": 0.93, "fpr_5": 0.05}}
    >>> shots_needed(rates)
    20
    """
    enough = (
        n
        for n, found in shots.items()
        if found["tpr_5"] >= ENOUGH_TPR and found["fpr_5"] <= ENOUGH_FPR
    )
    return min(enough, default=None)
