"""Conformal p-values by enumeration and hand values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_shield.calibration import (
    STANDARD_FLOOR,
    conformal_p_values,
    promise,
    smallest_p_value,
    standardise,
    task_p_values,
    threshold_at,
)

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=25)  # ties are likely
BUDGETS = st.floats(0.001, 0.95)


def test_conformal_p_values_by_hand() -> None:
    references = np.array([0.3, 0.1, 0.2, 0.2])
    scores = np.array([0.0, 0.1, 0.2, 0.25, 0.3, 0.31])
    # references at least as large: 4, 4, 3, 1, 1, 0
    expected = [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    assert conformal_p_values(references, scores).tolist() == pytest.approx(expected)


def test_smallest_p_value_is_reached_and_never_undercut() -> None:
    references = np.arange(20.0)
    p_values = conformal_p_values(references, np.array([1e9, np.inf]))
    assert p_values.tolist() == [smallest_p_value(20)] * 2 == [1 / 21] * 2


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_p_values_are_super_uniform_by_enumeration(values: list[float]) -> None:
    """Each of n + 1 exchangeable points is as likely to be the new one."""
    pool = np.array(values)
    p_values = np.array(
        [conformal_p_values(np.delete(pool, i), pool[i : i + 1])[0] for i in range(len(pool))]
    )
    for u in np.arange(1, len(pool) + 1) / len(pool):
        assert (p_values <= u + 1e-12).mean() <= u + 1e-12


@settings(max_examples=60, deadline=None)
@given(SCORES, BUDGETS)
def test_threshold_flags_what_the_p_values_flag(values: list[float], budget: float) -> None:
    references = np.array(values)
    scores = np.arange(-6, 6.5, 0.5)
    threshold = threshold_at(references, budget)
    within = conformal_p_values(references, scores) <= budget + 1e-12
    np.testing.assert_array_equal(scores > threshold, within)


def test_threshold_by_hand() -> None:
    references = np.arange(1.0, 20.0)  # 19 references: p-values are twentieths
    assert threshold_at(references, 0.05) == 19.0
    assert threshold_at(references, 0.10) == 18.0
    assert threshold_at(references, 0.149) == 18.0
    assert threshold_at(references, 0.049) == float("inf")


def test_standardise_by_hand() -> None:
    references = np.array([1.0, 3.0])
    expected = (5 - 2) / (np.sqrt(2) + STANDARD_FLOOR)
    assert standardise(np.array([5.0]), references)[0] == pytest.approx(expected)
    assert standardise(np.array([3.0]), np.array([2.0]))[0] == pytest.approx(1 / STANDARD_FLOOR)


def test_constant_references_do_not_explode() -> None:
    standard = standardise(np.array([-4.0, -3.0]), np.full(10, -4.0))
    assert standard.tolist() == pytest.approx([0.0, 1 / STANDARD_FLOOR])


def test_task_p_values_by_hand() -> None:
    null = np.linspace(-1, 1, 11)  # levels 1/22, 3/22, ..., 21/22
    scores = np.array([-5.0, -1.0, 0.0, 0.1, 0.9, 1.0, 5.0])
    expected = [1.0, 21 / 22, 0.5, 0.5 - 1 / 22, 2 / 22, 1 / 12, 1 / 12]
    assert task_p_values(null, scores).tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=30),
    st.lists(st.floats(-20, 20), min_size=2, max_size=30),
)
def test_task_p_values_fall_with_the_score(null: list[float], scores: list[float]) -> None:
    p_values = task_p_values(np.sort(null), np.sort(scores))
    assert (np.diff(p_values) <= 1e-12).all()
    assert (p_values >= 1 / (len(null) + 1)).all()
    assert (p_values <= 1).all()


def test_promise_says_which_guarantee_holds() -> None:
    assert "cannot promise" in promise(10, 0.05, "references")
    assert "0.091" in promise(10, 0.05, "references")
    assert promise(20, 0.05, "references").startswith("FPR 0.05")
    assert "meta-training tasks" in promise(3, 0.001, "tasks")
