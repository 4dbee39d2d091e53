"""What a campaign leaves for people to look at: figures, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_shield.audit import AuditStore, write_report
from fl_shield.simulations.campaign import RESULTS_FILE, Campaign
from fl_shield.simulations.figures import draw_figures

REPORT_FILE = "report.html"
_ROUNDS_CAPTION = (
    "Attack success rate on stamped test inputs and accuracy on clean ones, after each round; "
    "the dotted line marks the first round of the attack."
)
_SCORES_CAPTION = (
    "The shield's score of each client in each round. Dots are attacks (known to the simulation "
    "only), squares are updates that the shield rejected."
)


def write_artifacts(campaign: Campaign, entries: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw the figures, write the report where a shield kept an audit, and return the files."""
    figures = draw_figures(entries, campaign.out)
    written = [campaign.out / RESULTS_FILE, *figures]
    runs = [entry["audit"]["run_id"] for entry in entries if entry["audit"]]
    if runs:
        report = write_report(
            AuditStore(campaign.audit_url, create=False),
            runs,
            campaign.out / REPORT_FILE,
            title=_title(entries),
            results={"federations": [_row(entry) for entry in entries]},
            extra_figures=[_captioned(path) for path in figures],
        )
        written.append(report)
    return written


def _title(entries: Sequence[Mapping[str, Any]]) -> str:
    attacks = dict.fromkeys(entry["attack"] for entry in entries if entry["attack"] != "none")
    return f"{entries[0]['settings']['dataset']}: {', '.join(attacks) or 'no attack'}"


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("attack", "defense", "seed", "main_accuracy", "asr", "asr_peak", "tpr", "fpr")
    shielded = entry["defense"] == "shield"
    return {
        **{name: entry[name] for name in shown},
        "auc": entry["score_auc"],
        "shield_share": entry["shield_seconds"] / entry["round_seconds"] if shielded else None,
    }


def _captioned(path: Path) -> tuple[str, str, bytes]:
    kind, _, rest = path.stem.partition("-")
    if kind == "rounds":
        return f"By round: {rest}", _ROUNDS_CAPTION, path.read_bytes()
    return f"Scores: {rest}", _SCORES_CAPTION, path.read_bytes()
