"""Tables and figures of an evaluation, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_shield.simulations.evaluation.figures import (
    roc_figure,
    score_figure,
    shots_figure,
    transfer_figure,
)
from fl_shield.simulations.evaluation.judging import FPR_GRID, Row
from fl_shield.simulations.evaluation.tables import (
    PEERS,
    by_detector,
    by_shots,
    cells,
    easy_cells,
    grouped,
    paired,
    shots_needed,
    summary,
    victim_of,
)


def _row(detector: str, auc: float, seed: int = 0, **changes: Any) -> Row:
    split = "s" if detector.startswith("ours") else PEERS
    row = Row(
        detector=detector,
        split=split,
        n_shots=20,
        pool="digits",
        domain="cv",
        architecture="mlp",
        family="circle",
        seed=seed,
        auc=auc,
        tpr_at_fpr_5=auc - 0.1,
        tpr_5=0.9,
        fpr_5=0.04,
        tpr_1=0.5,
        fpr_1=0.0,
        f2_5=0.8,
        missed_flagged=float("nan"),
        fit_seconds=0.002,
        score_seconds=3e-6,
        roc=tuple(np.linspace(auc, 1, len(FPR_GRID)).tolist()),
    )
    return replace(row, **changes)


def test_a_summary_by_hand() -> None:
    aucs = [0.5, 0.6, *[1.0] * 18]
    rows = [_row("ours", auc, seed) for seed, auc in enumerate(aucs)]
    found = summary([*rows[:-1], replace(rows[-1], missed_flagged=0.25, fit_seconds=0.004)])
    assert found["n_victims"] == 20
    assert found["auc"] == pytest.approx(np.mean(aucs))
    assert found["worst_tenth"] == pytest.approx(0.55)  # two of twenty
    assert found["auc_low"] < found["auc"] < found["auc_high"] <= 1
    assert found["tpr_at_fpr_5"] == pytest.approx(np.mean(aucs) - 0.1)
    assert found["missed_flagged"] == 0.25  # of the one victim that has any
    assert found["fit_ms"] == pytest.approx(2.1)
    assert found["score_us"] == pytest.approx(3)
    few = summary([_row("ours", 0.7), _row("ours", 0.9, 1, fit_seconds=float("nan"))])
    assert few["worst_tenth"] == pytest.approx(0.7)  # at least one
    assert few["missed_flagged"] is None
    assert summary([_row("ours", 0.7, fit_seconds=float("nan"))])["fit_ms"] == 0


def test_peers_are_judged_on_the_victims_of_the_split() -> None:
    rows = [_row("ours", 0.9, 0), _row("ours", 0.7, 1), _row("ours", 0.1, 0, n_shots=5)]
    rows += [_row("ours", 0.2, 0, split="t"), _row("knn", 0.95, 0), _row("knn", 0.75, 1)]
    rows += [_row("knn", 0.0, 2), _row("knn", 0.0, 0, family="warp"), _row("gmm", 0.6, 1)]
    table = by_detector(rows, "s", 20)
    assert {n: (t["n_victims"], round(t["auc"], 3)) for n, t in table.items()} == {
        "knn": (2, 0.85),
        "ours": (2, 0.8),
        "gmm": (1, 0.6),
    }
    assert list(table) == ["knn", "ours", "gmm"]
    assert by_detector(rows, "nowhere", 20) == {}


def test_easy_cells_are_left_out_of_the_second_mean() -> None:
    rows = [_row("ours", 0.9, 0), _row("ours", 1.0, 1, family="warp"), _row("knn", 0.6, 0)]
    rows += [_row("confidence", 0.8, 0), _row("confidence", 0.7, 2, family="warp")]
    rows += [_row("confidence", 0.9, 1, family="warp"), _row("gmm", 0.5, 1, family="warp")]
    table = by_detector(rows, "s", 20)
    told = {n: (t["auc"], t["n_without_easy"], t["auc_without_easy"]) for n, t in table.items()}
    assert told["ours"] == (pytest.approx(0.95), 1, 0.9)  # 0.8 is not above 0.8
    assert told["confidence"] == (pytest.approx(0.85), 1, 0.8)
    assert told["knn"] == (0.6, 1, 0.6)
    assert told["gmm"] == (0.5, 0, None)
    shared = [row for row in rows if row.seed < 2]
    assert easy_cells(shared) == {("digits", "warp")}
    assert easy_cells(rows) == set()  # of all victims together 0.8
    marks = {c["family"]: c["easy"] for c in cells(rows, "s", 20, "ours", ("knn",))}
    assert marks == {"circle": False, "warp": True}


def test_pairs_by_victim() -> None:
    rows = [_row("ours", 0.9, 0), _row("ours", 0.8, 1), _row("ours-x", 0.9, 0)]
    rows += [_row("knn", 0.4, 1), _row("knn", 0.8, 0), _row("knn", 0.0, 7), _row("gmm", 1.0, 9)]
    found = paired(rows, "s", 20, "ours")
    assert set(found) == {"knn", "ours-x"}  # gmm shares no victim
    assert found["knn"]["n_victims"] == 2
    assert found["knn"]["difference"] == pytest.approx(0.25)
    assert 0.1 - 1e-9 <= found["knn"]["low"] <= 0.25 <= found["knn"]["high"] <= 0.4 + 1e-9
    assert found["knn"]["error_ratio"] == pytest.approx((0.1 + 0.2) / (0.6 + 0.2))
    assert found["ours-x"]["difference"] == 0
    perfect = paired([_row("ours", 1.0), _row("knn", 1.0)], "s", 20, "ours")
    assert perfect["knn"]["error_ratio"] == 0


def test_cells_name_the_best_peer_and_mark_what_is_easy() -> None:
    rows = [_row("ours", 0.9, 0), _row("knn", 0.7, 0), _row("gmm", 0.6, 0), _row("strip", 1.0, 0)]
    rows += [_row("confidence", 0.5, 0), _row("confidence", 1.0, 5)]  # not a victim of ours
    rows += [_row("ours", 1.0, 1, family="warp"), _row("confidence", 0.85, 1, family="warp")]
    rows += [_row("knn", 0.9, 1, family="patch"), _row("ours", 0.8, 2, pool="glyphs")]
    first, easy, alone = cells(rows, "s", 20, "ours", ("confidence", "knn", "gmm"))
    assert (first["pool"], first["family"], first["n_victims"]) == ("digits", "circle", 1)
    assert (first["auc"], first["best_peer"], first["best_peer_auc"]) == (0.9, "knn", 0.7)
    assert (first["confidence"], first["easy"]) == (0.5, False)
    assert (easy["family"], easy["best_peer"], easy["easy"]) == ("warp", "confidence", True)
    assert (alone["pool"], alone["best_peer"], alone["best_peer_auc"]) == ("glyphs", None, None)
    assert (alone["confidence"], alone["easy"]) == (None, False)


def test_shots_that_are_needed() -> None:
    rows = [_row("ours", 0.9, n_shots=n, tpr_5=tpr) for n, tpr in ((20, 0.9), (5, 0.5), (10, 0.95))]
    rows += [_row("ours", 0.9, n_shots=3, split="t"), _row("knn", 0.9, n_shots=3)]
    found = by_shots(rows, "s", "ours")
    assert list(found) == [5, 10, 20]
    assert shots_needed(found) == 10
    alarms = by_shots([replace(row, fpr_5=0.051) for row in rows], "s", "ours")
    assert shots_needed(alarms) is None
    assert shots_needed({}) is None


def test_grouping_keeps_the_order_and_victims_have_names() -> None:
    rows = [_row("b", 0.1), _row("a", 0.2), _row("b", 0.3)]
    found = grouped(rows, lambda row: row.detector)
    assert {name: [r.auc for r in group] for name, group in found.items()} == {
        "b": [0.1, 0.3],
        "a": [0.2],
    }
    assert list(found) == ["b", "a"]
    assert victim_of(rows[0]) == ("digits", "circle", 0)


def _rows() -> list[Row]:
    names = ("ours", "ours-unadapted", *(f"peer{i}" for i in range(8)))
    return [
        _row(name, 0.6 + 0.03 * i, seed, n_shots=n)
        for i, name in enumerate(names)
        for seed in (0, 1)
        for n in (10, 20)
    ]


def _labels(figure: Any) -> list[str]:
    (legend,) = figure.legends or [figure.axes[0].get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def test_a_roc_of_ours_and_the_best_six(tmp_path: Path) -> None:
    figure = roc_figure(_rows(), "s", 20, "ours")
    assert _labels(figure) == [*(f"peer{i}" for i in range(7, 1, -1)), "ours"]
    assert "2 victims" in figure.axes[0].get_title()
    figure.savefig(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_lines_by_number_of_shots(tmp_path: Path) -> None:
    figure = shots_figure([*_rows(), _row("strip", 1.0)], "s", "ours")
    assert _labels(figure) == [
        *(f"peer{i}" for i in range(7, 1, -1)),  # strip has one number only: no line
        *("ours", "ours-unadapted"),
    ]
    line = figure.axes[0].lines[-2]
    assert line.get_xdata().tolist() == [10, 20]  # type: ignore[union-attr]
    np.testing.assert_allclose(np.asarray(line.get_ydata()), 0.6)
    figure.savefig(tmp_path / "shots.png")


def test_transfer_and_scores_are_drawn(tmp_path: Path) -> None:
    figure = transfer_figure({"cv": {"cv": 0.9, "rl": 0.7}, "rl": {"rl": 0.95}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.900", "0.700", "0.950"]
    figure.savefig(tmp_path / "transfer.png")
    figure = score_figure(np.array([-99.0, 0, 1]), np.array([5.0, 99.0]))
    assert _labels(figure) == ["clean", "triggered"]
    heights = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    np.testing.assert_allclose(heights, 1)  # what lies beyond is at the edge
    score_figure(np.zeros(0), np.zeros(0)).savefig(tmp_path / "empty.png")
