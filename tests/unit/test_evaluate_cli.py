"""``fl-shield evaluate`` from end to end on a few victims, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fl_shield.cli import main
from fl_shield.cli.evaluate import app
from fl_shield.detectors import ONE_PASS
from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.clean_models import RECIPES, Recipe, Workplace
from fl_shield.simulations.episodes.pool_facts import POOLS
from fl_shield.simulations.evaluation.judging import Row
from fl_shield.simulations.evaluation.results import Results, transfer, write
from fl_shield.simulations.evaluation.settings import Evaluation

TINY = Recipe(n_train=1000, n_steps=250, n_warm_steps=50, lr=5e-3, warm_lr=2e-3)
KEPT = ("cartpole", "mountaincar")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Two data sets only, and recipes of a moment."""
    everything = dict(POOLS)
    with pytest.MonkeyPatch.context() as patch:
        for pool in set(POOLS) - set(KEPT):
            patch.delitem(POOLS, pool)
        patch.setitem(RECIPES, "state", TINY)
        yield
    for pool, facts in everything.items():  # what was deleted has come back at the end
        del POOLS[pool]  # type: ignore[attr-defined]
        POOLS[pool] = facts  # type: ignore[index]


@pytest.fixture(scope="module")
def folder(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the cache and the results of one evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    result = _run(folder)
    assert result.exit_code == 0, result.output
    assert "trigger-held-out: 2 victims, 20 clean inputs" in result.stdout
    assert "metashield" in result.stdout
    assert "easy cells (AUC of confidence alone)" in result.stdout
    assert "false-positive rates that were promised and realised" in result.stdout
    return folder


def _run(folder: Path, out: str = "out", **changes: str) -> Result:
    settings = {"tables": "trigger,dataset,domain", "domains": "rl", "victims": "8", "each": "1"}
    settings |= {"epochs": "1", "draws": "1", "shots": "5,20", "workers": "1", **changes}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    places = ["--out", str(folder / out), "--cache", str(folder / "cache")]
    return CliRunner().invoke(app, [*words, *places])


def _read(folder: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "results.json").read_text())
    return found


def test_tables_are_written(folder: Path) -> None:
    found = _read(folder)
    # without the one domain that takes part nothing is left to learn from: no such table
    assert list(found["tables"]) == ["trigger-held-out", *(f"dataset-{pool}" for pool in KEPT)]
    for table in found["tables"].values():
        assert {"metashield", "metashield-unadapted", *ONE_PASS} <= set(table)
        assert all(0 <= row["auc"] <= 1 for row in table.values())
        aucs = [row["auc"] for row in table.values()]
        assert aucs == sorted(aucs, reverse=True)
    assert "strip" in found["tables"]["trigger-held-out"]  # recorded while the victims lived
    assert {row["family"] for row in found["cells"]["trigger-held-out"]} == {"state_pair"}
    assert set(found["shots"]["trigger-held-out"]) == {"5", "20"}
    for split, found_cells in found["cells"].items():
        assert found["easy_cells"][split] == [c for c in found_cells if c["easy"]]
    lines = found["calibration"]
    assert {(x["n_shots"], x["budget"]) for x in lines} == {
        (n, budget) for n in (5, 20) for budget in (0.05, 0.01)
    }
    kept = {x["victims"]: x["n_victims"] for x in lines}
    assert kept.pop("stamped, left-out data sets", 1) <= 2  # clean victims are few
    assert kept.pop("left-out data sets, each counted once") == 2
    assert kept == {"held-out triggers": 2, "all": 4, "left-out data sets": 12}
    assert found["transfer"] == {}
    assert found["settings"]["pools"] == list(KEPT)
    assert {row["n_victims"] for row in found["victims"]} == {1}
    assert {row["pool"] for row in found["victims"]} == set(KEPT)


def test_rows_and_figures_are_written(folder: Path) -> None:
    with (folder / "out" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["n_shots"] for row in rows} == {"5", "20"}
    assert {row["split"] for row in rows} == {
        *("peers", "trigger-held-out"),
        *(f"dataset-{pool}" for pool in KEPT),
    }
    ours = [r for r in rows if r["detector"] == "metashield" and r["split"].startswith("dataset-")]
    assert all(row["split"] == f"dataset-{row['pool']}" for row in ours)
    names = {"results.json", "rows.csv", "shots.png", "scores.png", "roc-trigger-held-out.png"}
    names |= {f"roc-dataset-{pool}.png" for pool in KEPT}
    assert {path.name for path in (folder / "out").iterdir()} == names
    assert all(path.stat().st_size > 500 for path in (folder / "out").iterdir())


def test_a_second_run_goes_on_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.*")}
    told = _read(folder)
    assert {path.suffix for path in before} == {".npz", ".safetensors"}
    monkeypatch.setattr("fl_shield.simulations.episodes.recordings.simulate_victims", refuse)
    monkeypatch.setattr("fl_shield.simulations.evaluation.learning.fit_weights", refuse)
    result = _run(folder, "again", shots="20")
    assert result.exit_code == 0, result.output
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.*")}
    again = _read(folder, "again")
    assert again["paired"] == told["paired"]
    assert again["cells"] == told["cells"]
    assert again["victims"] == told["victims"]
    assert not (folder / "again" / "shots.png").exists()  # one number of them makes no line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": "trigger,colour"}, "a table must be one of trigger, dataset.*got 'colour'"),
        ({"tables": ","}, "a table must be one of trigger.*got none"),
        ({"domains": "rl,audio"}, "domains must be some of cv, nlp, rl, fl, got 'rl, audio'"),
        ({"shots": "5,10"}, r"shots must hold 20, .* got \(5, 10\)"),
        ({"shots": "20,3"}, r"shots must be in 4\.\.50, .* got \(20, 3\)"),
        ({"shots": "20,60"}, r"shots must be in 4\.\.50, .* got \(20, 60\)"),
        ({"shots": "20,few"}, "whole numbers such as 5,10,20, got '20,few'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_simulated(
    small: None, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    result = _run(tmp_path, **changes)
    assert isinstance(result.exception, ScenarioError)
    with pytest.raises(ScenarioError, match=message):
        raise result.exception
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_leaves_nothing_to_learn_from_is_refused(folder: Path) -> None:
    result = _run(folder, "none", tables="domain")
    assert isinstance(result.exception, ScenarioError)
    assert "nothing is left to learn from for domain with rl" in str(result.exception)


def test_the_command_line_says_one_sentence(
    small: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["fl-shield", "evaluate", "--out", str(tmp_path), "--tables", "colour"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("fl-shield: a table must be one of")


def _evaluation(cache: Path) -> Evaluation:
    return Evaluation(
        axes=("transfer",),
        domains=("rl",),
        pools=(),
        n_victims=4,
        n_each=1,
        n_digits=0,
        n_glyphs=0,
        n_epochs=1,
        n_draws=1,
        shots=(20,),
        ablate=False,
        seed=0,
        place=Workplace(data_dir=None, cache=cache),
        n_workers=1,
    )


def _row(split: str, domain: str, auc: float, n_shots: int = 20) -> Row:
    words = {"architecture": "mlp", "family": "patch", "pool": domain, "domain": domain}
    names = ("tpr_at_fpr_5", "tpr_5", "fpr_5", "tpr_1", "fpr_1", "f2_5", "missed_flagged")
    numbers = dict.fromkeys((*names, "fit_seconds", "score_seconds"), 0.5)
    told: dict[str, Any] = {**words, **numbers, "seed": 0, "auc": auc, "n_shots": n_shots}
    return Row(detector="metashield", split=split, **told)


def test_transfer_by_the_domain_that_was_learned_from(small: None, tmp_path: Path) -> None:
    rows = [_row("transfer-cv", "cv", 0.9), _row("transfer-cv", "rl", 0.5)]
    rows += [_row("transfer-cv", "rl", 0.7), _row("transfer-rl", "rl", 1.0)]
    rows += [_row("transfer-rl", "rl", 0.0, n_shots=5), _row("trigger-held-out", "cv", 0.1)]
    assert transfer(rows) == {"cv": {"cv": 0.9, "rl": pytest.approx(0.6)}, "rl": {"rl": 1.0}}
    assert transfer([]) == {}
    bare: dict[str, Any] = {"tables": {}, "victims": [], "scores": ([], []), "alarms": []}
    results = Results(rows=rows, **bare)
    files = write(_evaluation(tmp_path), results, tmp_path / "out")
    assert [path.name for path in files] == ["results.json", "rows.csv", "transfer.png"]
    assert json.loads(files[0].read_text())["transfer"]["rl"] == {"rl": 1.0}
    nothing = Results(rows=[], **bare)
    assert len(write(_evaluation(tmp_path), nothing, tmp_path / "bare")) == 2
