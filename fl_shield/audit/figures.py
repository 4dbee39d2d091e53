"""Figures of an audit: scores by client and round, decisions by round, what gave clients away.

Figures are made without pyplot, so that no backend is chosen and nothing global changes. Their
ink is :data:`INK`, which :func:`inline_svg` turns into ``currentColor``: inside a page a figure
follows the page's light or dark scheme, and elsewhere it is a dark grey.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fl_shield.audit.records import REFUSED, AuditedVerdict
from fl_shield.audit.summary import ClientSummary, summarise_clients
from fl_shield.types import Action

INK = "#20252b"
"""Text and axes."""

GREY = "#8b949e"
"""What has no score, and lines behind the data."""

ACTION_COLOURS = {
    Action.KEEP: "#7fa6c9",
    Action.DOWNWEIGHT: "#e3a33b",
    Action.DROP: "#cf3f2e",
    Action.REJECT: "#8552a8",
    Action.MISSING: "#b3bac1",
}
"""One colour an action, told apart by colour-blind readers too."""

SUSPICION = LinearSegmentedColormap.from_list(
    "suspicion", ["#d3e0eb", "#aac5da", "#efcf9c", "#e28a4f", "#c4341f"]
)
"""From 0, nothing suspicious, to 1."""

MAX_CLIENTS = 120
"""Rows of a heat map; beyond them only the most suspicious clients are drawn."""

_MAX_VECTOR_CELLS = 6000
_MARKS = {Action.DROP: "x", Action.REJECT: "x", Action.DOWNWEIGHT: "_", Action.MISSING: "."}


def score_heat_map(
    verdicts: Iterable[AuditedVerdict], *, title: str = "", max_clients: int = MAX_CLIENTS
) -> Figure:
    """Draw scores by client (row) and round (column); a client not asked is a blank cell.

    Parameters
    ----------
    verdicts : iterable of AuditedVerdict
        One run, as :meth:`AuditStore.verdicts` gives it. The last word on a cell counts.
    title : str
        Above the figure.
    max_clients : int
        Draw the most suspicious only, where there are more.

    Returns
    -------
    matplotlib.figure.Figure
        Clients are ordered by suspicion, from the top. Crosses mark clients that lost their vote
        (drop, reject), dashes those whose vote was made smaller, dots replies that never came.

    Examples
    --------
    >>> from fl_shield.types import ClientVerdict
    >>> verdict = ClientVerdict(client_id="7", action=Action.DROP, score=0.9)
    >>> entry = AuditedVerdict(seq=3, run_id="r", server_round=1, verdict=verdict)
    >>> len(score_heat_map([entry]).axes)  # the map and its colour bar
    2
    """
    entries = list(verdicts)
    everyone = summarise_clients(entries)
    clients = everyone[:max_clients]
    row_of = {client.client_id: row for row, client in enumerate(clients)}
    cells = {
        (e.server_round, row_of[e.verdict.client_id]): e
        for e in entries
        if e.verdict.client_id in row_of
    }
    height = min(max(0.2 * len(clients), 0.6), max(5.0, 0.085 * len(clients))) + 1.1
    figure, axes = _axes(height)
    _draw_cells(axes, cells)
    _mark_cells(axes, cells, size=min(4.5, 52 * (height - 1.1) / max(len(clients), 1) * 0.55))
    _label_clients(axes, clients)
    rounds = sorted({entry.server_round for entry in entries}) or [1]
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    axes.set_ylim(max(len(clients), 1) - 0.5, -0.5)
    _label_rounds(axes)
    _key(figure, axes, {entry.verdict.action for entry in cells.values()})
    hidden = len(everyone) - len(clients)
    shown = f"the {len(clients)} most suspicious of {len(everyone)} clients" if hidden else ""
    axes.set_title(", ".join(filter(None, (title, shown))), loc="left", parse_math=False, pad=22)
    return figure


def actions_by_round(verdicts: Iterable[AuditedVerdict]) -> Figure:
    """Draw how many clients were kept, downweighted, dropped, rejected and missing, by round."""
    entries = list(verdicts)
    rounds = sorted({entry.server_round for entry in entries})
    counted = Counter((entry.server_round, entry.verdict.action) for entry in entries)
    figure, axes = _axes(2.6)
    bottom = [0] * len(rounds)
    for action, colour in ACTION_COLOURS.items():
        counts = [counted[server_round, action] for server_round in rounds]
        if any(counts):
            axes.bar(rounds, counts, bottom=bottom, color=colour, width=0.82, label=action.value)
        bottom = [b + c for b, c in zip(bottom, counts, strict=True)]
    _label_rounds(axes)
    axes.set_ylabel("clients")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if rounds:
        axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
        axes.legend(**_LEGEND, ncols=5)
    return figure


def view_contributions(verdicts: Iterable[AuditedVerdict], *, max_views: int = 12) -> Figure | None:
    """Draw the mean contribution of each view to the log-odds: refused clients beside kept ones.

    Parameters
    ----------
    verdicts : iterable of AuditedVerdict
        One run.
    max_views : int
        Draw those that set the two groups apart most.

    Returns
    -------
    matplotlib.figure.Figure or None
        None where nobody was refused, or no view was scored.
    """
    entries = list(verdicts)
    refused = _mean_views([e for e in entries if e.verdict.action in (*REFUSED, Action.DOWNWEIGHT)])
    kept = _mean_views([e for e in entries if e.verdict.action is Action.KEEP])
    if not refused:
        return None
    names = sorted(refused, key=lambda name: kept.get(name, 0.0) - refused[name])[:max_views]
    figure, axes = _axes(0.27 * len(names) + 0.9)
    rows = range(len(names))
    axes.axvline(0, color=GREY, linewidth=0.8)
    for means, action, label in ((refused, Action.DROP, "refused"), (kept, Action.KEEP, "kept")):
        offset = -0.19 if means is refused else 0.19
        widths = [means.get(name, 0.0) for name in names]
        places = [row + offset for row in rows]
        axes.barh(places, widths, height=0.36, color=ACTION_COLOURS[action], label=label)
    axes.set_yticks(list(rows), [shortened(name, 32) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("mean contribution to the log-odds (right: suspicious)")
    axes.legend(**_LEGEND, ncols=2)
    return figure


def inline_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element to put into an HTML page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        As made here.
    name : str
        Distinguishes its ids from those of other figures on the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", text)


def shortened(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters, its middle left out.

    Examples
    --------
    >>> shortened("12345678901234567890", 9)
    '1234…7890'
    """
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[-half:]}"


_LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1.0),
    "frameon": False,
    "fontsize": 8,
    "labelcolor": INK,
    "handlelength": 1.2,
    "borderaxespad": 0.2,
    "columnspacing": 1.4,
}


def _axes(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width, 7.6 inches, with quiet axes."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
        label.set_fontsize(9)
    axes.set_facecolor("none")
    return figure, axes


def _label_rounds(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("round")


def _draw_cells(axes: Axes, cells: dict[tuple[int, int], AuditedVerdict]) -> None:
    patches = [Rectangle((x - 0.46, y - 0.44), 0.92, 0.88) for x, y in cells]
    scores = [entry.verdict.score for entry in cells.values()]
    colours = ["#c9ced4" if score is None else SUSPICION(score) for score in scores]
    drawn = PatchCollection(patches, facecolors=colours, linewidths=0)
    drawn.set_rasterized(len(patches) > _MAX_VECTOR_CELLS)
    axes.add_collection(drawn)


def _mark_cells(axes: Axes, cells: dict[tuple[int, int], AuditedVerdict], *, size: float) -> None:
    for action, marker in _MARKS.items():
        places = [place for place, entry in cells.items() if entry.verdict.action is action]
        if places:
            xs, ys = zip(*places, strict=True)
            line = axes.plot(xs, ys, marker, color="#101418", markersize=max(size, 1.5))[0]
            line.set_markeredgewidth(0.9)


def _label_clients(axes: Axes, clients: Sequence[ClientSummary]) -> None:
    """Name every client where there is room, otherwise only those that were suspected."""
    named = list(enumerate(clients))
    if len(clients) > 45:
        named = [(row, client) for row, client in named if client.n_suspected]
        step = max(1, -(-len(named) // 45))
        named = named[::step]
    labels = [shortened(client.client_id, 16) for _, client in named]
    axes.set_yticks([row for row, _ in named], labels, parse_math=False)
    axes.tick_params(axis="y", labelsize=7 if len(clients) <= 45 else 5.5)
    axes.set_ylabel("client, the most suspicious first")


def _key(figure: Figure, axes: Axes, actions: set[Action]) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), SUSPICION),
        ax=axes,
        fraction=0.025,
        pad=0.015,
        aspect=20,
        shrink=min(1.0, 2.4 / figure.get_figheight()),
        anchor=(0, 1),
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8, length=0)
    bar.set_label("score", color=INK, fontsize=9)
    words = {"x": "lost its vote", "_": "vote made smaller", ".": "no reply"}
    used = dict.fromkeys(_MARKS[action] for action in _MARKS if action in actions)
    handles = [
        Line2D([], [], linestyle="", marker=m, color=INK, markersize=5, label=words[m])
        for m in used
    ]
    if handles:
        axes.legend(handles=handles, **_LEGEND, ncols=3)


def _mean_views(entries: Sequence[AuditedVerdict]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for entry in entries:
        for name, score in entry.verdict.view_scores.items():
            sums.setdefault(name, []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in sums.items()}
