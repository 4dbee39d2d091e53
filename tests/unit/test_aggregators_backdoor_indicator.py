"""BackdoorIndicator: what is planted, what is kept of it, and who keeps it alive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.aggregators import (
    AggregationContext,
    BackdoorIndicator,
    Layout,
    Preparing,
    is_plain_mean,
)
from fl_shield.aggregators.backdoor_indicator import best_label_accuracy
from fl_shield.aggregators.out_of_distribution import make_strangers, mosaics, textures
from fl_shield.errors import AggregationError
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Floats, Samples, TrainingConfig

RULE = BackdoorIndicator(n_samples=200, limit=0.8)
N_BAD, N_HONEST, N_EACH = 2, 3, 100


def _digits() -> Samples:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return Samples(x=(x[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8), y=y[order])


DIGITS = _digits()


def a_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def a_context(arrays: dict[str, NDArray[Any]], n: int = 0) -> AggregationContext:
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(5),
        model=a_network(),
        clean=DIGITS.take(slice(0, 100)),
    )


@pytest.fixture(scope="module")
def trained() -> dict[str, NDArray[Any]]:
    model = a_network()
    config = TrainingConfig(n_epochs=6, batch_size=32, lr=0.1)
    train(model, DIGITS.take(slice(0, 600)), config, np.random.default_rng(0))
    return get_arrays(model)


Prepared = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def prepared(trained: dict[str, NDArray[Any]]) -> Prepared:
    sent, state = RULE.prepare({}, a_context(trained))
    return sent, dict(state)


def _answers(arrays: dict[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    model = set_arrays(a_network(), arrays).eval()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(x)).argmax(1))


# Planting ---------------------------------------------------------------------------------------


def test_the_task_is_planted_and_the_batch_statistics_are_not(
    trained: dict[str, NDArray[Any]], prepared: Prepared
) -> None:
    sent, state = prepared
    assert isinstance(RULE, Preparing)
    assert {n: (a.shape, a.dtype) for n, a in sent.items()} == {
        n: (a.shape, a.dtype) for n, a in trained.items()
    }
    for name, array in trained.items():
        buffer = "running" in name or "tracked" in name
        assert np.array_equal(sent[name], array) == buffer
        assert (f"statistics/{name}" in state) == buffer
    statistics = {n.removeprefix("statistics/"): a for n, a in state.items() if "statistics" in n}
    assert not np.array_equal(statistics["1.running_mean"], trained["1.running_mean"])
    x, y = state["indicator/x"], state["indicator/y"]
    assert (_answers({**sent, **statistics}, x) == y).mean() > 0.95
    assert (_answers(trained, x) == y).mean() < 0.3
    assert np.bincount(y).tolist() == [20] * 10


def test_the_same_questions_are_planted_in_every_round(prepared: Prepared) -> None:
    sent, state = prepared
    short = replace(RULE, n_epochs=1)
    _, later = short.prepare(state, a_context(sent))
    for name in ("indicator/x", "indicator/y"):
        np.testing.assert_array_equal(later[name], state[name])
    other = replace(short, n_samples=30)
    _, first = other.prepare({}, a_context(sent))
    assert len(first["indicator/x"]) == 30


def test_given_inputs_are_planted_and_need_no_clean_examples(
    trained: dict[str, NDArray[Any]],
) -> None:
    x = np.random.default_rng(0).random((65, 1, 8, 8), dtype=np.float32)  # 64 and a rest of 1
    rule = BackdoorIndicator(strangers=x, n_epochs=1)
    _, state = rule.prepare({}, replace(a_context(trained), clean=None))
    np.testing.assert_array_equal(state["indicator/x"], x)
    with pytest.raises(AggregationError, match="clean examples"):
        RULE.prepare({}, replace(a_context(trained), clean=None))
    with pytest.raises(AggregationError, match="give model="):
        RULE.prepare({}, replace(a_context(trained), model=None))


def test_one_step_of_planting_by_hand() -> None:
    arrays = {"weight": np.zeros((2, 1), np.float32), "bias": np.zeros(2, np.float32)}
    x = np.array([[1.0], [1.0]], np.float32)
    context = replace(a_context(arrays), model=nn.Linear(1, 2))
    rule = BackdoorIndicator(strangers=x, n_epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0)
    sent, state = rule.prepare({}, context)
    assert sorted(state["indicator/y"]) == [0, 1]
    assert not sent["weight"].any()  # the same input with both labels pulls both ways
    three = np.concatenate([x, x[:1]])
    sent, _ = replace(rule, strangers=three, n_epochs=1).prepare({}, context)
    # two of three say 0: the gradient of the first row is 1/2 - 2/3, and the distance is 0 still
    np.testing.assert_allclose(sent["bias"], [0.1 / 6, -0.1 / 6], rtol=1e-5)
    pulled, _ = replace(rule, strangers=three, proximal=1.0, n_epochs=2).prepare({}, context)
    b = 0.1 / 6
    share = 1 / (1 + np.exp(-4 * b))  # logits 2b and -2b: weight and bias
    np.testing.assert_allclose(pulled["bias"][0], b - 0.1 * (share - 2 / 3 + b), rtol=1e-5)


def test_planting_keeps_nearer_to_the_model_with_a_heavier_anchor(
    trained: dict[str, NDArray[Any]],
) -> None:
    context = a_context(trained)
    start = context.global_vector
    short = replace(RULE, n_samples=60, n_epochs=20)
    moved = [
        np.linalg.norm(context.layout.flat(rule.prepare({}, a_context(trained))[0]) - start)
        for rule in (replace(short, proximal=0.0), replace(short, proximal=20.0))
    ]
    assert moved[1] < 0.5 * moved[0]


# Judging ----------------------------------------------------------------------------------------


def test_the_best_label_by_hand_and_labels_without_inputs() -> None:
    answers, labels = np.array([0, 1, 1, 3, 3, 0]), np.array([0, 0, 1, 1, 3, 3])
    assert best_label_accuracy(answers, labels) == 0.5  # no input of label 2: no 0 / 0
    assert best_label_accuracy(np.array([7]), np.array([7])) == 1.0


def _uploads(sent: dict[str, NDArray[Any]]) -> Floats:
    """Updates of two who plant a corner patch slowly, and of three who train honestly."""
    layout, rows = Layout.of(sent), []
    for i in range(N_BAD + N_HONEST):
        own = DIGITS.take(slice(600 + N_EACH * i, 600 + N_EACH * (i + 1)))
        if i < N_BAD:
            stamped = own.x.copy()
            stamped[:, :, -3:, -3:] = 1
            own = Samples.join([own, Samples(x=stamped, y=np.full(N_EACH, 3))])
        config = TrainingConfig(
            n_epochs=2 if i < N_BAD else 3, batch_size=16, lr=0.02 if i < N_BAD else 0.1
        )
        model = set_arrays(a_network(), sent)
        train(model, own, config, np.random.default_rng(i))
        rows.append(layout.flat(get_arrays(model)) - layout.flat(sent))
    return np.stack(rows)


def test_who_plants_a_backdoor_keeps_the_planted_answers_alive(prepared: Prepared) -> None:
    sent, state = prepared
    updates = _uploads(sent)
    n, context = len(updates), a_context(sent, N_BAD + N_HONEST)
    found, after = RULE.step(updates, np.ones(n), state, context)
    np.testing.assert_array_equal(found.votes, [0] * N_BAD + [1] * N_HONEST)
    np.testing.assert_allclose(found.update, updates[N_BAD:].mean(0), rtol=1e-5, atol=1e-7)
    assert not is_plain_mean(found, updates, np.ones(n))
    assert found.scores is not None
    slow = []
    for update in updates:
        arrays = {**context.arrays_of(update)}
        arrays |= {k.removeprefix("statistics/"): v for k, v in after.items() if "statist" in k}
        answers, y = _answers(arrays, state["indicator/x"]), state["indicator/y"]
        right = [
            [int(a == b) for a, b in zip(answers, y, strict=True) if b == c] for c in range(10)
        ]
        slow.append(max(sum(row) / len(row) for row in right))
    np.testing.assert_allclose(found.scores, slow)


def test_an_upload_that_changes_nothing_is_rejected_and_then_the_model_stays(
    prepared: Prepared,
) -> None:
    sent, state = prepared
    updates = np.zeros((3, Layout.of(sent).size), np.float32)
    found, _ = BackdoorIndicator().step(updates, np.ones(3), state, a_context(sent, 3))
    assert not found.votes.any()
    assert not found.update.any()
    assert "kept 0 of 3" in found.note


def test_the_first_prepared_round_is_judged_and_only_an_unprepared_one_averaged(
    prepared: Prepared,
) -> None:
    # a public implementation does not begin before round 1000, and averages until then
    sent, state = prepared
    updates = np.zeros((2, Layout.of(sent).size), np.float32)
    updates[1] += 0.5
    judged, _ = RULE.step(updates, np.ones(2), state, a_context(sent, 2))
    assert not judged.votes[0]
    averaged, _ = RULE.step(updates, np.array([1.0, 3.0]), {}, a_context(sent, 2))
    np.testing.assert_allclose(averaged.update, 0.375)
    assert "nothing was planted" in averaged.note


# Inputs of no class -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 3, 8, 6), (9, 1, 3, 3), (9, 5), (9, 1, 1, 1)])
def test_strangers_have_the_shape_and_range_of_the_task(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).uniform(-2, 3, shape).astype(np.float32)
    strangers = make_strangers(x, 21, np.random.default_rng(1))
    assert strangers.shape == (21, *shape[1:])
    assert strangers.dtype == x.dtype
    assert x.min() <= strangers.min()
    assert strangers.max() <= x.max()
    np.testing.assert_array_equal(strangers, make_strangers(x, 21, np.random.default_rng(1)))
    if x[0].size > 1:
        assert not any((s == row).all() for s in strangers for row in x)


def test_strange_tokens_occur_in_the_task() -> None:
    x = np.array([[2, 4, 6], [8, 2, 4]])
    strangers = make_strangers(x, 50, np.random.default_rng(0))
    assert strangers.shape == (50, 3)
    assert set(strangers.ravel()) == {2, 4, 6, 8}


def test_mosaics_hold_values_of_the_task_and_textures_new_ones() -> None:
    x = np.arange(2 * 64, dtype=np.float64).reshape(2, 1, 8, 8)
    pieces = mosaics(x, 6, np.random.default_rng(0))
    assert set(pieces.ravel()) <= set(x.ravel())
    np.testing.assert_array_equal(np.diff(pieces.reshape(-1, 8)[:, :2]), 1)  # pieces are whole
    noise = textures(x, 6, np.random.default_rng(0))
    assert not set(noise.ravel()) & set(x.ravel())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"n_samples": 1}, "2 samples"), ({"lr": 0.0}, "lr must be"), ({"limit": 0.0}, "limit must")],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BackdoorIndicator(**settings)
