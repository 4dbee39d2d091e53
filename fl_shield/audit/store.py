"""AuditStore: every decision of the shield in a database, one transaction a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from fl_shield.audit import database, queries
from fl_shield.audit.chain import Verification, digest, key_id, walk
from fl_shield.audit.plain import finite_round, json_text, plain_json, plain_text
from fl_shield.audit.records import (
    AuditedRound,
    AuditedRun,
    AuditedVerdict,
    round_from,
    verdict_from,
)
from fl_shield.audit.tables import CLIENTS, ENDINGS, ROUNDS, RUNS
from fl_shield.errors import AuditError
from fl_shield.types import Action, ClientVerdict, RoundRecord


class AuditStore:
    """Audit database: an :class:`fl_shield.types.AuditSink` that can be read and verified.

    Opening makes the file, its folder and the tables where they are missing. Each round is one
    transaction under a write lock, so that a process killed in mid-round loses that round at
    most, and two writers on one database cannot fork its chain.

    Parameters
    ----------
    url : str or Path
        ``sqlite:///PATH``, the path of an SQLite file, or ``postgresql+psycopg://...``.
    key : bytes, optional
        Chain with HMAC-SHA256 under this key. One database has one key.
    create : bool
        False to read only what is there: a missing database is then an error.

    Examples
    --------
    >>> store = AuditStore("sqlite://")  # in memory
    >>> run = store.start_run({"mode": "filter"})
    >>> verdict = ClientVerdict(client_id="7", action=Action.DROP, score=0.99)
    >>> store.write_round(run, RoundRecord(server_round=1, mode="filter", verdicts=(verdict,)))
    >>> store.finish_run(run)
    >>> [v.verdict.action.value for v in store.verdicts("latest")], store.verify().n_rows
    (['drop'], 4)
    """

    def __init__(self, url: str | Path, *, key: bytes | None = None, create: bool = True) -> None:
        if key is not None and not key:
            raise AuditError("the audit key is empty: give at least one byte, or no key")
        self._url = database.database_url(url)
        self._key = key
        self._engine = database.open_engine(self._url, create=create)

    def __repr__(self) -> str:
        return f"AuditStore({self.name!r}, keyed={self._key is not None})"

    @property
    def name(self) -> str:
        """The database's path, or its URL without the password."""
        return database.shown(self._url)

    def start_run(self, settings: Mapping[str, Any]) -> str:
        """Open a run and return its id: short, unique in this database, sorted by time.

        Parameters
        ----------
        settings : mapping
            What describes the run; values become their nearest JSON.
        """
        with database.writing(self._engine) as connection:
            self._check_key(connection)
            run_id, started_at = queries.new_run_id(connection)
            row = {
                "run_id": run_id,
                "started_at": started_at,
                "key_id": key_id(self._key),
                "settings": json_text(plain_json(dict(settings))),
            }
            self._append(connection, [(RUNS, row)])
        return run_id

    def write_round(self, run_id: str, record: RoundRecord) -> None:
        """Write one round and its clients in one transaction.

        Parameters
        ----------
        run_id : str
            As :meth:`start_run` returned it.
        record : RoundRecord
            The round; numbers that are not finite are left out, and a reason says so.
        """
        clean = finite_round(record)
        rows = [(ROUNDS, _round_row(run_id, clean))]
        rows += [(CLIENTS, _client_row(run_id, clean, verdict)) for verdict in clean.verdicts]
        with database.writing(self._engine) as connection:
            self._check_key(connection)
            _require_run(connection, run_id)
            self._append(connection, rows)

    def finish_run(self, run_id: str, status: str = "finished") -> None:
        """Write that a run ended; said twice, the last word counts."""
        row = {"run_id": run_id, "ended_at": _now(), "status": plain_text(status)}
        with database.writing(self._engine) as connection:
            self._check_key(connection)
            _require_run(connection, run_id)
            self._append(connection, [(ENDINGS, row)])

    def _append(self, connection: Connection, rows: Sequence[tuple[Table, dict[str, Any]]]) -> None:
        """Chain rows to the head and insert them; the caller holds the write lock."""
        seq, previous = queries.last_link(connection)
        chained: dict[Table, list[dict[str, Any]]] = {}
        for table, row in rows:
            seq += 1
            values = {"seq": seq, **row}
            previous = digest(previous, table.name, values, self._key)
            chained.setdefault(table, []).append({**values, "hash": previous})
        for table, values_list in chained.items():
            connection.execute(insert(table), values_list)

    def _check_key(self, connection: Connection) -> None:
        found = connection.scalar(select(RUNS.c.key_id).order_by(RUNS.c.seq.desc()).limit(1))
        ours = key_id(self._key)
        if found is not None and found != ours:
            raise AuditError(
                f"{self.name} is chained {_with_key(found)}, this store {_with_key(ours)}: "
                "one database has one key, so give the same, or write to another database"
            )

    def runs(self) -> list[AuditedRun]:
        """Return all runs, the oldest first."""
        with database.reading(self._engine) as connection:
            return queries.runs(connection)

    def run(self, run_id: str) -> AuditedRun:
        """Return one run.

        Parameters
        ----------
        run_id : str
            The id, any unique beginning of it or of its last part, or ``latest``.
        """
        with database.reading(self._engine) as connection:
            found = queries.resolve(connection, run_id, self.name)
            return queries.runs(connection, found)[0]

    def rounds(self, run_id: str) -> list[AuditedRound]:
        """Return the rounds of one run, in the order they were written."""
        with database.reading(self._engine) as connection:
            found = queries.resolve(connection, run_id, self.name)
            query = select(ROUNDS).where(ROUNDS.c.run_id == found).order_by(ROUNDS.c.seq)
            return [round_from(row) for row in queries.stream(connection, query)]

    def verdicts(
        self, run_id: str | None = None, round: int | None = None, client: str | None = None
    ) -> Iterator[AuditedVerdict]:
        """Iterate over verdicts in the order they were written, a few at a time.

        Parameters
        ----------
        run_id : str, optional
            One run; all runs without it.
        round : int, optional
            One ``server_round`` only.
        client : str, optional
            One client only.
        """
        with database.reading(self._engine) as connection:
            query = select(CLIENTS).order_by(CLIENTS.c.seq)
            if run_id is not None:
                found = queries.resolve(connection, run_id, self.name)
                query = query.where(CLIENTS.c.run_id == found)
            if round is not None:
                query = query.where(CLIENTS.c.server_round == round)
            if client is not None:
                query = query.where(CLIENTS.c.client_id == client)
            for row in queries.stream(connection, query):
                yield verdict_from(row)

    def head(self, run_id: str | None = None) -> str:
        """Return the hash of the last row of one run, or of the whole chain, 64 hex digits.

        Keep it outside the database: with it :meth:`verify` finds a tail that was cut off.
        """
        with database.reading(self._engine) as connection:
            if run_id is None:
                return queries.last_link(connection)[1]
            return queries.last_link(connection, queries.resolve(connection, run_id, self.name))[1]

    def verify(self, head: str | None = None, *, run_id: str | None = None) -> Verification:
        """Check every row from the first one on.

        Parameters
        ----------
        head : str, optional
            A head noted earlier: it must still be in the chain, or something was cut off.
        run_id : str, optional
            Stop at this run's last row; a given head must then be one of this run's rows.
        """
        with database.reading(self._engine) as connection:
            self._check_readable(connection)
            found = None if run_id is None else queries.resolve(connection, run_id, self.name)
            last = None if found is None else queries.last_link(connection, found)[0]
            verification = walk(queries.links(connection, last), key=self._key, head=head)
            if not verification.ok or head is None or found is None:
                return verification
            return queries.of_run(connection, verification, head, found)

    def _check_readable(self, connection: Connection) -> None:
        found = connection.scalar(select(RUNS.c.key_id).order_by(RUNS.c.seq).limit(1))
        if found and self._key is None:
            raise AuditError(f"{self.name} is chained with key {found}: give that key to verify it")


def _round_row(run_id: str, record: RoundRecord) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "server_round": int(record.server_round),
        "written_at": _now(),
        "mode": plain_text(record.mode),
        "n_clients": len(record.verdicts),
        "shield_seconds": record.shield_seconds,
        "round_seconds": record.round_seconds,
        "notes": json_text(list(record.notes)),
    }


def _client_row(run_id: str, record: RoundRecord, verdict: ClientVerdict) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "server_round": int(record.server_round),
        "client_id": plain_text(verdict.client_id),
        "action": Action(verdict.action).value,
        "applied": int(verdict.applied),
        "weight": verdict.weight,
        "n_examples": verdict.n_examples,
        "score": verdict.score,
        "p_value": verdict.p_value,
        "reputation": verdict.reputation,
        "view_scores": json_text(dict(verdict.view_scores)),
        "reasons": json_text(list(verdict.reasons)),
    }


def _require_run(connection: Connection, run_id: str) -> None:
    if not queries.has_run(connection, run_id):
        raise AuditError(f"no run {run_id!r} in this audit: write only to what start_run returned")


def _with_key(identity: str) -> str:
    return f"with key {identity}" if identity else "without a key"


def _now() -> str:
    return datetime.now(UTC).isoformat()
