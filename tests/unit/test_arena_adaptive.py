"""Attackers who know the rule: what is counted, that penalties act, and that trials are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_shield.cli import app as main_app
from fl_shield.cli.evade import app
from fl_shield.errors import ScenarioError
from fl_shield.simulations.arena.adaptive import TradeOff, Trial, trials
from fl_shield.simulations.arena.trade_off_files import draw_trade_off, mean_over_seeds
from fl_shield.simulations.scenario import Scenario

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "model": "digits-mlp",
    "n_clients": 8,
    "clients_per_round": 8,
    "n_rounds": 2,
    "warm_rounds": 2,
    "malicious_fraction": 0.25,
    "weights": "arena",
}


@pytest.fixture(scope="module")
def trade_off(tmp_path_factory: pytest.TempPathFactory) -> TradeOff:
    folder = tmp_path_factory.mktemp("adaptive")
    return TradeOff(
        scenario=Scenario(**SMALL),
        rounds=(2,),
        out=folder / "out",
        cache=folder / "cache",
        n_steps=60,
    )


def _reached(trade_off: TradeOff, defense: str, penalty: float) -> Mapping[str, Any]:
    trial = Trial(defense=defense, knowledge="known", penalty=penalty, seed=0)
    return trade_off.conduct(trial)


def test_who_knows_krum_and_cares_looks_less_suspicious_to_it(trade_off: TradeOff) -> None:
    careless, careful = (_reached(trade_off, "multi_krum", p) for p in (0.0, 10.0))
    assert careless["upload_asr"] > 0.8
    assert careful["evaded"] >= careless["evaded"]
    assert careful["vote"] >= careless["vote"]
    assert careful["upload_asr"] <= careless["upload_asr"] + 0.05


def test_the_shield_is_attacked_with_its_own_memory(trade_off: TradeOff) -> None:
    found = _reached(trade_off, "shield", 0.3)
    assert found["upload_asr"] > 0.5
    assert 0 <= found["evaded"] <= 1
    assert 0 <= found["vote"] <= 1


def test_a_finished_trial_is_read_and_not_run_again(trade_off: TradeOff) -> None:
    first = _reached(trade_off, "multi_krum", 0.0)
    (path,) = (trade_off.out / "trials").glob("multi_krum-known-0-s0-*.json")
    path.write_text(json.dumps({**first, "asr": 0.123}))
    assert _reached(trade_off, "multi_krum", 0.0)["asr"] == 0.123
    elsewhere = replace(trade_off.scenario, n_test=trade_off.scenario.n_test // 2)
    others = (replace(trade_off, n_steps=1), replace(trade_off, scenario=elsewhere))
    for other in others:  # what a figure depends on names its file
        assert _reached(other, "multi_krum", 0.0)["asr"] != 0.123
    assert _reached(trade_off, "multi_krum", 0.0)["asr"] == 0.123


def test_what_nobody_can_know_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"'fltrust'.*shield"):
        Trial(defense="fltrust", knowledge="known", penalty=0.0, seed=0)
    with pytest.raises(ScenarioError, match="'told'"):
        Trial(defense="shield", knowledge="told", penalty=0.0, seed=0)


def test_a_curve_has_a_line_for_each_defence_and_knowledge() -> None:
    figures = dict.fromkeys(
        ("upload_asr", "upload_accuracy", "evaded", "vote", "asr", "accuracy"), 0.5
    )
    entries = [
        {"defense": t.defense, "knowledge": t.knowledge, "penalty": t.penalty, "seed": t.seed}
        | figures
        for t in trials(["shield", "flame"], [0, 1])
    ]
    means = mean_over_seeds(entries)
    assert len(means) * 2 == len(entries)
    assert len(draw_trade_off(means).axes[0].lines) == 4


def test_the_command_runs_and_names_what_is_wrong(tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "out"
    chosen = ["--defenses", "multi_krum", "--knowledge", "known", "--penalties", "0"]
    small = ["--steps", "1", "--rounds", "1", "--cache", str(tmp_path / "cache")]
    done = runner.invoke(app, [*chosen, *small, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "results.json").read_text())["trials"][0]["defense"] == "multi_krum"
    assert (out / "trade-off.png").exists()
    for arguments, named in (
        (["--penalties", "much"], "numbers >= 0"),
        (["--knowledge", "all"], "guessed, known, got 'all'"),
        (["--rounds", "x"], "--rounds must be whole numbers"),
        (["--defenses", "moat"], "'moat'"),
    ):
        failed = runner.invoke(app, arguments)
        assert failed.exit_code != 0
        assert named in str(failed.exception)
    assert "evade" in runner.invoke(main_app, ["--help"]).output
