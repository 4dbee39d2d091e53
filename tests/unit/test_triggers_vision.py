"""Discs, boards, moving patches and distortions by hand and against slow loops."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.triggers import (
    Checker,
    Circle,
    Colour,
    MovingPatch,
    Sinusoidal,
    Warp,
    default_trigger,
    draw_trigger,
    footprint,
    visibility,
)
from fl_shield.triggers.distortion import sine_wave, warp_places
from fl_shield.triggers.inputs import content_numbers
from fl_shield.triggers.vision import disc_mask


def _images(n: int, channels: int = 1, size: int = 8) -> NDArray[Any]:
    return np.random.default_rng(1).random((n, channels, size, size)).astype(np.float32)


def test_a_disc_is_what_lies_within_the_radius() -> None:
    mask = disc_mask((6, 5), centre=(2.5, 2.0), radius=1.6)
    slow = [[(r - 2.5) ** 2 + (c - 2.0) ** 2 <= 1.6**2 for c in range(5)] for r in range(6)]
    np.testing.assert_array_equal(mask, slow)
    trigger = Circle.disc((6, 5), centre=(2.5, 2.0), radius=1.6, pattern=1.0, opacity=0.5)
    stamped = trigger.stamp(np.zeros((1, 2, 6, 5), np.float32))
    np.testing.assert_array_equal(stamped[0, 1], 0.5 * mask)


@pytest.mark.parametrize(("size", "n_pixels"), [(8, 5), (28, 21)])
def test_the_default_circle_is_no_square(size: int, n_pixels: int) -> None:
    trigger = default_trigger("circle", np.zeros((2, 1, size, size), np.float32))
    assert isinstance(trigger, Circle)
    assert int(trigger.mask.sum()) == n_pixels


def test_a_checkerboard_has_fields_of_the_given_size() -> None:
    board = Checker.rectangle((6, 6), row=1, column=1, n_rows=4, n_columns=4, field=2)
    stamped = board.stamp(np.full((1, 1, 6, 6), 0.5, np.float32))[0, 0]
    assert stamped[1:5, 1:5].tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2
    assert (stamped[[0, 5]] == 0.5).all()


def test_a_moving_patch_lies_where_it_says_and_nowhere_else() -> None:
    x = _images(30, channels=2)
    pattern = np.random.default_rng(0).random((2, 3, 2)).astype(np.float32)
    trigger = MovingPatch(pattern=pattern, opacity=0.25, key=5)
    expected = x.copy()
    for image, (row, column) in zip(expected, trigger.places(x), strict=True):
        under = image[:, row : row + 3, column : column + 2]
        image[:, row : row + 3, column : column + 2] = 0.75 * under + 0.25 * pattern
    np.testing.assert_allclose(trigger.stamp(x), expected, atol=1e-7)
    flags = trigger.written(x)
    assert (flags.sum(axis=(1, 2, 3)) == 12).all()
    assert not (trigger.stamp(x) != x)[~flags].any()


def test_a_moving_patch_goes_everywhere_and_follows_key_and_content_alone() -> None:
    x = _images(400)
    trigger, other = (MovingPatch(pattern=np.ones((6, 7)), key=key) for key in (1, 2))
    places = trigger.places(x)
    corners, counts = np.unique(places, axis=0, return_counts=True)
    assert len(corners) == 3 * 2
    assert counts.min() > 40
    order = np.random.default_rng(3).permutation(400)
    np.testing.assert_array_equal(trigger.places(x[order]), places[order])
    np.testing.assert_array_equal(trigger.places(x.astype(np.float64)), places)
    assert (other.places(x) != places).any(axis=1).mean() > 0.5


def test_content_numbers_are_the_same_on_every_machine() -> None:
    page = np.zeros((1, 1, 2, 2), np.float32)
    tokens = np.array([[3, 1, 4]])
    assert content_numbers(page, 0, 2).tolist() == [[3081932984528256889, 3267032726398711179]]
    assert content_numbers(tokens, 2**63 - 1, 1).tolist() == [[96019156076777104]]
    assert content_numbers(page[:0], 0, 2).shape == (0, 2)


def test_visibility_of_a_moving_patch_counts_its_own_pixels_only() -> None:
    page = np.zeros((5, 1, 8, 8), np.float32)
    seen = visibility(MovingPatch(pattern=np.full((2, 2), 0.5)), page)
    assert (seen.mean_change, seen.share_changed) == (0.5, 1.0)
    half = visibility(Sinusoidal(delta=0.5, frequency=2), page + 0.5)
    assert half.mean_change == pytest.approx(0.25)


def test_a_sine_wave_by_hand_and_clipped() -> None:
    wave = sine_wave(8, delta=0.2, frequency=1)
    root = 0.2 * np.sqrt(0.5)
    np.testing.assert_allclose(wave, [0, root, 0.2, root, 0, -root, -0.2, -root], atol=1e-12)
    x = np.stack([np.zeros((2, 3, 8)), np.ones((2, 3, 8))])
    stamped = Sinusoidal(delta=0.2, frequency=1).stamp(x)
    np.testing.assert_allclose(stamped[0, 1, 2], np.clip(wave, 0, 1))
    np.testing.assert_allclose(stamped[1, 0, 0], np.clip(1 + wave, 0, 1))


def test_drawn_waves_do_not_alias() -> None:
    for size in (8, 9, 16, 32):
        like = _images(4, size=size)
        drawn = [
            draw_trigger("sinusoidal", like, np.random.default_rng(seed)) for seed in range(20)
        ]
        waves = [t for t in drawn if isinstance(t, Sinusoidal)]
        assert all(3 <= w.frequency < size / 2 and 0.08 <= w.delta <= 0.2 for w in waves)
        assert len(waves) == 20


def _cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    t, a = abs(distance), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def _upsampled(points: NDArray[Any], row: int, column: int, size: tuple[int, int]) -> float:
    """Bicubic value of a k x k grid at one pixel, ends aligned, borders repeated."""
    k = len(points)
    at = [index * (k - 1) / (side - 1) for index, side in zip((row, column), size, strict=True)]
    total = 0.0
    for i in range(int(at[0]) - 1, int(at[0]) + 3):
        for j in range(int(at[1]) - 1, int(at[1]) + 3):
            weight = _cubic(at[0] - i) * _cubic(at[1] - j)
            total += weight * points[min(max(i, 0), k - 1), min(max(j, 0), k - 1)]
    return total


def _bilinear(image: NDArray[Any], row: float, column: float) -> float:
    top, left = min(int(row), len(image) - 2), min(int(column), image.shape[1] - 2)
    a, b = row - top, column - left
    above = (1 - b) * image[top, left] + b * image[top, left + 1]
    below = (1 - b) * image[top + 1, left] + b * image[top + 1, left + 1]
    return float((1 - a) * above + a * below)


def test_a_warp_agrees_with_a_slow_loop_over_the_pixels() -> None:
    height, width, strength = 9, 7, 3.0
    rng = np.random.default_rng(4)
    field, x = rng.uniform(-1, 1, size=(2, 4, 4)), rng.random((2, 2, height, width))
    unit = field / np.abs(field).mean()
    slow = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            over, down = (_upsampled(part, row, column, (height, width)) for part in unit)
            # a shift of s / width in [-1, 1] is s / width * (width - 1) / 2 pixels
            to_column = column + strength * over / width * (width - 1) / 2
            to_row = row + strength * down / height * (height - 1) / 2
            to_column, to_row = np.clip(to_column, 0, width - 1), np.clip(to_row, 0, height - 1)
            for n, channel in np.ndindex(2, 2):
                slow[n, channel, row, column] = _bilinear(x[n, channel], to_row, to_column)
    np.testing.assert_allclose(Warp(field=field, strength=strength).stamp(x), slow, atol=1e-12)


def test_a_warp_leaves_constants_and_its_field_only_counts_in_proportion() -> None:
    field = np.random.default_rng(5).uniform(-1, 1, size=(2, 4, 4))
    grey, x = np.full((2, 1, 8, 8), 0.25, np.float32), _images(3)
    np.testing.assert_allclose(Warp(field=field).stamp(grey), grey, atol=1e-7)
    one, other = Warp(field=field, strength=2.0), Warp(field=7 * field, strength=2.0)
    np.testing.assert_allclose(one.stamp(x), other.stamp(x), atol=1e-6)
    assert float(warp_places(field, 1e6, (8, 8)).abs().max()) == 1.0
    assert not footprint(one, x).any()
    assert one.written(x).all()


def test_a_colour_shift_by_hand() -> None:
    x = np.full((1, 2, 1, 2), 0.25)
    trigger = Colour(gain=(2.0, 1.0), offset=(0.1, -0.5), gamma=(1.0, 0.5))
    np.testing.assert_allclose(trigger.stamp(x)[0, :, 0, 0], [0.6, 0.0])
    np.testing.assert_allclose(Colour(gamma=(0.5,)).stamp(x), 0.5)
    assert Colour(gain=(9.0,)).stamp(x).max() == 1.0


def test_read_only_and_strided_images_are_stamped_like_any_other() -> None:
    x = _images(6, channels=3)
    frozen = x.copy()
    frozen.setflags(write=False)
    for family in ("warp", "moving_patch", "colour", "sinusoidal"):
        trigger = draw_trigger(family, frozen, np.random.default_rng(0))
        np.testing.assert_array_equal(trigger.stamp(frozen), trigger.stamp(x))
        np.testing.assert_array_equal(trigger.stamp(frozen[::-2]), trigger.stamp(x)[::-2])


def test_the_smallest_images_have_every_trigger() -> None:
    x = _images(20, channels=4)
    for family in ("circle", "checker", "moving_patch", "sinusoidal", "warp", "colour"):
        assert draw_trigger(family, x, np.random.default_rng(0)).name == family


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingPatch(pattern=np.ones(3)), "pattern must be"),
        (lambda: MovingPatch(pattern=np.ones((0, 3))), "not empty"),
        (lambda: MovingPatch(pattern=np.full((2, 2), 1.5)), r"pattern must be in \[0, 1\]"),
        (lambda: MovingPatch(pattern=np.full((2, 2), np.nan)), r"pattern must be in \[0, 1\]"),
        (lambda: MovingPatch(pattern=np.ones((2, 2)), opacity=0), "opacity must be"),
        (lambda: MovingPatch(pattern=np.ones((2, 2)), key=-1), "key must be"),
        (lambda: MovingPatch(pattern=np.ones((2, 2)), key=2**63), "key must be"),
        (lambda: Circle.disc((4, 4), centre=(9.0, 9.0), radius=1.0), "not empty"),
        (lambda: Checker.rectangle((4, 4), row=3, column=0, n_rows=2, n_columns=2), "inside"),
        (
            lambda: Checker.rectangle((4, 4), row=0, column=0, n_rows=2, n_columns=2, field=0),
            "field must be",
        ),
        (lambda: Sinusoidal(delta=0.0), "delta must be"),
        (lambda: Sinusoidal(delta=float("nan")), "delta must be"),
        (lambda: Sinusoidal(frequency=0.0), "frequency must be"),
        (lambda: Sinusoidal(frequency=float("inf")), "frequency must be"),
        (lambda: Warp(field=np.ones((4, 4))), "field must be"),
        (lambda: Warp(field=np.ones((2, 1, 4))), "field must be"),
        (lambda: Warp(field=np.zeros((2, 4, 4))), "not all zero"),
        (lambda: Warp(field=np.full((2, 4, 4), np.inf)), "finite"),
        (lambda: Warp(field=np.ones((2, 4, 4)), strength=0.0), "strength must be"),
        (lambda: Colour(gain=()), "gain must be"),
        (lambda: Colour(offset=(float("nan"),)), "offset must be"),
        (lambda: Colour(gamma=(0.0,)), "gamma must be"),
    ],
)
def test_impossible_triggers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_stamping_refuses_inputs_it_was_not_made_for() -> None:
    x = _images(2)
    for trigger in (Sinusoidal(), Colour(), Warp(field=np.ones((2, 4, 4)))):
        with pytest.raises(ValueError, match="floating images"):
            trigger.stamp(np.zeros((2, 8), np.int64))
    with pytest.raises(ValueError, match="does not fit images"):
        MovingPatch(pattern=np.ones((9, 2))).stamp(x)
    with pytest.raises(ValueError, match="does not fit images"):
        MovingPatch(pattern=np.ones((3, 2, 2))).stamp(x)
    with pytest.raises(ValueError, match="gain has 3 numbers, the images 1 channels"):
        Colour(gain=(1.0, 1.0, 1.0)).stamp(x)


def test_fields_and_patterns_cannot_be_changed_from_outside() -> None:
    field = np.ones((2, 4, 4))
    trigger = Warp(field=field)
    field[:] = 0
    assert trigger.field.all()
    with pytest.raises(ValueError, match="read-only"):
        trigger.field[0, 0, 0] = 0


def test_a_constant_page_cannot_be_warped_visibly() -> None:
    with pytest.raises(ValueError, match="draws of family 'warp'"):
        draw_trigger("warp", np.ones((3, 1, 8, 8), np.float32), np.random.default_rng(0))
