"""Local SGD against steps worked out by hand, and the way between models and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.training import (
    accuracy,
    get_arrays,
    logits_of,
    set_arrays,
    train,
)
from fl_shield.types import Samples, TrainingConfig


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def linear(n_in: int = 1, n_out: int = 2) -> nn.Linear:
    """Linear model without bias, all weights 0: every class starts with probability 1 / n."""
    model = nn.Linear(n_in, n_out, bias=False)
    nn.init.zeros_(model.weight)
    return model


def samples(x: Sequence[float], y: Sequence[int]) -> Samples:
    return Samples(x=np.array(x, np.float32).reshape(-1, 1), y=np.array(y, np.int64))


def cnn() -> nn.Module:
    """Every kind of state: weights, biases, running means, an int64 counter, dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(3 * 36, 4),
        )


def images(n: int) -> Samples:
    g = rng()
    return Samples(x=g.random((n, 1, 8, 8), np.float32), y=g.integers(0, 4, n))


# Steps by hand -----------------------------------------------------------------------------------


def test_one_step_by_hand() -> None:
    """At weights 0 the gradient of cross-entropy is x (p - onehot) = (-1/2, 1/2)."""
    model = linear()
    loss = train(model, samples([1], [0]), TrainingConfig(lr=0.1), rng())
    assert loss == pytest.approx(log(2))
    assert model.weight.flatten().tolist() == pytest.approx([0.05, -0.05])


def test_a_batch_averages_and_batches_are_steps() -> None:
    """x = 1 and x = 3, label 0: one batch moves by the mean gradient, -1/2 times 2."""
    model = linear()
    train(model, samples([1, 3], [0, 0]), TrainingConfig(lr=0.1), rng())
    assert model.weight.flatten().tolist() == pytest.approx([0.1, -0.1])

    model = linear()
    config = TrainingConfig(lr=0.1, batch_size=1)
    train(model, samples([2, 2], [0, 0]), config, rng())
    first = 0.1  # lr * x / 2
    p_wrong = 1 / (1 + exp(2 * 2 * first))  # logits are x * (first, -first)
    second = first + 0.1 * 2 * p_wrong
    assert model.weight.flatten().tolist() == pytest.approx([second, -second])


def test_the_loss_is_the_mean_over_examples_of_the_last_epoch() -> None:
    """Equal examples in batches of 2 and 1: a mean over batches would count the last one double."""
    config = TrainingConfig(lr=0.1, batch_size=2)
    loss = train(linear(), samples([1, 1, 1], [0, 0, 0]), config, rng())
    after_one = log(1 + exp(-2 * 0.05))
    assert loss == pytest.approx((2 * log(2) + after_one) / 3)

    loss = train(linear(), samples([1], [0]), TrainingConfig(lr=0.1, n_epochs=2), rng())
    assert loss == pytest.approx(after_one)


def test_momentum_by_hand() -> None:
    model = linear()
    config = TrainingConfig(lr=0.1, momentum=0.9, n_epochs=2)
    train(model, samples([1], [0]), config, rng())
    gradient = 1 / (1 + exp(2 * 0.05))
    expected = 0.05 + 0.1 * (0.9 * 0.5 + gradient)
    assert model.weight.flatten().tolist() == pytest.approx([expected, -expected])


def test_weight_decay_by_hand() -> None:
    """The input is 0, so only decay moves the weights: 1 - lr * decay."""
    model = linear()
    nn.init.ones_(model.weight)
    train(model, samples([0], [0]), TrainingConfig(lr=0.1, weight_decay=0.5), rng())
    assert model.weight.flatten().tolist() == pytest.approx([0.95, 0.95])


def test_clipping_by_hand() -> None:
    """The gradient (-1/2, 1/2) has norm 1/sqrt(2); clipped to 0.1 its entries are 0.1/sqrt(2)."""
    model = linear()
    train(model, samples([1], [0]), TrainingConfig(lr=1.0, clip_norm=0.1), rng())
    step = 0.1 / sqrt(2)
    assert model.weight.flatten().tolist() == pytest.approx([step, -step], rel=1e-4)

    wide = linear()
    train(wide, samples([1], [0]), TrainingConfig(lr=1.0, clip_norm=10.0), rng())
    assert wide.weight.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_frozen_parameters_stay() -> None:
    model = cnn()
    first = next(model.parameters())
    first.requires_grad_(False)
    before, head = first.clone(), get_arrays(model)["5.weight"]
    train(model, images(8), TrainingConfig(weight_decay=0.1), rng())
    assert torch.equal(first, before)
    assert not np.array_equal(get_arrays(model)["5.weight"], head)


def test_the_stream_alone_orders_the_batches() -> None:
    def trained(seed: int, global_seed: int) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            model = linear()
            data = samples([1, -2, 3, 0.5], [0, 1, 1, 0])
            train(model, data, TrainingConfig(batch_size=1), np.random.default_rng(seed))
        return model.weight.flatten().tolist()

    assert trained(0, 0) == trained(0, 1)
    assert trained(0, 0) != trained(1, 0)


def test_training_leaves_the_examples_alone() -> None:
    data = images(6)
    x, y = data.x.copy(), data.y.copy()
    train(cnn(), data, TrainingConfig(n_epochs=2), rng())
    assert np.array_equal(data.x, x)
    assert np.array_equal(data.y, y)


def test_training_learns() -> None:
    g = rng()
    y = g.integers(0, 2, 60)
    data = Samples(x=(g.normal(size=(60, 1)) + 6 * y[:, None] - 3).astype(np.float32), y=y)
    model = nn.Linear(1, 2)
    before = float(nn.functional.cross_entropy(logits_of(model, data.x), torch.from_numpy(y)))
    loss = train(model, data, TrainingConfig(n_epochs=20), rng())
    assert loss < before / 2
    assert accuracy(model, data) > 0.95


# Models and arrays -------------------------------------------------------------------------------


def test_arrays_make_the_round_trip() -> None:
    source, target = cnn(), cnn()
    train(source, images(8), TrainingConfig(), rng())
    arrays = get_arrays(source)
    assert list(arrays) == list(source.state_dict())
    assert arrays["1.num_batches_tracked"].dtype == np.int64
    assert arrays["1.num_batches_tracked"].shape == ()
    assert set_arrays(target, arrays) is target
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_arrays_are_copies_both_ways() -> None:
    model = linear()
    arrays = get_arrays(model)
    arrays["weight"][:] = 5
    assert model.weight.flatten().tolist() == [0, 0]
    set_arrays(model, arrays)
    arrays["weight"][:] = 7
    assert model.weight.flatten().tolist() == [5, 5]


def test_read_only_arrays_are_welcome() -> None:
    """What came over the network may not be writable."""
    array = np.ones((2, 1), np.float32)
    array.setflags(write=False)
    assert set_arrays(linear(), {"weight": array}).state_dict()["weight"].sum() == 2


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"weight": np.zeros((1, 1), np.float32)},  # would broadcast
        {"weight": np.zeros((2, 1), np.float32), "more": np.zeros(1, np.float32)},
        {"Weight": np.zeros((2, 1), np.float32)},
    ],
    ids=["missing", "broadcastable", "extra", "renamed"],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(RuntimeError, match="state_dict"):
        set_arrays(linear(), arrays)


# Logits and accuracy -----------------------------------------------------------------------------


def test_logits_do_not_depend_on_the_batches() -> None:
    model, x = cnn(), images(7).x
    whole = logits_of(model, x)
    assert whole.shape == (7, 4)
    assert torch.allclose(logits_of(model, x, batch_size=2), whole, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_evaluation_and_change_nothing(training: bool) -> None:
    """Dropout is off, running means stay, no gradient is kept, and the mode is put back."""
    model, x = cnn().train(training), images(5).x
    state = get_arrays(model)
    logits = logits_of(model, x)
    assert torch.equal(logits, logits_of(model, x))
    assert not logits.requires_grad
    assert model.training is training
    assert all(np.array_equal(a, state[name]) for name, a in get_arrays(model).items())


def test_logits_of_no_inputs_are_empty() -> None:
    assert logits_of(cnn(), np.zeros((0, 1, 8, 8), np.float32)).shape == (0, 4)


def test_accuracy_by_hand() -> None:
    """The model says 1 for positive inputs, else 0: three of four labels agree."""
    model = linear()
    set_arrays(model, {"weight": np.array([[-1.0], [1.0]], np.float32)})
    assert accuracy(model, samples([1, 2, -1, -2], [1, 1, 0, 1])) == 0.75


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_epochs": 0}, "n_epochs and batch_size must be >= 1, got 0 and 32"),
        ({"batch_size": 0}, "n_epochs and batch_size must be >= 1, got 1 and 0"),
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"lr": -1.0}, "lr must be > 0, got -1.0"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)  # type: ignore[arg-type]
