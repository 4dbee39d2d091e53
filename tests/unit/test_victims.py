"""Victims: parameter counts, seeds, shapes, defaults."""

import numpy as np
import pytest
import torch

from fl_shield.errors import ScenarioError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import DATASETS, FederatedData, load
from fl_shield.simulations.victims import MODELS, build_model, default_model, default_training
from fl_shield.training import accuracy, get_arrays, logits_of, train
from fl_shield.types import Samples

COUNTS = {
    # weights and biases, layer by layer
    "digits-mlp": 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10,
    "digits-cnn": 160 + 4_640 + 128 * 64 + 64 + 64 * 10 + 10,
    "small-cnn": 160 + 4_640 + 1568 * 128 + 128 + 128 * 62 + 62,
    "leaf-cnn": 6_603_710,
    "fed-cnn": 1_206_590,
    # four gates of an LSTM, two bias vectors each
    "small-lstm": 80 * 16 + 4 * 128 * (16 + 128 + 2) + 128 * 80 + 80,
    "cifar-cnn": 448 + 4_640 + 18_496 + 1024 * 128 + 128 + 128 * 62 + 62,
    "resnet18-gn": 11_168_832 + 512 * 62 + 62,
    "news-averager": 5002 * 32 + 32 * 64 + 64 + 64 * 80 + 80,
    "policy-mlp": 16 * 64 + 64 + 64 * 64 + 64 + 64 * 62 + 62,
    "leaf-lstm": 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 256 * 80 + 80,
}


def federation(model: str) -> FederatedData:
    """Two random examples of the kind that a model takes."""
    victim = MODELS[model]
    text = victim.kind == "text"
    n_classes = 80 if text else 10 if victim.input_shape == (1, 8, 8) else 62
    x = np.zeros((2, *victim.input_shape), np.int64 if text else np.float32)
    few = Samples(x=x, y=np.zeros(2, np.int64))
    return FederatedData(
        name="demo",
        kind=victim.kind,
        clients=(few,),
        client_names=("a",),
        test=few,
        clean=few,
        n_classes=n_classes,
        vocabulary=tuple(map(str, range(80))) if text else "",
    )


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name: str) -> None:
    model = build_model(name, federation(name), seed=0)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert list(model.buffers()) == []


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_one_column_a_class(name: str) -> None:
    data = federation(name)
    logits = logits_of(build_model(name, data, seed=0), data.test.x)
    assert logits.shape == (2, data.n_classes)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_gives_the_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    data = federation(name)
    before = torch.get_rng_state()
    first, again, other = (get_arrays(build_model(name, data, seed=s)) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not any(np.array_equal(first[n], other[n]) for n in first if n.endswith("head.weight"))


def test_unknown_and_unfitting_models_are_refused_with_those_that_fit() -> None:
    digits = load("digits", n_clients=2)
    with pytest.raises(ScenarioError, match="digits-mlp, digits-cnn, small-cnn"):
        build_model("resnet", digits, seed=0)
    with pytest.raises(ScenarioError, match="use digits-mlp or digits-cnn"):
        build_model("leaf-cnn", digits, seed=0)
    with pytest.raises(ScenarioError, match="takes text inputs"):
        build_model("small-lstm", digits, seed=0)


def test_every_data_set_has_a_default_model_and_training() -> None:
    for dataset in DATASETS:
        assert default_model(dataset) in MODELS
        assert default_training(dataset).n_epochs >= 1
    with pytest.raises(ScenarioError, match="data set must be one of digits"):
        default_model("mnist")


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_digits_are_learned(name: str) -> None:
    data = load("digits", n_clients=1, partition="iid")
    model = build_model(name, data, seed=0)
    untrained = accuracy(model, data.test)
    for epoch in range(4):
        train(model, data.clients[0], default_training("digits"), keyed(0, epoch))
    assert untrained < 0.4
    assert accuracy(model, data.test) > 0.88
