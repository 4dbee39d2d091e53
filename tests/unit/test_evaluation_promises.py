"""False alarms that were promised and realised, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_shield.activations import Activations
from fl_shield.simulations.episodes.shots import Shots
from fl_shield.simulations.evaluation.promises import (
    ALL,
    DATA_SETS,
    EACH_ONCE,
    HARMLESS,
    HELD_OUT,
    FalseAlarms,
    calibration,
    false_alarms,
    groups_of,
    kept,
)


def _activations(n: int) -> Activations:
    return Activations(layers={"head": np.zeros((n, 2))}, logits=np.zeros((n, 2)))


@pytest.mark.parametrize(("family", "held_out"), [("circle", True), ("patch", False)])
def test_only_clean_inputs_count(family: str, held_out: bool) -> None:
    labels = np.array([0, 0, 0, 0, 1, 2])
    shots = Shots(references=_activations(20), points=_activations(6), labels=labels, n_clean=4)
    p_values = np.array([0.01, 0.05, 0.011, 0.9, 0.001, 0.001])
    groups = groups_of({"family": family})
    assert groups == ((HELD_OUT, ALL) if held_out else (ALL,))
    assert false_alarms(shots, p_values, groups, "toy") == [
        FalseAlarms(groups=groups, pool="toy", n_shots=20, n_clean=4, shares=(0.75, 0.25))
    ]


def test_stamped_inputs_of_clean_victims_count_apart() -> None:
    """They are harmless, label 0, and no budget was promised for them."""
    labels = np.zeros(6, np.int64)
    shots = Shots(references=_activations(20), points=_activations(6), labels=labels, n_clean=4)
    p_values = np.array([0.01, 0.05, 0.011, 0.9, 0.001, 0.03])
    found = false_alarms(shots, p_values, (DATA_SETS,), "toy")
    assert found == [
        FalseAlarms(groups=(DATA_SETS,), pool="toy", n_shots=20, n_clean=4, shares=(0.75, 0.25)),
        FalseAlarms(groups=(HARMLESS,), pool="toy", n_shots=20, n_clean=2, shares=(1.0, 0.5)),
    ]
    assert false_alarms(shots, p_values, (ALL,), "toy") == [replace(found[0], groups=(ALL,))]


def _alarms(share: float, *, held_out: bool = True, n_shots: int = 20) -> FalseAlarms:
    groups = (HELD_OUT, ALL) if held_out else (ALL,)
    return FalseAlarms(
        groups=groups, pool="toy", n_shots=n_shots, n_clean=100, shares=(share, share / 5)
    )


def test_lines_by_group_shots_and_budget() -> None:
    alarms = [_alarms(0.1), _alarms(0.0), _alarms(0.2, held_out=False), _alarms(0.5, n_shots=5)]
    alarms += [replace(_alarms(0.3), groups=(DATA_SETS,))]
    lines = {(x["victims"], x["n_shots"], x["budget"]): x for x in calibration(alarms)}
    assert len(lines) == 12
    assert lines[DATA_SETS, 20, 0.05]["fpr"] == pytest.approx(0.3)
    assert lines[HELD_OUT, 20, 0.05]["fpr"] == pytest.approx(0.05)
    assert lines[HELD_OUT, 20, 0.01]["fpr"] == pytest.approx(0.01)
    assert lines[ALL, 20, 0.05]["fpr"] == pytest.approx(0.1)
    assert lines[ALL, 20, 0.05]["n_victims"] == 3
    assert lines[ALL, 20, 0.05]["n_clean"] == 300
    assert lines[ALL, 20, 0.05]["above"] == pytest.approx(2 / 3)
    assert lines[HELD_OUT, 5, 0.05]["band"] == [0.5, 0.5]
    assert not lines[HELD_OUT, 5, 0.05]["inside"]
    assert calibration([]) == []
    assert all(line["inside"] for line in calibration([_alarms(0.05)] * 3))  # rounding aside


def test_each_data_set_counts_once_however_many_victims_it_has() -> None:
    left_out = [replace(_alarms(share), groups=(DATA_SETS,)) for share in (0.0, 0.02, 0.04)]
    alarms = [*left_out, replace(_alarms(0.1), groups=(DATA_SETS,), pool="other")]
    lines = {(x["victims"], x["budget"]): x for x in calibration(alarms)}
    assert lines[DATA_SETS, 0.05]["fpr"] == pytest.approx(0.04)
    assert lines[EACH_ONCE, 0.05]["fpr"] == pytest.approx((0.02 + 0.1) / 2)
    assert lines[EACH_ONCE, 0.05]["n_victims"] == 2
    assert lines[EACH_ONCE, 0.05]["n_clean"] == 400
    assert lines[EACH_ONCE, 0.05]["band"] == pytest.approx([0.02, 0.1])


def test_a_promise_is_refuted_only_from_above() -> None:
    n_clean = np.full(200, 100)
    spread = np.random.default_rng(0).exponential(size=200)
    for mean, holds in ((0.005, True), (0.01, True), (0.02, False)):
        assert kept(spread * mean, n_clean, 0.01)["inside"] is holds


def test_the_band_shows_the_spread_between_victims_and_the_binomial_one_does_not() -> None:
    shares = np.array([0.0] * 95 + [0.2] * 5)  # a few victims give all false alarms
    told = kept(shares, np.full(100, 100), 0.01)
    assert told["fpr"] == pytest.approx(0.01)
    low, high = told["band"]
    assert low < 0.01 < high
    naive_low, naive_high = told["binomial"]
    assert (naive_low, naive_high) == (0.0081, 0.012)  # 100 -+ 1.96 * sqrt(99) of 10,000
    assert high - low > 3 * (naive_high - naive_low)
    assert told["above"] == 0.05
