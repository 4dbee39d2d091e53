"""Triggers of control observations by hand, and what their draws look like."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.triggers import (
    StatePattern,
    StateValues,
    default_trigger,
    draw_trigger,
    footprint,
    visibility,
)
from fl_shield.triggers.draw_state import draw_value

ZEROS = np.zeros((2, 3, 4), np.float32)


def _walk(n: int = 200) -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=(n, 4, 5)).astype(np.float32)


def test_values_show_in_all_frames_or_in_the_newest() -> None:
    pair = StateValues(dimensions=(3, 0), values=(2.0, -1.0), name="state_pair")
    assert (pair.stamp(ZEROS) == np.array([-1, 0, 0, 2], np.float32)).all()
    newest = StateValues(dimensions=(1,), values=(0.5,), frames="newest").stamp(ZEROS)
    assert newest[:, :2].any() == np.False_
    assert newest[0, 2].tolist() == [0, 0.5, 0, 0]
    assert newest.dtype == np.float32


def test_a_pattern_ends_in_the_newest_frame() -> None:
    stamped = StatePattern(dimension=2, pattern=(1.0, -2.0)).stamp(ZEROS)
    assert stamped[:, :, 2].tolist() == [[0, 1, -2]] * 2
    assert not stamped[:, :, [0, 1, 3]].any()


def test_visibility_counts_in_standard_deviations_of_the_dimension() -> None:
    x = np.zeros((4, 1, 2))
    x[:, 0, 0] = [-10, 10, -10, 10]
    x[:, 0, 1] = 7.0
    wide = StateValues(dimensions=(0,), values=(20.0,))
    seen = visibility(wide, x)
    assert (seen.mean_change, seen.share_changed) == (2.0, 1.0)
    inside = visibility(StateValues(dimensions=(0,), values=(10.0,)), x)
    assert (inside.mean_change, inside.share_changed) == (1.0, 0.5)
    constant = visibility(StateValues(dimensions=(1,), values=(8.0,)), x)
    assert constant.mean_change == 1.0
    assert footprint(wide, x).tolist() == [[True, False]]


def test_values_come_from_the_tails_or_slightly_beyond() -> None:
    values = np.linspace(2, 4, 1001)
    rng = np.random.default_rng(1)
    drawn = np.array([draw_value(values, rng) for _ in range(300)])
    low, high, below, above = 2.1, 3.9, 1.5, 4.5
    assert ((drawn <= low + 1e-9) | (drawn >= high - 1e-9)).all()
    assert drawn.min() >= below
    assert drawn.max() <= above
    for inside in ((drawn < 2), (drawn >= 2) & (drawn < 3), (drawn > 3) & (drawn <= 4), drawn > 4):
        assert inside.sum() > 30


def test_draws_have_the_form_of_their_family() -> None:
    like = _walk()
    frames = set()
    for seed in range(20):
        one, pair, pattern = (
            draw_trigger(family, like, np.random.default_rng(seed))
            for family in ("state_value", "state_pair", "state_pattern")
        )
        assert isinstance(one, StateValues)
        assert isinstance(pair, StateValues)
        assert isinstance(pattern, StatePattern)
        assert (len(one.dimensions), len(pair.dimensions), len(pattern.pattern)) == (1, 2, 4)
        frames.add(one.frames)
    assert frames == {"all", "newest"}


def test_the_default_takes_the_dimensions_that_vary_most() -> None:
    like = _walk() * np.array([1, 9, 1, 5, 0], np.float32)
    pair, pattern = (default_trigger(f, like) for f in ("state_pair", "state_pattern"))
    assert isinstance(pair, StateValues)
    assert pair.dimensions == (1, 3)
    assert pair.values[0] > like[..., 1].max()
    assert pair.values[1] < like[..., 3].min()
    assert isinstance(pattern, StatePattern)
    assert pattern.pattern[::2] == (pair.values[0],) * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StateValues(dimensions=(), values=()), "dimensions must be"),
        (lambda: StateValues(dimensions=(-1,), values=(1.0,)), "dimensions must be"),
        (lambda: StateValues(dimensions=(1, 1), values=(1.0, 2.0)), "dimensions must differ"),
        (lambda: StateValues(dimensions=(1,), values=(1.0, 2.0)), "one finite number a"),
        (lambda: StateValues(dimensions=(1,), values=(float("nan"),)), "one finite number a"),
        (lambda: StateValues(dimensions=(1,), values=(1.0,), frames="old"), "frames must be"),  # type: ignore[arg-type]
        (lambda: StatePattern(dimension=-1, pattern=(1.0, 2.0)), "dimension must be"),
        (lambda: StatePattern(dimension=0, pattern=(1.0,)), "two or more finite"),
        (lambda: StatePattern(dimension=0, pattern=(1.0, float("inf"))), "two or more finite"),
        (lambda: StatePattern(dimension=0, pattern=(1.0, 1.0)), "must change"),
    ],
)
def test_impossible_triggers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_stamping_refuses_inputs_it_was_not_made_for() -> None:
    value = StateValues(dimensions=(4,), values=(1.0,))
    with pytest.raises(ValueError, match="dimension 4 does not exist"):
        value.stamp(ZEROS)
    with pytest.raises(ValueError, match="floating observations"):
        value.stamp(ZEROS[:, 0])
    with pytest.raises(ValueError, match="floating observations"):
        value.stamp(ZEROS.astype(np.int64))
    with pytest.raises(ValueError, match="pattern over 4 frames"):
        StatePattern(dimension=0, pattern=(1.0, 2.0, 1.0, 2.0)).stamp(ZEROS)


@pytest.mark.parametrize("draw", [True, False])
def test_draws_say_what_the_data_lack(draw: bool) -> None:
    def make(family: str, like: NDArray[Any]) -> None:
        if draw:
            draw_trigger(family, like, np.random.default_rng(0))
        else:
            default_trigger(family, like)

    like = _walk(10)
    with pytest.raises(ValueError, match="at least 2 frames"):
        make("state_pattern", like[:, :1])
    with pytest.raises(ValueError, match="2 dimensions"):
        make("state_pair", like[..., :1])
    like[3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        make("state_value", like)
    with pytest.raises(ValueError, match=r"change[sd] too little"):
        make("state_value", ZEROS)
    with pytest.raises(ValueError, match="does not fit inputs"):
        make("state_value", like[:, 0])
    with pytest.raises(ValueError, match="does not fit inputs"):
        make("token", like)
