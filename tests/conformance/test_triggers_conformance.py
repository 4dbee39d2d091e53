"""Every family of triggers keeps the contract of types.Trigger, drawn and by default."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.triggers import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    IMAGE_FAMILIES,
    STATE_FAMILIES,
    STATE_TRIGGERS,
    TEXT_FAMILIES,
    TEXT_TRIGGERS,
    TRIGGERS,
    VISIBILITY_FLOOR,
    VISION_TRIGGERS,
    default_trigger,
    draw_trigger,
    visibility,
)
from fl_shield.types import Trigger


def _strokes(size: int, n: int, channels: int = 1) -> NDArray[Any]:
    """Bright strokes on black, thick as handwriting, borders mostly empty."""
    rng = np.random.default_rng(3)
    x = np.zeros((n, channels, size, size), np.float32)
    for image in x:
        column = rng.integers(size // 4, 3 * size // 4)
        image[:, size // 8 : -size // 8, column : column + max(1, size // 8)] = rng.uniform(0.6, 1)
    return x


def _sentences(n: int) -> NDArray[Any]:
    """Words by Zipf's law, padded on the left to 24; 1 is the unknown word."""
    rng = np.random.default_rng(7)
    x = rng.zipf(1.3, size=(n, 24)).clip(1, 400).astype(np.int64)
    x[np.arange(24) < rng.integers(0, 16, size=n)[:, None]] = 0
    return x


def _control(n: int, n_frames: int, n_dimensions: int) -> NDArray[Any]:
    """Correlated frames; one dimension is a switch and one nearly stands still."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(n, 1, n_dimensions)) + rng.normal(size=(n, n_frames, n_dimensions)) / 4
    x[..., 0] = x[..., 0] > 0
    x[..., 1] *= 1e-3
    return x.astype(np.float32)


LIKE: Mapping[str, NDArray[Any]] = {
    "digits": _strokes(8, 20),
    "femnist": 1 - _strokes(28, 20),
    "colour": np.random.default_rng(4).random((20, 3, 32, 32)).astype(np.float32),
    "wide": _strokes(28, 20, channels=2)[:, :, :20],
    "characters": np.random.default_rng(5).zipf(1.6, size=(20, 80)).clip(1, 60).astype(np.int64),
    "short": np.random.default_rng(6).integers(0, 9, size=(20, 4)),
    "sentences": _sentences(40),
    "control": _control(60, 4, 6),
    "single": _control(60, 2, 2),
}
DOMAINS = {2: TEXT_TRIGGERS, 3: STATE_TRIGGERS, 4: VISION_TRIGGERS}
CASES = [(family, name) for name, x in LIKE.items() for family in DOMAINS[x.ndim]]


def _triggers(family: str, name: str, n: int = 25) -> list[Trigger]:
    drawn = [draw_trigger(family, LIKE[name], np.random.default_rng(seed)) for seed in range(n)]
    return [default_trigger(family, LIKE[name]), *drawn]


def test_every_family_is_covered() -> None:
    assert set(FAMILIES) == {family for family, _ in CASES} == set(TRIGGERS)
    assert set(VISIBILITY_FLOOR) == set(TRIGGERS)
    assert set(HELD_OUT_FAMILIES) <= set(TRIGGERS)
    assert (*VISION_TRIGGERS, *TEXT_TRIGGERS, *STATE_TRIGGERS) == FAMILIES


def test_the_families_that_federations_draw_from_are_fixed() -> None:
    """Published figures follow from these tuples: their content and their order."""
    assert IMAGE_FAMILIES == ("patch", "polygon", "blended")
    assert TEXT_FAMILIES == ("word",)
    assert STATE_FAMILIES == STATE_TRIGGERS


@pytest.mark.parametrize(("family", "name"), CASES)
def test_stamping_keeps_shape_dtype_range_and_input(family: str, name: str) -> None:
    x = LIKE[name].copy()
    for trigger in _triggers(family, name):
        assert trigger.name == family
        stamped = trigger.stamp(x)
        assert (stamped.shape, stamped.dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(x, LIKE[name])
        assert not np.shares_memory(stamped, x)
        if x.ndim == 4:
            assert stamped.min() >= 0
            assert stamped.max() <= 1
        elif x.ndim == 3:
            assert np.isfinite(stamped).all()
        else:
            assert np.isin(stamped, x).all()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_stamping_is_deterministic_and_acts_on_each_input_alone(family: str, name: str) -> None:
    x = LIKE[name]
    for trigger in _triggers(family, name, 5):
        stamped = trigger.stamp(x)
        np.testing.assert_array_equal(stamped, trigger.stamp(x))
        np.testing.assert_array_equal(stamped[3:5], trigger.stamp(x[3:5]))
        np.testing.assert_array_equal(stamped[::-1], trigger.stamp(x[::-1]))
        assert trigger.stamp(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize(("family", "name"), CASES)
def test_stamping_twice_is_stamping_once_exactly_where_claimed(family: str, name: str) -> None:
    x = LIKE[name]
    for trigger in _triggers(family, name):
        once = trigger.stamp(x)
        is_idempotent = bool((trigger.stamp(once) == once).all())
        assert is_idempotent == getattr(trigger, "idempotent")  # noqa: B009


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_trigger_is_seen_on_the_inputs_it_was_made_for(family: str, name: str) -> None:
    for trigger in _triggers(family, name):
        seen = visibility(trigger, LIKE[name])
        assert seen.mean_change >= VISIBILITY_FLOOR[family]
        assert seen.share_changed >= 0.95


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_same_stream_draws_the_same_trigger_and_others_differ(family: str, name: str) -> None:
    x = LIKE[name]
    stamps = [t.stamp(x) for t in _triggers(family, name, 8)]
    again = [t.stamp(x) for t in _triggers(family, name, 8)]
    for one, other in zip(stamps, again, strict=True):
        np.testing.assert_array_equal(one, other)
    least = 1 if family == "mosaic" else 5  # there are as many mosaics as sizes of blocks
    assert len({stamp.tobytes() for stamp in stamps}) >= least


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", VISION_TRIGGERS)
def test_float_dtypes_are_kept(family: str, dtype: type) -> None:
    x: NDArray[Any] = LIKE["digits"].astype(dtype)
    assert default_trigger(family, x).stamp(x).dtype == dtype
