"""Activation reports can add suspicion and never take any away."""

from __future__ import annotations

import numpy as np

from fl_shield.types import ActivationReport, Floats
from fl_shield.weights import Weights
from fl_shield.witness import witness_evidence

REFERENCES = {"head": np.random.default_rng(0).normal(size=(12, 6))}


def _report(seed: int, away: float = 0.0) -> ActivationReport:
    rows: Floats = np.random.default_rng(seed).normal(size=(4, 6)) + away
    return ActivationReport(layers={"head": rows})


def test_a_strange_report_adds_suspicion_to_its_sender_only(toy_weights: Weights) -> None:
    reports = [_report(s) for s in range(1, 7)] + [_report(9, away=40.0)]
    evidence = witness_evidence(toy_weights, reports, REFERENCES)
    assert evidence[-1] > 0.5
    assert evidence[-1] > evidence[:-1].max()


def test_no_report_clears_anybody(toy_weights: Weights) -> None:
    perfect = ActivationReport(layers={"head": REFERENCES["head"][:4]})
    reports = [perfect, *[_report(s) for s in range(1, 7)], None]
    evidence = witness_evidence(toy_weights, reports, REFERENCES)
    assert (evidence >= 0).all()
    assert evidence[-1] == 0


def test_too_few_reports_say_nothing(toy_weights: Weights) -> None:
    reports = [_report(1), _report(2), _report(3, away=40.0), None, None]
    assert witness_evidence(toy_weights, reports, REFERENCES).tolist() == [0.0] * 5


def test_what_cannot_be_read_is_no_report(toy_weights: Weights) -> None:
    unreadable = [
        ActivationReport(layers={"other": np.zeros((4, 6))}),
        ActivationReport(layers={"head": np.zeros((4, 5))}),
        ActivationReport(layers={"head": np.full((4, 6), np.nan)}),
        ActivationReport(layers={}),
    ]
    reports = [*unreadable, *[_report(s) for s in range(1, 6)]]
    evidence = witness_evidence(toy_weights, reports, REFERENCES)
    assert evidence[:4].tolist() == [0.0] * 4
    assert np.isfinite(evidence).all()
