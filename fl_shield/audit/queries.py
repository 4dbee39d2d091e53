"""Questions to an open audit database, each within the caller's transaction."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from fl_shield.audit.chain import GENESIS, Fault, Link, Verification
from fl_shield.audit.records import AuditedRun, action_from, run_from
from fl_shield.audit.tables import CLIENTS, ENDINGS, ROUNDS, RUNS, TABLES
from fl_shield.errors import AuditError
from fl_shield.types import Action

LATEST = "latest"
"""A run id that stands for the run that started last."""

_FETCH = 1000
"""Rows held in memory at once."""


def stream(connection: Connection, query: Select[Any]) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a query as dicts, a few at a time."""
    for row in connection.execute(query.execution_options(yield_per=_FETCH)):
        yield row._asdict()


def new_run_id(connection: Connection) -> tuple[str, str]:
    """Return an id that is not taken, and its time; the caller holds the write lock."""
    now = datetime.now(UTC)
    while True:
        run_id = f"{now:%Y%m%d-%H%M%S}-{now.microsecond:05x}"
        if not has_run(connection, run_id):
            return run_id, now.isoformat()
        now += timedelta(microseconds=1)


def has_run(connection: Connection, run_id: str) -> bool:
    """Whether a run of exactly this id was started."""
    return connection.scalar(select(RUNS.c.seq).where(RUNS.c.run_id == run_id)) is not None


def last_link(connection: Connection, run_id: str | None = None) -> tuple[int, str]:
    """Place and hash of the last row, of one run or of all."""
    heads: list[tuple[int, str]] = []
    for table in TABLES:
        query = select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)
        if run_id is not None:
            query = query.where(table.c.run_id == run_id)
        heads += [(row.seq, row.hash) for row in connection.execute(query)]
    return max(heads, default=(0, GENESIS))


def links(connection: Connection, last: int | None = None) -> Iterable[Link]:
    """Every row in the order of the chain, up to place ``last``, merged from its tables."""
    return heapq.merge(*(_table_links(connection, table, last) for table in TABLES), key=_place)


def _place(link: Link) -> tuple[int, str]:
    return (link.seq, "") if isinstance(link.seq, int) else (2**63, repr(link.seq))


def _table_links(connection: Connection, table: Table, last: int | None) -> Iterator[Link]:
    query = select(table).order_by(table.c.seq)
    if last is not None:
        query = query.where(table.c.seq <= last)
    for row in stream(connection, query):
        yield Link(table=table.name, hash=row.pop("hash"), values=row)


def of_run(
    connection: Connection, verification: Verification, head: str, run_id: str
) -> Verification:
    """Add to a chain that holds: the head asked for must be one of this run's rows."""
    for table in TABLES:
        query = select(table.c.seq).where(table.c.hash == head, table.c.run_id == run_id)
        if connection.scalar(query) is not None:
            return verification
    problem = f"the head {head} is in the chain, but it is not of this run"
    fault = Fault(seq=verification.n_rows, run_id=run_id, problem=problem)
    return replace(verification, fault=fault, n_after_head=None)


def resolve(connection: Connection, abbreviation: str, name: str) -> str:
    """Return the one run id that an abbreviation means, in the database of this name."""
    known = [
        str(run_id) for run_id in connection.scalars(select(RUNS.c.run_id).order_by(RUNS.c.seq))
    ]
    if not known:
        raise AuditError(
            f"{name} holds no run yet, so there is no run {abbreviation!r}: train first"
        )
    if abbreviation in known:
        return abbreviation
    found = (
        known[-1:]
        if abbreviation == LATEST
        else [run_id for run_id in known if _abbreviates(abbreviation, run_id)]
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise AuditError(
            f"run {abbreviation!r} is ambiguous, it fits {', '.join(found[-5:])}: write more of it"
        )
    raise AuditError(
        f"no run {abbreviation!r} in {name}: name one of its {len(known)} runs, such as "
        f"{known[-1]}, or any unique beginning of one; `fl-shield audit list` shows them"
    )


def _abbreviates(abbreviation: str, run_id: str) -> bool:
    """Whether it begins the id or the id's last part."""
    parts = (run_id, run_id.rpartition("-")[-1])
    return bool(abbreviation) and any(part.startswith(abbreviation) for part in parts)


def runs(connection: Connection, run_id: str | None = None) -> list[AuditedRun]:
    """Return one run or all, the oldest first, with what was counted in them."""
    query = select(RUNS).order_by(RUNS.c.seq)
    if run_id is not None:
        query = query.where(RUNS.c.run_id == run_id)
    endings = {
        row["run_id"]: {"status": row["status"], "ended_at": row["ended_at"]}
        for row in stream(connection, select(ENDINGS).order_by(ENDINGS.c.seq))
    }
    n_rounds = _n_rounds(connection)
    actions = _actions(connection)
    found = []
    for row in stream(connection, query):
        run = row["run_id"]
        counts = dict(actions.get(run, {}))
        found.append(
            run_from(
                row,
                n_rounds=n_rounds.get(run, 0),
                n_verdicts=sum(counts.values()),
                actions=counts,
                **endings.get(run, {}),
            )
        )
    return found


def _n_rounds(connection: Connection) -> dict[str, int]:
    query = select(ROUNDS.c.run_id, func.count()).group_by(ROUNDS.c.run_id)
    return {str(run_id): int(n) for run_id, n in connection.execute(query)}


def _actions(connection: Connection) -> dict[str, Counter[Action]]:
    keys = (CLIENTS.c.run_id, CLIENTS.c.action)
    query = select(*keys, func.count().label("n"), func.min(CLIENTS.c.seq).label("seq"))
    actions: dict[str, Counter[Action]] = {}
    for row in stream(connection, query.group_by(*keys)):
        actions.setdefault(row["run_id"], Counter())[action_from(row)] = row["n"]
    return actions
