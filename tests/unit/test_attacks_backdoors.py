"""Constrained backdoors: their arithmetic against slow references, and by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cosine
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import (
    Chameleon,
    ConstrainAndScale,
    LayerFlipping,
    LayerPoisoning,
    Neurotoxin,
    poison,
)
from fl_shield.attacks.arithmetic import average, update_norm
from fl_shield.attacks.chameleon import supervised_contrastive
from fl_shield.attacks.local import train_local, train_peers
from fl_shield.attacks.neurotoxin import clean_gradient, free_coordinates, observed_direction
from fl_shield.attacks.projected_training import train_projected
from fl_shield.training import get_arrays
from fl_shield.triggers import Patch, default_trigger
from fl_shield.types import AttackContext, Floats, Ints, Samples, TrainingConfig

TARGET = 0
FULL_BATCH = TrainingConfig(n_epochs=3, batch_size=64, lr=0.3, momentum=0.9, weight_decay=0.02)


@cache
def _digits() -> Samples:
    x, y = load_digits(return_X_y=True)
    return Samples(x=np.float32(x / 16).reshape(-1, 1, 8, 8), y=y.astype(np.int64))


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build()


def _linear() -> nn.Module:
    return _seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))


def _mlp() -> nn.Module:
    return _seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    )


def _convolutional() -> nn.Module:
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        )
    )


def _context(build: Callable[[], nn.Module] = _mlp, **changes: Any) -> AttackContext:
    own = _digits().take(slice(0, 150))
    model = build()
    context = AttackContext(
        model=model,
        global_arrays=get_arrays(model),
        data=own,
        peers=(own, _digits().take(slice(150, 300))),
        trigger=default_trigger("patch", own.x),
        target_label=TARGET,
        training=TrainingConfig(n_epochs=2, batch_size=32, lr=0.1, momentum=0.5),
        n_clients=6,
        rng=np.random.default_rng(2),
    )
    return replace(context, **changes)


def _tiny(**changes: Any) -> AttackContext:
    """Three classes of four pixels and a linear model: 15 numbers, one batch."""
    rng = np.random.default_rng(8)
    own = Samples(x=rng.random((12, 1, 2, 2)).astype(np.float32), y=np.arange(12) % 3)
    corner = Patch.rectangle((2, 2), row=1, column=1, n_rows=1, n_columns=1, pattern=1.0)
    return _context(_linear, data=own, peers=(own,), trigger=corner, training=FULL_BATCH, **changes)


def _vector(context: AttackContext) -> Floats:
    return np.concatenate([a.astype(float).ravel() for a in context.global_arrays.values()])


def _cross_entropy(vector: Floats, x: NDArray[Any], y: Ints) -> float:
    logits = x.reshape(len(x), -1) @ vector[:12].reshape(3, 4).T + vector[12:]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-np.log(shares[np.arange(len(y)), y]).mean())


def _slow_descent(
    start: Floats, cost: Callable[[Floats], float], blocked: Floats | None = None
) -> Floats:
    """SGD with momentum and weight decay on gradients by central differences."""
    vector, speed = start.copy(), np.zeros_like(start)
    for _ in range(FULL_BATCH.n_epochs):
        gradient = np.zeros_like(vector)
        for i in range(len(vector)):
            step = np.zeros_like(vector)
            step[i] = 1e-5
            gradient[i] = (cost(vector + step) - cost(vector - step)) / 2e-5
        gradient += FULL_BATCH.weight_decay * vector
        if blocked is not None:
            gradient[blocked > 0] = 0
        speed = FULL_BATCH.momentum * speed + gradient
        vector = vector - FULL_BATCH.lr * speed
    return vector


def _mix(context: AttackContext) -> Samples:
    return poison(
        context.data, context.trigger, TARGET, 0.5, np.random.default_rng(2)
    )  # the stream that each context starts with


def _flat(upload: dict[str, NDArray[Any]]) -> Floats:
    return np.concatenate([array.astype(float).ravel() for array in upload.values()])


def test_without_constraints_training_is_plain_training_bit_for_bit() -> None:
    plain = train_local(_context(_convolutional), _context().data)
    same = train_projected(_context(_convolutional), _context().data)
    for name, array in plain.items():
        np.testing.assert_array_equal(same[name], array)


@pytest.mark.parametrize("loss_weight", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("anomaly", ["l2", "cosine"])
def test_constrain_and_scale_follows_a_slow_descent_on_its_loss(
    anomaly: str, loss_weight: float
) -> None:
    context = _tiny()
    start, mix, scale = _vector(context), _mix(context), 3.0

    def cost(vector: Floats) -> float:
        if anomaly == "l2":
            unusual = float(np.sqrt(((vector - start) ** 2).sum()))
        else:
            unusual = float(cosine(start + scale * (vector - start), start))
        return loss_weight * _cross_entropy(vector, mix.x, mix.y) + (1 - loss_weight) * unusual

    expected = start + scale * (_slow_descent(start, cost) - start)
    attack = ConstrainAndScale(loss_weight=loss_weight, anomaly=anomaly, scale=scale)  # type: ignore[arg-type]
    np.testing.assert_allclose(_flat(attack(context)), expected, atol=1e-4)


def test_the_anomaly_term_keeps_the_model_near_the_global_one() -> None:
    near, far = (
        update_norm(
            ConstrainAndScale(loss_weight=weight, scale=1.0, n_epochs=10)(_context()),
            _context().global_arrays,
        )
        for weight in (0.8, 1.0)
    )
    assert near < 0.8 * far


@pytest.mark.parametrize("max_norm", [0.5, 20.0])
def test_train_and_scale_is_as_long_as_the_bound(max_norm: float) -> None:
    upload = ConstrainAndScale(max_norm=max_norm, scale=7.0)(_context())
    assert update_norm(upload, _context().global_arrays) == pytest.approx(max_norm, rel=1e-4)


def _slow_free(direction: dict[str, NDArray[Any]], n_masked: int) -> dict[str, list[bool]]:
    ranked = sorted(
        (-abs(float(value)), place, name, i)
        for place, (name, array) in enumerate(direction.items())
        for i, value in enumerate(array.ravel())
    )
    masked = {(name, i) for _, _, name, i in ranked[:n_masked]}
    return {
        name: [(name, i) not in masked for i in range(array.size)]
        for name, array in direction.items()
    }


@pytest.mark.parametrize(("ratio", "n_masked"), [(0.01, 1), (0.05, 2), (0.5, 12), (0.9, 21)])
def test_neurotoxin_masks_the_largest_coordinates_of_all_tensors_together(
    ratio: float, n_masked: int
) -> None:
    rng = np.random.default_rng(0)
    direction = {"a": rng.normal(size=(4, 4)), "b": 5 * rng.normal(size=7)}
    direction["b"][:3] = direction["b"][0]
    found = free_coordinates(direction, ratio)
    assert {n: f.ravel().tolist() for n, f in found.items()} == _slow_free(direction, n_masked)
    assert found["a"].shape == (4, 4)


def test_neurotoxin_follows_a_slow_masked_descent() -> None:
    context = _tiny()
    before = {n: a - np.float32(0.1) * (a > 0) for n, a in context.global_arrays.items()}
    start, mix = _vector(context), _mix(context)
    moved = start - _flat(before)
    blocked = np.zeros_like(start)
    blocked[np.argsort(-np.abs(moved), kind="stable")[:3]] = 1
    expected = _slow_descent(start, lambda v: _cross_entropy(v, mix.x, mix.y), blocked)
    upload = _flat(Neurotoxin(mask_ratio=0.2)(replace(context, previous_arrays=before)))
    np.testing.assert_allclose(upload, expected, atol=1e-4)
    np.testing.assert_array_equal(upload[blocked > 0], start[blocked > 0])
    assert (upload[blocked == 0] != start[blocked == 0]).all()


def test_neurotoxin_reads_the_last_global_update_and_not_its_own_gradient() -> None:
    """In public code the mask comes from the client's own gradient, whatever the server sent."""
    context = _context()
    rng = np.random.default_rng(1)
    before = {
        n: a - rng.normal(size=a.shape).astype(np.float32) for n, a in context.global_arrays.items()
    }
    direction = observed_direction(replace(context, previous_arrays=before))
    own = clean_gradient(context, context.data)
    for name, array in context.global_arrays.items():
        np.testing.assert_array_equal(direction[name], array - before[name])
        np.testing.assert_array_equal(observed_direction(context)[name], own[name])
    unchanged = replace(context, previous_arrays=context.global_arrays)
    np.testing.assert_array_equal(observed_direction(unchanged)["1.weight"], own["1.weight"])


def test_the_own_gradient_is_that_of_the_mean_loss() -> None:
    context = _tiny()
    start, data = _vector(context), context.data
    found = _flat(clean_gradient(replace(context, training=TrainingConfig(batch_size=5)), data))
    for i in range(len(start)):
        step = np.zeros_like(start)
        step[i] = 1e-5
        ends = (_cross_entropy(start + s, data.x, data.y) for s in (step, -step))
        assert found[i] == pytest.approx((next(ends) - next(ends)) / 2e-5, abs=1e-5)


def test_neurotoxin_stays_in_its_ball_and_out_of_its_mask() -> None:
    training = TrainingConfig(n_epochs=4, batch_size=32, lr=0.2, momentum=0.9, weight_decay=0.01)
    context = _context(training=training)
    free = free_coordinates(clean_gradient(context, context.data), 0.05)
    upload = Neurotoxin(clip_norm=0.3)(context)
    assert update_norm(upload, context.global_arrays) == pytest.approx(0.3, rel=1e-3)
    for name, flags in free.items():
        np.testing.assert_array_equal(upload[name][~flags], context.global_arrays[name][~flags])


def _slow_contrastive(z: Floats, y: Ints, weights: Floats, temperature: float) -> float:
    total, unit = 0.0, [row / np.sqrt((row**2).sum()) for row in z]
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        friends = [p for p in others if y[p] == y[i]]
        below = sum(np.exp(unit[i] @ unit[a] / temperature) for a in others)
        for p in friends:
            share = np.exp(unit[i] @ unit[p] / temperature) / below
            total -= weights[i] / len(friends) * np.log(share)
    return float(total / len(y))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_contrastive_loss_is_that_of_its_equation(temperature: float) -> None:
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(9, 4)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    weights = np.where(y == 2, 2.0, 1.0)
    rows, labels, scales = map(torch.tensor, (z, y, weights))
    found = supervised_contrastive(rows, labels, scales, temperature)
    assert float(found) == pytest.approx(_slow_contrastive(z, y, weights, temperature))


def test_the_contrastive_loss_by_hand() -> None:
    """Two equal points of one class and one at a right angle, alone in its own: t = 1."""
    z = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    loss = supervised_contrastive(z, torch.tensor([4, 4, 1]), torch.ones(3), 1.0)
    assert float(loss) == pytest.approx(2 / 3 * np.log(1 + np.exp(-1)))


def test_chameleon_freezes_the_encoder_and_its_statistics_while_the_head_learns() -> None:
    """Public code misspells the switch, and its encoder trains on with the head."""
    attack = Chameleon(n_contrastive_epochs=3, n_epochs=4)
    replay = _context(_convolutional)
    mix = poison(replay.data, replay.trigger, TARGET, 0.5, replay.rng)
    ones = {n: np.ones(p.shape, bool) for n, p in replay.model.named_parameters()}
    encoder = {n: f for n, f in ones.items() if not n.startswith("4.")}
    lrs, loss = attack.contrastive_lrs(1), attack.contrastive_loss("4", TARGET)
    adapted = train_projected(replay, mix, lrs=lrs, loss=loss, free=encoder)
    upload = attack(_context(_convolutional))
    for name, start in replay.global_arrays.items():
        if name.startswith("4."):
            np.testing.assert_array_equal(adapted[name], start)
            assert (upload[name] != start).any()
        else:
            np.testing.assert_array_equal(upload[name], adapted[name])
            assert (adapted[name] != start).any()


def test_chameleon_draws_stamped_inputs_to_the_target_class() -> None:
    attack = Chameleon(n_contrastive_epochs=10, contrastive_lr=0.1)
    context = _context()
    upload = attack(context)
    stamped = context.trigger.stamp(context.data.x[context.data.y != TARGET])
    targets = context.data.x[context.data.y == TARGET]

    def likeness(arrays: Any) -> float:
        hidden = [
            np.maximum(x.reshape(len(x), -1) @ arrays["1.weight"].T + arrays["1.bias"], 0)
            for x in (stamped, targets)
        ]
        one, other = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in hidden)
        return float((one @ other.T).mean())

    assert likeness(upload) > likeness(context.global_arrays) + 0.2


def test_chameleon_by_milestones_and_inside_its_ball() -> None:
    rates = Chameleon(n_contrastive_epochs=10).contrastive_lrs(1)
    np.testing.assert_allclose(
        rates, [0.015 * 0.3 ** (epoch // 2) for epoch in range(9)] + rates[8:9]
    )
    upload = Chameleon(clip_norm=0.2)(_context())
    assert update_norm(upload, _context().global_arrays) <= 0.2 * (1 + 1e-4)


def test_layer_flipping_turns_the_critical_layers_round_and_is_honest_elsewhere() -> None:
    longer = TrainingConfig(n_epochs=4, batch_size=16, lr=0.2)
    upload, again = LayerFlipping()(_context(training=longer)), _context(training=longer)
    honest = train_local(again, again.data)
    malicious = train_local(again, poison(again.data, again.trigger, TARGET, 1.0, again.rng))
    critical = LayerPoisoning().critical_layers(again)
    assert 0 < len(critical) < len(honest)
    for name, g in again.global_arrays.items():
        expected = 2 * g.astype(float) - malicious[name] if name in critical else honest[name]
        np.testing.assert_allclose(upload[name], expected, atol=1e-6)


def test_adaptive_lp_sends_what_the_server_last_accepted() -> None:
    """Public code stops before it stores the list of layers that was accepted."""
    asked: list[dict[str, NDArray[Any]]] = []

    def score(upload: Any) -> float:
        asked.append({name: np.array(array) for name, array in upload.items()})
        return 1.0 if len(asked) < 3 else 0.0

    training = TrainingConfig(n_epochs=4, lr=0.2)
    honest = average(train_peers(_context(training=training)))
    upload = LayerPoisoning(tau=1.0, adaptive=True)(_context(score=score, training=training))
    n_poisoned = [sum((a[n] != honest[n]).any() for n in honest) for a in asked]
    assert n_poisoned == [n_poisoned[0], n_poisoned[0] - 1, n_poisoned[0] - 2]
    for name, array in asked[-1].items():
        np.testing.assert_array_equal(upload[name], array)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (ConstrainAndScale, {"loss_weight": 0.0}, "loss_weight must be"),
        (ConstrainAndScale, {"anomaly": "l1"}, "anomaly must be"),
        (ConstrainAndScale, {"max_norm": 0.0}, "max_norm must be"),
        (Neurotoxin, {"mask_ratio": 1.0}, "mask_ratio must be"),
        (Neurotoxin, {"clip_norm": 0.0}, "clip_norm must be"),
        (Chameleon, {"temperature": 0.0}, "temperature must be"),
        (Chameleon, {"decay": 0.0}, "decay must be"),
        (LayerFlipping, {"tau": 0.0}, "tau must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    attack: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**settings)
