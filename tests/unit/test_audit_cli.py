"""``fl-shield audit``: what it prints, and how it says what is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fl_shield.audit import FORMATS, AuditStore, export
from fl_shield.cli import main
from fl_shield.errors import AuditError
from fl_shield.types import Action, ClientVerdict, RoundRecord

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Shell:
    """Run ``fl-shield audit ...`` in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FL_SHIELD_AUDIT", raising=False)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fl-shield", "audit", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def fill(path: Path, *, key: bytes | None = None, n_rounds: int = 2) -> str:
    store = AuditStore(path, key=key)
    run_id = store.start_run({"name": "[red]a run[/red]", "mode": "filter"})
    for server_round in range(1, n_rounds + 1):
        verdicts = (
            ClientVerdict(client_id="10", action=Action.KEEP, score=0.125, p_value=0.5),
            ClientVerdict(
                client_id="=11",
                action=Action.DROP,
                applied=False,
                score=0.875,
                p_value=0.01,
                view_scores={"probes": 2.5, "update:fc1": -1.0},
                reasons=("[bold]why[/bold], \x1b[2J",),
            ),
        )
        record = RoundRecord(
            server_round=server_round, mode="filter", verdicts=verdicts, notes=("a note",)
        )
        store.write_round(run_id, record)
    store.finish_run(run_id)
    return run_id


def test_list_shows_every_run(shell: Shell, tmp_path: Path) -> None:
    first, second = fill(tmp_path / "audit.db"), fill(tmp_path / "audit.db")
    code, out, _ = shell("list", "--db", "audit.db")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:5] for row in rows[1:]] == [
        [run_id, "finished", "2", "4", "2"] for run_id in (first, second)
    ]
    assert "[red]a run[/red]" in out


def test_show_rounds_clients_and_one_client(shell: Shell, tmp_path: Path) -> None:
    run_id = fill(tmp_path / "audit.db", n_rounds=3)
    code, out, _ = shell("show", "--db", "audit.db")
    assert code == 0
    assert f"run {run_id} · finished" in out
    assert "3 decisions were not applied" in out
    assert out.count("a note") == 3

    code, out, _ = shell("show", run_id[-5:], "--round", "2", "--db", "audit.db")
    assert code == 0
    assert "0.875" in out
    assert "[bold]why[/bold], \\x1b[2J; views: probes +2.50" in out
    assert "\x1b" not in out

    code, out, _ = shell("show", "latest", "--client", "10", "--db", "audit.db")
    assert code == 0
    assert out.count("0.125") == 3
    assert "0.875" not in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--round", "9"), "has no clients in round 9: its rounds are 1 to 2"),
        (("--client", "12"), "has no client '12': it has 2, such as =11, 10"),
        (("nosuchrun",), "no run 'nosuchrun' in audit.db"),
    ],
)
def test_show_says_what_there_is(
    shell: Shell, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    fill(tmp_path / "audit.db")
    code, out, err = shell("show", *arguments, "--db", "audit.db")
    assert (code, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1


def test_verify_passes_fails_and_finds_a_cut_tail(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    run_id = fill(path)
    head = AuditStore(path).head()
    code, out, _ = shell("verify", "--db", "audit.db", "--head", head.upper())
    assert code == 0
    assert out.startswith(f"intact: 8 rows hold (SHA-256), head {head}")
    assert "(a head noted" not in out

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM shield_endings")
        connection.commit()
    code, out, _ = shell("verify", "--db", "audit.db")
    assert code == 0
    assert "--head" in out
    code, _, err = shell("verify", "--db", "audit.db", "--head", head)
    assert code == 1
    assert "cut off" in err

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE shield_clients SET action = 'keep' WHERE seq = 4")
        connection.commit()
    code, out, err = shell("verify", run_id, "--db", "audit.db")
    assert (code, out) == (1, "")
    assert f"BROKEN: row 4, run {run_id}, round 1, client =11" in err


def test_verify_says_how_much_was_written_since(shell: Shell, tmp_path: Path) -> None:
    fill(tmp_path / "audit.db")
    head = AuditStore(tmp_path / "audit.db").head()
    fill(tmp_path / "audit.db", n_rounds=1)
    code, out, _ = shell("verify", "--db", "audit.db", "--head", head)
    assert code == 0
    assert "5 rows were written since" in out


def test_verify_with_a_key_file(shell: Shell, tmp_path: Path) -> None:
    fill(tmp_path / "audit.db", key=b"secret")
    (tmp_path / "key").write_bytes(b"secret\n")
    (tmp_path / "wrong").write_bytes(b"other\n")
    (tmp_path / "empty").write_bytes(b"\n")
    assert shell("verify", "--db", "audit.db", "--key-file", "key")[0] == 0
    assert shell("verify", "--db", "audit.db", "--key-file", "wrong")[0] == 1
    for arguments, problem in (
        ((), "give that key"),
        (("--key-file", "empty"), "key is empty"),
        (("--key-file", "none"), "cannot read the key file none"),
    ):
        code, _, err = shell("verify", "--db", "audit.db", *arguments)
        assert code == 2
        assert problem in err


@pytest.mark.parametrize("head", ["", "abc", "z" * 64])
def test_a_bad_head_is_told(shell: Shell, tmp_path: Path, head: str) -> None:
    fill(tmp_path / "audit.db")
    code, _, err = shell("verify", "--db", "audit.db", "--head", head)
    assert code == 2
    assert "64 hex digits" in err


def test_report_is_written(shell: Shell, tmp_path: Path) -> None:
    fill(tmp_path / "audit.db")
    code, out, _ = shell("report", "--db", "audit.db", "--out", "new/report.html")
    assert (code, out) == (0, "wrote new/report.html\n")
    assert "Chain intact" in (tmp_path / "new/report.html").read_text(encoding="utf-8")


def test_export_to_a_file_and_to_the_terminal(shell: Shell, tmp_path: Path) -> None:
    run_id = fill(tmp_path / "audit.db")
    code, out, _ = shell("export", run_id, "--db", "audit.db")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["client_id"] for row in rows] == ["10", "'=11"] * 2
    assert float(rows[1]["score"]) == 0.875
    assert rows[1]["applied"] == "0"
    assert json.loads(rows[1]["view_scores"]) == {"probes": 2.5, "update:fc1": -1.0}
    assert rows[0]["n_examples"] == ""

    code, _, err = shell("export", "--db", "audit.db", "--format", "json", "--out", "all.json")
    assert code == 0
    assert "wrote 4 verdicts" in err
    exported = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [row["client_id"] for row in exported] == ["10", "=11"] * 2
    assert exported[1]["reasons"] == ["[bold]why[/bold], \\x1b[2J"]

    code, _, err = shell("export", "--db", "audit.db", "--out", "no/such/folder.csv")
    assert code == 2
    assert "cannot write no/such/folder.csv" in err


def test_an_unknown_export_format_names_the_known_ones() -> None:
    with pytest.raises(AuditError, match="csv, json, got 'xml'"):
        export([], io.StringIO(), "xml")
    assert set(FORMATS) == {"csv", "json"}


def test_the_newest_database_is_read_without_db(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell("list")
    assert code == 2
    assert "no audit database" in err
    fill(tmp_path / "runs/old/audit.db")
    newest = fill(tmp_path / "runs/deep/er/audit.db")
    os.utime(tmp_path / "runs/old/audit.db", (1, 1))
    code, out, err = shell("list")
    assert code == 0
    assert newest in out
    assert "runs/deep/er/audit.db, the newest of 2" in err


def test_the_environment_names_the_database(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = fill(tmp_path / "here.db")
    monkeypatch.setenv("FL_SHIELD_AUDIT", f"sqlite:///{tmp_path}/here.db")
    assert run_id in shell("list")[1]


@pytest.mark.parametrize("command", ["list", "show", "verify", "report", "export"])
def test_what_is_no_database_is_one_sentence(shell: Shell, tmp_path: Path, command: str) -> None:
    (tmp_path / "garbage.db").write_bytes(os.urandom(4096))
    for path, problem in (
        ("garbage.db", "file is not a database"),
        ("none.db", "no audit database at none.db"),
        (".", "is a folder"),
    ):
        code, out, err = shell(command, "--db", path)
        assert (code, out) == (2, "")
        assert problem in err
        assert err.count("\n") == 1
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("command", ["list", "show", "verify", "report", "export"])
def test_help_teaches_by_example(shell: Shell, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert f"fl-shield audit {command}" in out
