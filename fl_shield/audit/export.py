"""Every verdict as CSV or JSON, one row a client and round, streamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from fl_shield.audit.records import AuditedVerdict
from fl_shield.errors import AuditError

COLUMNS = (
    "run_id",
    "server_round",
    "client_id",
    "action",
    "applied",
    "weight",
    "n_examples",
    "score",
    "p_value",
    "reputation",
    "view_scores",
    "reasons",
)
"""Fields of a row, in order."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(verdicts: Iterable[AuditedVerdict], out: TextIO, format: str = "csv") -> int:
    r"""Write verdicts to an open text file and return how many there were.

    Parameters
    ----------
    verdicts : iterable of AuditedVerdict
        As :meth:`AuditStore.verdicts` gives them; never held in memory together.
    out : text file
        Open for writing; for CSV opened with ``newline=""``.
    format : {"csv", "json"}
        CSV has a header, view scores and reasons as JSON in one cell each, and an empty cell for
        what is unknown; texts that a spreadsheet would run as a formula get a leading apostrophe.
        JSON is one list of objects.

    Examples
    --------
    >>> import io
    >>> out = io.StringIO()
    >>> export([], out, "json"), out.getvalue()
    (0, '[]\n')
    """
    if format not in FORMATS:
        raise AuditError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return FORMATS[format](verdicts, out)


def _write_csv(verdicts: Iterable[AuditedVerdict], out: TextIO) -> int:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    n_rows = 0
    for entry in verdicts:
        writer.writerow(_cell(value) for value in _row(entry).values())
        n_rows += 1
    return n_rows


def _write_json(verdicts: Iterable[AuditedVerdict], out: TextIO) -> int:
    n_rows = 0
    out.write("[")
    for entry in verdicts:
        out.write(",\n " if n_rows else "\n ")
        out.write(json.dumps(_row(entry), allow_nan=False))
        n_rows += 1
    out.write("\n]\n" if n_rows else "]\n")
    return n_rows


FORMATS: Mapping[str, Callable[[Iterable[AuditedVerdict], TextIO], int]] = {
    "csv": _write_csv,
    "json": _write_json,
}
"""Writers by name."""


def _row(entry: AuditedVerdict) -> dict[str, Any]:
    verdict = entry.verdict
    return {
        "run_id": entry.run_id,
        "server_round": entry.server_round,
        "client_id": verdict.client_id,
        "action": verdict.action.value,
        "applied": verdict.applied,
        "weight": verdict.weight,
        "n_examples": verdict.n_examples,
        "score": verdict.score,
        "p_value": verdict.p_value,
        "reputation": verdict.reputation,
        "view_scores": dict(verdict.view_scores),
        "reasons": list(verdict.reasons),
    }


def _cell(value: Any) -> Any:
    """Return what stands in a CSV cell."""
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
