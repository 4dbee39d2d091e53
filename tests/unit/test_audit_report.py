"""The HTML report: complete, self-contained, and safe to open whatever clients sent."""

from __future__ import annotations

import base64
import io
import re
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fl_shield.audit import AuditStore, score_heat_map, write_report
from fl_shield.audit.figures import (
    actions_by_round,
    inline_svg,
    shortened,
    view_contributions,
)
from fl_shield.audit.report import render_report
from fl_shield.audit.result_table import result_table
from fl_shield.audit.summary import summarise_run
from fl_shield.errors import AuditError
from fl_shield.types import Action, ClientVerdict, RoundRecord

HOSTILE = "<script>alert(1)</script>$\\frac{1}$\"'&"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def verdict(client: str, action: Action, score: float | None, **rest: object) -> ClientVerdict:
    views = {"update:fc1": 0.0 if score is None else 4 * score - 2, HOSTILE: 0.1}
    return ClientVerdict(client_id=client, action=action, score=score, view_scores=views, **rest)  # type: ignore[arg-type]


def a_run(store: AuditStore, n_rounds: int = 3, mode: str = "filter") -> str:
    run_id = store.start_run({"mode": mode, "evil": HOSTILE, "training": {"lr": 0.1}})
    for server_round in range(1, n_rounds + 1):
        applied = mode != "monitor"
        verdicts = (
            verdict("good", Action.KEEP, 0.1),
            verdict("bad", Action.DROP, 0.9, reasons=("p = 0.01",), weight=0.0, applied=applied),
            verdict(HOSTILE, Action.REJECT, None, reasons=(HOSTILE,)),
            verdict("gone", Action.MISSING, None),
        )
        record = RoundRecord(
            server_round=server_round,
            mode=mode,
            verdicts=verdicts[: 4 if server_round > 1 else 3],
            shield_seconds=0.01,
            round_seconds=0.5,
            notes=(HOSTILE,),
        )
        store.write_round(run_id, record)
    store.finish_run(run_id)
    return run_id


class Tags(HTMLParser):
    """Collects tags and their attributes, and checks that every tag is closed."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def text_of(page: str) -> str:
    return " ".join(" ".join(parsed(page).text).split())


def test_the_report_loads_and_runs_nothing(tmp_path: Path) -> None:
    store = AuditStore(tmp_path / "audit.db")
    run_id = a_run(store)
    out = write_report(
        store,
        run_id,
        tmp_path / "new" / "report.html",
        title=HOSTILE,
        results={HOSTILE: {HOSTILE: HOSTILE}},
        extra_figures=[(HOSTILE, HOSTILE, PNG), ("svg", "", b"<?xml?><svg onload='alert(1)'/>")],
    )
    tags = parsed(out.read_text(encoding="utf-8"))
    names = {name for name, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object", "embed", "foreignobject", "base"}
    for name, attributes in tags.seen:
        assert not any(key.startswith("on") for key in attributes), (name, attributes)
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/")), (name, value)
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_report_says_what_happened() -> None:
    store = AuditStore("sqlite://")
    page = render_report(store, a_run(store))
    text = text_of(page)
    assert "Chain intact" in text
    assert store.head() in text
    assert "11 replies judged" in text
    assert "6 replies refused, 54.5 %" in text
    assert "2.0 % of round time in the shield" in text
    assert "training.lr 0.1" in text
    assert "round 2 drop p = 0.01" in text
    assert HOSTILE in " ".join(parsed(page).text)
    assert page.count("<svg") == 3
    assert "not applied" not in text


def test_monitor_mode_is_told() -> None:
    store = AuditStore("sqlite://")
    text = text_of(render_report(store, a_run(store, mode="monitor")))
    assert "3 decisions were not applied" in text


def test_several_runs_share_a_page_without_sharing_ids() -> None:
    store = AuditStore("sqlite://")
    first, second = a_run(store), a_run(store, 2)
    page = render_report(store, [first, second])
    assert render_report(store).count("<section") == page.count("<section") == 2
    assert first in page
    assert second in page
    ids = [str(a["id"]) for _, a in parsed(page).seen if str(a.get("id", "")).startswith("p")]
    clips = [name for name in ids if re.fullmatch(r"p[0-9a-f]{10}", name)]
    assert len(clips) == len(set(clips)) > 1


def test_a_broken_chain_is_told(tmp_path: Path) -> None:
    store = AuditStore(tmp_path / "audit.db")
    a_run(store)
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.execute("UPDATE shield_clients SET score = 0.5 WHERE client_id = 'bad'")
        connection.commit()
    text = text_of(render_report(store))
    assert "Chain broken" in text
    assert "client bad: its hash does not match" in text
    assert "Chain intact" not in text


def test_a_chain_without_its_key_is_not_called_intact(tmp_path: Path) -> None:
    a_run(AuditStore(tmp_path / "audit.db", key=b"k"))
    text = text_of(render_report(AuditStore(tmp_path / "audit.db")))
    assert "Not verified" in text
    assert "give that key" in text


def test_a_run_without_rounds_has_a_report() -> None:
    store = AuditStore("sqlite://")
    run_id = store.start_run({})
    page = render_report(store, run_id)
    assert "unfinished" in text_of(page)
    assert "<svg" not in page


def test_nothing_to_report_and_bad_figures_are_refused(tmp_path: Path) -> None:
    store = AuditStore("sqlite://")
    with pytest.raises(AuditError, match="no run yet"):
        render_report(store)
    run_id = store.start_run({})
    with pytest.raises(AuditError, match="neither PNG nor SVG"):
        render_report(store, run_id, extra_figures=[("f", "", b"GIF89a")])
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot write the report"):
        write_report(store, run_id, tmp_path / "file" / "report.html")


def test_the_heat_map_leaves_absent_cells_blank_and_orders_by_suspicion() -> None:
    store = AuditStore("sqlite://")
    figure = score_heat_map(list(store.verdicts(a_run(store))), title=HOSTILE)
    axes = figure.axes[0]
    (cells,) = axes.collections
    assert len(cells.get_paths()) == 3 + 3 + 3 + 2
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["bad", shortened(HOSTILE, 16), "good", "gone"]
    crosses = axes.lines[0]
    assert len(crosses.get_xdata()) == 3  # type: ignore[arg-type]


def test_the_heat_map_of_many_clients_shows_the_most_suspicious() -> None:
    store = AuditStore("sqlite://")
    run_id = store.start_run({})
    verdicts = tuple(
        verdict(str(client), Action.DROP if client == 299 else Action.KEEP, client / 300)
        for client in range(300)
    )
    store.write_round(run_id, RoundRecord(server_round=1, mode="filter", verdicts=verdicts))
    figure = score_heat_map(store.verdicts(run_id))
    axes = figure.axes[0]
    assert len(axes.collections[0].get_paths()) == 120
    assert axes.get_title(loc="left") == "the 120 most suspicious of 300 clients"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["299"]


def test_figures_of_nothing_are_drawn() -> None:
    assert score_heat_map([]).axes
    assert actions_by_round([]).axes
    assert view_contributions([]) is None


def test_figures_save_as_png_and_as_svg_that_follows_the_page() -> None:
    store = AuditStore("sqlite://")
    verdicts = list(store.verdicts(a_run(store)))
    figure = score_heat_map(verdicts)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")
    svg = inline_svg(score_heat_map(verdicts), "name")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert svg == inline_svg(score_heat_map(verdicts), "name")
    assert "<script" not in svg


def test_actions_are_stacked_by_round() -> None:
    store = AuditStore("sqlite://")
    figure = actions_by_round(store.verdicts(a_run(store)))
    heights = [[bar.get_height() for bar in stack] for stack in figure.axes[0].containers]
    assert heights == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]]


def test_view_contributions_are_means_of_refused_and_kept() -> None:
    store = AuditStore("sqlite://")
    figure = view_contributions(store.verdicts(a_run(store)))
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert axes.get_yticklabels()[0].get_text() == "update:fc1"
    refused, kept = ([bar.get_width() for bar in stack] for stack in axes.containers)
    assert refused[0] == pytest.approx((1.6 + 0.0) / 2)
    assert kept[0] == pytest.approx(-1.6)


def test_clients_are_summed_up() -> None:
    store = AuditStore("sqlite://")
    summary = summarise_run(store, a_run(store))
    by_id = {client.client_id: client for client in summary.clients}
    bad = by_id["bad"]
    assert (bad.n_rounds, bad.n_refused, bad.n_suspected) == (3, 3, 3)
    assert bad.mean_score == pytest.approx(0.9)
    assert by_id["gone"].mean_score is None
    assert by_id["good"].refusals == ()
    assert summary.shield_share == pytest.approx(0.02)


def test_results_as_in_results_json() -> None:
    federation = {
        "asr": 0.5,
        "rounds": [1, 2],
        "main_accuracy": None,
        "defense": "none",
        "x": 1.23456,
    }
    table = result_table(
        {"federations": [federation, {"main_accuracy": 0.9, "seed": 1, "ok": True}]}
    )
    assert table.columns == ("defense", "seed", "main accuracy", "ASR", "x", "ok")
    assert table.rows == (
        ("none", "–", "–", "50.0 %", "1.23", "–"),
        ("–", "1", "90.0 %", "–", "–", "yes"),
    )


def test_results_by_name() -> None:
    table = result_table({"a": {"round_seconds": 1.25}, "b": {"n": 2}})
    assert table.columns == ("", "round time", "n")
    assert table.rows == (("a", "1.2 s", "–"), ("b", "–", "2"))
    assert result_table({"accuracy": 0.5}).rows == (("accuracy", "0.5"),)
    assert result_table({"a": {"auc": 1.0}, "b": {"auc": 0.9968}}).rows[0] == ("a", "1.000")
