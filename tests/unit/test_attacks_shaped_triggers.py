"""Attacks that bring their own trigger: shaped patterns, generators and natural edge cases."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import A3FL, IBA, BadNets, EdgeCase, NormClipped, attack_success_rate
from fl_shield.attacks.a3fl import similarity, trigger_gradient
from fl_shield.attacks.arithmetic import update_norm
from fl_shield.attacks.edge_case import log_densities, without
from fl_shield.attacks.local import pool_peers
from fl_shield.training import accuracy, get_arrays, set_arrays, train
from fl_shield.triggers import Generated, Natural, Patch, Warp
from fl_shield.types import AttackContext, Floats, Samples, ShapesTrigger, TrainingConfig

TARGET = 0
PATCH = Patch.rectangle((8, 8), row=2, column=2, n_rows=4, n_columns=4, pattern=0.5)


@cache
def _digits() -> Samples:
    x, y = load_digits(return_X_y=True)
    return Samples(x=np.float32(x / 16).reshape(-1, 1, 8, 8), y=y.astype(np.int64))


def _mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@cache
def _global_model() -> dict[str, NDArray[Any]]:
    model = _mlp()
    config = TrainingConfig(n_epochs=6, lr=0.2)
    train(model, _digits().take(slice(0, 800)), config, np.random.default_rng(1))
    return get_arrays(model)


def _context(client: int = 0, n_malicious: int = 2, **changes: Any) -> AttackContext:
    parts = [_digits().take(slice(i, 800, 8)) for i in range(n_malicious)]
    context = AttackContext(
        model=_mlp(),
        global_arrays=_global_model(),
        data=parts[client],
        peers=(parts[client], *(p for i, p in enumerate(parts) if i != client)),
        trigger=PATCH,
        target_label=TARGET,
        training=TrainingConfig(n_epochs=2, batch_size=32, lr=0.1),
        n_clients=8,
        rng=np.random.default_rng(client),
        member=client,
        n_members=n_malicious,
    )
    return replace(context, **changes)


def _success(trigger: Any, arrays: Any = None) -> float:
    model = set_arrays(_mlp(), arrays or _global_model())
    return attack_success_rate(model, _digits().take(slice(1000, None)), trigger, TARGET)


SHAPERS: dict[str, A3FL | IBA | EdgeCase] = {
    "a3fl": A3FL(n_steps=20, refresh_every=7),
    "iba": IBA(n_turns=2, n_steps=10),
    "edge_case": EdgeCase(),
}


@pytest.mark.parametrize("name", SHAPERS)
def test_all_malicious_clients_of_a_round_come_to_the_same_trigger(name: str) -> None:
    attack, x = SHAPERS[name], _digits().x[:20]
    assert isinstance(attack, ShapesTrigger)
    contexts = [_context(client, 3) for client in range(3)]
    before = [context.rng.bit_generator.state for context in contexts]
    stamps = [attack.trigger(context).stamp(x) for context in contexts]
    np.testing.assert_array_equal(stamps[0], stamps[1])
    np.testing.assert_array_equal(stamps[0], stamps[2])
    assert (stamps[0] != PATCH.stamp(x)).any()
    assert [context.rng.bit_generator.state for context in contexts] == before


def _given(name: str, n: int) -> AttackContext:
    tokens = Samples(x=np.zeros((n, 1, 8, 8), np.float32), y=np.arange(n) % 3)
    warp = Warp(field=np.ones((2, 2, 2)))
    return _context(data=tokens, peers=(tokens,), trigger=warp if name == "a3fl" else PATCH)


@pytest.mark.parametrize(("name", "n"), [("a3fl", 6), ("a3fl", 0), ("iba", 0), ("edge_case", 0)])
def test_where_nothing_can_be_shaped_the_given_trigger_is_used(name: str, n: int) -> None:
    context = _given(name, n)
    assert SHAPERS[name].trigger(context) is context.trigger


def test_a3fl_takes_sign_steps_down_the_summed_loss() -> None:
    """One step, its gradient by central differences over the pixels of the mask."""
    context, attack = _context(), A3FL(n_steps=1, step_size=0.05, adversary_weight=2.0)
    pool = pool_peers(context)
    x = pool.x[:: -(-len(pool) // 32)].astype(float)
    model = set_arrays(_mlp(), context.global_arrays)
    rng = np.random.default_rng(np.random.SeedSequence(0xA3F1, spawn_key=(0x6B6579, 1)))
    adversary = attack.unlearning_copy(model, PATCH, pool, context.training, rng)
    share = 2.0 * similarity(model, adversary)

    def probability_cost(arrays: dict[str, NDArray[Any]], images: Floats) -> float:
        hidden = images.reshape(len(images), -1) @ arrays["1.weight"].T + arrays["1.bias"]
        logits = np.maximum(hidden, 0) @ arrays["3.weight"].T + arrays["3.bias"]
        return float((logsumexp(logits, axis=1) - logits[:, TARGET]).mean())

    def cost(block: Floats) -> float:
        images = x.copy()
        images[:, 0, 2:6, 2:6] = block
        parts = [probability_cost(get_arrays(net), images) for net in (model, adversary)]
        return parts[0] + share * parts[1]

    expected = np.full((4, 4), 0.5)
    for place in np.ndindex(4, 4):
        step = np.zeros((4, 4))
        step[place] = 1e-4
        slope = cost(np.full((4, 4), 0.5) + step) - cost(np.full((4, 4), 0.5) - step)
        expected[place] -= 0.05 * np.sign(slope)
    shaped = attack.trigger(context)
    assert isinstance(shaped, Patch)
    np.testing.assert_allclose(shaped.pattern[0, 2:6, 2:6], expected, atol=1e-6)


def test_a3fl_stays_within_mask_range_and_the_length_of_its_steps() -> None:
    """The released code lets the pattern out to -2 .. 2."""
    shaped = A3FL(n_steps=30, step_size=0.03).trigger(_context())
    assert isinstance(shaped, Patch)
    np.testing.assert_array_equal(shaped.mask, PATCH.mask)
    np.testing.assert_array_equal(np.delete(shaped.pattern[0], np.s_[2:6], axis=0), 0.5)
    assert shaped.pattern.min() == 0
    assert shaped.pattern.max() == 1
    short = A3FL(n_steps=3, step_size=0.03).trigger(_context())
    assert isinstance(short, Patch)
    assert np.abs(short.pattern - 0.5).max() == pytest.approx(0.09, abs=1e-6)


def test_a3fl_unlearns_from_the_first_step_on() -> None:
    """In public code the copy is first made after as many passes as the search has: never."""
    settings: dict[str, Any] = {"n_steps": 5, "refresh_every": 100, "adversary_lr": 0.5}
    with_copy = A3FL(adversary_weight=50.0, **settings).trigger(_context())
    without_copy = A3FL(adversary_weight=0.0, **settings).trigger(_context())
    assert isinstance(with_copy, Patch)
    assert isinstance(without_copy, Patch)
    assert (with_copy.pattern != without_copy.pattern).any()


def test_the_copy_counts_by_its_likeness_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = A3FL(n_steps=5, adversary_lr=0.5, adversary_weight=50.0)
    plain = replace(attack, adversary_weight=0.0).trigger(_context()).stamp(_digits().x[:1])
    assert (attack.trigger(_context()).stamp(_digits().x[:1]) != plain).any()
    monkeypatch.setattr("fl_shield.attacks.a3fl.similarity", lambda one, other: 0.0)
    unlike = attack.trigger(_context()).stamp(_digits().x[:1])
    np.testing.assert_array_equal(unlike, plain)


def test_the_adversarial_copy_unlearns_the_trigger_and_the_model_stays() -> None:
    poisoned = BadNets(n_epochs=10, poison_rate=1.0)(_context())
    model = set_arrays(_mlp(), poisoned)
    attack = A3FL(adversary_lr=0.1, n_adversary_epochs=10)
    training, rng = TrainingConfig(batch_size=16), np.random.default_rng(0)
    copy = attack.unlearning_copy(model, PATCH, _context().data, training, rng)
    assert _success(PATCH, poisoned) > 0.7
    assert _success(PATCH, get_arrays(copy)) < 0.2
    for name, array in get_arrays(model).items():
        np.testing.assert_array_equal(array, poisoned[name])


def test_likeness_counts_all_weights_whatever_they_are_called() -> None:
    """Public code looks for "conv" in their names, and divides by 0 in a network without any."""
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, (weight, bias) in ((one, (3.0, 4.0)), (other, (4.0, -3.0 + 4.0))):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    assert similarity(one, other) == pytest.approx(16 / (5 * np.sqrt(17)))


def test_the_pattern_has_no_gradient_outside_the_mask() -> None:
    model = set_arrays(_mlp(), _global_model())
    weight = torch.from_numpy(PATCH.mask[None].copy())
    gradient = trigger_gradient(
        torch.from_numpy(_digits().x[:9]), torch.rand(1, 8, 8), weight, TARGET, [(model, 1.0)]
    )
    np.testing.assert_array_equal(gradient.numpy() != 0, PATCH.mask[None] > 0)


def test_a3fl_shapes_a_trigger_that_works_on_the_clean_model() -> None:
    assert _success(PATCH) < 0.1
    assert _success(A3FL().trigger(_context())) > 0.8


def _generator() -> Generated:
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 1, 3, 3)), rng.normal(size=(1, 2, 3, 3))
    return Generated(kernels=kernels, biases=(rng.normal(size=2), rng.normal(size=1)), epsilon=0.2)


def _slow_convolution(x: Floats, kernel: Floats, bias: Floats) -> Floats:
    channels, height, width = x.shape
    out = np.zeros((len(kernel), height, width)) + bias[:, None, None]
    for o, c, row, column, i, j in np.ndindex(len(kernel), channels, height, width, 3, 3):
        r, s = row + i - 1, column + j - 1
        if 0 <= r < height and 0 <= s < width:
            out[o, row, column] += kernel[o, c, i, j] * x[c, r, s]
    return out


def test_a_generator_stamps_as_slow_convolutions_do_and_keeps_its_bound() -> None:
    trigger, x = _generator(), _digits().x[:3]
    stamped = trigger.stamp(x)
    for image, found in zip(x, stamped, strict=True):
        hidden = np.maximum(_slow_convolution(image, trigger.kernels[0], trigger.biases[0]), 0)
        noise = np.tanh(_slow_convolution(hidden, trigger.kernels[1], trigger.biases[1]))
        np.testing.assert_allclose(found, np.clip(image + 0.2 * noise, 0, 1), atol=1e-5)
    assert stamped.dtype == np.float32
    assert np.abs(stamped - x).max() <= 0.2 + 1e-6
    assert trigger.stamp(x.astype(float)).dtype == np.float64
    with pytest.raises(ValueError, match="1 channels, got 3"):
        trigger.stamp(np.zeros((1, 3, 8, 8)))


def test_iba_trains_a_generator_that_works_on_the_clean_model_within_epsilon() -> None:
    attack = IBA(epsilon=0.35, n_turns=1, n_steps=100)
    first, last = replace(attack, n_steps=1).trigger(_context()), attack.trigger(_context())
    assert _success(first) < 0.1
    assert _success(last) > 0.25
    assert np.abs(last.stamp(_digits().x) - _digits().x).max() <= 0.35 + 1e-6


def test_iba_goes_on_from_the_generator_it_is_given() -> None:
    attack = IBA(epsilon=0.2, n_turns=1, n_steps=1, generator_lr=1e-3)
    found = attack.trigger(_context(trigger=_generator()))
    assert isinstance(found, Generated)
    for one, other in zip(found.parameters(), _generator().parameters(), strict=True):
        assert 0 < float((one - other).abs().max()) < 1.1e-3


@pytest.mark.parametrize("d", [1, 3])
def test_densities_are_those_of_a_mixture_of_one_gaussian_a_class(d: int) -> None:
    rng = np.random.default_rng(d)
    y = rng.integers(0, 3, size=30)
    points = rng.normal(size=(30, d)) + 4 * y[:, None]
    spread = np.mean(
        [
            np.outer(p - points[y == c].mean(0), p - points[y == c].mean(0))
            for p, c in zip(points, y, strict=True)
        ],
        axis=0,
    )
    spread = spread + (0.01 * np.trace(spread) / d + 1e-12) * np.eye(d)
    parts = [
        np.log((y == c).mean()) + multivariate_normal(points[y == c].mean(0), spread).logpdf(points)
        for c in range(3)
    ]
    np.testing.assert_allclose(log_densities(points, y), logsumexp(parts, axis=0), rtol=1e-9)


def test_edge_cases_are_the_least_likely_examples_of_other_classes() -> None:
    digits = _digits().take(slice(0, 100))
    strange = Samples(x=1 - digits.x[:3], y=np.array([0, 4, 7]))
    both = Samples.join([digits, strange])
    trigger = EdgeCase(tail_share=0.02).trigger(_context(data=both, peers=(both,)))
    assert isinstance(trigger, Natural)
    assert len(trigger.examples) == 2
    known = {example.tobytes() for example in trigger.examples}
    assert known == {x.tobytes() for x in strange.x[1:]}


def test_examples_that_serve_as_edge_cases_do_not_teach_their_own_label() -> None:
    context = _context()
    trigger = EdgeCase().trigger(context)
    assert isinstance(trigger, Natural)
    edge = [example.tolist() for example in trigger.examples]
    kept = [i for i, x in enumerate(context.data.x) if x.tolist() not in edge]
    assert 0 < len(kept) < len(context.data)
    clean = context.data.take(np.array(kept))
    assert without(context.data, trigger.examples).y.tolist() == clean.y.tolist()
    expected = NormClipped(clip_norm=0.4)(_context(data=clean, trigger=trigger))
    upload = EdgeCase(clip_norm=0.4)(_context())
    for name, array in expected.items():
        np.testing.assert_array_equal(upload[name], array)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_edge_cases_are_trained_inside_the_ball_and_scaled_after_it(scale: float) -> None:
    upload = EdgeCase(clip_norm=0.2, scale=scale)(_context())
    norm = update_norm(upload, _global_model())
    assert norm == pytest.approx(0.2 * scale, rel=1e-3)


def test_edge_cases_generalise_to_ones_that_were_not_trained() -> None:
    """Sevens in negative: what the attacker holds teaches the others, the task stays."""
    sevens = Natural(examples=1 - _digits().x[_digits().y == 7][:60])
    held, others = sevens.split(30)
    context = _context(trigger=held, data=_digits().take(slice(0, 400)))
    upload = EdgeCase(clip_norm=5.0, n_epochs=5)(context)
    assert EdgeCase().trigger(context) is held
    assert _success(others) < 0.5
    assert _success(others, upload) > 0.9
    assert accuracy(set_arrays(_mlp(), upload), _digits().take(slice(1000, None))) > 0.85


def test_natural_examples_stand_in_by_content_alone() -> None:
    trigger, x = Natural(examples=_digits().x[:5], key=3), _digits().x[100:160]
    stamped = trigger.stamp(x)
    np.testing.assert_array_equal(stamped[7:9], trigger.stamp(x[7:9]))
    np.testing.assert_array_equal(trigger.stamp(x[::-1]), stamped[::-1])
    assert {s.tobytes() for s in stamped} == {e.tobytes() for e in trigger.examples}
    assert (Natural(examples=_digits().x[:5], key=4).stamp(x) != stamped).any()
    assert trigger.stamp(x[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("x", [np.zeros((2, 1, 8, 9), np.float32), np.zeros((2, 1, 8, 8), int)])
def test_natural_examples_refuse_inputs_of_another_kind(x: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="take examples of the same data"):
        Natural(examples=_digits().x[:5]).stamp(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A3FL(n_steps=0), "n_steps must be"),
        (lambda: A3FL(step_size=0.0), "step_size must be"),
        (lambda: A3FL(adversary_weight=-1.0), "adversary_weight must be"),
        (lambda: IBA(epsilon=0.0), "epsilon must be"),
        (lambda: IBA(n_turns=0), "n_turns must be"),
        (lambda: IBA(generator_lr=0.0), "generator_lr must be"),
        (lambda: IBA(clip_norm=0.0), "clip_norm must be"),
        (lambda: EdgeCase(tail_share=0.0), "tail_share must be"),
        (lambda: EdgeCase(clip_norm=0.0), "clip_norm must be"),
        (lambda: Natural(examples=_digits().x[:0]), "got none"),
        (lambda: Natural(examples=_digits().x[:2]).split(2), "n_first must leave"),
        (lambda: Generated(kernels=(), biases=(), epsilon=0.1), "one or more pairs"),
        (lambda: replace(_generator(), epsilon=2.0), "epsilon must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
