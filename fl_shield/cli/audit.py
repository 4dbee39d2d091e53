"""``fl-shield audit``: list, show, verify, report and export what the shield recorded.

What is wrong with the input raises :class:`fl_shield.errors.AuditError`; the command line makes it
one sentence and exit code 2.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fl_shield.audit import AuditedVerdict, AuditStore, export, write_report
from fl_shield.audit.plain import plain_text
from fl_shield.audit.summary import RunSummary, summarise_run
from fl_shield.cli.audit_tables import (
    print_heading,
    print_notes,
    rounds_table,
    runs_table,
    verdicts_table,
)
from fl_shield.errors import AuditError

ENVIRONMENT = "FL_SHIELD_AUDIT"
"""The variable that names the audit database."""

app = typer.Typer(
    name="audit",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Read what the shield recorded: every round, client, score and reason.

    The database is the one named by **--db** (an SQLite file or a database URL), else by the
    variable FL_SHIELD_AUDIT, else the newest `runs/**/audit.db` below the current folder.

    A RUN may be shortened to any unique beginning of its id or of the id's last part, and
    **latest** is the newest run.

    **Examples**

    ```
    fl-shield audit list
    fl-shield audit show latest --round 7
    fl-shield audit verify --head HASH_FROM_RESULTS_JSON
    fl-shield audit report --out report.html
    ```
    """,
)

Database = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar=ENVIRONMENT,
        metavar="URL_OR_PATH",
        help="Audit database: a path or a URL. Without it: the newest runs/**/audit.db.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="File with the key of the chain's HMACs (its bytes without a last line break).",
    ),
]
OptionalRun = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="Run id, shortened or 'latest'.", show_default=False),
]


class Format(StrEnum):
    """What ``export`` writes."""

    CSV = "csv"
    JSON = "json"


@app.command("list")
def list_runs(db: Database = None) -> None:
    """List all runs: when, how many rounds, what was decided.

    **Examples**

    ```
    fl-shield audit list
    fl-shield audit list --db postgresql+psycopg://me@host/shield
    ```
    """
    Console(highlight=False).print(runs_table(_open(db).runs()))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run id, shortened or 'latest'.")] = "latest",
    server_round: Annotated[
        int | None, typer.Option("--round", min=0, help="One round: every client in it.")
    ] = None,
    client: Annotated[
        str | None, typer.Option("--client", help="One client: every round it was in.")
    ] = None,
    db: Database = None,
) -> None:
    """Show one run by round, or the clients of one round, or one client over its rounds.

    **Examples**

    ```
    fl-shield audit show
    fl-shield audit show 9c2f1 --round 7
    fl-shield audit show latest --client 4071
    ```
    """
    summary = summarise_run(_open(db), run)
    chosen = _chosen(summary, server_round, client)
    console = Console(highlight=False)
    print_heading(console, summary)
    print_notes(console, summary, server_round)
    everything = server_round is None and client is None
    console.print(rounds_table(summary) if everything else verdicts_table(chosen))


@app.command()
def verify(
    run: OptionalRun = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Hash of the chain's last row as noted earlier, as in results.json.",
            metavar="HASH",
        ),
    ] = None,
    key_file: KeyFile = None,
    db: Database = None,
) -> None:
    """Check that no row was changed, removed or moved; exit code 1 where one was.

    Without RUN the whole chain is checked, with it the chain up to that run's last row. Only a
    head that was kept elsewhere shows that rows were cut off the chain's end.

    **Examples**

    ```
    fl-shield audit verify
    fl-shield audit verify latest --head 3f0c...e1 --key-file audit.key
    ```
    """
    store = _open(db, key_file)
    found = store.verify(_hash(head), run_id=run)
    if found.fault is not None:
        typer.echo(f"BROKEN: {plain_text(found.fault)}", err=True)
        raise typer.Exit(1)
    kind = "HMAC-SHA256" if found.keyed else "SHA-256"
    typer.echo(f"intact: {found.n_rows} rows hold ({kind}), head {found.head}")
    if found.n_after_head is None:
        typer.echo("(a head noted earlier, given with --head, also shows a cut end)")
    elif found.n_after_head:
        typer.echo(f"the head given is in the chain; {found.n_after_head} rows were written since")


@app.command()
def report(
    run: OptionalRun = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.", metavar="FILE")] = Path(
        "report.html"
    ),
    key_file: KeyFile = None,
    db: Database = None,
) -> None:
    """Write one self-contained HTML file about one run, or about all of them without RUN.

    **Examples**

    ```
    fl-shield audit report --out report.html
    fl-shield audit report latest --db runs/demo/audit.db --out latest.html
    ```
    """
    path = write_report(_open(db, key_file), run, out)
    typer.echo(f"wrote {path}")


@app.command("export")
def export_verdicts(
    run: OptionalRun = None,
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.CSV,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; standard output without it.", metavar="FILE"),
    ] = None,
    db: Database = None,
) -> None:
    """Write every verdict, one row a client and round, of one run or of all.

    **Examples**

    ```
    fl-shield audit export --format json --out verdicts.json
    fl-shield audit export latest | head
    ```
    """
    verdicts = _open(db).verdicts(run)
    if out is None:
        export(verdicts, sys.stdout, format.value)
        return
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            n_rows = export(verdicts, file, format.value)
    except OSError as error:
        raise AuditError(
            f"cannot write {out} ({error.strerror}): name a file in a folder that exists"
        ) from error
    typer.echo(f"wrote {n_rows} verdicts to {out}", err=True)


def _open(db: str | None, key_file: Path | None = None) -> AuditStore:
    return AuditStore(db or _newest(Path()), key=_key(key_file), create=False)


def _newest(folder: Path) -> Path:
    """The audit database below ``runs`` that was written last."""
    found = sorted(folder.glob("runs/**/audit.db"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise AuditError(
            "no audit database: there is no runs/**/audit.db below this folder; name one with "
            f"--db or {ENVIRONMENT}"
        )
    if len(found) > 1:
        typer.echo(
            f"reading {found[-1]}, the newest of {len(found)} (--db names another)", err=True
        )
    return found[-1]


def _key(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise AuditError(
            f"cannot read the key file {path} ({error.strerror}): name a file that holds the key"
        ) from error


def _hash(head: str | None) -> str | None:
    if head is None:
        return None
    head = head.strip().lower()
    if len(head) != 64 or set(head) - set("0123456789abcdef"):
        raise AuditError(
            f"--head {head!r} is no hash: give the 64 hex digits, such as results.json holds them"
        )
    return head


def _chosen(
    summary: RunSummary, server_round: int | None, client: str | None
) -> list[AuditedVerdict]:
    """Return the verdicts of one round, one client or both; none there is an error."""
    chosen = [
        entry
        for entry in summary.verdicts
        if server_round in (None, entry.server_round) and client in (None, entry.verdict.client_id)
    ]
    if not chosen and (server_round is not None or client is not None):
        raise AuditError(_nothing(summary, server_round, client))
    return chosen


def _nothing(summary: RunSummary, server_round: int | None, client: str | None) -> str:
    """Say what was looked for in vain, and what there is."""
    run = summary.run.run_id
    if not summary.verdicts:
        return f"run {run} holds no verdict yet: wait for its first round"
    rounds = sorted({entry.server_round for entry in summary.verdicts})
    if server_round is not None and server_round not in rounds:
        known = f"its rounds are {rounds[0]} to {rounds[-1]}"
        return f"run {run} has no clients in round {server_round}: {known}"
    clients = [entry.client_id for entry in summary.clients]
    if client not in clients:
        return (
            f"run {run} has no client {client!r}: it has {len(clients)}, such as "
            f"{', '.join(clients[:3])}"
        )
    return (
        f"client {client!r} was not asked in round {server_round} of run {run}: leave out --round"
    )
