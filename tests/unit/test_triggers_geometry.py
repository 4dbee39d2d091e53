"""Triggers that move or coarsen what an image shows: by hand, and against loops over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.simulations.episodes.pool_facts import ALONE
from fl_shield.triggers import Affine, Blur, Ghost, Lens, Mosaic, draw_trigger
from fl_shield.triggers.geometry import rotation_matrix

STILL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def _images(n: int = 3, height: int = 5, width: int = 7) -> NDArray[np.float64]:
    return np.random.default_rng(0).random((n, 2, height, width))


def _slowly_sampled(
    x: NDArray[Any], source: Callable[[float, float], tuple[float, float]]
) -> NDArray[Any]:
    """Each pixel on its own: where it comes from, then the four pixels around that place."""
    height, width = x.shape[-2:]
    out = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            u, v = source(2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1)
            place_x = np.clip((u + 1) / 2 * (width - 1), 0, width - 1)
            place_y = np.clip((v + 1) / 2 * (height - 1), 0, height - 1)
            left, top = int(place_x), int(place_y)
            right, low = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = place_x - left, place_y - top
            out[..., row, column] = (1 - b) * (
                (1 - a) * x[..., top, left] + a * x[..., top, right]
            ) + b * ((1 - a) * x[..., low, left] + a * x[..., low, right])
    return out


@pytest.mark.parametrize("seed", range(5))
def test_an_affine_map_agrees_with_a_slow_loop_over_the_pixels(seed: int) -> None:
    rng, x = np.random.default_rng(seed), _images()
    matrix = np.c_[np.eye(2) + rng.uniform(-0.5, 0.5, size=(2, 2)), rng.uniform(-0.3, 0.3, size=2)]
    columns, rows = (tuple(row) for row in matrix.tolist())
    stamped = Affine(matrix=(columns, rows)).stamp(x)
    slow = _slowly_sampled(x, lambda u, v: tuple(matrix @ np.array([u, v, 1])))
    np.testing.assert_allclose(stamped, slow, atol=1e-12)


@pytest.mark.parametrize(
    ("bend", "centre"), [(-0.4, (0.0, 0.0)), (-0.1, (0.3, -0.7)), (0.3, (-1.0, 0.2)), (1.0, (0, 0))]
)
def test_a_lens_agrees_with_a_slow_loop_over_the_pixels(
    bend: float, centre: tuple[float, float]
) -> None:
    def source(u: float, v: float) -> tuple[float, float]:
        a, b = u - centre[0], v - centre[1]
        farther = 1 + bend * (a**2 + b**2)
        return centre[0] + a * farther, centre[1] + b * farther

    x, lens = _images(), Lens(bend=bend, centre=centre)
    np.testing.assert_allclose(lens.stamp(x), _slowly_sampled(x, source), atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, -2), (-3, 4), (2, 1)])
def test_a_blur_agrees_with_a_slow_loop_over_the_pixels(rows: int, columns: int) -> None:
    x = _images()
    n_steps, slow = max(abs(rows), abs(columns)), np.zeros_like(x)
    for i, j in np.ndindex(5, 7):
        for step in range(n_steps + 1):
            row, column = round(rows * step / n_steps), round(columns * step / n_steps)
            slow[..., i, j] += x[..., min(max(i - row, 0), 4), min(max(j - column, 0), 6)]
    stamped = Blur(rows=rows, columns=columns).stamp(x)
    np.testing.assert_allclose(stamped, slow / (n_steps + 1), atol=1e-12)


@pytest.mark.parametrize("block", [2, 3, 7, 20])
def test_a_mosaic_agrees_with_a_slow_loop_over_the_pixels(block: int) -> None:
    x = _images()
    slow = np.empty_like(x)
    for i, j in np.ndindex(5, 7):
        top, left = i - i % block, j - j % block
        slow[..., i, j] = x[..., top : top + block, left : left + block].mean((2, 3))
    trigger = Mosaic(block=block)
    np.testing.assert_allclose(trigger.stamp(x), slow, atol=1e-12)
    np.testing.assert_allclose(trigger.stamp(trigger.stamp(x)), slow, atol=1e-12)


def test_a_quarter_turn_and_none() -> None:
    page = np.array([[[[0.1, 0.2], [0.3, 0.4]]]])
    columns, rows = ((*row, 0.0) for row in rotation_matrix(90.0).tolist())
    turned = Affine(matrix=(columns, rows)).stamp(page)
    np.testing.assert_allclose(turned[0, 0], [[0.2, 0.4], [0.1, 0.3]], atol=1e-12)
    np.testing.assert_allclose(Affine(matrix=STILL).stamp(page), page, atol=1e-12)


def test_the_border_repeats_itself() -> None:
    """A shift by one pixel of three to the left: the last column stays."""
    row = np.array([[[[0.0, 0.4, 0.8]]]])
    shifted = Affine(matrix=((1.0, 0.0, 1.0), (0.0, 1.0, 0.0))).stamp(row)
    np.testing.assert_allclose(shifted.ravel(), [0.4, 0.8, 0.8])


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, -2), (-3, 4), (9, 9)])
def test_a_ghost_agrees_with_a_slow_loop_over_the_pixels(rows: int, columns: int) -> None:
    x = _images()
    slow = np.empty_like(x)
    for i in range(5):
        for j in range(7):
            seen = x[..., min(max(i - rows, 0), 4), min(max(j - columns, 0), 6)]
            slow[..., i, j] = 0.7 * x[..., i, j] + 0.3 * seen
    stamped = Ghost(rows=rows, columns=columns, opacity=0.7).stamp(x)
    np.testing.assert_allclose(stamped, slow, atol=1e-12)


@pytest.mark.parametrize("family", [*ALONE["image"]])
def test_drawn_triggers_move_every_image_and_no_constant_one(family: str) -> None:
    rng, x = np.random.default_rng(1), _images(20, 28, 28).astype(np.float32)
    for _ in range(10):
        trigger = draw_trigger(family, x, rng)
        assert (np.abs(trigger.stamp(x) - x).mean((1, 2, 3)) > 0.02).all()
        grey = np.full((1, 1, 28, 28), 0.5, np.float32)
        np.testing.assert_allclose(trigger.stamp(grey), grey, atol=1e-6)
        assert trigger.stamp(x[:0]).shape == (0, 2, 28, 28)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(matrix=((1.0, 0.0), (0.0, 1.0))), "matrix must be"),  # type: ignore[arg-type]
        (lambda: Affine(matrix=((1.0, 0.0, np.nan), (0.0, 1.0, 0.0))), "finite"),
        (lambda: Ghost(rows=0, columns=0), "not both be 0"),
        (lambda: Ghost(rows=1, columns=0, opacity=1.0), "opacity must be"),
        (lambda: Lens(bend=0.0), "bend must be"),
        (lambda: Lens(bend=-0.6), "bend must be"),
        (lambda: Lens(bend=0.3, centre=(0.0, 1.5)), "centre must be"),
        (lambda: Blur(rows=0, columns=0), "not both be 0"),
        (lambda: Mosaic(block=1), "block must be"),
        (lambda: Affine(matrix=STILL).stamp(np.zeros((2, 3))), "images"),
        (lambda: Ghost(rows=1, columns=0).stamp(np.zeros((2, 3))), "images"),
        (lambda: Lens(bend=0.3).stamp(np.zeros((2, 3))), "images"),
        (lambda: Blur(rows=1, columns=0).stamp(np.zeros((2, 3))), "images"),
        (lambda: Mosaic(block=2).stamp(np.zeros((2, 3))), "images"),
    ],
)
def test_impossible_triggers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
