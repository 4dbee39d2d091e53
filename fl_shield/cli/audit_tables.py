"""Terminal tables of an audit: runs, rounds, verdicts; whatever a client sent is text only."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_shield.audit import AuditedRun, AuditedVerdict
from fl_shield.audit.plain import plain_text
from fl_shield.audit.summary import RunSummary, run_name
from fl_shield.types import Action

_STYLES = {
    Action.KEEP: "green",
    Action.DOWNWEIGHT: "yellow",
    Action.DROP: "bold red",
    Action.REJECT: "bold magenta",
    Action.MISSING: "dim",
}


def runs_table(runs: Iterable[AuditedRun]) -> Table:
    """One row a run."""
    table = _table("run", "status")
    for name in ("rounds", "replies", "refused"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for run in runs:
        numbers = [str(run.n_rounds), str(run.n_verdicts), str(run.n_refused)]
        table.add_row(_text(run.run_id), _text(run.status), *numbers, _text(run_name(run)))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _add_actions(table: Table) -> None:
    for action in Action:
        name = {Action.DOWNWEIGHT: "less"}.get(action, action.value)
        table.add_column(name, justify="right", style=_STYLES[action], no_wrap=True)


def _text(value: object) -> Text:
    """Text as it is: no markup, no control characters, whoever wrote it."""
    return Text(plain_text(value))


def print_heading(console: Console, summary: RunSummary) -> None:
    """What the run was."""
    run = summary.run
    console.print(_text(f"run {run.run_id} · {run.status} · started {run.started_at[:19]} UTC"))
    if summary.n_not_applied:
        told = f"{summary.n_not_applied} decisions were not applied (monitor mode)"
        console.print(told, style="yellow")
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    console.print(_text(settings), style="dim")
    console.print()


def print_notes(console: Console, summary: RunSummary, server_round: int | None) -> None:
    """What concerned one whole round."""
    for entry in summary.rounds:
        if entry.server_round == server_round:
            for note in entry.notes:
                console.print(_text(f"note: {note}"))


def rounds_table(summary: RunSummary) -> Table:
    """One row a round."""
    table = _table("round", "mode")
    _add_actions(table)
    table.add_column("shield", justify="right")
    table.add_column("round", justify="right")
    table.add_column("notes", overflow="fold")
    for entry in summary.rounds:
        counts = [str(summary.actions.get((entry.server_round, action), 0)) for action in Action]
        seconds = [f"{entry.shield_seconds:.3f} s", f"{entry.round_seconds:.2f} s"]
        table.add_row(
            str(entry.server_round),
            _text(entry.mode),
            *counts,
            *seconds,
            _text("; ".join(entry.notes)),
        )
    return table


def verdicts_table(entries: Iterable[AuditedVerdict]) -> Table:
    """One row a client and round."""
    table = _table("round", "client", "action")
    for name in ("score", "p", "weight", "trust"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold", ratio=1)
    for entry in entries:
        verdict = entry.verdict
        numbers = (verdict.score, verdict.p_value, verdict.weight, verdict.reputation)
        table.add_row(
            str(entry.server_round),
            _text(verdict.client_id),
            Text(verdict.action.value, style=_STYLES[verdict.action]),
            *("–" if number is None else f"{number:.3g}" for number in numbers),
            _text(_why(entry)),
        )
    return table


def _why(entry: AuditedVerdict, n_views: int = 3) -> str:
    """Reasons, and the views that spoke loudest against the client."""
    views = sorted(entry.verdict.view_scores.items(), key=lambda item: -item[1])[:n_views]
    loudest = ", ".join(f"{name} {score:+.2f}" for name, score in views if score > 0)
    reasons = list(entry.verdict.reasons)
    return "; ".join([*reasons, f"views: {loudest}"] if loudest else reasons)
