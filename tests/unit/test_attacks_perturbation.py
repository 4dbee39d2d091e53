"""The perturbation of critical layers by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.attacks import make_attack
from fl_shield.attacks.perturbation import critical_tensors, perturb, relative_change

NAMES = ["conv.weight", "conv.bias", "norm.weight", "fc1.weight", "fc2.weight", "fc2.bias"]
SHAPES = [(2, 1, 2, 2), (2,), (2,), (3, 4), (2, 3), (2,)]


def _model(**filled: float) -> dict[str, NDArray[Any]]:
    """Ones, but for the tensors named (``fc1_weight``), and a counter."""
    model: dict[str, NDArray[Any]] = {
        name: np.full(shape, filled.get(name.replace(".", "_"), 1.0), np.float32)
        for name, shape in zip(NAMES, SHAPES, strict=True)
    }
    return {**model, "norm.n": np.array(3, np.int64)}


def test_the_head_and_the_weight_that_changes_most_are_critical() -> None:
    head = ["fc2.weight", "fc2.bias"]
    assert critical_tensors(_model(), _model(fc1_weight=1.1), NAMES) == ["fc1.weight", *head]
    moved = _model(fc1_weight=1.1, conv_weight=0.8, conv_bias=9.0, norm_weight=9.0)
    assert critical_tensors(_model(), moved, NAMES) == ["conv.weight", *head]


def test_change_counts_beside_the_size_of_a_layer() -> None:
    honest = _model(conv_weight=0.1)
    poisoned = _model(conv_weight=0.2, fc1_weight=1.5)
    assert critical_tensors(honest, poisoned, NAMES)[0] == "conv.weight"
    assert relative_change(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_change(np.zeros(2), np.ones(2)) > 1e30


def test_a_network_of_one_layer_has_its_head_only() -> None:
    model = {"w": np.ones((2, 3)), "b": np.ones(2)}
    assert critical_tensors(model, model, ["w", "b"]) == ["w", "b"]
    flat = {"a": np.ones(2), "b": np.ones(2)}
    assert critical_tensors(flat, flat, ["a", "b"]) == ["a", "b"]


def test_the_displacement_is_added_on_critical_layers_only() -> None:
    honest, poisoned = _model(), _model(fc1_weight=2.0, fc2_weight=0.5, conv_weight=7.0)
    poisoned["norm.n"] = np.array(8, np.int64)
    upload = perturb(honest, poisoned, ["fc1.weight", "fc2.weight", "norm.n"], 3.0)
    assert (upload["fc1.weight"] == 5.0).all()
    assert (upload["fc2.weight"] == -1.0).all()
    assert (upload["conv.weight"] == 7.0).all()
    assert upload["norm.n"] == 8
    assert upload["fc1.weight"].dtype == np.float32
    assert not any(np.shares_memory(upload[name], poisoned[name]) for name in upload)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale and poison_rate must be"),
        ({"scale": float("inf")}, "scale and poison_rate must be"),
        ({"scale": float("nan")}, "scale and poison_rate must be"),
        ({"poison_rate": 0.0}, "scale and poison_rate must be"),
        ({"poison_rate": 2.0}, "poison_rate must be in"),
        ({"n_epochs": 0}, "n_epochs must be"),
    ],
)
def test_impossible_perturbations_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_attack("perturbation", **settings)
