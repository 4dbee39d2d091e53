"""Attacks over clients and rounds: sybil clones and on-off; what untargeted ones do to a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import (
    ALittleIsEnough,
    BadNets,
    GaussianNoise,
    InnerProductManipulation,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    NoAttack,
    OnOff,
    SybilClones,
    attack_success_rate,
)
from fl_shield.attacks.arithmetic import average, update_norm
from fl_shield.training import accuracy, get_arrays, set_arrays, train
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Attack, AttackContext, Samples, TrainingConfig

N_CLIENTS, TARGET = 8, 0
TRAINING = TrainingConfig(n_epochs=1, batch_size=16, lr=0.1)
Rule = Callable[[Sequence[Arrays]], dict[str, NDArray[Any]]]


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
    train(model, _digits()[0], TrainingConfig(n_epochs=2, lr=0.1), np.random.default_rng(1))
    return get_arrays(model)


def _context(
    client: int = 0,
    n_malicious: int = 3,
    server_round: int = 1,
    attack_data: tuple[Samples, ...] = (),
    **changes: Any,
) -> AttackContext:
    """A malicious client of a round as it sees it: its own examples first."""
    data = attack_data or _parts(N_CLIENTS)[:n_malicious]
    others = [d for i, d in enumerate(data) if i != client]
    context = AttackContext(
        model=_mlp(),
        global_arrays=_global_model(),
        data=data[client],
        peers=(data[client], *others),
        trigger=default_trigger("patch", _digits()[0].x[:50]),
        target_label=TARGET,
        training=TRAINING,
        n_clients=N_CLIENTS,
        rng=np.random.default_rng([client, server_round]),
        server_round=server_round,
        member=client,
        n_members=len(data),
    )
    return replace(context, **changes)


def _parts(n: int) -> tuple[Samples, ...]:
    return tuple(_digits()[0].take(slice(i, None, n)) for i in range(n))


def _shards() -> list[Samples]:
    """Eight benign clients with two or three digits each."""
    data = _digits()[0]
    shards = np.array_split(np.argsort(data.y, kind="stable"), 2 * N_CLIENTS)
    order = np.random.default_rng(1).permutation(2 * N_CLIENTS)
    pairs = zip(order[::2], order[1::2], strict=True)
    return [data.take(np.concatenate([shards[i], shards[j]])) for i, j in pairs]


def _median(models: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {
        name: np.median([m[name] for m in models], axis=0).astype(array.dtype)
        for name, array in models[0].items()
    }


def _federation(attack: Attack | None, rule: Rule, n_rounds: int) -> float:
    """Accuracy of eight benign clients, joined by three attackers who know what they upload."""
    arrays: dict[str, NDArray[Any]] = get_arrays(_mlp())
    extra = _parts(N_CLIENTS)[:3]
    for server_round in range(1, n_rounds + 1):
        benign = [
            NoAttack()(_context(0, 1, server_round, (own,), global_arrays=arrays))
            for own in _shards()
        ]
        known = {"global_arrays": arrays, "benign_uploads": tuple(benign), "n_clients": 11}
        crafted = [attack(_context(i, 3, server_round, extra, **known)) for i in range(3) if attack]
        arrays = rule([*crafted, *benign])
    return _accuracy(arrays)


@cache
def _unattacked(rule: Rule, n_rounds: int) -> float:
    return _federation(None, rule, n_rounds)


def _accuracy(arrays: Arrays) -> float:
    return accuracy(set_arrays(_mlp(), arrays), _digits()[1])


def _equal(a: Arrays, b: Arrays) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize(
    "attack",
    [
        InnerProductManipulation(),
        MinMax(),
        MinMax(direction="std"),
        MinSum(),
        Mimic(),
        GaussianNoise(),
        LabelFlip(),
    ],
    ids=str,
)
def test_two_attacked_rounds_of_plain_averaging_lose_accuracy(attack: Attack) -> None:
    assert _unattacked(average, 2) > 0.3
    assert _federation(attack, average, 2) < _unattacked(average, 2) - 0.04


@pytest.mark.parametrize("attack", [ALittleIsEnough(), Mimic(), MinMax()], ids=str)
def test_attacks_that_hide_defeat_the_median_where_clients_differ(attack: Attack) -> None:
    """What their papers claim, at the strength that the published formulas choose."""
    assert _unattacked(_median, 4) > 0.35
    assert _federation(attack, _median, 4) < _unattacked(_median, 4) - 0.1


def test_alie_leaves_as_many_benign_clients_beyond_it_as_it_needs_supporters() -> None:
    """50 clients, 24 malicious: 2 of the 26 benign ones lie farther out, on average."""
    model = nn.Linear(999, 2)
    zero = {name: np.zeros_like(array) for name, array in get_arrays(model).items()}
    rng = np.random.default_rng(2)
    benign = [
        {name: rng.normal(0.2, 1, size=a.shape).astype(np.float32) for name, a in zero.items()}
        for _ in range(26)
    ]
    peers = (_digits()[0].take(slice(0, 4)),) * 24
    context = _context(attack_data=peers, model=model, global_arrays=zero, n_clients=50)
    crafted = ALittleIsEnough()(replace(context, benign_uploads=tuple(benign)))
    beyond = np.mean([(b["weight"] > crafted["weight"]).sum() for b in benign]) / 1998 * 26
    assert beyond == pytest.approx(2, abs=0.15)


def test_gaussian_noise_of_the_published_size_destroys_the_model() -> None:
    noisy = [GaussianNoise(std=200.0)(_context(i)) for i in range(3)]
    assert _accuracy(average([*noisy, *[_global_model()] * 5])) < 0.3 < _accuracy(_global_model())


@dataclass(frozen=True)
class _Spy:
    """Notes the context that it is given and uploads noise from its stream."""

    seen: list[AttackContext]

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        self.seen.append(context)
        return {
            name: array + np.float32(context.rng.normal() + torch.rand(()).item())
            for name, array in context.global_arrays.items()
        }


def test_sybils_run_the_attack_as_one() -> None:
    seen: list[AttackContext] = []
    attack = SybilClones(inner=_Spy(seen), jitter=0.0)
    clones = []
    for client in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(client)  # each process stands elsewhere in its own generator
            clones.append(attack(_context(client)))
    assert _equal(clones[0], clones[1])
    assert _equal(clones[0], clones[2])
    for context in seen:
        assert context.member == 0
        assert context.data is context.peers[0]
        for mine, first in zip(context.peers, seen[0].peers, strict=True):
            np.testing.assert_array_equal(mine.x, first.x)
    moved = {name: array + 1 for name, array in _global_model().items()}
    for other in (_context(server_round=2), _context(global_arrays=moved)):
        changes = update_norm(attack(other), other.global_arrays)
        assert changes != pytest.approx(update_norm(clones[0], _global_model()), rel=1e-3)


@pytest.mark.parametrize("jitter", [0.01, 0.5])
def test_clones_differ_by_noise_of_their_own(jitter: float) -> None:
    clone = SybilClones(jitter=0.0)(_context(0))
    norm = update_norm(clone, _global_model())
    noise = []
    for client in range(3):
        upload = SybilClones(jitter=jitter)(_context(client))
        assert update_norm(upload, clone) == pytest.approx(jitter * norm, rel=0.1)
        noise.append(np.concatenate([(upload[n] - clone[n]).ravel() for n in clone]))
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.08


def test_sybils_plant_by_number_what_one_of_them_cannot() -> None:
    attack = SybilClones(inner=BadNets(n_epochs=8))
    honest = [NoAttack()(_context(i, N_CLIENTS)) for i in range(N_CLIENTS)]
    rates = []
    for n_sybils in (0, 1, 5):
        clones = [attack(_context(i, n_sybils)) for i in range(n_sybils)]
        model = set_arrays(_mlp(), average([*clones, *honest[n_sybils:]]))
        rates.append(attack_success_rate(model, _digits()[1], _context().trigger, TARGET))
    assert rates[0] < 0.1
    assert rates[2] > rates[1] + 0.3


def test_on_off_attacks_in_its_turn_and_is_honest_to_the_byte_otherwise() -> None:
    attack = OnOff(inner=BadNets(n_epochs=2), period=3, duty=0.3)
    for server_round in range(1, 8):
        upload = attack(_context(server_round=server_round))
        expected = BadNets(n_epochs=2) if server_round in (1, 4, 7) else NoAttack()
        assert _equal(upload, expected(_context(server_round=server_round)))
    assert not _equal(attack(_context()), NoAttack()(_context()))


@pytest.mark.parametrize(
    ("period", "duty", "pattern"),
    [
        (1, 0.1, "xxxxxxx"),
        (2, 0.5, "x.x.x.x"),
        (3, 0.5, "xx.xx.x"),
        (4, 0.25, "x...x.."),
        (5, 0.01, "x....x."),
        (5, 1.0, "xxxxxxx"),
        (4, 0.7, "xxx.xxx"),
    ],
)
def test_the_pattern_of_rounds(period: int, duty: float, pattern: str) -> None:
    attack = OnOff(period=period, duty=duty)
    assert "".join("x" if attack.attacks_in(r) else "." for r in range(1, 8)) == pattern


def test_a_default_on_off_attack_replaces_the_model_and_rests() -> None:
    norms = [update_norm(OnOff()(_context(server_round=r)), _global_model()) for r in (1, 2)]
    assert norms[0] > 2 * norms[1]
    assert _equal(OnOff()(_context()), ModelReplacement()(_context()))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (OnOff, {"period": 0}, "period must be a whole number >= 1"),
        (OnOff, {"period": 2.5}, "period must be a whole number >= 1"),
        (OnOff, {"duty": 0.0}, r"duty must be in \(0, 1\]"),
        (SybilClones, {"jitter": -0.1}, "jitter must be finite and >= 0"),
    ],
)
def test_settings_are_checked(
    make: Callable[..., Attack], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
