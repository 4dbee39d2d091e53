"""What updates do to inputs that the server holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.attacks import poison
from fl_shield.probes import (
    FAINTEST,
    FINALISTS,
    N_CLEAN,
    Probes,
    faint_checkers,
    flip_evidence,
    inverted_blocks,
    stamps,
)
from fl_shield.simulations.datasets import load
from fl_shield.simulations.victims import build_model
from fl_shield.simulations.victims.text import SmallLSTM
from fl_shield.training import get_arrays, logits_of, set_arrays, train
from fl_shield.triggers import draw_trigger
from fl_shield.types import Arrays, Samples, TrainingConfig


@pytest.mark.parametrize(
    ("shape", "n_blocks"), [((2, 1, 8, 8), 16), ((1, 3, 10, 13), 16), ((2, 1, 28, 28), 25)]
)
def test_inverted_blocks_tile_the_image(shape: tuple[int, ...], n_blocks: int) -> None:
    x = np.random.default_rng(0).uniform(0, 0.4, size=shape).astype(np.float32)
    before = x.copy()
    copies = inverted_blocks(x)
    assert len(copies) == n_blocks
    changed = np.stack([copy != x for copy in copies])
    np.testing.assert_array_equal(changed.sum(0), 1)  # every pixel in exactly one block
    for copy, mask in zip(copies, changed, strict=True):
        np.testing.assert_allclose(copy[mask], 1 - x[mask])
        assert copy.dtype == np.float32
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("side", "n_checkers"), [(8, 10), (28, 12), (1, 2)])
def test_checkers_are_faint_and_come_with_their_negatives(side: int, n_checkers: int) -> None:
    x = np.random.default_rng(0).random((2, 3, side, side)).astype(np.float32)
    copies = faint_checkers(x)
    assert len(copies) == n_checkers
    for checker, negative in zip(copies[::2], copies[1::2], strict=True):
        np.testing.assert_allclose(checker + negative, 1.6 * x + 0.2, atol=1e-6)
        assert np.abs(checker - x).max() <= 0.2 + 1e-6
        assert checker.dtype == np.float32


def test_two_by_two_checkers_by_hand() -> None:
    zeros = np.zeros((1, 1, 4, 4), np.float32)
    flat, coarse = (faint_checkers(zeros)[i][0, 0] for i in (1, 2))
    np.testing.assert_allclose(flat, 0.2)  # one cell: the whole image a little lighter
    quadrant = np.kron([[0, 1], [1, 0]], np.ones((2, 2)))
    np.testing.assert_allclose(coarse, 0.2 * quadrant)


def test_stamps_by_kind_of_input() -> None:
    rng = np.random.default_rng(0)
    images, tokens = _images(), rng.integers(0, 9, size=(6, 7))
    assert {k: len(v) for k, v in stamps(images, images, rng).items()} == {"local": 16, "wide": 10}
    assert {k: len(v) for k, v in stamps(tokens, tokens, rng).items()} == {"word": 24}
    with pytest.raises(ValueError, match="probes=False"):
        stamps(np.zeros((2, 9), np.float32), tokens, rng)


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
    probes = Probes(model, clean)
    probes.set_global(arrays)
    shifts = probes.shifts(moved)
    np.testing.assert_allclose(shifts["probe:logits"], [2, -1, -1, 0], atol=1e-5)  # centred
    np.testing.assert_allclose(shifts["probe:activation"], 0, atol=1e-6)


def _asked() -> tuple[nn.Module, NDArray[np.float32], Arrays, Arrays, Probes]:
    """Network, clean inputs, its arrays, an update, and probes that know the arrays."""
    model, clean = _network(), _images()
    arrays = get_arrays(model)
    probes = Probes(model, clean)
    probes.set_global(arrays)
    return model, clean, arrays, _moved(arrays), probes


def test_shifts_of_stamped_probes_agree_with_asking_about_one_input_at_a_time() -> None:
    model, clean, arrays, moved, probes = _asked()
    found = probes.shifts(moved)

    def chances(weights: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
        logits = logits_of(set_arrays(model, weights), x[None]).double().numpy()[0]
        powers: NDArray[np.float64] = np.exp(logits - logits.max())
        out: NDArray[np.float64] = powers / powers.sum()
        return out

    inputs = clean[:N_CLEAN]
    drift = np.mean([chances(moved, x) - chances(arrays, x) for x in inputs], axis=0)
    for name, copies in stamps(inputs, clean, np.random.default_rng(0)).items():
        chance, evidence = np.zeros((2, len(copies), len(inputs), 4))
        for i, copy in enumerate(copies):
            for j, x in enumerate(copy):
                after, before = chances(moved, x), chances(arrays, x)
                chance[i, j] = after - before
                floor = np.exp(FAINTEST)
                evidence[i, j] = np.log(np.maximum(after, floor) / np.maximum(before, floor))
        k = FINALISTS[name]
        order = [
            sorted(range(len(copies)), key=lambda i: -t[i, 0].max()) for t in (chance, evidence)
        ]
        last = sorted({*order[0][:k], *order[1][:k]})
        mean, odds = chance[last].mean(1), evidence[last].mean(1)
        np.testing.assert_allclose(found[f"stamp:{name}"], mean.max(0), atol=1e-5)
        np.testing.assert_allclose(
            found[f"stamp:{name}-contrast"], (mean - drift).max(0), atol=1e-5
        )
        np.testing.assert_allclose(found[f"stamp:{name}-evidence"], odds.max(0), atol=1e-4)


def test_shifts_use_the_first_clean_inputs_only() -> None:
    model, clean, arrays, moved, probes = _asked()
    found = probes.shifts(moved)["probe:logits"]
    after = logits_of(set_arrays(model, moved), clean[:N_CLEAN]).numpy()
    before = logits_of(set_arrays(model, arrays), clean[:N_CLEAN]).numpy()
    slow = (after - after.mean(1, keepdims=True) - before + before.mean(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found, slow, atol=1e-5)


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
    found = []
    for seed in (4, 4, 5):
        probes = Probes(model, tokens, seed=seed)
        probes.set_global(arrays)
        for shift in probes.shifts(arrays).values():
            np.testing.assert_allclose(shift, 0, atol=1e-5)
        found.append(probes.shifts(_moved(arrays)))
    assert found[0]["stamp:word"].shape == (20,)
    assert found[0]["probe:activation"].shape == (128,)
    assert all(shift.any() and np.isfinite(shift).all() for shift in found[0].values())
    np.testing.assert_array_equal(found[0]["stamp:word"], found[1]["stamp:word"])
    assert np.abs(found[0]["stamp:word"] - found[2]["stamp:word"]).max() > 0  # the seed draws words


def test_an_overflowing_model_raises_nothing() -> None:
    model = _network()
    arrays = get_arrays(model)
    probes = Probes(model, _images())
    probes.set_global(arrays)
    with np.errstate(all="ignore"):
        shifts = probes.shifts({n: np.full_like(a, 1e30) for n, a in arrays.items()})
    assert shifts["stamp:local"].shape == (4,)


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
        shifts = probes.shifts(get_arrays(model))
        sizes[name] = (shifts["stamp:local-contrast"][0], shifts["stamp:local-evidence"][0])
    assert sizes["poisoned"][0] > 2 * max(sizes["honest"][0], 0.05)  # towards the target
    assert sizes["poisoned"][1] > 1.5 * sizes["honest"][1]


def test_an_update_that_obeys_a_stamp_is_evidence_and_an_honest_one_is_not() -> None:
    """A backdoor in the place of a probed block, trained into the model for real."""
    data = load("digits", n_clients=2, partition="iid", seed=0)
    model = build_model("digits-mlp", data, 0)
    warm, own = (c.take(slice(0, 300)) for c in data.clients)
    config = TrainingConfig(n_epochs=6, batch_size=16, lr=0.05, momentum=0.9)
    train(model, warm, config, np.random.default_rng(0))
    arrays = get_arrays(model)
    probes = Probes(model, data.clean.x)
    probes.set_global(arrays)
    stamped = Samples(x=inverted_blocks(own.x)[-1], y=np.zeros_like(own.y))
    found = []
    for samples in (own, Samples.join([own, stamped])):
        set_arrays(model, arrays)
        train(model, samples, config, np.random.default_rng(2))
        found.append(probes.shifts(get_arrays(model)))
    honest, backdoored = flip_evidence(found)
    assert honest == 0
    assert backdoored > 2


# Flipped inputs as evidence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contrasts", "evidence"),
    [
        ([0.5, -0.9], 0.0),  # half of the inputs turned: no majority
        ([0.1, 0.6], 1.0),
        ([0.9, 0.7], 4.0),
        ([1.0, 1.0], 4.0),  # no more than that
        ([-1.0, -0.4], 0.0),  # a stamp that turns inputs away from every class
    ],
)
def test_flip_evidence_by_hand(contrasts: list[float], evidence: float) -> None:
    towards_one_class = {"stamp:local-contrast": np.array([0.0, contrasts[0]])}
    another_group = {"stamp:wide-contrast": np.array([contrasts[1], -0.1])}
    found = flip_evidence([{**towards_one_class, **another_group}])
    np.testing.assert_allclose(found, [evidence], atol=1e-12)


def test_only_what_stamps_do_beyond_clean_inputs_is_read() -> None:
    plain = {"stamp:local": np.ones(3), "stamp:local-evidence": np.full(3, 4.0)}
    unread = {**plain, "probe:logits": np.full(3, 9.0), "update:fc": np.full(3, 9.0)}
    assert flip_evidence([unread, {}]).tolist() == [0.0, 0.0]
    assert flip_evidence([]).shape == (0,)


def test_one_updates_flips_do_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(0)
    shifts = [{"stamp:wide-contrast": rng.uniform(-1, 1, size=5)} for _ in range(20)]
    together = flip_evidence(shifts)
    alone = np.concatenate([flip_evidence([s]) for s in shifts])
    np.testing.assert_array_equal(together, alone)
    assert 0 < (together > 0).sum() < 20
