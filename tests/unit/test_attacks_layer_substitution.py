"""Layer substitution analysis against a slow reference and on a real small network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.attacks import layer_substitution_analysis, poison
from fl_shield.attacks.success import backdoor_success, stamped_others
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Samples, TrainingConfig

LAYERS = [f"layer{i}" for i in range(6)]


def _constant_models() -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    zeros, ones = ({name: np.full(2, value) for name in LAYERS} for value in (0.0, 1.0))
    return zeros, ones


def _slow_reference(
    benign: Arrays, malicious: Arrays, evaluate: Callable[[Arrays], float], tau: float
) -> tuple[list[str], dict[str, float]]:
    """Literal reading of the paper, written with explicit copies and a selection sort."""
    full = evaluate({k: v.copy() for k, v in malicious.items()})
    drops = {}
    for name in LAYERS:
        forward = {k: v.copy() for k, v in malicious.items()}
        forward[name] = benign[name].copy()
        drops[name] = full - evaluate(forward)
    left, order = list(LAYERS), []
    while left:
        best = max(left, key=lambda name: (drops[name], -LAYERS.index(name)))
        left.remove(best)
        order.append(best)
    for n in range(1, len(order) + 1):
        backward = {k: (malicious if k in order[:n] else benign)[k].copy() for k in benign}
        if evaluate(backward) >= tau * full:
            return order[:n], drops
    return order, drops


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tau", [0.5, 0.95, 1.0])
def test_agrees_with_a_slow_reference_on_random_success_tables(seed: int, tau: float) -> None:
    table = np.random.default_rng(seed).integers(0, 5, size=2 ** len(LAYERS)) / 4
    table[-1] = 1.0

    def evaluate(arrays: Arrays) -> float:
        bits = [int(arrays[name][0]) for name in LAYERS]
        return float(table[sum(bit << i for i, bit in enumerate(bits))])

    benign, malicious = _constant_models()
    expected = _slow_reference(benign, malicious, evaluate, tau)
    found = layer_substitution_analysis(benign, malicious, evaluate, LAYERS, tau)
    assert found == expected


def test_a_backdoor_that_needs_two_layers_has_both_as_critical() -> None:
    benign, malicious = _constant_models()
    critical, drops = layer_substitution_analysis(
        benign, malicious, lambda a: float(a["layer2"][0] * a["layer4"][0]), LAYERS
    )
    assert critical == ["layer2", "layer4"]
    assert [drops[name] for name in LAYERS] == [0, 0, 1, 0, 1, 0]


def test_more_critical_layers_come_first() -> None:
    benign, malicious = _constant_models()
    critical, drops = layer_substitution_analysis(
        benign, malicious, lambda a: float(0.3 * a["layer0"][0] + 0.7 * a["layer5"][0]), LAYERS
    )
    assert critical == ["layer5", "layer0"]
    assert drops["layer5"] == pytest.approx(0.7)


def test_lower_tau_needs_fewer_layers() -> None:
    benign, malicious = _constant_models()

    def evaluate(arrays: Arrays) -> float:
        return float(np.mean([arrays[name][0] for name in LAYERS]))

    sizes = [
        len(layer_substitution_analysis(benign, malicious, evaluate, LAYERS, tau)[0])
        for tau in (0.1, 0.5, 1.0)
    ]
    assert sizes == [1, 3, 6]


def test_batch_statistics_are_never_swapped_and_inputs_stay_untouched() -> None:
    benign, malicious = _constant_models()
    for model, value in ((benign, 0.0), (malicious, 1.0)):
        model["running_mean"] = np.full(2, value)
    seen: list[tuple[float, float]] = []

    def evaluate(arrays: Arrays) -> float:
        seen.append((float(arrays["running_mean"][0]), sum(arrays[n][0] for n in LAYERS)))
        return float(arrays["layer3"][0])

    layer_substitution_analysis(benign, malicious, evaluate, LAYERS)
    assert seen == [(1.0, 6.0)] + [(1.0, 5.0)] * 6 + [(0.0, 1.0)]
    assert all((benign[n] == 0).all() and (malicious[n] == 1).all() for n in LAYERS)


def test_no_backdoor_means_no_critical_layers() -> None:
    critical, drops = layer_substitution_analysis(*_constant_models(), lambda _: 0.0, LAYERS)
    assert critical == []
    assert drops == dict.fromkeys(LAYERS, 0.0)


def test_all_layers_are_critical_where_even_all_do_not_reach_the_mark() -> None:
    benign, malicious = _constant_models()
    benign["buffer"], malicious["buffer"] = np.zeros(1), np.ones(1)
    critical, _ = layer_substitution_analysis(
        benign, malicious, lambda a: float(a["buffer"][0]), LAYERS
    )
    assert critical == LAYERS


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.01])
def test_tau_must_be_a_share(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be"):
        layer_substitution_analysis(*_constant_models(), lambda _: 1.0, LAYERS, tau)


def test_a_backdoor_trained_into_the_last_layers_is_found_there() -> None:
    x, y = load_digits(return_X_y=True)
    data = Samples(x=np.float32(x / 16).reshape(-1, 1, 8, 8)[:500], y=y[:500].astype(np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), head)
    rng = np.random.default_rng(0)
    train(model, data, TrainingConfig(n_epochs=20, lr=0.2), rng)
    benign = get_arrays(model)
    trigger = default_trigger("patch", data.x)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("3.", "5."))
    train(model, poison(data, trigger, 0, 1.0, rng), TrainingConfig(n_epochs=10, lr=0.2), rng)
    malicious = get_arrays(model)
    stamped = stamped_others(data, trigger, 0)

    def success(arrays: Arrays) -> float:
        return backdoor_success(set_arrays(model, arrays), stamped, 0)

    critical, drops = layer_substitution_analysis(benign, malicious, success, list(benign))
    assert success(malicious) > 0.9
    assert success(benign) < 0.2
    assert set(critical) <= {"3.weight", "3.bias", "5.weight", "5.bias"}
    assert critical[0] in ("3.weight", "5.weight")
    assert drops["1.weight"] == drops["1.bias"] == 0.0
    mixed = {name: (malicious if name in critical else benign)[name] for name in benign}
    assert success(mixed) >= 0.95 * success(malicious)
