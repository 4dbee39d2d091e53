"""Evasive poisoning: what it does with each kind of knowledge, and that it evades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fl_shield.attacks import BadNets, Evasive, NoAttack, NormClipped, attack_success_rate
from fl_shield.attacks.arithmetic import move, update_norm
from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.live_suspicion import known_suspicion
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, AttackContext, Samples, TrainingConfig

N_CLIENTS, TARGET = 10, 0
TRAINING = TrainingConfig(n_epochs=2, batch_size=16, lr=0.1)


@cache
def _digits() -> tuple[Samples, Samples]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    data = Samples(x=np.float32(x / 16).reshape(-1, 1, 8, 8)[order], y=y.astype(np.int64)[order])
    return data.take(slice(0, 1200)), data.take(slice(1200, None))


def _mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@cache
def _global_model() -> dict[str, NDArray[Any]]:
    model = _mlp()
    train(model, _digits()[0], TrainingConfig(n_epochs=4, lr=0.1), np.random.default_rng(1))
    return get_arrays(model)


def _context(client: int = 0, **knowledge: Any) -> AttackContext:
    parts = [_digits()[0].take(slice(i, None, N_CLIENTS)) for i in range(N_CLIENTS)]
    return AttackContext(
        model=_mlp(),
        global_arrays=_global_model(),
        data=parts[client],
        peers=(parts[client],),
        trigger=default_trigger("patch", _digits()[0].x[:50]),
        target_label=TARGET,
        training=TRAINING,
        n_clients=N_CLIENTS,
        rng=np.random.default_rng(client),
        **knowledge,
    )


def _asr(arrays: Arrays) -> float:
    model = set_arrays(_mlp(), arrays)
    return attack_success_rate(model, _digits()[1], _context().trigger, TARGET)


def _assert_equal(one: Arrays, other: Arrays) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def _distance(tensors: Mapping[str, Tensor]) -> Tensor:
    """A rule that looks at the head's bias alone."""
    far = tensors["3.bias"] - torch.from_numpy(_global_model()["3.bias"])
    return 100 * far.square().sum().sqrt()


# What it knows -----------------------------------------------------------------------------------


def test_who_knows_nothing_clips_the_norm() -> None:
    _assert_equal(Evasive(n_epochs=3)(_context()), NormClipped(n_epochs=3)(_context()))
    bound = Evasive(clip_norm=0.3)(_context())
    assert update_norm(bound, _global_model()) <= 0.3 + 1e-5


def test_without_a_penalty_it_is_data_poisoning() -> None:
    asked: list[int] = []

    def suspicion(tensors: Mapping[str, Tensor]) -> Tensor:
        asked.append(len(tensors))
        return _distance(tensors)

    found = Evasive(penalty=0.0, n_epochs=3)(_context(suspicion=suspicion))
    _assert_equal(found, BadNets(n_epochs=3)(_context()))
    assert asked == []


def test_it_trains_the_suspicion_below_the_margin() -> None:
    poisoned = BadNets()(_context())
    before = float(_distance({n: torch.from_numpy(a) for n, a in poisoned.items()}))
    attack = Evasive(penalty=1.0, margin=0.2, n_steps=150, lr=3e-3)
    upload = attack(_context(suspicion=_distance))
    after = float(_distance({n: torch.from_numpy(a) for n, a in upload.items()}))
    assert before > 1
    assert after < before / 4
    assert _asr(upload) > 0.8


def test_a_suspicion_below_the_margin_costs_nothing() -> None:
    """Then the penalty has no part in the training, whatever its weight is."""
    one, other = (
        Evasive(penalty=p, margin=1e6, n_steps=5)(_context(suspicion=_distance)) for p in (0.1, 9)
    )
    _assert_equal(one, other)


def test_it_asks_once_a_step_and_about_trainable_tensors() -> None:
    asked: list[set[str]] = []

    def suspicion(tensors: Mapping[str, Tensor]) -> Tensor:
        asked.append(set(tensors))
        assert all(t.requires_grad for t in tensors.values())
        return _distance(tensors)

    Evasive(n_steps=7)(_context(suspicion=suspicion))
    assert asked == [set(_global_model())] * 7


def test_the_upload_that_cost_least_is_sent() -> None:
    """A rule that turns hostile while it is asked: what was sent is from before."""
    calls: list[dict[str, NDArray[Any]]] = []

    def suspicion(tensors: Mapping[str, Tensor]) -> Tensor:
        calls.append({name: t.detach().numpy().copy() for name, t in tensors.items()})
        return 0 * _distance(tensors) + 1000.0 * abs(len(calls) - 4)

    upload = Evasive(penalty=1.0, n_steps=8)(_context(suspicion=suspicion))
    _assert_equal(upload, calls[3])


def test_it_projects_at_the_end_where_it_is_told_to() -> None:
    attack = Evasive(n_steps=5, n_epochs=4, clip=True, clip_norm=0.2)
    upload = attack(_context(suspicion=_distance))
    assert update_norm(upload, _global_model()) == pytest.approx(0.2, rel=1e-4)
    assert update_norm(replace(attack, clip=False)(_context(suspicion=_distance)), upload) > 0.2


@pytest.mark.parametrize("limit", [1.0, 0.45, 0.0])
def test_with_a_score_it_shrinks_until_it_is_accepted(limit: float) -> None:
    """A server that accepts whatever is at most a share of the way from honest to poisoned."""
    context = _context()
    poisoned = NormClipped()(context)
    honest = NoAttack()(replace(context, model=_mlp()))  # its stream goes on where that one ended
    whole = update_norm(poisoned, honest)
    asked: list[float] = []

    def score(arrays: Arrays) -> float:
        asked.append(update_norm(arrays, honest) / whole)
        return 0.0 if asked[-1] <= limit + 1e-3 else 0.9

    upload = Evasive(n_queries=5)(_context(score=score))
    shares = [1.0, 0.8, 0.6, 0.4, 0.2]
    tried = [share for share in shares if share > limit] + [s for s in shares if s <= limit][:1]
    assert asked == pytest.approx(tried, abs=1e-3)
    _assert_equal(upload, move(honest, poisoned, tried[-1]) if limit > 0 else honest)


def test_a_client_without_examples_sends_the_global_model() -> None:
    empty = _context().data.take(slice(0, 0))
    context = replace(_context(suspicion=_distance), data=empty, peers=(empty,))
    _assert_equal(Evasive()(context), _global_model())


def test_batch_statistics_are_those_of_the_poisoned_training() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    context = replace(_context(), model=model, global_arrays=get_arrays(model))

    def rule(tensors: Mapping[str, Tensor]) -> Tensor:
        return 10 * tensors["2.bias"].square().sum()

    upload = Evasive(n_steps=5)(replace(context, suspicion=rule, rng=np.random.default_rng(0)))
    plain = BadNets()(replace(context, rng=np.random.default_rng(0)))
    for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        np.testing.assert_array_equal(upload[name], plain[name])
    assert (upload["2.bias"] != plain["2.bias"]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, "penalty must be >= 0 and finite, got -1"),
        ({"penalty": float("inf")}, "penalty must be"),
        ({"margin": float("nan")}, "margin must be a finite number"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"n_steps": 0}, "n_steps must be >= 1, got 0"),
        ({"n_queries": 0}, "n_queries must be >= 1"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0"),
        ({"poison_rate": 2.0}, "poison_rate must be in"),
        ({"n_epochs": 0}, "n_epochs must be"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evasive(**settings)


# What it achieves --------------------------------------------------------------------------------


def test_it_evades_a_shield_that_it_knows_and_keeps_its_backdoor() -> None:
    """The worst case: weights, seed, clean examples and all other updates have leaked."""
    honest = [NoAttack()(_context(i)) for i in range(1, N_CLIENTS)]
    clean = _digits()[1].take(slice(0, 20))
    server = Inspector(_mlp(), clean, MetaShield.from_pretrained(), seed=11)
    suspicion = known_suspicion(server, _global_model(), honest, refresh=5, capped=False)
    plain = BadNets(n_epochs=4)(_context())
    evasive = Evasive(n_epochs=4)(_context(suspicion=suspicion))
    log_odds, p_values = [], []
    for upload in (plain, evasive):
        found = server.inspect(_global_model(), [upload, *honest], np.ones(N_CLIENTS))
        log_odds.append(found.view_scores[0].sum())
        p_values.append(found.p_values[0])
    assert log_odds[0] > 4
    assert p_values[0] < 0.01
    assert log_odds[1] < log_odds[0] - 5
    assert p_values[1] > 20 * p_values[0]
    assert _asr(plain) > 0.9
    assert _asr(evasive) > _asr(plain) - 0.15
