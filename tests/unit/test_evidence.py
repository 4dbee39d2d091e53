"""Evidence beyond one update, on a small federation: what each of the four answers counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_shield.simulations.arena.recording import Recording
from fl_shield.simulations.arena.tables import TABLES, ArenaTable
from fl_shield.simulations.benchmarks import evidence
from fl_shield.simulations.benchmarks.evidence import (
    forgiven,
    layers_named,
    main,
    reports_told,
    restarted,
)

TABLE = TABLES["smoke"].settings(
    model="digits-mlp",
    n_clients=6,
    clients_per_round=6,
    malicious_fraction=0.34,
    n_rounds=4,
    weights="arena",
    n_test=50,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evidence")


def _recording(cache: Path, attack: str) -> Recording:
    return Recording(TABLE.recorded(attack, 0), cache)


def test_named_layers_are_shares_of_attackers(cache: Path) -> None:
    found = layers_named(_recording(cache, "lp"), [2])
    assert found["n"] == 2
    assert 0 <= found["named"] <= 1
    assert 0 < found["by_chance"] <= 1


def test_only_whoever_reports_can_be_told_by_it(cache: Path) -> None:
    recording = _recording(cache, "badnets")
    silent, honest = (reports_told(recording, how, "inputs") for how in ("none", "honest"))
    assert silent.keys() == honest.keys()
    assert honest["auc"] is not None
    assert honest["auc"] > 0.5
    assert silent["most_added_to_malicious"] == 0
    scaled = reports_told(_recording(cache, "model_replacement"), "honest", "inputs")
    added = scaled["most_added_to_malicious"]
    assert added is not None
    assert added > 0


def test_a_checkpoint_makes_a_restart_invisible(cache: Path) -> None:
    found = restarted(_recording(cache, "badnets"), at=3)
    assert found["checkpoint"] == found["never"]
    assert set(found) == {"never", "checkpoint", "forgotten"}


def test_who_stops_attacking_is_heard_again_in_part(cache: Path) -> None:
    votes = forgiven(_recording(cache, "badnets"), until=2)
    assert len(votes["attackers"]) == len(votes["others"]) == 4
    during, after = votes["attackers"][1], votes["attackers"][3]
    assert during is not None
    assert after is not None
    assert during < 0.5
    assert after >= during


def test_the_command_writes_what_it_found(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[ArenaTable, int, Path]] = []

    def answered(table: ArenaTable, seed: int, folder: Path, say: object) -> dict[str, float]:
        asked.append((table, seed, folder))
        return {"layers": 0.5}

    monkeypatch.setattr(evidence, "measured", answered)
    out = tmp_path / "evidence.json"
    main(["--scenario", "smoke", "--seed", "3", "--cache", str(cache), "--out", str(out)])
    assert asked == [(TABLES["smoke"], 3, cache)]
    found = json.loads(out.read_text())
    assert (found["layers"], found["seed"], found["table"]) == (0.5, 3, "smoke")
