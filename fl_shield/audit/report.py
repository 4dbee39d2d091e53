"""One HTML file that tells what the shield did: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fl_shield.audit.chain import Verification
from fl_shield.audit.figures import (
    ACTION_COLOURS,
    actions_by_round,
    inline_svg,
    score_heat_map,
    view_contributions,
)
from fl_shield.audit.plain import plain_text
from fl_shield.audit.result_table import ResultTable, result_table
from fl_shield.audit.store import AuditStore
from fl_shield.audit.summary import RunSummary, run_name, summarise_run
from fl_shield.errors import AuditError
from fl_shield.types import Action

Figure = tuple[str, str, bytes]
"""Title, caption, and the bytes of a PNG or SVG file."""

MAX_REASONS = 6
"""Refusals that the report lists for one client; the database has all of them."""


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """One figure on the page: inline SVG of our own, or a data URI of somebody else's image."""

    title: str
    caption: str
    svg: Markup | None = None
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """One run on the page."""

    summary: RunSummary
    name: str
    head: str
    settings: Mapping[str, str]
    figures: Sequence[ReportFigure]


def write_report(
    store: AuditStore,
    run_ids: str | Sequence[str] | None = None,
    out: str | Path = "report.html",
    *,
    title: str | None = None,
    results: Mapping[str, Any] | None = None,
    extra_figures: Sequence[Figure] = (),
) -> Path:
    """Write one self-contained HTML file about one run or several.

    Parameters
    ----------
    store : AuditStore
        The audit; its chain is verified for the report.
    run_ids : str or sequence of str, optional
        Which runs, as :meth:`AuditStore.run` takes them; all without it. With several, the page
        opens with what they have in common, and each has a part of its own.
    out : str or Path
        Where to write; missing folders are made.
    title : str, optional
        The page's heading.
    results : mapping, optional
        What an experiment measured, shown as a table: see
        :func:`fl_shield.audit.result_table.result_table`.
    extra_figures : sequence of (title, caption, bytes)
        PNG or SVG images to show after the results. The audit holds no ground truth: who knows
        it, such as a simulation, shows it here.

    Returns
    -------
    Path
        The file written.

    Examples
    --------
    >>> import tempfile
    >>> store = AuditStore("sqlite://")
    >>> run_id = store.start_run({"mode": "filter"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(store, run_id, Path(folder) / "report.html").name
    'report.html'
    """
    path = Path(out)
    page = render_report(store, run_ids, title=title, results=results, extra_figures=extra_figures)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AuditError(
            f"cannot write the report to {path} ({error.strerror}): name a file that may be written"
        ) from error
    return path


def render_report(
    store: AuditStore,
    run_ids: str | Sequence[str] | None = None,
    *,
    title: str | None = None,
    results: Mapping[str, Any] | None = None,
    extra_figures: Sequence[Figure] = (),
) -> str:
    """Return the page that :func:`write_report` writes."""
    sections = [_section(store, run_id, i) for i, run_id in enumerate(_chosen(store, run_ids))]
    verification, unverified = _verified(store)
    return _template().render(
        title=title or _default_title(sections),
        database=store.name,
        written_at=datetime.now(UTC),
        sections=sections,
        results=_table(results),
        figures=[_extra(*figure) for figure in extra_figures],
        verification=verification,
        unverified=unverified,
        head=store.head(),
        max_reasons=MAX_REASONS,
    )


def _chosen(store: AuditStore, run_ids: str | Sequence[str] | None) -> Sequence[str]:
    if run_ids is None:
        run_ids = [run.run_id for run in store.runs()]
    chosen = [run_ids] if isinstance(run_ids, str) else list(run_ids)
    if not chosen:
        raise AuditError(f"{store.name} holds no run yet: there is nothing to report")
    return chosen


def _section(store: AuditStore, run_id: str, index: int) -> RunSection:
    summary = summarise_run(store, run_id)
    return RunSection(
        summary=summary,
        name=run_name(summary.run),
        head=store.head(summary.run.run_id),
        settings=_flat(summary.run.settings),
        figures=_run_figures(summary, f"run{index}"),
    )


def _default_title(sections: Sequence[RunSection]) -> str:
    return sections[0].name if len(sections) == 1 else f"{len(sections)} runs of the shield"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and short texts."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, list):
            flat[f"{prefix}{name}"] = ", ".join(map(str, value)) or "–"
        else:
            flat[f"{prefix}{name}"] = "–" if value is None else str(value)
    return flat


def _run_figures(summary: RunSummary, prefix: str) -> list[ReportFigure]:
    if not summary.verdicts:
        return []
    contributions = view_contributions(summary.verdicts)
    drawn = [
        ("Scores by client and round", _HEAT_MAP, score_heat_map(summary.verdicts)),
        ("Decisions by round", _ACTIONS, actions_by_round(summary.verdicts)),
        ("What gave them away", _VIEWS, contributions),
    ]
    return [
        ReportFigure(
            title=title, caption=caption, svg=Markup(inline_svg(figure, f"{prefix}-{index}"))
        )
        for index, (title, caption, figure) in enumerate(drawn)
        if figure is not None
    ]


_HEAT_MAP = (
    "One row a client, the most suspicious first; one cell a round it was asked in, coloured by "
    "its score. Blank: not asked. Grey: no score."
)
_ACTIONS = "What was decided on the clients of each round."
_VIEWS = (
    "Mean contribution of each view to the score's log-odds, for clients that lost their vote or "
    "part of it and for those that kept it; the views that set them apart most come first."
)


def _table(results: Mapping[str, Any] | None) -> ResultTable | None:
    return result_table(results) if results else None


def _verified(store: AuditStore) -> tuple[Verification | None, str]:
    """Return what the check found, or why there was none, such as a missing key."""
    try:
        return store.verify(), ""
    except AuditError as error:
        return None, str(error)


def _extra(title: str, caption: str, image: bytes) -> ReportFigure:
    if image.startswith(b"\x89PNG\r\n"):
        kind = "png"
    elif b"<svg" in image[:4096]:
        kind = "svg+xml"
    else:
        raise AuditError(
            f"the figure {title!r} is neither PNG nor SVG (it begins with {image[:8]!r}): "
            "pass the bytes of such a file"
        )
    uri = f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return ReportFigure(title=title, caption=caption, uri=uri)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fl_shield.audit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain_text
    environment.filters["number"] = _number
    environment.filters["share"] = _share
    environment.filters["duration"] = _duration
    environment.filters["moment"] = _moment
    environment.globals.update(
        Action=Action, colours={action.value: c for action, c in ACTION_COLOURS.items()}
    )
    return environment.get_template("report.html")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(part: float | None, whole: float = 1) -> str:
    if part is None or not whole:
        return "–"
    return f"{100 * part / whole:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"


def _moment(when: str | datetime) -> str:
    """Return a UTC time to the second."""
    text = when.isoformat() if isinstance(when, datetime) else when
    return f"{text[:19].replace('T', ' ')} UTC"
