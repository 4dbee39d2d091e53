"""Each backdoor works: digits, a small network, one round of plain averaging, its own trigger."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import (
    A3FL,
    IBA,
    Chameleon,
    ConstrainAndScale,
    DistributedBackdoor,
    EdgeCase,
    LayerFlipping,
    ModelReplacement,
    Neurotoxin,
    NoAttack,
    attack_success_rate,
)
from fl_shield.attacks.arithmetic import average, move, update_norm
from fl_shield.training import accuracy, get_arrays, set_arrays, train
from fl_shield.triggers import Natural, Patch, default_trigger
from fl_shield.types import (
    Arrays,
    Attack,
    AttackContext,
    Samples,
    ShapesTrigger,
    TrainingConfig,
    Trigger,
)

N_CLIENTS = 8
TARGET = 0


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
    model = _mlp()
    train(model, _digits()[0], TrainingConfig(n_epochs=6, lr=0.1), np.random.default_rng(1))
    return get_arrays(model)


CORNER = default_trigger("patch", _digits()[0].x[:50])
CENTRE = Patch.rectangle((8, 8), row=2, column=2, n_rows=3, n_columns=3, pattern=0.5)
SEVENS = _digits()[0].x[_digits()[0].y == 7][:80]
UPSIDE_DOWN, HELD_OUT = Natural(examples=SEVENS[:, :, ::-1]).split(40)


def _context(client: int, malicious: tuple[int, ...], trigger: Trigger) -> AttackContext:
    parts = [_digits()[0].take(slice(i, None, N_CLIENTS)) for i in range(N_CLIENTS)]
    return AttackContext(
        model=_mlp(),
        global_arrays=_global_model(),
        data=parts[client],
        peers=(parts[client], *(parts[i] for i in malicious if i != client)),
        trigger=trigger,
        target_label=TARGET,
        training=TrainingConfig(n_epochs=2, batch_size=16, lr=0.1),
        n_clients=N_CLIENTS,
        rng=np.random.default_rng(client),
        member=malicious.index(client) if client in malicious else 0,
        n_members=len(malicious),
    )


def _round(attack: Attack, malicious: tuple[int, ...], trigger: Trigger) -> dict[str, NDArray[Any]]:
    """Plain mean of one round with a few attackers."""
    return average(
        [
            (attack if i in malicious else NoAttack())(_context(i, malicious, trigger))
            for i in range(N_CLIENTS)
        ]
    )


def _accuracy(arrays: Arrays) -> float:
    return accuracy(set_arrays(_mlp(), arrays), _digits()[1])


def _success(arrays: Arrays, trigger: Trigger) -> float:
    return attack_success_rate(set_arrays(_mlp(), arrays), _digits()[1], trigger, TARGET)


SCALE = float(N_CLIENTS)
CASES: dict[str, tuple[Attack, tuple[int, ...], Trigger]] = {
    "constrain and scale, L2": (ConstrainAndScale(loss_weight=0.8, n_epochs=6), (0,), CORNER),
    "constrain and scale, cosine": (ConstrainAndScale(anomaly="cosine", n_epochs=6), (0,), CORNER),
    "train and scale": (
        ConstrainAndScale(loss_weight=1.0, max_norm=12.0, n_epochs=6),
        (0,),
        CORNER,
    ),
    "distributed": (DistributedBackdoor(n_epochs=6, scale=2.0), (0, 1, 2, 3), CORNER),
    "neurotoxin": (Neurotoxin(n_epochs=6, scale=SCALE), (0,), CORNER),
    "chameleon": (
        Chameleon(n_epochs=10, n_contrastive_epochs=10, contrastive_lr=0.1, scale=SCALE),
        (0,),
        CORNER,
    ),
    "a3fl": (A3FL(n_epochs=6, scale=4.0), (0,), CENTRE),
    "iba": (IBA(n_epochs=6, scale=4.0), (0,), CORNER),
    "edge cases": (EdgeCase(n_epochs=6, clip_norm=3.0, scale=SCALE), (0,), UPSIDE_DOWN),
}


@pytest.mark.parametrize("name", CASES)
def test_the_backdoor_survives_a_round_of_plain_averaging(name: str) -> None:
    attack, malicious, given = CASES[name]
    context = _context(0, malicious, given)
    trigger = attack.trigger(context) if isinstance(attack, ShapesTrigger) else given
    attacked = _round(attack, malicious, given)
    assert _success(attacked, trigger) > 0.7
    assert _success(attacked, trigger) > _success(_round(NoAttack(), (), given), trigger) + 0.1
    assert _accuracy(attacked) > 0.88


def test_edge_cases_work_on_ones_that_nobody_trained() -> None:
    attack, malicious, given = CASES["edge cases"]
    assert _success(_global_model(), HELD_OUT) < 0.1
    assert _success(_round(attack, malicious, given), HELD_OUT) > 0.7


def test_a_shaped_trigger_needs_less_boost_than_a_fixed_one() -> None:
    for shaper, given in (
        (A3FL(n_epochs=6, scale=4.0), CENTRE),
        (IBA(n_epochs=6, scale=4.0), CORNER),
    ):
        shaped = shaper.trigger(_context(0, (0,), given))
        fixed = ModelReplacement(n_epochs=shaper.n_epochs, scale=shaper.scale)
        by_shape = _success(_round(shaper, (0,), given), shaped)
        assert by_shape > _success(_round(fixed, (0,), given), given) + 0.3


def test_a_part_alone_is_weaker_than_all_parts_together() -> None:
    attack, malicious, given = CASES["distributed"]
    attacked = _round(attack, malicious, given)
    part = DistributedBackdoor().part(_context(0, malicious, given))
    assert _success(attacked, part) < _success(attacked, given) - 0.2


def test_the_constraint_pays_in_distance_and_keeps_the_backdoor() -> None:
    context = _context(0, (0,), CORNER)
    plain, constrained = ModelReplacement(n_epochs=6), CASES["constrain and scale, L2"][0]
    near = update_norm(constrained(context), _global_model())
    assert near < 0.7 * update_norm(plain(_context(0, (0,), CORNER)), _global_model())


def test_a_flipped_layer_hides_its_backdoor_until_the_server_turns_it_round() -> None:
    """As the robust learning rate does with what too few clients agree on."""
    attack = LayerFlipping(n_epochs=12)
    flipped, honest = (a(_context(0, (0,), CORNER)) for a in (attack, NoAttack()))
    turned = move(_global_model(), flipped, -1.0)
    critical = [name for name in honest if (flipped[name] != honest[name]).any()]
    mixed = {name: (turned if name in critical else honest)[name] for name in honest}
    assert _success(flipped, CORNER) < 0.05
    assert _success(mixed, CORNER) > 0.7
    assert _accuracy(mixed) > 0.85
