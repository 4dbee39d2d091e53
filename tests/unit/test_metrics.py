"""Figures of merit against hand-computed values and slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from fl_shield.metrics import auroc, bootstrap_interval, rates, tpr_at_fpr


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=40)
    scores = rng.integers(0, 8, size=40).astype(float)  # many ties
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[labels == 1]
        for n in scores[labels == 0]
    ]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


def test_auroc_refuses_one_class() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        auroc(np.zeros(3, int), np.arange(3.0))


@pytest.mark.parametrize(
    ("fpr", "expected"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
)
def test_tpr_at_fpr_by_hand(fpr: float, expected: float) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.6, 0.5, 0.3, 0.55, 0.9, 0.8])
    assert tpr_at_fpr(labels, scores, fpr) == expected


def test_tpr_at_fpr_never_flags_more_negatives_than_asked() -> None:
    rng = np.random.default_rng(1)
    for fpr in (0.0, 0.05, 0.3):
        labels, scores = rng.integers(0, 2, 60), rng.integers(0, 5, 60).astype(float)
        negatives = np.sort(scores[labels == 0])[::-1]
        threshold = negatives[int(fpr * len(negatives))]
        assert (scores[labels == 0] > threshold).mean() <= fpr
        assert tpr_at_fpr(labels, scores, fpr) == (scores[labels == 1] > threshold).mean()


def test_rates_of_a_class_that_does_not_occur_are_nan() -> None:
    found = rates(np.zeros(4, int), np.array([True, False, False, False]))
    assert found["frr"] == 0.25
    assert np.isnan(found["far"])


def test_bootstrap_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=10), rng.normal(size=1000)
    widths = []
    for values in (few, many):
        low, high = bootstrap_interval(values, np.random.default_rng(1))
        assert low <= values.mean() <= high
        widths.append(high - low)
    assert widths[1] < widths[0]
