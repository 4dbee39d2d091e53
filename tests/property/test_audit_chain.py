"""Any single edit, deletion, insertion or reorder of an audit database is found."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_shield.audit import AuditStore
from fl_shield.audit.tables import TABLES
from fl_shield.errors import AuditError
from fl_shield.types import Action, ClientVerdict, RoundRecord

KEYS = (None, b"a key")


@dataclass(frozen=True)
class Written:
    """One audit as written, and the head noted then."""

    path: Path
    head: str
    n_rows: int


@pytest.fixture(scope="module", params=KEYS, ids=["sha256", "hmac"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp("audit") / "audit.db"
    store = AuditStore(path, key=request.param)
    for run in range(2):
        run_id = store.start_run({"seed": run, "lr": 0.1})
        for server_round in (1, 2):
            verdicts = tuple(
                ClientVerdict(
                    client_id=str(client),
                    action=Action.DROP if client == 2 else Action.KEEP,
                    weight=1 / 3,
                    n_examples=None if client == 0 else 10.0 * client,
                    score=0.1 * client,
                    p_value=1e-17,
                    view_scores={"update:fc1": 0.1 + 0.2, "probes": -1.5},
                    reasons=("p = 0.01",),
                )
                for client in range(3)
            )
            record = RoundRecord(server_round=server_round, mode="filter", verdicts=verdicts)
            store.write_round(run_id, record)
        store.finish_run(run_id)
    verification = store.verify()
    assert verification.ok
    return Written(path, store.head(), verification.n_rows)


@contextmanager
def copied(written: Written) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copy(written.path, folder))


def found(path: Path, head: str | None, key: bytes | None) -> bool:
    """Whether a check finds anything wrong."""
    try:
        return not AuditStore(path, key=key, create=False).verify(head).ok
    except AuditError:
        return True


def key_of(path: Path) -> bytes | None:
    with closing(sqlite3.connect(path)) as connection:
        (key_id,) = connection.execute("SELECT key_id FROM shield_runs LIMIT 1").fetchone()
    return KEYS[1] if key_id else None


def contents(connection: sqlite3.Connection) -> list[str]:
    return [
        repr(row)
        for table in TABLES
        for row in connection.execute(f"SELECT * FROM {table.name} ORDER BY rowid")
    ]


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=5),
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_edit_is_found(written: Written, data: st.DataObject) -> None:
    key = key_of(written.path)
    table = data.draw(st.sampled_from(TABLES))
    column = data.draw(st.sampled_from(table.c.keys()))
    value: Any = data.draw(VALUES)
    place = data.draw(st.integers(0, 30))
    with copied(written) as path:
        with closing(sqlite3.connect(path)) as connection:
            before = contents(connection)
            seqs = [row[0] for row in connection.execute(f"SELECT seq FROM {table.name}")]
            edit = f"UPDATE {table.name} SET {column} = ? WHERE seq = ?"
            try:
                connection.execute(edit, (value, seqs[place % len(seqs)]))
            except sqlite3.IntegrityError:
                assume(False)
            assume(contents(connection) != before)
            connection.commit()
        assert found(path, None, key)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_deletion_is_found_with_the_head(written: Written, data: st.DataObject) -> None:
    key = key_of(written.path)
    first = data.draw(st.integers(1, written.n_rows))
    last = data.draw(st.integers(first, written.n_rows))
    with copied(written) as path:
        with closing(sqlite3.connect(path)) as connection:
            for table in TABLES:
                connection.execute(
                    f"DELETE FROM {table.name} WHERE seq BETWEEN ? AND ?", (first, last)
                )
            connection.commit()
        assert found(path, written.head, key)
        cut_at_the_end = last == written.n_rows
        assert found(path, None, key) is not cut_at_the_end


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_swap_of_two_rows_is_found(written: Written, data: st.DataObject) -> None:
    key = key_of(written.path)
    name = data.draw(st.sampled_from(["shield_clients", "shield_rounds", "shield_runs"]))
    with copied(written) as path:
        with closing(sqlite3.connect(path)) as connection:
            seqs = [row[0] for row in connection.execute(f"SELECT seq FROM {name}")]
            pair = data.draw(st.permutations(seqs))[:2]
            for old, new in ((pair[0], -1), (pair[1], pair[0]), (-1, pair[1])):
                connection.execute(f"UPDATE {name} SET seq = ? WHERE seq = ?", (new, old))
            connection.commit()
        assert found(path, None, key)


@settings(max_examples=12, deadline=None)
@given(seq=st.integers(-5, 40))
def test_any_row_added_by_hand_is_found(written: Written, seq: int) -> None:
    key = key_of(written.path)
    with copied(written) as path:
        with closing(sqlite3.connect(path)) as connection:
            try:
                connection.execute(
                    "INSERT INTO shield_endings SELECT ?, run_id, ended_at, 'failed', hash "
                    "FROM shield_endings LIMIT 1",
                    (seq,),
                )
            except sqlite3.IntegrityError:
                assume(False)
            connection.commit()
        assert found(path, None, key)
