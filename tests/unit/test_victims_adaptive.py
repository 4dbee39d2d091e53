"""Victims that fight a detector: the gradient is right, and fighting works."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fl_shield.activations import (
    Activations,
    in_order,
    pooled_ways,
    read_activations,
    watching,
)
from fl_shield.detector import MetaShield
from fl_shield.detectors import DETECTORS
from fl_shield.detectors.contract import standardised
from fl_shield.errors import GuardError, ScenarioError
from fl_shield.meta import MetaConfig
from fl_shield.simulations.victims.adaptive import (
    LONGEST,
    STEEPEST,
    Fight,
    _joined,
    suspicion_of,
    train_fighting,
)
from fl_shield.simulations.victims.opponents import FOUGHT, OURS, PEERS, Opponent, Seen, fit_of
from fl_shield.training import logits_of
from fl_shield.types import Floats, Samples
from fl_shield.weights import Weights, blank_weights

LAYERS = ("0", "2", "4")


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Conditioned weights that tell every point apart: nothing here rests on what they learned."""
    blank = blank_weights(3, MetaConfig(conditioned=True, n_hidden=8, n_inner_steps=2))
    params = {name: p + 0.05 for name, p in blank.params.items()}
    return Weights(**{**blank.__dict__, "params": params})


def _net(seed: int = 0) -> nn.Module:
    """Inputs and layers are wider than the references are many: else residuals are rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 26), nn.Tanh(), nn.Linear(26, 3)
        )


def _inputs(n: int, seed: int, shift: float = 0.0) -> Floats:
    rows: Floats = np.random.default_rng(seed).normal(size=(n, 30)) + shift
    rows[:, :3] *= 3  # what the classes are told by
    return rows


def _seen(model: nn.Module, x: Tensor) -> Seen:
    with watching(model, LAYERS, pooled_ways, live=True) as rows:
        logits = model(x)
    return Seen(layers=in_order(rows, LAYERS), logits=logits)


def _references(model: nn.Module) -> Activations:
    return read_activations(model, _inputs(20, 1).astype(np.float32), LAYERS)


def _opponent(name: str, model: nn.Module, weights: Weights) -> Opponent:
    return fit_of(name, weights)(_references(model))


# The two paths -----------------------------------------------------------------------------------


def test_log_odds_are_those_of_the_shield(weights: Weights) -> None:
    model, points = _net(), _inputs(9, 2, 1.0).astype(np.float32)
    shield = MetaShield(weights).fit(_references(model))
    scores = shield.score(read_activations(model, points, LAYERS))
    live = _opponent(OURS, model, weights)(_seen(model, torch.from_numpy(points)))
    assert live.requires_grad
    assert np.ptp(live.detach().numpy()) > 0.05
    np.testing.assert_allclose(
        live.detach().numpy(), np.log(scores) - np.log1p(-scores), rtol=0, atol=1e-4
    )


def test_log_odds_of_the_shipped_weights_for_images() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10), nn.ReLU()
        )
        model.append(nn.Linear(10, 4))
    layers = ("0", "3", "5")
    rng = np.random.default_rng(0)
    clean, points = (rng.random((n, 1, 8, 8), dtype=np.float32) for n in (20, 6))
    references = read_activations(model, clean, layers)
    shipped = MetaShield.from_pretrained("inputs").weights
    scores = MetaShield(shipped).fit(references).score(read_activations(model, points, layers))
    with watching(model, layers, pooled_ways, live=True) as rows:
        logits = model(torch.from_numpy(points))
    seen = Seen(layers=in_order(rows, layers), logits=logits)
    assert list(seen.layers) == ["0:mean", "0:max", "3", "5"]
    live = fit_of(OURS, shipped)(references)(seen).detach().numpy()
    np.testing.assert_allclose(live, np.log(scores) - np.log1p(-scores), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_their_scores_in_the_spread_of_their_references(
    name: str, weights: Weights
) -> None:
    model, points = _net(), _inputs(9, 2, 1.0).astype(np.float32)
    detector = DETECTORS[name]().fit(_references(model))
    slow = standardised(
        detector.score(read_activations(model, points, LAYERS)), detector.reference_scores_
    )
    live = _opponent(name, model, weights)(_seen(model, torch.from_numpy(points)))
    np.testing.assert_allclose(live.detach().numpy(), slow, rtol=1e-5)


# The gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOUGHT)
def test_gradient_is_that_of_finite_differences(name: str, weights: Weights) -> None:
    model = _net()
    opponent = _opponent(name, model, weights)
    model.double()
    x = torch.from_numpy(_inputs(6, 4, 0.7))
    parameters = [p for n, p in model.named_parameters() if not n.startswith("4.")]
    parameters += list(model[4].parameters())  # type: ignore[index]

    def lost() -> Tensor:
        total: Tensor = softplus(opponent(_seen(model, x))).sum()
        return total

    gradient = torch.autograd.grad(lost(), parameters, allow_unused=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradient)
    assert sum(float(g.norm()) for g in gradient) > 1e-3
    generator, step = torch.Generator().manual_seed(0), 1e-7

    def moved(way: list[Tensor], by: float) -> float:
        with torch.no_grad():
            for parameter, part in zip(parameters, way, strict=True):
                parameter.add_(part, alpha=by)
            return float(lost())

    for _ in range(4):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        above, below = moved(way, step), moved(way, -2 * step)
        moved(way, step)
        told = sum(float((g * w).sum()) for g, w in zip(gradient, way, strict=True))
        assert told == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)


def test_a_point_on_a_reference_gets_no_gradient_rather_than_nan(weights: Weights) -> None:
    model = _net()
    x = torch.from_numpy(np.concatenate([_inputs(20, 1)[:2], _inputs(3, 5)]).astype(np.float32))
    for name in FOUGHT:
        lost = suspicion_of(_opponent(name, model, weights), _seen(model, x))
        gradient = torch.autograd.grad(lost, list(model.parameters()), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradient)


def test_no_row_is_much_steeper_than_the_median() -> None:
    rows = torch.ones(3, 1, requires_grad=True)
    slopes = torch.tensor([1.0, 2.0, 1000.0])
    lost = suspicion_of(lambda seen: 50 + seen.logits[:, 0] * slopes, Seen(layers={}, logits=rows))
    (gradient,) = torch.autograd.grad(lost, rows)
    expected = torch.tensor([1.0, 2.0, STEEPEST * 2.0]) / 3
    torch.testing.assert_close(gradient[:, 0], expected)


def test_the_penalty_does_not_drown_the_task() -> None:
    own, long = (torch.tensor([1.0, 0.0]),), (torch.tensor([0.0, 100.0]),)
    torch.testing.assert_close(_joined(own, long), (torch.tensor([1.0, LONGEST]),))
    torch.testing.assert_close(_joined(long, own), (torch.tensor([1.0, 100.0]),))
    torch.testing.assert_close(_joined(own, (torch.zeros(2),)), own)


# Training ----------------------------------------------------------------------------------------


def _data() -> tuple[Samples, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Three classes by the largest of the first inputs; the trigger sets six of them to 2."""
    x = _inputs(600, 8).astype(np.float32)
    y = x[:, :3].argmax(1)
    stamped = x[:150].copy()
    stamped[:, 4:10] = 2
    mix = Samples(x=np.concatenate([x, stamped]), y=np.concatenate([y, np.zeros(150, np.int64)]))
    return mix, np.arange(750) >= 600


@pytest.mark.parametrize("name", FOUGHT)
def test_fighting_lowers_what_the_detector_says(name: str, weights: Weights) -> None:
    mix, triggered = _data()
    shipped = MetaShield.from_pretrained("inputs").weights
    stamped = _inputs(40, 9).astype(np.float32)
    stamped[:, 4:10] = 2
    found = {}
    for penalty in (0.0, 0.1):
        model = _net(1)
        fit = fit_of(name, shipped)
        fight = Fight(fit=fit, clean=mix.x[:20], layers=LAYERS, penalty=penalty)
        rng = np.random.default_rng(0)
        train_fighting(model, mix, triggered, fight, rng, n_steps=120, lr=2e-2)
        assert float((logits_of(model, stamped).argmax(1) == 0).double().mean()) > 0.8
        others = read_activations(model, _inputs(20, 10).astype(np.float32), LAYERS)
        with torch.no_grad():
            found[penalty] = float(fit(others)(_seen(model, torch.from_numpy(stamped))).mean())
    assert found[0.1] < found[0.0] - 0.5


def test_without_a_penalty_nothing_is_fitted_and_a_seed_gives_one_victim() -> None:
    def refuse(_: Activations) -> Opponent:
        raise AssertionError("fitted")

    mix, triggered = _data()
    models = [_net(2), _net(2)]
    for model in models:
        fight = Fight(fit=refuse, clean=mix.x[:20], layers=LAYERS, penalty=0)
        train_fighting(model, mix, triggered, fight, np.random.default_rng(1), n_steps=8)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], _net(2).state_dict()["0.weight"])


def test_every_network_is_left_without_hooks() -> None:
    mix, triggered = _data()
    model = _net()
    fight = Fight(
        fit=lambda _: lambda seen: seen.logits[:, 0], clean=mix.x[:20], layers=LAYERS, penalty=1
    )
    train_fighting(model, mix, triggered, fight, np.random.default_rng(1), n_steps=8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [-1.0, math.nan, math.inf])
def test_penalties_that_no_loss_can_have_are_refused(penalty: float) -> None:
    with pytest.raises(ScenarioError, match=r"a penalty must be a number >= 0, got .*; 0 fights"):
        Fight(fit=lambda _: lambda seen: seen.logits, clean=[], layers=(), penalty=penalty)  # type: ignore[arg-type]


def test_a_fight_needs_a_rhythm_a_known_detector_and_profiles() -> None:
    with pytest.raises(ScenarioError, match="refresh counts steps from 1, got 0; 20 is usual"):
        Fight(fit=lambda _: lambda s: s.logits, clean=np.zeros(0), layers=(), penalty=1, refresh=0)
    with pytest.raises(ScenarioError, match="one of metashield, mahalanobis, knn, got 'strip'"):
        fit_of("strip", blank_weights())
    literal = blank_weights(0, MetaConfig(representation="pca"))
    with pytest.raises(ScenarioError, match="read 'pca' and only profiles have a gradient; take"):
        fit_of(OURS, literal)


def test_a_layer_that_the_network_lacks_is_named() -> None:
    mix, triggered = _data()
    fight = Fight(
        fit=lambda _: lambda s: s.logits[:, 0], clean=mix.x[:20], layers=("9",), penalty=0
    )
    with pytest.raises(GuardError, match="no layer named '9'"):
        train_fighting(_net(), mix, triggered, fight, np.random.default_rng(0), n_steps=1)
