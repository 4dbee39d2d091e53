"""Differentiable rules: equal to the rules themselves, and a gradient that leads to the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl_shield.aggregators.alignins import robust_standard_scores, sign_agreement
from fl_shield.aggregators.contract import cosines_of
from fl_shield.aggregators.inner_products import squared_distances
from fl_shield.aggregators.krum import krum_scores
from fl_shield.aggregators.trimmed_mean import trimmed_mean
from fl_shield.live_rules import LIVE_RULES, RuleSuspicion
from fl_shield.types import Arrays

N_CLIENTS, N_PARAMETERS = 10, 60


def _round() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(N_CLIENTS, N_PARAMETERS)) + 0.5
    return updates, rng.normal(size=N_PARAMETERS)


def _numbers(rule: str) -> NDArray[np.float64]:
    updates, start = _round()
    found: NDArray[np.float64] = LIVE_RULES[rule](
        torch.from_numpy(updates), torch.from_numpy(start)
    ).numpy()
    return found


def test_krum_numbers_are_krum_scores() -> None:
    expected = krum_scores(squared_distances(_round()[0]), 2)
    np.testing.assert_allclose(_numbers("multi_krum"), expected, rtol=1e-10)


def test_alignment_numbers_are_what_alignins_decides_by() -> None:
    updates, start = _round()
    direction = robust_standard_scores(cosines_of(updates, start[None])[:, 0])
    signs = robust_standard_scores(sign_agreement(updates, 0.3))
    np.testing.assert_allclose(_numbers("alignins"), np.maximum(direction, signs), atol=1e-8)


def test_trimmed_numbers_are_zero_for_whoever_is_averaged_in_full() -> None:
    updates, start = _round()
    inside = np.repeat(trimmed_mean(updates, 2)[None], 1, axis=0)
    numbers = LIVE_RULES["trimmed_mean"](
        torch.from_numpy(np.vstack([inside, updates])), torch.from_numpy(start)
    )
    assert numbers[0] == 0
    assert (numbers[1:] > 0).all()


def test_cosine_numbers_by_loops() -> None:
    updates, start = _round()
    models = updates + start
    for i, number in enumerate(_numbers("flame")):
        others = [
            models[i] @ models[j] / np.linalg.norm(models[i]) / np.linalg.norm(models[j])
            for j in range(N_CLIENTS)
            if j != i
        ]
        assert number == pytest.approx(1 - np.mean(others), abs=1e-12)


@pytest.mark.parametrize("rule", LIVE_RULES)
def test_following_the_gradient_leads_to_the_middle_of_the_round(rule: str) -> None:
    rng = np.random.default_rng(1)
    start = {"fc.weight": rng.normal(size=(6, 10)).astype(np.float32)}
    others: list[Arrays] = [_moved(start, rng, 1.0) for _ in range(9)]
    suspicion = RuleSuspicion(rule, start, others, middle=-2.0)
    own = torch.from_numpy(_moved(start, rng, 3.0)["fc.weight"]).requires_grad_()
    optimiser = torch.optim.Adam([own], lr=0.05)
    before = float(suspicion({"fc.weight": own}).detach())
    values = []
    for _ in range(200):
        optimiser.zero_grad()
        value = suspicion({"fc.weight": own})
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        values.append(float(value.detach()))
    assert before > -1
    assert min(values) < -1.5  # as the middle of the round, or less remarkable
    assert min(values) < before


@pytest.mark.parametrize("rule", ["multi_krum", "flame"])
def test_the_gradient_is_the_slope_of_an_uploads_own_number(rule: str) -> None:
    updates, start = (torch.from_numpy(a[..., :6]) for a in _round())

    def own_number(own: torch.Tensor) -> torch.Tensor:
        return LIVE_RULES[rule](torch.cat([own[None], updates[1:]]), start)[0]

    assert torch.autograd.gradcheck(own_number, [updates[0].clone().requires_grad_()])


def test_what_cannot_be_known_is_refused() -> None:
    start = {"fc.weight": np.zeros((1, 2), np.float32)}
    with pytest.raises(ValueError, match=r"'foolsgold'.*multi_krum"):
        RuleSuspicion("foolsgold", start, [start] * 3)
    with pytest.raises(ValueError, match="1 others"):
        RuleSuspicion("flame", start, [start])


def _moved(start: Arrays, rng: np.random.Generator, scale: float) -> dict[str, NDArray[np.float32]]:
    drift = np.float32(0.5) * np.sign(start["fc.weight"])
    return {
        name: (a + drift + scale * rng.normal(size=a.shape)).astype(np.float32)
        for name, a in start.items()
    }
