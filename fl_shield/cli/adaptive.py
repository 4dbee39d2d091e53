"""``fl-shield evaluate --adaptive``: victims that are trained to evade the detector they know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fl_shield.cli.progress import named_steps
from fl_shield.errors import ScenarioError

console = Console(stderr=True)


def evaluate_adaptive(
    out: Path,
    *,
    pools: Sequence[str],
    penalties: str,
    n_each: int,
    seed: int,
    data_dir: Path | None,
    cache: Path,
    workers: int,
) -> None:
    """Train the victims, judge them, write the files and print the curves."""
    from fl_shield.detector import MetaShield
    from fl_shield.simulations.episodes.adversaries import cases_of
    from fl_shield.simulations.episodes.clean_models import Workplace
    from fl_shield.simulations.evaluation.adaptive import (
        AdaptiveStudy,
        curves,
        run_adaptive,
        write_adaptive,
    )

    study = AdaptiveStudy(
        weights=MetaShield.from_pretrained("inputs").weights,
        cases=cases_of(pools, with_files=data_dir is not None),
        penalties=_penalties(penalties),
        n_each=n_each,
        seed=seed,
        place=Workplace(data_dir=data_dir, cache=cache),
        n_workers=workers,
    )
    with named_steps(console) as report:
        rows = run_adaptive(study, report)
    files = write_adaptive(study, rows, out)
    _show(curves(rows))
    console.print(f"wrote {', '.join(path.name for path in files)} in {out}")


def _penalties(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ScenarioError(f"penalties must be numbers such as 0,0.1,1, got {text!r}") from None


def _show(points: Sequence[Mapping[str, Any]]) -> None:
    """Print one line for each fought detector and penalty, with the AUC of every detector."""
    detectors = list(dict.fromkeys(point["detector"] for point in points))
    shown = Table(title="adaptive victims: AUC with 20 clean inputs, means over victims")
    for column in ("fought", "penalty", "victims", "accuracy", "ASR", *detectors):
        left = column == "fought"
        shown.add_column(column, justify="left" if left else "right", no_wrap=column in detectors)
    lines: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for point in points:
        lines.setdefault((point["fought"], point["penalty"]), {})[point["detector"]] = point
    for (fought, penalty), by_detector in lines.items():
        first = next(iter(by_detector.values()))
        facts = [str(first["n_victims"]), f"{first['accuracy']:.3f}", f"{first['asr']:.3f}"]
        aucs = [_number(by_detector[name]["auc"]) for name in detectors]
        shown.add_row(fought, f"{penalty:g}", *facts, *aucs)
    Console().print(shown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
