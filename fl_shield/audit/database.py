"""Opening an audit database: URLs, SQLite's settings, locks, errors in one sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    exc,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.pool import NullPool, StaticPool

from fl_shield.audit.tables import TABLES, metadata
from fl_shield.errors import AuditError

_WAIT_SECONDS = 30
"""How long a writer waits for another one."""

_RETRY_SECONDS = 0.02
"""Pause between attempts where SQLite itself does not wait."""

_WRITE_LOCK = 0x666C736869656C64
"""Number of PostgreSQL's advisory lock that writers take: "flshield" in ASCII."""


def database_url(url_or_path: str | Path) -> URL:
    """Return the URL of a database named by URL or by the path of an SQLite file.

    Examples
    --------
    >>> str(database_url("runs/demo/audit.db"))
    'sqlite:///runs/demo/audit.db'
    """
    text = str(url_or_path)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        return make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise AuditError(
            f"{text!r} is no database URL: write sqlite:///PATH, the path of a file, or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from error


def shown(url: URL) -> str:
    """Return the URL without its password; for a file, its path."""
    if url.get_backend_name() == "sqlite" and url.database:
        return url.database
    return url.render_as_string(hide_password=True)


def open_engine(url: URL, *, create: bool) -> Engine:
    """Connect to a database, make its tables if asked, and check that they are ours.

    Parameters
    ----------
    url : URL
        As :func:`database_url` gives it.
    create : bool
        Whether to make what is missing; otherwise a missing database is an error.
    """
    memory = url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")
    if url.get_backend_name() == "sqlite" and not memory:
        _check_file(Path(str(url.database)), create=create)
    try:
        engine = _engine(url, memory=memory)
        with _errors_named(url):
            if create:
                _make_tables(engine)
            _check_tables(engine, url)
    except ModuleNotFoundError as error:
        raise AuditError(
            f"{shown(url)} needs the package {error.name!r}, which is not installed: "
            f"pip install {error.name!r}"
        ) from error
    except exc.NoSuchModuleError as error:
        raise AuditError(
            f"{shown(url)} names no known kind of database: use sqlite:/// or postgresql://"
        ) from error
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent snapshot to read from."""
    with _errors_named(engine.url), engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that no other writer can enter: committed at the end, or nothing happens."""
    with _errors_named(engine.url), engine.connect() as connection:
        connection = connection.execution_options(shield_write=True)
        with connection.begin():
            if engine.dialect.name == "postgresql":  # SQLite locks as it begins
                connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
            yield connection


def _engine(url: URL, *, memory: bool) -> Engine:
    """Connections are opened for one transaction each: nothing lingers, forks are safe."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool)
    engine = create_engine(
        url,
        poolclass=StaticPool if memory else NullPool,
        connect_args={"timeout": _WAIT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def settings(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("shield_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _make_tables(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    with writing(engine) as connection:
        metadata.create_all(connection)


def _write_ahead(engine: Engine) -> None:
    """Let readers and a writer work side by side, in a file that outlives a killed writer.

    SQLite does not wait for a writer that is busy in the old mode, but refuses at once.
    """
    deadline = monotonic() + _WAIT_SECONDS
    raw = engine.raw_connection()
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or monotonic() >= deadline:
                    raise
            sleep(_RETRY_SECONDS)
    finally:
        raw.close()


def _check_file(path: Path, *, create: bool) -> None:
    if path.is_dir():
        raise AuditError(f"{path} is a folder: name the database file in it, such as audit.db")
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AuditError(
                f"cannot make the folder {path.parent} ({error.strerror}): choose another"
            ) from error
    elif not path.is_file():
        raise AuditError(
            f"no audit database at {path}: name the file that a run wrote, such as "
            "runs/demo/audit.db"
        )


def _check_tables(engine: Engine, url: URL) -> None:
    with engine.connect() as connection:
        found = inspect(connection)
        for table in TABLES:
            if not found.has_table(table.name):
                raise AuditError(
                    f"{shown(url)} is no audit database of fl_shield: it has no table "
                    f"{table.name}; name the file that a run wrote, such as runs/demo/audit.db"
                )
            columns = {column["name"] for column in found.get_columns(table.name)}
            missing = sorted(set(table.c.keys()) - columns)
            if missing:
                raise AuditError(
                    f"{shown(url)}: table {table.name} lacks the column {missing[0]}, so another "
                    "version of fl_shield wrote it, or it was damaged: restore it from a copy"
                )


@contextmanager
def _errors_named(url: URL) -> Iterator[None]:
    """Turn what a database driver raises into one sentence."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise AuditError(
            f"cannot use {shown(url)} as an audit database: {lines[0]}{_remedy(lines[0])}"
        ) from error


def _remedy(problem: str) -> str:
    if "not a database" in problem:
        return "; name the file that a run wrote, such as runs/demo/audit.db"
    if "locked" in problem:
        return (
            f"; another process has been writing for {_WAIT_SECONDS} s: try again when it is done"
        )
    if "readonly" in problem or "unable to open" in problem:
        return "; check that the folder exists and may be written"
    return ""
