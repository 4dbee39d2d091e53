"""Poisoned data, attack success and model arithmetic by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fl_shield.attacks import ATTACKS, attack_success_rate, make_attack, poison
from fl_shield.attacks.arithmetic import average, move, update_norm
from fl_shield.attacks.norm_clipped import project
from fl_shield.attacks.success import backdoor_success
from fl_shield.triggers import Patch, Word
from fl_shield.types import Samples

CORNER = Patch.rectangle((4, 4), row=3, column=3, n_rows=1, n_columns=1, pattern=1.0)


def _samples(n: int, n_classes: int = 4) -> Samples:
    x = np.zeros((n, 1, 4, 4), np.float32)
    x[:, 0, 0, 0] = np.arange(n) / max(n, 1)
    return Samples(x=x, y=np.arange(n) % n_classes)


@pytest.mark.parametrize(
    ("poison_rate", "n_poisoned"), [(0.0, 0), (0.001, 1), (0.1, 3), (0.5, 15), (1.0, 30)]
)
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_poison_rate_is_the_share_of_non_target_examples(
    poison_rate: float, n_poisoned: int, mode: Any
) -> None:
    clean = _samples(40)
    mix = poison(clean, CORNER, 1, poison_rate, np.random.default_rng(0), mode)
    stamped = mix.x[:, 0, 3, 3] == 1
    assert stamped.sum() == n_poisoned
    assert (mix.y[stamped] == 1).all()
    assert len(mix) == 40 + (n_poisoned if mode == "append" else 0)
    assert (mix.x.dtype, mix.y.dtype) == (clean.x.dtype, clean.y.dtype)


def test_appended_copies_leave_the_clean_examples_in_front() -> None:
    clean = _samples(12)
    mix = poison(clean, CORNER, 0, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(mix.x[:12], clean.x)
    np.testing.assert_array_equal(mix.y[:12], clean.y)
    np.testing.assert_array_equal(mix.x[12:], CORNER.stamp(clean.x[clean.y != 0]))


def test_poisoned_copies_are_never_drawn_from_the_target_class() -> None:
    clean = _samples(40)
    identity = clean.x[:, 0, 0, 0]
    for seed in range(20):
        mix = poison(clean, CORNER, 2, 0.7, np.random.default_rng(seed))
        drawn = np.searchsorted(identity, mix.x[40:, 0, 0, 0])
        assert (clean.y[drawn] != 2).all()
        assert len(set(drawn.tolist())) == len(drawn)


def test_replacing_leaves_the_originals_untouched() -> None:
    clean = _samples(8)
    before = clean.x.copy(), clean.y.copy()
    poison(clean, CORNER, 0, 1.0, np.random.default_rng(0), "replace")
    np.testing.assert_array_equal(clean.x, before[0])
    np.testing.assert_array_equal(clean.y, before[1])


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_nothing_to_poison_leaves_the_examples_as_they_are(mode: Any) -> None:
    empty = _samples(0)
    assert len(poison(empty, CORNER, 0, 1.0, np.random.default_rng(0), mode)) == 0
    only_target = Samples(x=_samples(5).x, y=np.zeros(5, np.int64))
    mix = poison(only_target, CORNER, 0, 1.0, np.random.default_rng(0), mode)
    np.testing.assert_array_equal(mix.x, only_target.x)


def test_tokens_are_poisoned_like_images() -> None:
    clean = Samples(x=np.zeros((4, 5), np.int64), y=np.array([0, 1, 2, 3]))
    mix = poison(clean, Word(tokens=(7,)), 3, 1.0, np.random.default_rng(0))
    assert mix.x.dtype == np.int64
    assert mix.x[:, -1].tolist() == [0, 0, 0, 0, 7, 7, 7]
    assert mix.y.tolist() == [0, 1, 2, 3, 3, 3, 3]


def test_poison_refuses_impossible_settings() -> None:
    rng = np.random.default_rng(0)
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="poison_rate must be in"):
            poison(_samples(4), CORNER, 0, rate, rng)
    with pytest.raises(ValueError, match="mode must be"):
        poison(_samples(4), CORNER, 0, 0.5, rng, "mix")  # type: ignore[arg-type]


def test_success_counts_stamped_non_target_examples_only() -> None:
    """Sixteen pixels as logits: the brightest pixel is the class."""
    x = np.zeros((4, 1, 4, 4), np.float32)
    x[:, 0, 0, 0] = [0.5, 0.5, 0.5, 2.0]
    samples = Samples(x=x, y=np.array([15, 0, 0, 0]))
    assert attack_success_rate(nn.Flatten(), samples, CORNER, 15) == pytest.approx(2 / 3)
    assert attack_success_rate(nn.Flatten(), samples, CORNER, 0) == 0.0


def test_success_without_other_classes_is_an_error() -> None:
    samples = Samples(x=np.zeros((2, 1, 4, 4), np.float32), y=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="not of the target class 0"):
        attack_success_rate(nn.Flatten(), samples, CORNER, 0)


def test_backdoor_success_breaks_ties_without_changing_the_rate() -> None:
    sure, unsure = np.eye(1, 4, dtype=np.float32) * 9, np.eye(1, 4, dtype=np.float32)
    high, low = (backdoor_success(nn.Identity(), x, 0) for x in (sure, unsure))
    assert high > low
    assert high == pytest.approx(1.0, abs=2e-6)
    assert backdoor_success(nn.Identity(), sure, 1) == 0.0


def _model(weight: list[float], counter: int) -> dict[str, NDArray[Any]]:
    return {"w": np.array(weight, np.float32), "n": np.array(counter, np.int64)}


def test_moving_scales_floats_and_takes_integers_from_the_end() -> None:
    out = move(_model([1, 2], 5), _model([2, 0], 7), -3.0)
    assert out["w"].tolist() == [-2, 8]
    assert out["w"].dtype == np.float32
    assert out["n"].dtype == np.int64
    assert out["n"].shape == ()
    assert int(out["n"]) == 7


def test_average_and_norm_by_hand() -> None:
    out = average([_model([1, 2], 5), _model([2, 6], 9)])
    assert out["w"].tolist() == [1.5, 4]
    assert int(out["n"]) == 5
    assert update_norm(_model([4, 6], 9), _model([1, 2], 5)) == 5.0


def test_projection_keeps_what_is_inside_and_shortens_what_is_outside() -> None:
    start = _model([1, 1], 0)
    inside, outside = _model([1.5, 1], 3), _model([4, 5], 3)
    np.testing.assert_array_equal(project(inside, start, 1.0)["w"], inside["w"])
    np.testing.assert_allclose(project(outside, start, 1.0)["w"], [1.6, 1.8], rtol=1e-6)
    np.testing.assert_array_equal(project(start, start, 1.0)["w"], start["w"])


def test_half_precision_is_kept() -> None:
    start = {"w": np.array([1, 2], np.float16)}
    assert move(start, start, 2.0)["w"].dtype == np.float16
    assert average([start, start])["w"].dtype == np.float16


def test_an_unknown_attack_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="none, badnets, model_replacement") as caught:
        make_attack("trojan")
    assert all(name in str(caught.value) for name in ATTACKS)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("badnets", {"poison_rate": 1.5}, "poison_rate must be"),
        ("badnets", {"n_epochs": 0}, "n_epochs must be"),
        ("model_replacement", {"scale": 0.0}, "scale must be"),
        ("model_replacement", {"poison_rate": -1.0}, "poison_rate must be"),
        ("norm_clipped", {"clip_norm": -1.0}, "clip_norm must be"),
        ("sign_flip", {"scale": -1.0}, "scale must be"),
        ("lp", {"lambda_": 0.0}, "lambda_ and poison_rate must be"),
        ("lp", {"poison_rate": 0.0}, "lambda_ and poison_rate must be"),
        ("lp", {"tau": 0.0}, "tau must be"),
        ("lp", {"validation_share": 1.5}, "validation_share must be"),
        ("lp", {"check_every": 0}, "check_every must be"),
        ("lp", {"max_analysis_samples": 4}, "max_analysis_samples must be"),
    ],
)
def test_impossible_attacks_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_attack(name, **settings)
