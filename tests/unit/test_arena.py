"""The arena: recorded once, the same replies for everybody, resumed, summed up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_shield.cli.arena import app
from fl_shield.errors import ScenarioError
from fl_shield.simulations.arena import recording as recording_module
from fl_shield.simulations.arena.contest import Contest, cell_path
from fl_shield.simulations.arena.figures import grid_of, roc_figure
from fl_shield.simulations.arena.recording import Recording, attack_digest, track_digest
from fl_shield.simulations.arena.replay import cell_of, is_replayable, replay
from fl_shield.simulations.arena.summary import standings
from fl_shield.simulations.arena.tables import TABLES, UNTARGETED
from fl_shield.simulations.outcome import ClientRow, RoundRow
from fl_shield.simulations.scenario import Scenario, attackers, malicious_clients, participants
from fl_shield.simulations.warm_start import averaged, warm_arrays
from fl_shield.types import Arrays

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "model": "digits-mlp",
    "n_clients": 6,
    "clients_per_round": 5,
    "n_rounds": 2,
    "warm_rounds": 1,
    "malicious_fraction": 0.34,
    "n_test": 100,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arena")


def _recording(cache: Path, attack: str = "model_replacement") -> Recording:
    return Recording(Scenario(**SMALL, attack=attack), cache)


def test_the_recorded_model_moves_by_the_benign_updates_alone(cache: Path) -> None:
    recording = _recording(cache)
    first, second = recording.round(1), recording.round(2)
    malicious = malicious_clients(recording.scenario)
    _, honest = recording.honest_round(1)
    benign = [p for p in participants(recording.scenario, 1) if p not in malicious]
    sizes = [len(recording.task.data.clients[p]) for p in benign]
    by_hand = {
        name: sum(
            n * honest[p][name].astype(np.float64) for n, p in zip(sizes, benign, strict=True)
        )
        / sum(sizes)
        for name in first.global_arrays
    }
    for name, array in second.global_arrays.items():
        np.testing.assert_allclose(array, by_hand[name], rtol=1e-5, atol=1e-6)


def test_attackers_replace_their_honest_uploads_and_nobody_elses(cache: Path) -> None:
    recording = _recording(cache)
    recorded = recording.round(1)
    _, honest = recording.honest_round(1)
    assert recorded.malicious == attackers(recording.scenario, 1)
    for partition, upload in recorded.uploads.items():
        same = all((upload[n] == a).all() for n, a in honest[partition].items())
        assert same == (partition not in recorded.malicious)


def test_honest_training_is_done_once_for_all_attacks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _recording(cache).round(2)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(recording_module, "honest_update", never)
    assert _recording(cache, "badnets").round(2).uploads.keys()
    assert track_digest(Scenario(**SMALL, attack="lp")) == track_digest(Scenario(**SMALL))
    assert attack_digest(Scenario(**SMALL, attack="lp")) != attack_digest(Scenario(**SMALL))


def test_plain_averaging_of_the_replies_is_the_mean_of_the_uploads(cache: Path) -> None:
    recording = _recording(cache)
    rows = replay(recording, "none")
    recorded = recording.round(1)
    asked = participants(recording.scenario, 1)
    sizes = [len(recording.task.data.clients[p]) for p in asked]
    mean = averaged([recorded.uploads[p] for p in asked], sizes)
    accuracy, asr = recording.task.evaluate(recording.task.new_model(), mean)
    assert rows[0].accuracy == pytest.approx(accuracy, abs=0.011)
    assert rows[0].asr == pytest.approx(asr, abs=0.011)
    assert [c.partition for c in rows[0].clients] == list(asked)


def test_every_defence_is_asked_about_the_same_replies(cache: Path) -> None:
    recording = _recording(cache)
    for defense in ("multikrum", "flame", "shield"):
        rows = replay(recording, defense)
        for row in rows:
            malicious = {c.partition for c in row.clients if c.malicious}
            assert malicious == set(attackers(recording.scenario, row.server_round))
    caught = cell_of(replay(recording, "multikrum"))
    assert (caught.malicious_rejected, caught.benign_rejected) == (1.0, 0.0)


def test_the_perfect_defence_is_the_mean_of_the_benign_uploads(cache: Path) -> None:
    recording = _recording(cache)
    rows, recorded = replay(recording, "perfect"), recording.round(1)
    benign = [p for p in recorded.uploads if p not in recorded.malicious]
    sizes = [len(recording.task.data.clients[p]) for p in benign]
    mean = averaged([recorded.uploads[p] for p in benign], sizes)
    accuracy, asr = recording.task.evaluate(recording.task.new_model(), mean)
    assert rows[0].accuracy == pytest.approx(accuracy, abs=0.011)
    assert rows[0].asr == pytest.approx(asr, abs=0.011)
    told = cell_of(rows)
    assert (told.malicious_rejected, told.benign_rejected, told.malicious_vote) == (1.0, 0.0, 0.0)


def test_a_recording_does_not_depend_on_the_defence_it_is_asked_for(cache: Path) -> None:
    scenario = Scenario(**SMALL, attack="evasive", attack_options={"n_steps": 2})
    plain = Recording(scenario, cache / "plain").round(1)
    beside = Recording(scenario.with_(defense="multi_krum"), cache / "beside").round(1)
    for partition, upload in plain.uploads.items():
        for name, array in upload.items():
            np.testing.assert_array_equal(array, beside.uploads[partition][name])


def test_a_rule_that_changes_the_sent_model_is_not_asked_about_recorded_replies() -> None:
    assert is_replayable("shield")
    assert is_replayable("flame")
    assert not is_replayable("backdoor_indicator")
    assert "backdoor_indicator" not in TABLES["digits"].replayed


def _row(server_round: int, asr: float, *clients: ClientRow) -> RoundRow:
    return RoundRow(server_round=server_round, accuracy=0.5, asr=asr, clients=clients)


def test_a_cell_by_hand() -> None:
    def client(malicious: bool, rejected: bool, score: float) -> ClientRow:
        return ClientRow(
            partition=0,
            malicious=malicious,
            rejected=rejected,
            vote=float(not rejected),
            score=score,
        )

    rows = [
        _row(1, 0.2, client(True, True, 0.9), client(False, False, 0.1), client(False, True, 0.95)),
        _row(2, 0.6, client(True, False, 0.5), client(False, False, 0.1)),
        _row(3, 0.1, client(False, False, 0.3)),
    ]
    cell = cell_of(rows)
    assert cell.malicious_rejected == 0.5
    assert cell.benign_rejected == 0.25
    assert cell.auc == pytest.approx((0.5 + 1.0) / 2)
    assert cell.asr == pytest.approx(0.3)
    assert cell.worst_asr == 0.6


def _cell(attack: str, defense: str, seed: int, **figures: Any) -> dict[str, Any]:
    usual = {
        "malicious_rejected": 1.0,
        "benign_rejected": 0.0,
        "malicious_vote": 0.0,
        "benign_vote": 1.0,
        "auc": None,
        "accuracy": 0.8,
        "asr": 0.1,
        "worst_asr": 0.1,
        "seconds": 0.1,
    }
    where = {"dataset": "digits", "attack": attack, "defense": defense, "seed": seed}
    return {**where, **usual, **figures}


def test_standings_put_the_lowest_worst_case_first_and_forgive_mimics() -> None:
    cells = [
        _cell("none", "none", 0, malicious_rejected=None, accuracy=0.9),
        _cell("none", "shield", 0, malicious_rejected=None, benign_rejected=0.02),
        _cell("lp", "none", 0, malicious_rejected=0.0, worst_asr=0.9),
        _cell("lp", "shield", 0, worst_asr=0.1),
        _cell("lp", "shield", 1, worst_asr=0.3),
        _cell("mimic", "shield", 0, malicious_rejected=0.0, worst_asr=1.0),
    ]
    shield, undefended = standings(cells)
    assert (shield.defense, undefended.defense) == ("shield", "none")
    assert shield.worst_asr == pytest.approx(0.2)
    assert shield.worst_attack == "lp"
    assert shield.malicious_rejected == 1.0
    assert shield.false_alarms == 0.02
    assert undefended.malicious_rejected is None
    assert undefended.accuracy_lost == pytest.approx(0.1)


def test_success_counts_beyond_what_a_trigger_does_by_itself() -> None:
    cells = [
        _cell("iba", "flame", 0, worst_asr=1.0),
        _cell("iba", "perfect", 0, worst_asr=0.9),
        _cell("iba", "median", 0, worst_asr=0.8),
        _cell("lp", "flame", 0, worst_asr=0.2),
        _cell("lp", "perfect", 0, worst_asr=0.1),
        _cell("lp", "median", 0, worst_asr=0.4),
    ]
    found = {s.defense: s.worst_excess for s in standings(cells)}
    assert list(found) == ["perfect", "flame", "median"]
    assert found == pytest.approx({"perfect": 0.0, "flame": 0.1, "median": 0.3})


def test_a_grid_has_gaps_where_nothing_was_measured() -> None:
    cells = [_cell("lp", "none", 0), _cell("lp", "flame", 0, auc=0.7)]
    attacks, defenses, values = grid_of(cells, "auc")
    assert (attacks, defenses) == (["lp"], ["none", "flame"])
    assert np.isnan(values[0, 0])
    assert values[0, 1] == 0.7


def test_roc_curves_have_a_panel_an_attack_and_the_shield_first() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9])
    scored = {
        (attack, defense): (labels, scores if defense == "flame" else -scores)
        for attack in ("lp", "dba")
        for defense in ("shield", "flame")
    }
    figure = roc_figure(scored)
    titled = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titled == ["lp", "dba"]
    assert [len(axes.lines) for axes in figure.axes[:2]] == [3, 3]  # and the diagonal
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["shield", "flame"]


def test_every_table_can_be_planned_without_its_data() -> None:
    for table in TABLES.values():
        scenario = table.recorded(table.attacks[0], 0)
        assert scenario.n_rounds >= 1
        assert table.closed_loop([0])
        assert set(table.attacks) <= {*table.attacks}
    assert "mimic" in UNTARGETED
    with pytest.raises(ScenarioError, match="attack 'flood' is unknown"):
        TABLES["smoke"].with_(attacks=("flood",))


def test_a_contest_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    table = (
        TABLES["smoke"]
        .settings(**SMALL)
        .with_(attacks=("model_replacement",), defenses=("none", "flame"), closed=())
    )
    contest = Contest(table=table, seeds=(0,), out=tmp_path / "out", cache=tmp_path / "cache")
    first = contest.recorded()
    assert len(first) == 4
    assert contest.scored() == {}  # neither has scores
    judged = table.recorded("model_replacement", 0).with_(defense="flame")
    path = cell_path(tmp_path / "out" / "cells", judged)
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "cell": {**written["cell"], "asr": 0.123}}))
    again = contest.recorded()
    assert [e["asr"] for e in again if e["attack"] != "none"][1] == 0.123


def test_a_warm_model_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = _recording(tmp_path)
    cold = recording.task.new_model().state_dict()
    once: Arrays = warm_arrays(recording.task, tmp_path)
    assert any((once[name] != tensor.numpy()).any() for name, tensor in cold.items())
    monkeypatch.setattr("fl_shield.simulations.warm_start._trained", None)
    again = warm_arrays(recording.task, tmp_path)
    for name, array in once.items():
        np.testing.assert_array_equal(again[name], array)


def test_the_command_lists_its_tables_and_names_what_is_wrong() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["--list"])
    assert all(name in listed.stdout for name in TABLES)
    for arguments, named in (
        (["--scenario", "war"], "scenario 'war' is unknown"),
        (["--seeds", "one"], "whole numbers"),
        (["--defenses", "moat"], "defence 'moat' is unknown"),
    ):
        result = runner.invoke(app, arguments)
        assert isinstance(result.exception, ScenarioError)
        assert named in str(result.exception)
