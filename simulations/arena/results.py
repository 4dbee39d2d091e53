"""Files of a finished contest: results.json, cells.csv, and figures."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_shield.simulations.arena.contest import Contest
from fl_shield.simulations.arena.figures import draw_maps, roc_figure
from fl_shield.simulations.arena.summary import standings
from fl_shield.simulations.campaign import versions, write_json

Entry = Mapping[str, Any]
_LONG = ("rounds", "settings", "versions", "audit")


def write_results(
    contest: Contest, recorded: Sequence[Entry], closed: Sequence[Entry]
) -> list[Path]:
    """Write the tables and figures of a contest, and return the files."""
    contest.out.mkdir(parents=True, exist_ok=True)
    results, cells = contest.out / "results.json", contest.out / "cells.csv"
    write_json(results, described(contest, recorded, closed))
    with cells.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(recorded[0]))
        writer.writeheader()
        writer.writerows(recorded)
    return [results, cells, *draw_maps(recorded, contest.out), *_draw_rocs(contest)]


def _draw_rocs(contest: Contest) -> list[Path]:
    scored = contest.scored()
    if not scored:
        return []
    path = contest.out / "roc.png"
    roc_figure(scored).savefig(path)
    return [path]


def described(
    contest: Contest, recorded: Sequence[Entry], closed: Sequence[Entry]
) -> dict[str, Any]:
    """All figures of a contest, as plain values."""
    scenario = contest.table.recorded("none", contest.seeds[0])
    return {
        "table": contest.table.name,
        "title": contest.table.title,
        "settings": scenario.to_dict(),
        "attack_options": json.loads(json.dumps(contest.table.attack_options, default=dict)),
        "seeds": list(contest.seeds),
        "standings": [asdict(standing) for standing in standings(recorded)],
        "recorded": list(recorded),
        "closed": [{k: v for k, v in entry.items() if k not in _LONG} for entry in closed],
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
