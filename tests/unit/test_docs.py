"""What the documentation shows is true: code runs, links resolve, commands parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from flwr.app import Context, Message, MetricRecord, RecordDict

from fl_shield.audit import AuditStore
from fl_shield.cli import app
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.strategies import from_record, to_record

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def shell_lines(page: Path) -> Iterator[str]:
    """Commands in fenced blocks, continued lines joined, and in inline code."""
    for block in blocks(page, "sh", "bash"):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`((?:fl-shield|make) [^`\n]+)`", prose(page))


def commands(start: str) -> list[str]:
    found = [(page, line.strip()) for page in PAGES for line in shell_lines(page)]
    return sorted({line for page, line in found if line.startswith(start + " ")})


def slug(heading: str) -> str:
    """Anchor of a heading as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line) for line in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


def parse(command: click.Command, words: list[str]) -> click.Command:
    """Parse words as the command line would, without running anything."""
    name = command.name or ""
    while isinstance(command, click.Group) and words:
        name, *words = words
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command = found
    if words and words != ["--help"]:
        command.make_context(name, words)
    return command


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_on_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), names)


def test_the_server_of_the_readme_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def client(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        content = RecordDict({"metrics": metrics})
        if message.metadata.message_type == "train":
            arrays = from_record(message.content.array_records["arrays"])
            step = 0.01 * (1 + int(str(context.node_config["partition-id"])))
            moved = {name: a + np.float32(step) for name, a in arrays.items()}
            content["arrays"] = to_record(moved)
        return Message(content, reply_to=message)

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("clean.npz", x=rng.random((20, 1, 8, 8)), y=rng.integers(0, 10, 20))
    names: dict[str, Any] = {"__name__": "page"}
    exec(blocks(ROOT / "README.md", "python")[0], names)

    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    names["app"](InProcessGrid(client, node_configs(4)), context)

    store = AuditStore("sqlite:///audit.db", create=False)
    assert [run.status for run in store.runs()] == ["finished"]
    assert [entry.mode for entry in store.rounds("latest")] == ["monitor"] * 3
    assert len(list(store.verdicts("latest"))) == 12


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("line", commands("fl-shield"))
def test_commands_parse(line: str) -> None:
    words = shlex.split(line.split(" | ")[0])[1:]

    assert parse(typer.main.get_command(app), words).name


def test_unknown_options_would_be_found() -> None:
    root = typer.main.get_command(app)

    with pytest.raises(click.UsageError, match="--databse"):
        parse(root, ["audit", "list", "--databse", "x"])
    with pytest.raises(click.UsageError, match="no command 'guard'"):
        parse(root, ["guard"])


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = [word for line in commands("make") for word in shlex.split(line)[1:]]
    named = {word for word in words if re.fullmatch(r"[a-z-]+", word)}

    assert {"demo", "test"} <= named <= targets


def test_modules_that_are_run_exist() -> None:
    lines = commands("python -m")

    assert lines
    assert all(find_spec(line.split()[2]) for line in lines)


def test_the_readme_links_every_page_of_the_docs() -> None:
    readme = (ROOT / "README.md").read_text()

    for page in ROOT.glob("docs/*.md"):
        assert f"]({name_of(page)})" in readme
