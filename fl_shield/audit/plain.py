"""What comes in, made fit to be stored: finite numbers, texts that every database takes.

The audit must never stop a round, whatever a client put into its reply. So numbers that are not
finite are left out and the row says so, and texts lose what a database or a terminal chokes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from typing import Any

from fl_shield.types import ClientVerdict, RoundRecord

MAX_TEXT = 2000
"""Longest text that is stored, in characters; the rest is cut off and counted."""


def plain_text(text: object) -> str:
    r"""Return valid, printable Unicode of bounded length, everything else backslash-escaped.

    Examples
    --------
    >>> plain_text("a\x00b\udc80")
    'a\\x00b\\udc80'
    """
    valid = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    if not valid.isprintable():
        valid = "".join(c if c.isprintable() else _escaped(c) for c in valid)
    if len(valid) <= MAX_TEXT:
        return valid
    return f"{valid[:MAX_TEXT]}… ({len(valid) - MAX_TEXT} more characters)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain_json(value: Any) -> Any:
    """Return the nearest JSON value: mappings, lists, texts, finite numbers, booleans, None.

    Examples
    --------
    >>> import numpy as np
    >>> plain_json({"lr": np.float64(0.1), "shape": (1, 2), "nan": float("nan")})
    {'lr': 0.1, 'shape': [1, 2], 'nan': 'nan'}
    """
    if value is None or (isinstance(value, bool | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, Enum):
        return plain_json(value.value)
    return _plain_container(value)


def _plain_container(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {plain_text(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return plain_json(value.tolist())
    return plain_text(value)


def json_text(value: Any) -> str:
    """Canonical JSON of a value that :func:`plain_json` returned."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def finite_verdict(verdict: ClientVerdict) -> ClientVerdict:
    """Return the verdict with finite numbers only; a reason names each one that was left out.

    Examples
    --------
    >>> finite_verdict(ClientVerdict(client_id="7", action="drop", score=float("inf"))).reasons
    ('score was inf: not recorded',)
    """
    numbers: dict[str, float | None] = {}
    lost: list[str] = []
    for name, fallback in _FALLBACKS.items():
        numbers[name] = _finite(name, getattr(verdict, name), fallback, lost)
    views = {
        plain_text(name): _finite(f"view {name}", score, None, lost)
        for name, score in verdict.view_scores.items()
    }
    return replace(
        verdict,
        **numbers,  # type: ignore[arg-type]
        view_scores={name: score for name, score in views.items() if score is not None},
        reasons=tuple(plain_text(reason) for reason in (*verdict.reasons, *lost)),
    )


def finite_round(record: RoundRecord) -> RoundRecord:
    """Return the round with finite numbers only; a note names each one that was left out."""
    lost: list[str] = []
    shield = _finite("shield_seconds", record.shield_seconds, 0.0, lost)
    total = _finite("round_seconds", record.round_seconds, 0.0, lost)
    return replace(
        record,
        verdicts=tuple(finite_verdict(verdict) for verdict in record.verdicts),
        shield_seconds=shield or 0.0,
        round_seconds=total or 0.0,
        notes=tuple(plain_text(note) for note in (*record.notes, *lost)),
    )


_FALLBACKS: Mapping[str, float | None] = {
    "weight": 0.0,
    "n_examples": None,
    "score": None,
    "p_value": None,
    "reputation": 0.0,
}


def _finite(
    name: str, number: float | None, fallback: float | None, lost: list[str]
) -> float | None:
    if number is None:
        return fallback
    value = float(number)
    if math.isfinite(value):
        return value + 0.0  # SQLite stores -0.0 as 0.0
    lost.append(f"{name} was {value}: not recorded")
    return fallback
