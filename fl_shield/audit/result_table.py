"""Results of experiments as one table of texts, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TITLES = {
    "attack": "attack",
    "defense": "defense",
    "seed": "seed",
    "main_accuracy": "main accuracy",
    "asr": "ASR",
    "asr_peak": "ASR, peak",
    "tpr": "malicious rejected",
    "fpr": "benign rejected",
    "fpr_budget": "FPR budget",
    "auc": "AUC",
    "shield_seconds": "shield time",
    "round_seconds": "round time",
    "shield_share": "shield share",
}
_SHARES = {"main_accuracy", "asr", "asr_peak", "tpr", "fpr", "fpr_budget", "shield_share"}


@dataclass(frozen=True)
class ResultTable:
    """Column titles, and rows of as many texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_table(results: Mapping[str, Any]) -> ResultTable:
    """Make a table of results; what is no single number or text, such as a series, is left out.

    Parameters
    ----------
    results : mapping
        ``{"federations": [{...}, ...]}`` as in results.json, a row each; or a mapping of row names
        to mappings of columns; or one mapping of names to values, a row each.

    Examples
    --------
    >>> result_table({"federations": [{"defense": "shield", "asr": 0.012, "rounds": [1]}]})
    ResultTable(columns=('defense', 'ASR'), rows=(('shield', '1.2 %'),))
    """
    rows = _rows(results)
    found = dict.fromkeys(name for row in rows for name, value in row.items() if _is_single(value))
    names = sorted(found, key=_order)
    columns = tuple(_TITLES.get(name, name.replace("_", " ")) for name in names)
    body = tuple(tuple(_shown(name, row.get(name)) for name in names) for row in rows)
    return ResultTable(columns=columns, rows=body)


def _rows(results: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    federations = results.get("federations")
    if isinstance(federations, Sequence):
        return [row for row in federations if isinstance(row, Mapping)]
    if results and all(isinstance(value, Mapping) for value in results.values()):
        return [{"": name, **row} for name, row in results.items()]
    return [{"": name, "value": value} for name, value in results.items()]


def _order(name: str) -> int:
    """Return the place of a column: row names, then the known ones, then the rest as found."""
    known = ["", *_TITLES]
    return known.index(name) if name in known else len(known)


def _is_single(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _shown(name: str, value: Any) -> str:
    if value is None or not _is_single(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if name in _SHARES:
        return f"{100 * value:.1f} %"
    if name == "auc":
        return f"{value:.3f}"
    return f"{value:.1f} s" if name.endswith("_seconds") else f"{value:.3g}"
