"""The study of victims that fight back: who trains, what is cached, written and refused."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_shield.cli import main
from fl_shield.cli.evaluate import app
from fl_shield.errors import ScenarioError
from fl_shield.meta import MetaConfig
from fl_shield.simulations.episodes import adversaries as adversaries_module
from fl_shield.simulations.episodes.adversaries import (
    CASES,
    NOBODY,
    Adversary,
    Case,
    adversary_path,
    cases_of,
)
from fl_shield.simulations.episodes.clean_models import RECIPES, Recipe, Workplace, pool_of
from fl_shield.simulations.evaluation.adaptive import (
    AdaptiveRow,
    AdaptiveStudy,
    curves,
    run_adaptive,
    write_adaptive,
)
from fl_shield.simulations.evaluation.figures import adaptive_figure
from fl_shield.weights import Weights, blank_weights

TINY = Recipe(n_train=900, n_steps=150, n_warm_steps=40, lr=5e-3, warm_lr=3e-3)
CARTPOLE = Case(pool="cartpole", family="state_pair", architecture="policy-mlp")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """An empty cache, recipes of a moment, and any attack counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "state", TINY)
        patch.setattr("fl_shield.simulations.evaluation.adaptive.MIN_ASR", 0.5)
        yield Workplace(data_dir=None, cache=tmp_path_factory.mktemp("cache"))


def _study(place: Workplace, **changes: Any) -> AdaptiveStudy:
    settings: dict[str, Any] = {"cases": (CARTPOLE,), "penalties": (0.0, 1.0), "fought": ("knn",)}
    return AdaptiveStudy(weights=blank_weights(), place=place, **(settings | changes))


@pytest.fixture(scope="module")
def rows(place: Workplace) -> list[AdaptiveRow]:
    """What the study of one case and one peer finds."""
    return run_adaptive(_study(place))


def test_each_victim_is_judged_beside_its_twin(rows: list[AdaptiveRow]) -> None:
    assert [(r.fought, r.penalty, r.detector) for r in rows] == [
        (NOBODY, 0.0, "knn"),
        ("knn", 1.0, "knn"),
    ]
    plain, fights = rows
    assert (plain.accuracy_cost, plain.asr_cost) == (0, 0)
    assert fights.accuracy_cost == pytest.approx(plain.accuracy - fights.accuracy)
    assert fights.asr_cost == pytest.approx(plain.asr - fights.asr)
    assert plain.asr >= 0.5
    assert plain.auc is not None
    assert fights.auc is not None
    assert fights.auc < plain.auc


def test_a_second_run_goes_on_from_the_cache(
    place: Workplace, rows: list[AdaptiveRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(adversaries_module, "simulate_adversary", refuse)
    assert run_adaptive(_study(place)) == rows
    with pytest.raises(AssertionError, match="made again"):
        run_adaptive(_study(place, penalties=(0.0, 2.0)))


def test_the_attacker_and_the_defender_share_no_input(
    place: Workplace, rows: list[AdaptiveRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def watch(model: Any, samples: Any, triggered: Any, fight: Any, *_: Any, **__: Any) -> None:
        told.update(samples=samples, triggered=triggered, clean=fight.clean)

    monkeypatch.setattr(adversaries_module, "train_fighting", watch)
    twin = _study(place).twin(CARTPOLE, 0)
    adversaries_module.simulate_adversary(twin, blank_weights(), place)
    own = {x.tobytes() for x in told["clean"]}
    clean = told["samples"].x[~told["triggered"]]
    assert len(own) == 20
    assert not own & {x.tobytes() for x in clean}
    pool = pool_of("cartpole", place)
    assert not own & {x.tobytes() for x in pool.test.x}
    assert len(clean) == TINY.n_train - 20
    assert (told["samples"].y[told["triggered"]] == twin.setting.target_label).all()


def test_victims_are_kept_by_all_that_their_training_follows_from(place: Workplace) -> None:
    ours = Adversary(case=CARTPOLE, seed=1, fought="metashield", penalty=1.0)
    peer = replace(ours, fought="knn")
    first, other = blank_weights(0), blank_weights(1)
    paths = {
        adversary_path(a, w, place)
        for a in (ours, peer, replace(ours, penalty=2.0), replace(ours, seed=2))
        for w in (first, other)
    }
    assert len(paths) == 7  # a victim that fights a peer does not know our weights
    assert adversary_path(ours, first, place) != adversary_path(ours, other, place)
    assert adversary_path(peer, first, place) == adversary_path(peer, other, place)


def test_victims_whose_attack_never_works_are_no_beginning(
    place: Workplace, rows: list[AdaptiveRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_shield.simulations.evaluation.adaptive.MIN_ASR", 1.1)
    monkeypatch.setattr("fl_shield.simulations.evaluation.adaptive.MOST_TRIES", 1)
    with pytest.raises(ScenarioError, match=r"no attack of 1 victims .* ASR of 1.1: draw others"):
        run_adaptive(_study(place))


# Curves and files --------------------------------------------------------------------------------


def _row(fought: str, penalty: float, detector: str, auc: float | None, asr: float) -> AdaptiveRow:
    return AdaptiveRow(
        pool="digits",
        domain="cv",
        family="circle",
        architecture="cnn",
        seed=0,
        fought=fought,
        penalty=penalty,
        detector=detector,
        accuracy=0.9,
        asr=asr,
        accuracy_cost=0.0,
        asr_cost=1 - asr,
        auc=auc,
        tpr_at_fpr_5=auc,
        tpr_5=auc,
        fpr_5=0.0,
        seconds=1.0,
    )


ROWS = [
    *(_row(NOBODY, 0, name, 1.0, 1.0) for name in ("metashield", "knn")),
    *(_row(NOBODY, 0, name, 0.8, 1.0) for name in ("metashield", "knn")),
    _row("metashield", 1, "metashield", 0.6, 0.8),
    _row("metashield", 1, "metashield", None, 0.0),
    _row("metashield", 1, "knn", 0.9, 0.8),
    _row("knn", 1, "knn", None, 0.0),
]


def test_curves_begin_with_who_fights_nobody_and_count_dead_attacks() -> None:
    found = {(p["fought"], p["detector"], p["penalty"]): p for p in curves(ROWS)}
    assert found["metashield", "metashield", 0]["auc"] == pytest.approx(0.9)
    assert found["knn", "knn", 0]["n_victims"] == 2
    fights = found["metashield", "metashield", 1]
    assert (fights["auc"], fights["n_dead"], fights["n_victims"]) == (0.6, 1, 2)
    assert fights["asr_cost"] == pytest.approx(0.6)
    assert found["metashield", "knn", 1]["auc"] == pytest.approx(0.9)
    assert found["knn", "knn", 1]["auc"] is None


def test_files_are_written(place: Workplace, tmp_path: Path) -> None:
    files = write_adaptive(_study(place), ROWS, tmp_path / "out")
    assert [path.name for path in files] == ["adaptive.json", "adaptive.csv", "adaptive.png"]
    told = json.loads(files[0].read_text())
    assert told["curves"] == curves(ROWS)
    assert told["settings"]["cases"] == [
        {"pool": "cartpole", "family": "state_pair", "architecture": "policy-mlp"}
    ]
    with files[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["auc"] for line in lines][-2:] == ["0.9", ""]
    assert files[2].stat().st_size > 5000


def test_each_line_of_the_figure_is_fought_by_its_own_victims() -> None:
    left, right = adaptive_figure(curves(ROWS), "metashield").axes
    labels = [line.get_label() for line in left.get_lines()][:2]
    assert labels == ["knn", "metashield"]
    line = left.get_lines()[1]
    assert np.asarray(line.get_xdata()).tolist() == pytest.approx([0.0, 0.6])
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.9, 0.6])
    assert right.get_xlabel() == "loss of accuracy"
    assert adaptive_figure([], "metashield").axes[0].get_legend() is None


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalties": (1.0,)}, r"penalties must hold 0, .* got \(1.0,\); 0,0.1,1,10 are usual"),
        ({"penalties": (0.0,)}, r"and another number, got \(0.0,\)"),
        ({"penalties": (0.0, -1.0)}, "a penalty must be a number >= 0, got -1.0"),
        ({"penalties": (0.0, float("nan"))}, "a penalty must be a number >= 0, got nan"),
        ({"fought": ("strip",)}, "one of metashield, mahalanobis, knn, got 'strip'"),
        ({"fought": ()}, "nothing is fought: give some of metashield"),
        ({"cases": ()}, "a study needs a case and n_each >= 1, got 0 cases"),
        ({"n_each": 0}, "n_each=0"),
    ],
)
def test_studies_that_cannot_be_are_refused(
    place: Workplace, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        _study(place, **changes)


def test_weights_without_a_gradient_are_refused(place: Workplace) -> None:
    literal = blank_weights(0, MetaConfig(representation="pca"))
    with pytest.raises(ScenarioError, match="only profiles have a gradient"):
        AdaptiveStudy(weights=literal, place=place)


def test_cases_are_known_data_networks_and_triggers() -> None:
    with pytest.raises(ScenarioError, match=r"data set must be one of .* got 'audio'"):
        Case(pool="audio", family="patch", architecture="cnn")
    with pytest.raises(ScenarioError, match=r"family of cartpole must be one of .*got 'patch'"):
        Case(pool="cartpole", family="patch", architecture="policy-mlp")
    with pytest.raises(ScenarioError, match=r"architecture of cartpole must be .*got 'cnn'"):
        Case(pool="cartpole", family="state_pair", architecture="cnn")
    assert cases_of((), with_files=True) == CASES
    with pytest.raises(ScenarioError, match=r"are digits, gtsrb, .* got 'pong'"):
        cases_of(("digits", "pong"), with_files=False)
    with pytest.raises(ScenarioError, match="read from files: gtsrb; point --data-dir"):
        cases_of(("gtsrb",), with_files=False)


# The command -------------------------------------------------------------------------------------


def test_the_command_prints_the_curves(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_weights: Weights
) -> None:
    class Shipped:
        weights = toy_weights

    monkeypatch.setattr("fl_shield.detector.MetaShield.from_pretrained", lambda _: Shipped)
    words = ["--adaptive", "--pools", "cartpole", "--penalties", "0,1", "--each", "1"]
    places = ["--out", str(tmp_path), "--cache", str(place.cache), "--workers", "1"]
    result = CliRunner().invoke(app, [*words, *places])
    assert result.exit_code == 0, result.output
    assert "adaptive victims: AUC with 20 clean inputs" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adaptive.csv",
        "adaptive.json",
        "adaptive.png",
    ]
    told = json.loads((tmp_path / "adaptive.json").read_text())
    assert {(p["fought"], p["detector"]) for p in told["curves"]} >= {("knn", "knn")}


def test_the_command_line_says_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fl-shield", "evaluate", "--adaptive", "--out", str(tmp_path), "--penalties", "0,big"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told == ["fl-shield: penalties must be numbers such as 0,0.1,1, got '0,big'"]
