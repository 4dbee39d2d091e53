"""What readers of an audit get: frozen records made from rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_shield.errors import AuditError
from fl_shield.types import Action, ClientVerdict

UNFINISHED = "unfinished"
"""Status of a run that is still going, or whose process ended without a word."""

REFUSED = (Action.DROP, Action.REJECT)
"""Actions that take a client's vote for the round."""


@dataclass(frozen=True, kw_only=True)
class AuditedRun:
    """One run.

    Attributes
    ----------
    run_id : str
        Such as ``20261121-101842-9c2f1``: UTC date, time, microseconds in hex.
    started_at, ended_at : str
        UTC, ISO 8601; ``ended_at`` is None while the run is unfinished.
    settings : mapping
        What :meth:`AuditStore.start_run` was given, as JSON values.
    status : str
        What :meth:`AuditStore.finish_run` said, or ``unfinished``.
    n_rounds, n_verdicts : int
        Rounds written, and clients judged in all of them.
    actions : mapping of Action to int
        How often each action was decided.
    """

    run_id: str
    started_at: str
    settings: Mapping[str, Any]
    status: str = UNFINISHED
    ended_at: str | None = None
    n_rounds: int = 0
    n_verdicts: int = 0
    actions: Mapping[Action, int] = field(default_factory=dict)

    @property
    def n_refused(self) -> int:
        """Verdicts that were drop or reject."""
        return sum(self.actions.get(action, 0) for action in REFUSED)


@dataclass(frozen=True, kw_only=True)
class AuditedRound:
    """One round of a run; its clients come from :meth:`AuditStore.verdicts`.

    Attributes
    ----------
    seq : int
        Place in the chain.
    run_id, server_round, mode, shield_seconds, round_seconds, notes
        As in :class:`fl_shield.types.RoundRecord`.
    written_at : str
        UTC, ISO 8601.
    n_clients : int
        Verdicts in this round.
    """

    seq: int
    run_id: str
    server_round: int
    written_at: str
    mode: str
    n_clients: int
    shield_seconds: float
    round_seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AuditedVerdict:
    """One client in one round, as decided.

    Attributes
    ----------
    seq : int
        Place in the chain.
    run_id : str
        The run.
    server_round : int
        Flower's round number.
    verdict : ClientVerdict
        What was decided, and why.
    """

    seq: int
    run_id: str
    server_round: int
    verdict: ClientVerdict


def run_from(row: Mapping[str, Any], **counted: Any) -> AuditedRun:
    """Return the run of one row of RUNS."""
    settings = _parsed(row, "settings", dict)
    return AuditedRun(
        run_id=row["run_id"], started_at=row["started_at"], settings=settings, **counted
    )


def round_from(row: Mapping[str, Any]) -> AuditedRound:
    """Return the round of one row of ROUNDS."""
    values = {name: row[name] for name in row if name not in {"hash", "notes"}}
    return AuditedRound(**values, notes=tuple(_parsed(row, "notes", list)))


def verdict_from(row: Mapping[str, Any]) -> AuditedVerdict:
    """Return the verdict of one row of CLIENTS."""
    same = ("client_id", "weight", "n_examples", "score", "p_value", "reputation")
    verdict = ClientVerdict(
        **{name: row[name] for name in same},
        action=action_from(row),
        applied=bool(row["applied"]),
        view_scores=_parsed(row, "view_scores", dict),
        reasons=tuple(_parsed(row, "reasons", list)),
    )
    return AuditedVerdict(
        seq=row["seq"], run_id=row["run_id"], server_round=row["server_round"], verdict=verdict
    )


def action_from(row: Mapping[str, Any]) -> Action:
    """Return the action of one row of CLIENTS."""
    try:
        return Action(row["action"])
    except ValueError as error:
        raise _damaged(row, "action", f"{row['action']!r} is no action") from error


def _parsed(row: Mapping[str, Any], column: str, kind: type) -> Any:
    try:
        value = json.loads(row[column])
    except (TypeError, ValueError) as error:
        raise _damaged(row, column, "it is no JSON") from error
    if not isinstance(value, kind):
        raise _damaged(row, column, f"it is no JSON {kind.__name__}")
    return value


def _damaged(row: Mapping[str, Any], column: str, problem: str) -> AuditError:
    return AuditError(
        f"row {row['seq']} of the audit is damaged in its column {column} ({problem}): "
        "`fl-shield audit verify` tells what was changed"
    )
