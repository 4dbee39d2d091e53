"""The shield's suspicion of an update as a function with a gradient: the same numbers, the slopes.

What is compared with is the shield itself, on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.live_suspicion import LiveSuspicion, guessed_suspicion, known_suspicion
from fl_shield.live_updates import Company, LiveProbes, LiveSketch, LiveSketcher
from fl_shield.meta import MetaConfig
from fl_shield.probes import Probes
from fl_shield.training import get_arrays
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, AttackContext, Samples, TrainingConfig
from fl_shield.updates import Sketch, Sketcher, standing
from fl_shield.weights import Weights, blank_weights

N_CLIENTS = 7


class _Tokens(nn.Module):
    """Embedding, GRU and a dense head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(self.embedding(x))
        logits: Tensor = self.head(steps[:, -1])
        return logits


def _images() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(80, 9), nn.Tanh(), nn.Linear(9, 3)),
    )


def _model(kind: str = "images") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _images() if kind == "images" else _Tokens()


def _clean(kind: str = "images", n: int = 12) -> Samples:
    rng = np.random.default_rng(0)
    if kind == "tokens":
        return Samples(x=rng.integers(0, 12, size=(n, 6)), y=rng.integers(0, 5, size=n))
    return Samples(x=rng.random((n, 1, 8, 8), dtype=np.float32), y=rng.integers(0, 3, size=n))


def _update(start: Arrays, seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """One client: a direction that all share and noise of its own, in trainable tensors only."""
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    moved = dict(start)
    for name, array in start.items():
        if "running" not in name and "batches" not in name:
            noise = 0.02 * shared.normal(size=array.shape) + 0.02 * own.normal(size=array.shape)
            moved[name] = np.asarray(array + scale * noise, dtype=array.dtype)
    return moved


def _round(start: Arrays, first: int = 0) -> list[dict[str, NDArray[Any]]]:
    """An honest round with one update that stands out."""
    updates = [_update(start, first + i) for i in range(N_CLIENTS)]
    updates[2] = _update(start, first + 2, scale=4.0)
    return updates


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Trainable tensors of a model, for gradients."""
    return {
        name: torch.tensor(a, requires_grad=True)
        for name, a in arrays.items()
        if "running" not in name and "batches" not in name
    }


def _others(updates: Sequence[Any], index: int) -> list[Any]:
    return [update for i, update in enumerate(updates) if i != index]


# What one update shows ---------------------------------------------------------------------------


def _assert_same_sketch(live: LiveSketch, slow: Sketch) -> None:
    found = live.detached()
    assert list(found.vectors) == list(slow.vectors)
    for name, vector in slow.vectors.items():
        np.testing.assert_allclose(found.vectors[name], vector, rtol=1e-4, atol=1e-5)
    for scalars in ("norms", "peaks", "row_peaks"):
        expected: Mapping[str, float] = getattr(slow, scalars)
        assert getattr(found, scalars) == pytest.approx(expected, rel=1e-4)
    assert found.total == pytest.approx(slow.total, rel=1e-5)


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_sketches_are_those_of_arrays(kind: str) -> None:
    start = get_arrays(_model(kind))
    update = _update(start, 4)
    live = LiveSketcher(start, 3).sketch(_tensors(update))
    _assert_same_sketch(live, Sketcher(start, 3).sketch(start, update))
    assert live.total.requires_grad


def test_tensors_that_are_not_named_have_not_moved() -> None:
    start = {"a": np.ones((2, 2), np.float32), "s": np.full((), 3, np.float32)}
    update = {"a": np.full((2, 2), 2.0, np.float32), "s": start["s"]}
    live = LiveSketcher(start).sketch({"a": torch.from_numpy(update["a"])})
    _assert_same_sketch(live, Sketcher(start).sketch(start, update))


@pytest.mark.parametrize("kind", ["images", "tokens"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_shifts_of_probes_are_those_of_arrays(kind: str, scale: float) -> None:
    model, clean = _model(kind), _clean(kind)
    start = get_arrays(model)
    update = _update(start, 4, scale)
    slow = Probes(model, clean.x, seed=5)
    slow.set_global(start)
    expected = slow.shifts(update)
    live = LiveProbes(_model(kind), clean.x, start, seed=5).shifts(_tensors(update))
    assert list(live) == list(expected)
    for name, shift in expected.items():
        np.testing.assert_allclose(live[name].detach().numpy(), shift, atol=2e-5)


@pytest.mark.parametrize("n", [2, 5, 6])
def test_an_update_stands_among_others_as_in_a_round_of_arrays(n: int) -> None:
    model, clean = _model(), _clean()
    start = get_arrays(model)
    inspector = Inspector(model, clean, MetaShield(blank_weights()))
    updates = _round(start)[:n]
    sketches = inspector.sketches(start, updates)
    live = LiveSketcher(start).sketch(_tensors(updates[0]))
    shifts = LiveProbes(model, clean.x, start).shifts(_tensors(updates[0]))
    points, told = Company(sketches[1:]).beside(live.with_shifts(shifts, 0.05))
    group = standing(sketches)
    assert list(points) == list(group.points)
    for name, rows in group.points.items():
        np.testing.assert_allclose(points[name].detach().numpy(), rows[0], atol=2e-3)
        np.testing.assert_allclose(
            told[name].detach().numpy(), group.statistics[name][0], atol=2e-3, equal_nan=True
        )


def test_nobody_stands_alone() -> None:
    with pytest.raises(ValueError, match="guess some by honest training"):
        Company([])


# The suspicion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Conditioned weights that tell every point apart: nothing here rests on what they learned."""
    blank = blank_weights(3, MetaConfig(conditioned=True, n_hidden=8, n_inner_steps=2))
    params = {name: p + 0.05 for name, p in blank.params.items()}
    return Weights(**{**blank.__dict__, "params": params})


def _assert_same_log_odds(inspector: Inspector, start: Arrays) -> None:
    updates = _round(start)
    found = inspector.inspect(start, updates, np.ones(N_CLIENTS))
    expected = found.view_scores.sum(1)
    assert np.ptp(expected) > 0.02  # there is something to confuse
    for i in range(N_CLIENTS):
        suspicion = known_suspicion(inspector, start, _others(updates, i))
        value = suspicion(_tensors(updates[i]))
        assert value.requires_grad
        assert float(value.detach()) == pytest.approx(expected[i], abs=5e-3)
    assert suspicion.score(updates[-1]) == pytest.approx(found.scores[-1], abs=2e-3)


@pytest.mark.parametrize("probes", [False, True])
def test_log_odds_are_those_of_the_inspector(weights: Weights, probes: bool) -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), MetaShield(weights), seed=2, probes=probes)
    _assert_same_log_odds(inspector, start)


def test_log_odds_of_the_shipped_weights_beside_earlier_updates() -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), seed=2)
    for first in (100, 200):
        inspector.inspect(dict(start), _round(start, first), np.ones(N_CLIENTS))
        inspector.remember(np.arange(N_CLIENTS) != 2)
    _assert_same_log_odds(inspector, start)


def _value(suspicion: LiveSuspicion, arrays: Arrays) -> float:
    return float(suspicion(_tensors(arrays)).detach())


def test_log_odds_without_the_cap_of_the_head(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, updates = get_arrays(_model()), _round(get_arrays(_model()))
    inspector = Inspector(_model(), _clean(), MetaShield(weights), probes=False)
    monkeypatch.setattr("fl_shield.inspector.MOST_BY_HEAD", -1.0)
    capped, free = (
        _value(known_suspicion(inspector, start, updates[1:], capped=c), updates[0])
        for c in (True, False)
    )
    assert capped < free
    found = inspector.inspect(start, updates, np.ones(N_CLIENTS))
    assert capped == pytest.approx(found.view_scores[0].sum(), abs=5e-3)
    monkeypatch.setattr("fl_shield.inspector.MOST_BY_HEAD", np.inf)
    found = inspector.inspect(start, updates, np.ones(N_CLIENTS))
    assert free == pytest.approx(found.view_scores[0].sum(), abs=5e-3)


def test_stamps_that_flip_inputs_add_what_they_add_there(weights: Weights) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    start = get_arrays(model)
    updates = [_update(start, i) for i in range(N_CLIENTS)]
    updates[3]["1.weight"] = np.full((10, 64), 30, np.float32)  # answers bright images alone
    updates[3]["1.bias"] = np.full(10, -30 * 37, np.float32)
    updates[3]["3.weight"] = np.repeat(np.array([[1], [-1], [-1]], np.float32), 10, axis=1)
    inspector = Inspector(model, _clean(), MetaShield(weights))
    found = inspector.inspect(start, updates, np.ones(N_CLIENTS))
    assert found.view_scores[3, found.view_names.index("flips")] > 0
    value = known_suspicion(inspector, start, _others(updates, 3))(_tensors(updates[3]))
    assert float(value.detach()) == pytest.approx(found.view_scores[3].sum(), abs=1e-2)


# The gradient ------------------------------------------------------------------------------------


def _slopes(suspicion: LiveSuspicion, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(own, torch.autograd.grad(suspicion(own), list(own.values())), strict=True))


def _wide() -> nn.Module:
    """Every view is wider than the references are many: else residuals are rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 32))
        return nn.Sequential(*layers).double()


@pytest.mark.parametrize("index", [1, 2], ids=["honest", "outlier"])
@pytest.mark.parametrize("probes", [False, True])
def test_gradient_is_that_of_finite_differences(weights: Weights, probes: bool, index: int) -> None:
    """With the references held as they were read: those are constant in between.

    The slopes are taken a little aside, where the update and its nearest neighbour are no longer at
    one distance from each other.
    """
    model, clean = _wide(), _clean()
    start = get_arrays(model)
    clean = Samples(x=clean.x.astype(np.float64), y=clean.y)
    inspector = Inspector(model, clean, MetaShield(weights), probes=probes)
    updates = _round(start)
    suspicion = LiveSuspicion(inspector, start, _others(updates, index), refresh=10**9)
    suspicion(_tensors(updates[index]))
    aside = _update(start, 50)
    own = _tensors({n: u + 1e-2 * (aside[n] - start[n]) for n, u in updates[index].items()})
    slopes = _slopes(suspicion, own)
    assert sum(float(g.norm()) for g in slopes.values()) > 1e-3
    rng, step = np.random.default_rng(1), 1e-6

    def value(name: str, place: int, by: float) -> float:
        moved = {n: t.detach().clone() for n, t in own.items()}
        moved[name].view(-1)[place] += by
        return float(suspicion(moved).detach())

    for name in ("1.weight", "1.bias", "3.weight", "3.bias"):
        gradient = slopes[name]
        for place in rng.integers(0, gradient.numel(), size=5):
            slope = (value(name, int(place), step) - value(name, int(place), -step)) / (2 * step)
            found = float(gradient.view(-1)[int(place)])
            assert found == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_a_small_step_down_the_gradient_lowers_what_the_inspector_says(weights: Weights) -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), MetaShield(weights))
    updates = _round(start)
    own = _tensors(updates[2])
    slopes = _slopes(known_suspicion(inspector, start, _others(updates, 2)), own)
    lower = dict(updates[2])
    for name, t in own.items():
        lower[name] = (t.detach() - 1e-4 * slopes[name].sign()).numpy()
    before, after = (
        inspector.inspect(start, [*_others(updates, 2), u], np.ones(N_CLIENTS)).scores[-1]
        for u in (updates[2], lower)
    )
    assert after < before


def test_the_global_model_itself_gets_no_gradient_rather_than_nan(weights: Weights) -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), MetaShield(weights))
    slopes = _slopes(known_suspicion(inspector, start, _round(start)), _tensors(start))
    assert all(bool(g.isfinite().all()) for g in slopes.values())


# Who knows what ----------------------------------------------------------------------------------


def test_references_are_read_again_every_few_calls(weights: Weights) -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), MetaShield(weights), probes=False)
    updates = _round(start)
    far, near = _tensors(updates[2]), _tensors(updates[1])
    always = known_suspicion(inspector, start, updates[3:])
    seldom = known_suspicion(inspector, start, updates[3:], refresh=2)
    exact = [float(always(t).detach()) for t in (far, near, near)]
    held = [float(seldom(t).detach()) for t in (far, near, near)]
    assert (held[0], held[2]) == (exact[0], exact[2])
    assert held[1] != exact[1]


def test_the_servers_inspector_is_left_as_it_is(weights: Weights) -> None:
    start = get_arrays(_model())
    one, other = (Inspector(_model(), _clean(), MetaShield(weights)) for _ in range(2))
    updates = _round(start)
    _slopes(known_suspicion(one, start, updates[1:]), _tensors(updates[0]))
    one.remember(np.ones(N_CLIENTS, np.bool_))  # nothing was inspected
    assert not one.is_settled
    first, second = (i.inspect(start, updates, np.ones(N_CLIENTS)).scores for i in (one, other))
    np.testing.assert_array_equal(first, second)


def _context(n: int = 30) -> AttackContext:
    model, data = _model(), _clean(n=n)
    return AttackContext(
        model=model,
        global_arrays=get_arrays(model),
        data=data,
        peers=(data, _clean(n=n + 8)),
        trigger=default_trigger("patch", _clean().x),
        target_label=1,
        training=TrainingConfig(n_epochs=1, batch_size=8, lr=0.05),
        n_clients=5,
        rng=np.random.default_rng(7),
    )


def test_a_guess_follows_from_its_own_stream(weights: Weights) -> None:
    context, shield = _context(), MetaShield(weights)
    own = _update(context.global_arrays, 1)
    values = [
        _value(guessed_suspicion(context, shield, np.random.default_rng(seed)), own)
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]
    assert context.rng.random() == np.random.default_rng(7).random()  # untouched


def test_a_guess_has_as_many_clients_as_the_round(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "fl_shield.live_suspicion.LiveSuspicion",
        lambda _inspector, _start, others, **_: seen.append(len(others)),
    )
    guessed_suspicion(_context(), MetaShield(weights), np.random.default_rng(0), probes=False)
    assert seen == [4]


def test_what_cannot_be_is_refused(weights: Weights) -> None:
    start = get_arrays(_model())
    inspector = Inspector(_model(), _clean(), MetaShield(weights), probes=False)
    with pytest.raises(ValueError, match="refresh counts calls from 1, got 0"):
        known_suspicion(inspector, start, _round(start), refresh=0)
    with pytest.raises(ValueError, match="at least one other"):
        known_suspicion(inspector, start, [])
    raw = MetaShield(blank_weights(0, MetaConfig(representation="pca")))
    with pytest.raises(ValueError, match="only profiles have a gradient"):
        known_suspicion(Inspector(_model(), _clean(), raw, probes=False), start, _round(start))
