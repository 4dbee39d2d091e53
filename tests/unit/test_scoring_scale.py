"""The scale benchmark at a tiny size: what it runs, counts and reports, not how fast it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fl_shield.simulations.benchmarks.scoring_scale as benchmark
from fl_shield.aggregators import AGGREGATORS
from fl_shield.simulations.benchmarks import scoring_measures
from fl_shield.simulations.benchmarks.scoring_measures import (
    LEAST_PARAMETERS,
    MEASURES,
    Replies,
    network,
    shield,
)
from fl_shield.simulations.benchmarks.scoring_reading import bars, exponents, key_of, ratios
from fl_shield.simulations.benchmarks.scoring_scale import Args, main, measured, reason_to_skip
from fl_shield.strategies.records import CheckedReply, check_reply

RULES = ("mean", "multi_krum", "flame", "flower_multi_krum")


def _args(**settings: Any) -> Args:
    tiny: dict[str, Any] = {
        "clients": (4, 6),
        "parameters": (LEAST_PARAMETERS, 40_000),
        "measures": ("shield", "probes", *RULES),
        "probed": 4,
        "apart": False,
    }
    return Args(**{**tiny, **settings})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Args, dict[str, Any]]:
    """What one tiny run reports."""
    args = _args(out=tmp_path_factory.mktemp("scale") / "out.json")
    return args, main(args)


def test_every_measure_has_every_cell_or_a_reason(found: tuple[Args, dict[str, Any]]) -> None:
    args, figures = found
    assert args.out is not None
    assert json.loads(args.out.read_text()) == figures
    grid = [(n, p) for n in args.clients for p in args.parameters]
    assert set(figures["cells"]) == {key_of(m, n, p) for m in args.measures for n, p in grid}
    for key, own in figures["cells"].items():
        if key.startswith("probes/6/"):
            assert own == {"skipped": "each of more than 4 costs the same"}
        else:
            assert own["seconds"] > 0
            assert own["memory_bytes"] >= 0
            assert own["ratio_to_check"] > 0


def test_the_shields_seconds_are_those_of_its_two_parts(
    found: tuple[Args, dict[str, Any]],
) -> None:
    for key, own in found[1]["cells"].items():
        if key.startswith("shield/"):
            assert own["seconds"] == pytest.approx(own["sketch_seconds"] + own["space_seconds"])
            assert own["ratio_to_shield"] == 1
            assert own["ratio_to_check"] == pytest.approx(own["seconds"] / own["check_seconds"])


def test_a_run_goes_on_where_it_stopped(
    found: tuple[Args, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "out.json", list[str]()
    figures = json.loads(json.dumps(found[1]))
    lost = key_of("mean", 6, 40_000)
    kept = {key: own for key, own in figures["cells"].items() if key != lost}
    out.write_text(json.dumps({**figures, "cells": kept}))

    def recorded(args: Args, name: str, n: int, n_parameters: int) -> dict[str, Any]:
        run.append(key_of(name, n, n_parameters))
        return {"seconds": 1.0, "check_seconds": 1.0}

    monkeypatch.setattr(benchmark, "measured", recorded)
    assert main(_args(out=out))["cells"][lost]["seconds"] == 1
    assert run == [lost]
    main(_args(out=out, seed=1))  # other settings: nothing is taken over
    assert len(run) == 1 + len(kept) + 1 - 2  # two cells of the probes are skipped


def test_the_shield_reads_each_reply_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(*given: Any) -> CheckedReply:
        checked = check_reply(*given)
        read.append(sum(a.size for a in checked.arrays.values()))
        return checked

    monkeypatch.setattr(scoring_measures, "check_reply", counted)
    totals = {}
    for n in (4, 8):
        for size in (LEAST_PARAMETERS, 2 * LEAST_PARAMETERS):
            read.clear()
            figures = shield(0, n, size, lambda: None)
            assert len(read) == n + 3  # one to begin with, and two to simulate references beside
            assert set(read) == {figures["n_parameters"]}
            totals[n, size] = sum(read[3:]) / (n * figures["n_parameters"])
    assert set(totals.values()) == {1.0}  # clients times parameters, no more


def test_replies_are_drawn_from_their_seeds_alone() -> None:
    one, other = (Replies(3, LEAST_PARAMETERS) for _ in range(2))
    later = [other.update(i) for i in (2, 1, 0)][::-1]
    for i, row in enumerate(one.updates(3)):
        np.testing.assert_array_equal(row, later[i])
    assert np.abs(one.update(0) - one.update(1)).max() > 0
    record = one.content(1).array_records["arrays"]
    for name, moved in one.layout.shaped(one.update(1)).items():
        np.testing.assert_array_equal(record[name].numpy(), one.arrays[name] + moved)


@pytest.mark.parametrize("n_parameters", [LEAST_PARAMETERS, 100_000, 1_000_000])
def test_networks_have_about_as_many_parameters_as_asked(n_parameters: int) -> None:
    size = sum(p.numel() for p in network(n_parameters, 0).parameters())
    assert abs(size - n_parameters) <= 9_279 / 2 + 1


def test_every_published_rule_is_measured() -> None:
    assert set(MEASURES) == {"shield", "probes", "flower_multi_krum", *AGGREGATORS}


def test_unknown_measures_and_impossible_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("got ['nonsense']")):
        Args(measures=("nonsense",))
    with pytest.raises(ValueError, match="a round needs 3 clients"):
        Args(clients=(2,))
    with pytest.raises(ValueError, match="the network 28157 parameters"):
        Args(parameters=(1000,))


def test_a_rule_that_cannot_run_says_why() -> None:
    own = measured(_args(), "signguard", 3, LEAST_PARAMETERS)
    assert own["skipped"].startswith("signguard needs at least 4 updates, got 3")
    assert reason_to_skip(Args(), "krum", 10_000, 1_000_000, {}) == "the updates alone take 40 GB"
    slow = {key_of("krum", 100, 1_000_000): {"skipped": "over 8 s"}}
    assert "over 8 s" in reason_to_skip(Args(), "krum", 1000, 1_000_000, slow)
    assert reason_to_skip(Args(), "krum", 1000, 100_000, slow) == ""
    slow = {key_of("flame", 1000, 100_000): {"skipped": "over 8 s"}}
    assert "over 8 s" in reason_to_skip(Args(), "flame", 10_000, 100_000, slow)
    assert reason_to_skip(Args(), "flame", 1000, 1_000_000, slow) == ""  # it has longer there


def _grid() -> Iterator[tuple[int, int]]:
    return ((n, p) for n in (10, 100, 1000) for p in (1000, 10_000))


def test_exponents_are_those_of_a_power_law() -> None:
    cells = {key_of("shield", n, p): {"cpu": 3e-7 * n**2 * p**0.5} for n, p in _grid()}
    cells["mean/10/1000"] = {"cpu": 1e9}  # another row's
    powers = exponents(cells, "cpu")
    assert powers["clients"] == pytest.approx(2)
    assert powers["parameters"] == pytest.approx(0.5)
    assert exponents(cells, "cpu", 1000) == {}  # one size of round has no slope


def test_bars_are_read_from_the_cell_of_a_thousand_clients() -> None:
    own = {
        "seconds": 3.0,
        "cpu_seconds": 2.0,
        "check_seconds": 1.0,
        "check_cpu_seconds": 0.5,
        "memory_bytes": 2**27,
    }
    cells: dict[str, dict[str, Any]] = {key_of("shield", 1000, 1_000_000): own}
    cells[key_of("flame", 1000, 1_000_000)] = {"seconds": 80.0}
    cells[key_of("multi_krum", 1000, 1_000_000)] = {"skipped": "over 300 s"}
    assert list(bars(cells).values()) == [128.0, 3.0, 4.0, 20.0]
    assert bars({}) == {}
    told = ratios(key_of("flame", 1000, 1_000_000), {"seconds": 80.0}, cells)
    assert told == {"ratio_to_check": 80.0, "ratio_to_shield": 80 / 3}
