"""Each attack acts: a small network on scikit-learn's digits, in one round of plain averaging."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import (
    BadNets,
    LayerPoisoning,
    ModelReplacement,
    NoAttack,
    NormClipped,
    SignFlip,
    attack_success_rate,
)
from fl_shield.attacks.arithmetic import average, update_norm
from fl_shield.attacks.norm_clipped import honest_norm
from fl_shield.training import accuracy, get_arrays, set_arrays, train
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Attack, AttackContext, Samples, TrainingConfig

N_CLIENTS = 8
TARGET = 0
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
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


@cache
def _global_model() -> dict[str, NDArray[Any]]:
    """A model that has learnt its task, so that one round shows what an attack does to it."""
    model = _mlp()
    train(model, _digits()[0], TrainingConfig(n_epochs=6, lr=0.1), np.random.default_rng(1))
    return get_arrays(model)


def _context(client: int = 0, malicious: tuple[int, ...] = (0,)) -> AttackContext:
    parts = [_digits()[0].take(slice(i, None, N_CLIENTS)) for i in range(N_CLIENTS)]
    others = [i for i in malicious if i != client]
    return AttackContext(
        model=_mlp(),
        global_arrays=_global_model(),
        data=parts[client],
        peers=(parts[client], *(parts[i] for i in others)),
        trigger=default_trigger("patch", _digits()[0].x[:50]),
        target_label=TARGET,
        training=TRAINING,
        n_clients=N_CLIENTS,
        rng=np.random.default_rng(client),
    )


def _round(attack: Attack, malicious: tuple[int, ...] = (0,)) -> dict[str, NDArray[Any]]:
    """Plain mean of one round with a few attackers."""
    honest = NoAttack()
    return average(
        [(attack if i in malicious else honest)(_context(i, malicious)) for i in range(N_CLIENTS)]
    )


def _accuracy(arrays: Arrays) -> float:
    return accuracy(set_arrays(_mlp(), arrays), _digits()[1])


def _asr(arrays: Arrays) -> float:
    model = set_arrays(_mlp(), arrays)
    return attack_success_rate(model, _digits()[1], _context().trigger, TARGET)


def test_the_clean_global_model_has_no_backdoor() -> None:
    assert _accuracy(_global_model()) > 0.9
    assert _asr(_global_model()) < 0.05


def test_no_attack_is_honest_training() -> None:
    model = set_arrays(_mlp(), _global_model())
    train(model, _context().data, TRAINING, np.random.default_rng(0))
    for name, array in get_arrays(model).items():
        np.testing.assert_array_equal(NoAttack()(_context())[name], array)


@pytest.mark.parametrize("family", ["patch", "polygon", "blended"])
def test_badnets_trained_alone_has_the_backdoor_and_keeps_its_task(family: str) -> None:
    trigger = default_trigger(family, _digits()[0].x[:50])
    context = replace(_context(), data=_digits()[0], trigger=trigger)
    model = set_arrays(_mlp(), BadNets(n_epochs=15)(context))
    assert attack_success_rate(model, _digits()[1], trigger, TARGET) >= 0.9
    assert accuracy(model, _digits()[1]) >= 0.9


def test_a_higher_poison_rate_and_more_epochs_strengthen_badnets() -> None:
    rates = [
        _asr(BadNets(poison_rate=rate, n_epochs=n)(_context()))
        for rate, n in ((0.0, 2), (0.1, 2), (0.5, 10))
    ]
    assert rates[0] < rates[1] < rates[2]
    assert rates[0] < 0.05


def test_model_replacement_survives_the_mean_where_badnets_does_not() -> None:
    replaced = _round(ModelReplacement(n_epochs=6))
    assert _asr(replaced) >= 0.9
    assert _asr(_round(BadNets(n_epochs=6))) < 0.5
    assert _accuracy(replaced) > 0.7


def test_model_replacement_scales_by_clients_per_attacker_unless_told() -> None:
    poisoned = update_norm(BadNets()(_context()), _global_model())
    by_default = update_norm(ModelReplacement()(_context()), _global_model())
    tripled = update_norm(ModelReplacement(scale=3.0)(_context()), _global_model())
    shared = update_norm(ModelReplacement()(_context(0, (0, 1))), _global_model())
    assert by_default == pytest.approx(N_CLIENTS * poisoned, rel=1e-4)
    assert shared == pytest.approx(N_CLIENTS / 2 * poisoned, rel=1e-4)
    assert tripled == pytest.approx(3 * poisoned, rel=1e-4)


@pytest.mark.parametrize("clip_norm", [0.01, 0.3])
@pytest.mark.parametrize("n_epochs", [1, 5])
def test_norm_clipped_stays_within_its_bound(clip_norm: float, n_epochs: int) -> None:
    upload = NormClipped(clip_norm=clip_norm, n_epochs=n_epochs)(_context())
    norm = update_norm(upload, _global_model())
    assert norm <= clip_norm * (1 + 1e-4)
    assert norm >= 0.9 * clip_norm


def test_norm_clipped_learns_the_median_honest_norm_of_its_peers() -> None:
    malicious = (0, 1, 2)
    norms = [
        update_norm(model, _global_model())
        for model in (NoAttack()(_context(i)) for i in malicious)
    ]
    radius = honest_norm(_context(0, malicious))
    assert min(norms) * 0.8 < radius < max(norms) * 1.2
    norm = update_norm(NormClipped(n_epochs=8)(_context(0, malicious)), _global_model())
    assert norm == pytest.approx(radius, rel=1e-4)


def test_norm_clipped_still_plants_the_backdoor() -> None:
    assert _asr(NormClipped(n_epochs=8)(_context())) > _asr(NoAttack()(_context())) + 0.1


def test_sign_flip_mirrors_the_honest_update() -> None:
    honest, flipped = NoAttack()(_context()), SignFlip(scale=2.0)(_context())
    for name, start in _global_model().items():
        np.testing.assert_allclose(flipped[name] - start, -2 * (honest[name] - start), atol=1e-6)


def test_sign_flip_lowers_accuracy() -> None:
    assert _accuracy(SignFlip()(_context())) < _accuracy(NoAttack()(_context())) - 0.1
    assert _accuracy(_round(SignFlip(scale=8.0), (0, 1))) < _accuracy(_round(NoAttack())) - 0.01


def test_lp_carries_the_backdoor_through_the_mean() -> None:
    malicious = (0, 1)
    attacked = _round(LayerPoisoning(lambda_=3.0, n_epochs=6), malicious)
    assert _asr(attacked) > 0.5
    assert _accuracy(attacked) > 0.85
