"""The LP attack: formula, stealth outside the critical layers, adaptive control, fallbacks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import LayerPoisoning, attack_success_rate
from fl_shield.attacks.arithmetic import average
from fl_shield.attacks.local import train_local, train_peers
from fl_shield.attacks.lp import last_dense_layer
from fl_shield.attacks.poisoning import poison
from fl_shield.training import get_arrays, set_arrays
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, AttackContext, Samples, TrainingConfig

TARGET = 0
HEAD = ["5.weight", "5.bias"]


def _digits() -> Samples:
    x, y = load_digits(return_X_y=True)
    return Samples(x=np.float32(x / 16).reshape(-1, 1, 8, 8), y=y.astype(np.int64))


def _mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second, head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), head)


def _context(data: Samples | None = None, **changes: Any) -> AttackContext:
    digits = _digits()
    own = digits.take(slice(0, 160)) if data is None else data
    context = AttackContext(
        model=_mlp(),
        global_arrays=get_arrays(_mlp()),
        data=own,
        peers=(own, digits.take(slice(160, 300)), digits.take(slice(300, 420))),
        trigger=default_trigger("patch", digits.x[:50]),
        target_label=TARGET,
        training=TrainingConfig(n_epochs=3, batch_size=16, lr=0.2),
        n_clients=10,
        rng=np.random.default_rng(11),
    )
    return replace(context, **changes)


def _changed(upload: Arrays, honest: Arrays) -> list[str]:
    return [name for name in honest if not np.array_equal(upload[name], honest[name])]


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [(1.0, 3.0), (0.5, 1 + 0.5 * 2 + 0.5 * 1), (2.0, 1 + 2.0 * 2), (0.25, 1 + 0.25 * 2 + 0.75)],
)
def test_the_formula_by_hand(lambda_: float, expected: float) -> None:
    """G = 1, u_mal = 3, u_avg = 2."""
    g, malicious, honest = (
        {name: np.full(2, value, np.float32) for name in "ab"} for value in (1.0, 3.0, 2.0)
    )
    upload = LayerPoisoning(lambda_=lambda_).craft(g, malicious, honest, ["b"])
    assert upload["a"].tolist() == [2, 2]
    assert upload["b"].tolist() == [expected] * 2
    assert upload["b"].dtype == np.float32
    assert honest["b"].tolist() == [2, 2]


@pytest.mark.parametrize("lambda_", [1.0, 0.5, 2.0])
def test_outside_the_critical_layers_the_upload_is_the_honest_average(lambda_: float) -> None:
    attack = LayerPoisoning(lambda_=lambda_)
    upload = attack(_context())
    again = _context()
    honest = average(train_peers(again))
    mix = poison(again.data, again.trigger, TARGET, 1.0, again.rng)
    malicious = train_local(again, mix)
    critical = attack.critical_layers(again)
    assert set(_changed(upload, honest)) == set(critical)
    assert 0 < len(critical) < len(honest)
    for name in critical:
        g = again.global_arrays[name]
        rest = max(0.0, 1 - lambda_)
        expected = g + lambda_ * (malicious[name] - g) + rest * (honest[name] - g)
        np.testing.assert_allclose(upload[name], expected, atol=1e-6)


def test_the_upload_carries_the_backdoor() -> None:
    longer = TrainingConfig(n_epochs=15, batch_size=16, lr=0.2)
    context = _context(training=longer)
    honest = average(train_peers(_context(training=longer)))
    upload = LayerPoisoning(lambda_=2.0)(context)
    test = _digits().take(slice(1000, None))
    rates = [
        attack_success_rate(set_arrays(_mlp(), arrays), test, context.trigger, TARGET)
        for arrays in (honest, upload)
    ]
    assert rates[0] < 0.1
    assert rates[1] > 0.5


def _counting_score(honest: Arrays, limit: int) -> Any:
    """A server that rejects whatever differs from the honest average in more layers."""
    return lambda upload: float(len(_changed(upload, honest)) > limit)


@pytest.mark.parametrize("limit", [0, 1])
def test_adaptive_control_drops_the_least_critical_layers_until_accepted(limit: int) -> None:
    honest = average(train_peers(_context()))
    plain = LayerPoisoning(tau=1.0)
    order = _changed(plain(_context()), honest)
    assert len(order) > limit
    adaptive = replace(plain, adaptive=True)
    upload = adaptive(_context(score=_counting_score(honest, limit)))
    changed = _changed(upload, honest)
    assert len(changed) == limit
    again = _context()
    honest_models = train_peers(again)
    assert len(honest_models) == 3
    train_local(again, poison(again.data, again.trigger, TARGET, 1.0, again.rng))
    assert changed == plain.critical_layers(again)[:limit]


def test_adaptive_control_changes_nothing_while_accepted() -> None:
    plain, adaptive = LayerPoisoning(), LayerPoisoning(adaptive=True)
    upload = adaptive(_context(score=lambda _: 0.5))
    assert _changed(upload, plain(_context())) == []


def test_adaptive_control_needs_a_score() -> None:
    with pytest.raises(ValueError, match=r"needs context\.score"):
        LayerPoisoning(adaptive=True)(_context())


def test_a_client_with_too_few_examples_uses_those_of_its_peers() -> None:
    few = _digits().take(slice(0, 3))
    critical = LayerPoisoning().critical_layers(_context(few))
    assert critical
    alone = _context(few, peers=(few,))
    assert LayerPoisoning().critical_layers(alone) == HEAD


def test_a_client_of_the_target_class_only_poisons_with_the_examples_of_its_peers() -> None:
    digits = _digits()
    zeros = digits.take(digits.y == TARGET).take(slice(0, 40))
    honest = average(train_peers(_context(zeros)))
    assert _changed(LayerPoisoning()(_context(zeros)), honest)
    alone = _context(zeros, peers=(zeros,))
    upload = LayerPoisoning()(alone)
    assert _changed(upload, train_local(_context(zeros), zeros)) == []


def test_a_model_that_does_not_learn_falls_back_to_the_last_dense_layer() -> None:
    slow = TrainingConfig(n_epochs=1, batch_size=64, lr=1e-5)
    context = _context(training=slow)
    assert LayerPoisoning(max_passes=4).critical_layers(context) == HEAD
    assert LayerPoisoning(max_passes=1, give_up_accuracy=0.0).critical_layers(context) == HEAD


def test_without_any_examples_the_global_model_is_sent_back() -> None:
    empty = _digits().take(slice(0, 0))
    context = _context(empty, peers=(empty,))
    assert _changed(LayerPoisoning()(context), context.global_arrays) == []


def test_the_last_dense_layer_of_networks_without_one_is_everything() -> None:
    arrays: dict[str, NDArray[Any]] = {"scale": np.zeros(3), "shift": np.zeros(3)}
    assert last_dense_layer(arrays, list(arrays)) == ["scale", "shift"]
