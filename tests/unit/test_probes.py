"""What updates do to inputs that the server holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.attacks import poison
from fl_shield.probes import GRID, Probes, inverted_blocks, trigger_families
from fl_shield.simulations.datasets import load
from fl_shield.simulations.victims import build_model
from fl_shield.simulations.victims.text import SmallLSTM
from fl_shield.training import TrainingConfig, get_arrays, logits_of, set_arrays, train
from fl_shield.triggers import draw_trigger
from fl_shield.types import Arrays, Samples


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 3, 10, 13), (2, 1, 28, 28)])
def test_inverted_blocks_tile_the_image(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).uniform(0, 0.4, size=shape).astype(np.float32)
    before = x.copy()
    copies = inverted_blocks(x)
    assert len(copies) == GRID * GRID
    changed = np.stack([copy != x for copy in copies])
    np.testing.assert_array_equal(changed.sum(0), 1)  # every pixel in exactly one block
    for copy, mask in zip(copies, changed, strict=True):
        np.testing.assert_allclose(copy[mask], 1 - x[mask])
        assert copy.dtype == np.float32
    np.testing.assert_array_equal(x, before)


def test_other_inputs_have_no_blocks() -> None:
    assert inverted_blocks(np.zeros((3, 7), np.int64)) == []


def test_trigger_families_by_kind_of_input() -> None:
    assert trigger_families(np.zeros((2, 1, 8, 8), np.float32)) == ("patch", "polygon", "blended")
    assert trigger_families(np.zeros((2, 9), np.int64)) == ("word",)
    with pytest.raises(ValueError, match="probes=False"):
        trigger_families(np.zeros((2, 9), np.float32))


def _images(n: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((n, 1, 8, 8)).astype(np.float32)


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4))


def _moved(arrays: Arrays, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {n: (a + 0.1 * rng.normal(size=a.shape)).astype(np.float32) for n, a in arrays.items()}


def test_the_global_models_own_shift_is_exactly_zero() -> None:
    model = _network()
    arrays = get_arrays(model)
    probes = Probes(model, _images(), seed=1)
    probes.set_global(arrays)
    probes.shifts(_moved(arrays))
    own = probes.shifts(arrays)
    assert own
    for shift in own.values():
        np.testing.assert_array_equal(shift, 0.0)


def test_shifts_of_clean_probes_by_hand() -> None:
    model, clean = _network(), _images()
    arrays = get_arrays(model)
    moved = {**arrays, "3.bias": arrays["3.bias"] + np.array([3, 0, 0, 1], np.float32)}
    probes = Probes(model, clean, n_clean=5, n_triggers=3)
    probes.set_global(arrays)
    shifts = probes.shifts(moved)
    np.testing.assert_allclose(shifts["probe:logits"], [2, -1, -1, 0], atol=1e-5)  # centred
    np.testing.assert_allclose(shifts["probe:activation"], 0, atol=1e-6)
    assert shifts["stamp:contrast"].shape == ((GRID * GRID + 3) * 4,)
    np.testing.assert_allclose(shifts["stamp:contrast"], 0, atol=1e-5)  # no different on stamps
    np.testing.assert_allclose(shifts["stamp:logits"], [2, -1, -1, 0] * 2, atol=1e-5)


def test_shifts_use_the_first_clean_inputs_only() -> None:
    model, clean = _network(), _images()
    arrays = get_arrays(model)
    moved = _moved(arrays)
    probes = Probes(model, clean, n_clean=3)
    probes.set_global(arrays)
    found = probes.shifts(moved)["probe:logits"]
    after = logits_of(set_arrays(model, moved), clean[:3]).numpy()
    before = logits_of(set_arrays(model, arrays), clean[:3]).numpy()
    slow = (after - after.mean(1, keepdims=True) - before + before.mean(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found, slow, atol=1e-5)


def test_same_seed_same_stamps() -> None:
    model = _network()
    arrays = get_arrays(model)
    found = []
    for seed in (4, 4, 5):
        probes = Probes(model, _images(), seed=seed)
        probes.set_global(arrays)
        found.append(probes.shifts(_moved(arrays))["stamp:contrast"])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


def test_clean_inputs_are_left_untouched() -> None:
    clean = _images()
    before = clean.copy()
    model = _network()
    Probes(model, clean).set_global(get_arrays(model))
    np.testing.assert_array_equal(clean, before)


def test_text_is_stamped_with_words() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallLSTM(20)
    tokens = np.random.default_rng(0).integers(0, 20, size=(6, 12))
    arrays = get_arrays(model)
    probes = Probes(model, tokens, n_clean=3, n_triggers=4)
    probes.set_global(arrays)
    assert not any(shift.any() for shift in probes.shifts(arrays).values())
    shifts = probes.shifts(_moved(arrays))
    assert shifts["stamp:contrast"].shape == ((GRID * GRID + 4) * 20,)
    assert shifts["probe:activation"].shape == (128,)
    assert all(shift.any() and np.isfinite(shift).all() for shift in shifts.values())


def test_a_backdoored_update_moves_its_stamps_more_than_an_honest_one() -> None:
    data = load("digits", n_clients=2, partition="iid", seed=0)
    model = build_model("digits-mlp", data, 0)
    warm, own = (c.take(slice(0, 300)) for c in data.clients)
    config = TrainingConfig(n_epochs=4, batch_size=32, lr=0.05, momentum=0.9)
    train(model, warm, config, np.random.default_rng(0))
    arrays = get_arrays(model)
    trigger = draw_trigger("patch", data.clean.x, np.random.default_rng(3))
    poisoned = poison(own, trigger, 0, 1.0, np.random.default_rng(1))
    # the honest client trains on as many examples
    honest = Samples.join([own, own.take(slice(0, len(poisoned) - len(own)))])
    probes = Probes(model, data.clean.x)
    probes.set_global(arrays)
    sizes = {}
    for name, samples in (("honest", honest), ("poisoned", poisoned)):
        set_arrays(model, arrays)
        train(model, samples, config, np.random.default_rng(2))
        if name == "poisoned":
            reached = logits_of(model, trigger.stamp(data.test.x)).argmax(1).numpy() == 0
            assert reached.mean() > 0.9  # the attack works
        contrast = probes.shifts(get_arrays(model))["stamp:contrast"].reshape(-1, 10)
        sizes[name] = (np.linalg.norm(contrast), contrast[:, 0].max())
    assert sizes["poisoned"][0] > 1.5 * sizes["honest"][0]
    assert sizes["poisoned"][1] > 2 * sizes["honest"][1]  # towards the target
