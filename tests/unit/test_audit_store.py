"""The audit database: what goes in comes out, whatever happens in between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fl_shield.audit import AuditStore, database
from fl_shield.audit.chain import GENESIS, digest
from fl_shield.errors import AuditError
from fl_shield.types import Action, AuditSink, ClientVerdict, RoundRecord


def a_round(server_round: int = 1, n_clients: int = 2) -> RoundRecord:
    verdicts = tuple(
        ClientVerdict(client_id=str(client), action=Action.KEEP, score=0.1 + 0.2, p_value=0.5)
        for client in range(n_clients)
    )
    return RoundRecord(server_round=server_round, mode="filter", verdicts=verdicts)


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    verdict = ClientVerdict(
        client_id="9007199254740993",
        action=Action.DOWNWEIGHT,
        applied=False,
        weight=1 / 3,
        n_examples=17.0,
        score=0.1 + 0.2,
        p_value=5e-324,
        reputation=1.0,
        view_scores={"update:fc1.weight": -0.0, "probes": 1e308},
        reasons=("first", "zweiter – ünïcode"),
    )
    record = RoundRecord(
        server_round=3,
        mode="monitor",
        verdicts=(verdict, ClientVerdict(client_id="b", action=Action.MISSING)),
        shield_seconds=0.25,
        round_seconds=1.5,
        notes=("nobody left: the old model stays",),
    )
    sink: AuditSink = AuditStore(tmp_path / "new" / "audit.db")
    run_id = sink.start_run({"strategy": "FedAvg", "shape": (1, 2), "nan": float("nan")})
    sink.write_round(run_id, record)
    sink.finish_run(run_id, "stopped")

    store = AuditStore(f"sqlite:///{tmp_path}/new/audit.db", create=False)
    (run,) = store.runs()
    assert run.settings == {"strategy": "FedAvg", "shape": [1, 2], "nan": "nan"}
    assert (run.status, run.n_rounds, run.n_verdicts, run.n_refused) == ("stopped", 1, 2, 0)
    assert run.actions == {Action.DOWNWEIGHT: 1, Action.MISSING: 1}
    (audited,) = store.rounds(run_id)
    assert (audited.server_round, audited.mode, audited.n_clients) == (3, "monitor", 2)
    assert (audited.shield_seconds, audited.round_seconds) == (0.25, 1.5)
    assert audited.notes == record.notes
    assert [entry.verdict for entry in store.verdicts(run_id)] == list(record.verdicts)


def test_verdicts_by_run_round_and_client() -> None:
    store = AuditStore("sqlite://")
    first, second = store.start_run({}), store.start_run({})
    for server_round in (1, 2):
        store.write_round(first, a_round(server_round))
    store.write_round(second, a_round(1, n_clients=3))
    assert len(list(store.verdicts())) == 7
    assert len(list(store.verdicts(second))) == 3
    assert len(list(store.verdicts(first, round=2))) == 2
    chosen = [(e.server_round, e.verdict.client_id) for e in store.verdicts(first, client="1")]
    assert chosen == [(1, "1"), (2, "1")]


def test_run_ids_are_sorted_by_time_and_may_be_abbreviated() -> None:
    store = AuditStore("sqlite://")
    ids = [store.start_run({}) for _ in range(5)]
    assert ids == sorted(set(ids))
    assert store.run("latest").run_id == ids[-1]
    assert store.run(ids[0]).run_id == ids[0]
    assert store.run(ids[1].split("-")[-1]).run_id == ids[1]
    with pytest.raises(AuditError, match="ambiguous"):
        store.run(ids[0][:4])
    with pytest.raises(AuditError, match="no run 'zzz' in"):
        store.run("zzz")
    with pytest.raises(AuditError, match="no run ''"):
        store.run("")


def test_not_finite_numbers_are_left_out_and_said() -> None:
    store = AuditStore("sqlite://")
    run_id = store.start_run({})
    nan, inf = float("nan"), float("inf")
    verdict = ClientVerdict(
        client_id="7",
        action=Action.DROP,
        weight=nan,
        n_examples=inf,
        score=nan,
        p_value=-inf,
        view_scores={"a": nan, "b": 1.0},
        reasons=("first",),
    )
    record = RoundRecord(server_round=1, mode="filter", verdicts=(verdict,), round_seconds=inf)
    store.write_round(run_id, record)
    (entry,) = store.verdicts(run_id)
    read = entry.verdict
    assert (read.weight, read.n_examples, read.score, read.p_value) == (0.0, None, None, None)
    assert read.view_scores == {"b": 1.0}
    assert read.reasons[0] == "first"
    assert "score was nan: not recorded" in read.reasons
    assert "view a was nan: not recorded" in read.reasons
    assert store.rounds(run_id)[0].notes == ("round_seconds was inf: not recorded",)
    assert store.verify().ok


def test_hostile_texts_are_stored_escaped() -> None:
    store = AuditStore("sqlite://")
    run_id = store.start_run({"\x00": "\udc80"})
    hostile = "\x00\x1b[2J\udc80\u202e'; DROP TABLE shield_runs; --"
    verdict = ClientVerdict(
        client_id=hostile, action=Action.REJECT, reasons=("x" * 10_000,), view_scores={hostile: 1.0}
    )
    store.write_round(run_id, RoundRecord(server_round=1, mode="filter", verdicts=(verdict,)))
    (entry,) = store.verdicts(run_id)
    assert entry.verdict.client_id == ("\\x00\\x1b[2J\\udc80\\u202e'; DROP TABLE shield_runs; --")
    assert entry.verdict.reasons[0].endswith("… (8000 more characters)")
    assert store.verify().ok


def test_the_chain_is_as_documented(tmp_path: Path) -> None:
    """The first row's hash, computed by hand from the database."""
    store = AuditStore(tmp_path / "audit.db")
    store.start_run({"a": 1})
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM shield_runs").fetchone())
    stored = row.pop("hash")
    assert stored == digest(GENESIS, "shield_runs", row) == store.head()


def test_a_cut_tail_is_found_with_the_head_only(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    store = AuditStore(path)
    run_id = store.start_run({})
    store.write_round(run_id, a_round(1))
    early = store.head()
    store.write_round(run_id, a_round(2))
    late = store.head()
    assert store.verify(early).n_after_head == 3
    assert store.verify(late).n_after_head == 0
    assert store.verify(GENESIS).n_after_head == 7
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM shield_clients WHERE seq > 4")
        connection.execute("DELETE FROM shield_rounds WHERE seq > 4")
        connection.commit()
    assert store.verify().ok
    assert store.verify(early).ok
    cut = store.verify(late)
    assert not cut.ok
    assert "cut off" in str(cut.fault)


def test_a_break_names_run_round_and_client(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    store = AuditStore(path)
    run_id = store.start_run({})
    store.write_round(run_id, a_round(4))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE shield_clients SET score = 0.0 WHERE client_id = '1'")
        connection.commit()
    fault = store.verify().fault
    assert fault is not None
    assert (fault.seq, fault.run_id, fault.server_round, fault.client_id) == (4, run_id, 4, "1")
    assert str(fault).startswith(f"row 4, run {run_id}, round 4, client 1: its hash does not match")


def test_verify_one_run_stops_at_its_last_row(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    store = AuditStore(path)
    first, second = store.start_run({}), store.start_run({})
    store.finish_run(first)
    head = store.head(first)
    store.write_round(second, a_round())
    assert store.verify(run_id=first).n_rows == 3
    assert store.verify(head, run_id=first).ok
    assert not store.verify(head, run_id=second).ok
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE shield_rounds SET mode = 'monitor'")
        connection.commit()
    assert store.verify(run_id=first).ok
    assert not store.verify(run_id=second).ok


def test_a_key_is_needed_and_must_be_the_same(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    AuditStore(path, key=b"one").start_run({})
    assert AuditStore(path, key=b"one").verify().keyed
    assert "or the key is not the one" in str(AuditStore(path, key=b"two").verify().fault)
    with pytest.raises(AuditError, match="give that key"):
        AuditStore(path).verify()
    with pytest.raises(AuditError, match="one database has one key"):
        AuditStore(path).start_run({})
    with pytest.raises(AuditError, match="key is empty"):
        AuditStore(path, key=b"")


def test_whoever_rechains_without_the_key_is_found(tmp_path: Path) -> None:
    """An attacker who forges a whole database without a key does not pass under one."""
    forged = AuditStore(tmp_path / "audit.db")
    forged.start_run({"innocent": True})
    assert forged.verify().ok
    assert not AuditStore(tmp_path / "audit.db", key=b"one").verify().ok


def test_a_row_taken_from_another_audit_of_the_same_key_is_found(tmp_path: Path) -> None:
    """Its own hash fits its content, its place and the key; the row before it does not fit."""
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path in paths:
        AuditStore(path, key=b"k").start_run({"name": path.name})
    with closing(sqlite3.connect(paths[0])) as connection:
        columns, marks = "seq, run_id, ended_at, status, hash", "?, ?, ?, ?, ?"
        for path in paths:
            store = AuditStore(path, key=b"k")
            store.finish_run(store.runs()[0].run_id, path.name)
        with closing(sqlite3.connect(paths[1])) as other:
            row = other.execute(f"SELECT {columns} FROM shield_endings").fetchone()
        connection.execute(f"REPLACE INTO shield_endings ({columns}) VALUES ({marks})", row)
        connection.commit()
    fault = AuditStore(paths[0], key=b"k").verify().fault
    assert fault is not None
    assert fault.seq == 2


def test_only_started_runs_are_written() -> None:
    store = AuditStore("sqlite://")
    run_id = store.start_run({})
    with pytest.raises(AuditError, match="start_run returned"):
        store.write_round(run_id[:-1], a_round())
    with pytest.raises(AuditError, match="start_run returned"):
        store.finish_run("no such run")
    assert store.verify().n_rows == 1


def test_a_failing_round_leaves_nothing(tmp_path: Path) -> None:
    store = AuditStore(tmp_path / "audit.db")
    run_id = store.start_run({})
    verdict = ClientVerdict(client_id="1", action="explode")  # type: ignore[arg-type]
    broken = RoundRecord(server_round=1, mode="filter", verdicts=(*a_round().verdicts, verdict))
    with pytest.raises(ValueError, match="explode"):
        store.write_round(run_id, broken)
    assert store.rounds(run_id) == []
    assert store.verify().n_rows == 1


KILLED = """
import os, sys
from sqlalchemy import event
from fl_shield.audit import AuditStore
from fl_shield.types import Action, ClientVerdict, RoundRecord

store = AuditStore(sys.argv[1])
run_id = store.start_run({})
verdicts = tuple(ClientVerdict(client_id=str(c), action=Action.KEEP) for c in range(50))
store.write_round(run_id, RoundRecord(server_round=1, mode="filter", verdicts=verdicts))

@event.listens_for(store._engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO shield_clients"):
        os._exit(9)

store.write_round(run_id, RoundRecord(server_round=2, mode="filter", verdicts=verdicts))
"""


def test_a_process_killed_in_mid_round_loses_that_round_only(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == 9
    store = AuditStore(path)
    (run,) = store.runs()
    assert (run.status, run.n_rounds, run.n_verdicts) == ("unfinished", 1, 50)
    assert store.verify().n_rows == 52
    store.write_round(run.run_id, a_round(2))
    assert store.verify().n_rows == 55


WRITER = """
import sys
from fl_shield.audit import AuditStore
from fl_shield.types import Action, ClientVerdict, RoundRecord

store = AuditStore(sys.argv[1])
run_id = store.start_run({})
verdict = ClientVerdict(client_id="1", action=Action.KEEP)
for server_round in range(1, 16):
    record = RoundRecord(server_round=server_round, mode="filter", verdicts=(verdict,))
    store.write_round(run_id, record)
"""


def test_two_processes_writing_at_once_do_not_fork_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    verification = AuditStore(path).verify()
    assert verification.ok
    assert verification.n_rows == 2 * (1 + 15 * 2)


def test_a_new_database_waits_for_a_writer_that_opened_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.db"
    pauses: list[float] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def until_it_is_done(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                other.rollback()

        monkeypatch.setattr(database, "sleep", until_it_is_done)
        store = AuditStore(path)
        assert len(pauses) == 2
        run_id = store.start_run({})
        store.write_round(run_id, a_round())
    assert store.verify().ok


def test_a_writer_that_never_ends_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.db"
    monkeypatch.setattr(database, "_WAIT_SECONDS", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditError, match="locked; another process has been writing"):
            AuditStore(path)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    with pytest.raises(AuditError, match="no audit database of fl_shield"):
        AuditStore(other, create=False)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database, but long enough to look like one" * 50)
    for create in (True, False):
        with pytest.raises(AuditError, match="file is not a database"):
            AuditStore(garbage, create=create)
    with pytest.raises(AuditError, match="no audit database at"):
        AuditStore(tmp_path / "none.db", create=False)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(AuditError, match="is a folder"):
        AuditStore(tmp_path)
    with pytest.raises(AuditError, match="cannot make the folder"):
        AuditStore(garbage / "audit.db")


def test_a_lacking_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    AuditStore(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE shield_clients DROP COLUMN p_value")
    with pytest.raises(AuditError, match="table shield_clients lacks the column p_value"):
        AuditStore(path, create=False)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense://x", "no known kind of database"),
        ("://", "is no database URL"),
        ("mysql+nosuchdriver://h/d", "no known kind of database"),
    ],
)
def test_bad_urls_are_refused(url: str, problem: str) -> None:
    with pytest.raises(AuditError, match=problem):
        AuditStore(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(AuditError) as caught:
        AuditStore("nonsense://me:secret@host/audit")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ("action = 'explode'", "'explode' is no action"),
        ("reasons = '{'", "it is no JSON"),
        ("reasons = '{}'", "it is no JSON list"),
    ],
)
def test_damaged_rows_are_named_when_read(tmp_path: Path, edit: str, problem: str) -> None:
    store = AuditStore(tmp_path / "audit.db")
    store.write_round(store.start_run({}), a_round())
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.execute(f"UPDATE shield_clients SET {edit} WHERE client_id = '0'")
        connection.commit()
    with pytest.raises(AuditError, match=problem):
        list(store.verdicts())
    assert not store.verify().ok
