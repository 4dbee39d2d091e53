"""The cost benchmark at a tiny size: what it reports, not how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

from fl_shield.simulations.benchmarks.aggregation_cost import STRATEGIES, Args, high_water, main


def test_every_strategy_is_timed_on_the_same_replies(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    args = Args(
        clients=3, malicious=0, repeats=1, model="small-cnn", memory=False, rounds=0, out=out
    )
    figures = main(args)
    assert json.loads(out.read_text()) == figures
    assert list(figures["strategies"]) == list(STRATEGIES)
    assert figures["n_parameters"] == 213_630
    assert figures["replies_bytes"] == 3 * 4 * 213_630
    for row in figures["strategies"].values():
        assert len(row["rounds"]) == 2
        assert row["seconds"] == row["rounds"][1]["seconds"] > 0
    assert figures["strategies"]["FedAvg"]["ratio_to_fedavg"] == 1


def test_high_water_mark_rises_with_what_is_held() -> None:
    before = high_water()
    held = bytearray(before)  # as much again as was ever held
    assert high_water() >= before + len(held) // 4
