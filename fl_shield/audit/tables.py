"""The four tables of an audit database, and the order that chains their rows.

Every row of every table carries ``seq``, its place in the one chain of the whole database
(1, 2, 3, ... without gaps), and ``hash``, the digest of the row and the hash before it. Numbers
are IEEE doubles and texts are stored as they are hashed, so that a row read back gives the same
digest on every database.
"""

from sqlalchemy import Column, Double, ForeignKey, Integer, MetaData, String, Table, Text

metadata = MetaData()


def _chained(name: str, *columns: Column[object]) -> Table:
    """Return a table whose rows stand in the chain."""
    return Table(
        name,
        metadata,
        Column("seq", Integer, primary_key=True, autoincrement=False),
        *columns,
        Column("hash", String(64), nullable=False),
    )


def _run_id(*, unique: bool = False) -> Column[object]:
    key = () if unique else (ForeignKey("shield_runs.run_id"),)
    return Column("run_id", String(64), *key, nullable=False, unique=unique, index=not unique)


RUNS = _chained(
    "shield_runs",
    _run_id(unique=True),
    Column("started_at", String(32), nullable=False),  # UTC, ISO 8601
    Column("key_id", String(16), nullable=False),  # empty without a key
    Column("settings", Text, nullable=False),  # canonical JSON object
)
"""One row a run."""

ROUNDS = _chained(
    "shield_rounds",
    _run_id(),
    Column("server_round", Integer, nullable=False),
    Column("written_at", String(32), nullable=False),
    Column("mode", Text, nullable=False),
    Column("n_clients", Integer, nullable=False),  # rows of CLIENTS that follow
    Column("shield_seconds", Double, nullable=False),
    Column("round_seconds", Double, nullable=False),
    Column("notes", Text, nullable=False),  # JSON list of texts
)
"""One row a round, before the rows of its clients."""

CLIENTS = _chained(
    "shield_clients",
    _run_id(),
    Column("server_round", Integer, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("applied", Integer, nullable=False),  # 0 or 1
    Column("weight", Double, nullable=False),
    Column("n_examples", Double),
    Column("score", Double),
    Column("p_value", Double),
    Column("reputation", Double, nullable=False),
    Column("view_scores", Text, nullable=False),  # JSON object: view -> log-odds
    Column("reasons", Text, nullable=False),  # JSON list of texts
)
"""One row a client and round."""

ENDINGS = _chained(
    "shield_endings",
    _run_id(),
    Column("ended_at", String(32), nullable=False),
    Column("status", Text, nullable=False),
)
"""One row a finished run: a row once written is never changed, so a run's end is a row too."""

TABLES = (RUNS, ROUNDS, CLIENTS, ENDINGS)
