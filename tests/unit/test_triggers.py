"""Triggers against hand-computed values and a slow reference, and their hostile inputs."""

import numpy as np
import pytest

from fl_shield.triggers import (
    Blended,
    Patch,
    Polygon,
    Word,
    default_trigger,
    draw_trigger,
    footprint,
    is_visible,
    visibility,
)
from fl_shield.triggers.draw_vision import contrary
from fl_shield.triggers.vision import polygon_mask, rectangle_mask


def test_stamping_follows_equation_4_of_mbds_with_alpha_the_clean_weight() -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.random((3, 2, 5, 4)), rng.random((5, 4))
    pattern, opacity = rng.random((2, 5, 4)), 0.3
    m, t = mask.astype(np.float32), pattern.astype(np.float32)
    alpha = 1 - opacity
    expected = (1 - m) * x + m * ((1 - alpha) * t + alpha * x)
    stamped = Blended(mask=mask, pattern=pattern, opacity=opacity).stamp(x)
    np.testing.assert_allclose(stamped, expected, atol=1e-6)


def test_patch_overwrites_its_rectangle_and_nothing_else() -> None:
    x = np.full((2, 1, 4, 5), 0.5, np.float32)
    stamped = Patch.rectangle((4, 5), row=1, column=3, n_rows=2, n_columns=2).stamp(x)
    expected = x.copy()
    expected[:, :, 1:3, 3:5] = 1.0
    np.testing.assert_array_equal(stamped, expected)


def test_blended_moves_every_pixel_by_its_opacity() -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    stamped = Blended.everywhere(np.array([[1.0, 0.5], [0.0, 1.0]]), opacity=0.2).stamp(x)
    np.testing.assert_allclose(stamped[0, 0], [[0.2, 0.1], [0.0, 0.2]], rtol=1e-6)


def test_blended_stays_within_input_and_pattern_despite_rounding() -> None:
    rng = np.random.default_rng(1)
    x = (1 - rng.random((50, 1, 8, 8)) * 1e-6).astype(np.float32)
    stamped = Blended.everywhere(np.ones((8, 8)), opacity=0.37).stamp(x)
    assert stamped.max() <= 1.0
    assert (stamped >= x).all()


def test_pattern_may_differ_by_channel() -> None:
    pattern = np.zeros((3, 2, 2))
    pattern[1] = 1.0
    stamped = Patch(mask=np.ones((2, 2)), pattern=pattern).stamp(np.full((1, 3, 2, 2), 0.5))
    np.testing.assert_array_equal(stamped[0].mean((1, 2)), [0.0, 1.0, 0.0])


def test_polygon_mask_agrees_with_a_slow_crossing_count() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        vertices = [(float(r), float(c)) for r, c in rng.uniform(-1, 9, size=(5, 2))]
        slow = np.array([[_is_inside(r, c, vertices) for c in range(9)] for r in range(8)])
        np.testing.assert_array_equal(polygon_mask((8, 9), vertices), slow)


def _is_inside(row: int, column: int, vertices: list[tuple[float, float]]) -> bool:
    """Even-odd rule by counting how often a ray to the right crosses an edge."""
    crossings = 0
    for i in range(len(vertices)):
        (r0, c0), (r1, c1) = vertices[i - 1], vertices[i]
        if (r0 > row) != (r1 > row):
            share = (row - r0) / (r1 - r0)
            crossings += c0 + share * (c1 - c0) > column
    return crossings % 2 == 1


def test_polygon_of_a_square_is_the_square() -> None:
    square = [(0.5, 0.5), (0.5, 2.5), (2.5, 2.5), (2.5, 0.5)]
    expected = rectangle_mask((4, 4), row=1, column=1, n_rows=2, n_columns=2)
    np.testing.assert_array_equal(polygon_mask((4, 4), square), expected)


def test_word_is_written_at_the_end_or_at_its_position() -> None:
    x = np.arange(10).reshape(2, 5)
    assert Word(tokens=(7, 7)).stamp(x).tolist() == [[0, 1, 2, 7, 7], [5, 6, 7, 7, 7]]
    assert Word(tokens=(9,), position=1).stamp(x).tolist() == [[0, 9, 2, 3, 4], [5, 9, 7, 8, 9]]
    assert Word(tokens=(1, 2, 3, 4, 5)).stamp(x).tolist() == [[1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patch(mask=np.zeros((2, 2)), pattern=np.array(1.0)), "not empty"),
        (lambda: Patch(mask=np.ones(4), pattern=np.array(1.0)), "mask must be"),
        (lambda: Patch(mask=np.ones((2, 2)), pattern=np.array(1.5)), "pattern must be in"),
        (lambda: Patch(mask=np.full((2, 2), np.nan), pattern=np.array(1.0)), "mask must be in"),
        (lambda: Patch(mask=np.ones((2, 2)), pattern=np.ones((3, 3))), "as large as the mask"),
        (lambda: Blended.everywhere(np.ones((2, 2)), opacity=0.0), "opacity must be"),
        (lambda: Blended.everywhere(np.ones((2, 2)), opacity=1.1), "opacity must be"),
        (lambda: Polygon.from_vertices((4, 4), [(0, 0), (1, 1)]), "at least 3 vertices"),
        (lambda: Polygon.from_vertices((4, 4), [(9, 9), (9, 10), (10, 9)]), "not empty"),
        (lambda: Word(tokens=()), "tokens must be"),
        (lambda: Word(tokens=(-1,)), "tokens must be"),
        (lambda: Word(tokens=(1,), position=-1), "position must be"),
    ],
)
def test_impossible_triggers_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("row", "column", "side"), [(3, 0, 2), (-1, 0, 2), (0, 0, 0), (0, 0, 5)])
def test_a_patch_must_lie_inside_the_image(row: int, column: int, side: int) -> None:
    with pytest.raises(ValueError, match="must lie inside"):
        Patch.rectangle((4, 4), row=row, column=column, n_rows=side, n_columns=side)


def test_stamping_refuses_inputs_it_was_not_made_for() -> None:
    patch = Patch.rectangle((4, 4), row=0, column=0, n_rows=2, n_columns=2)
    word = Word(tokens=(1, 2, 3))
    with pytest.raises(ValueError, match="floating images"):
        patch.stamp(np.zeros((2, 1, 4, 4), np.int64))
    with pytest.raises(ValueError, match="floating images"):
        patch.stamp(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="was made for images"):
        patch.stamp(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="was made for images"):
        Patch(mask=np.ones((3, 4, 4)), pattern=np.array(1.0)).stamp(np.zeros((2, 1, 4, 4)))
    with pytest.raises(ValueError, match="int64 tokens"):
        word.stamp(np.zeros((2, 5), np.int32))
    with pytest.raises(ValueError, match="int64 tokens"):
        word.stamp(np.zeros((2, 5, 1), np.int64))
    with pytest.raises(ValueError, match="inside sequences of 2"):
        word.stamp(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="inside sequences of 4"):
        Word(tokens=(1, 2), position=3).stamp(np.zeros((2, 4), np.int64))


def test_a_trigger_cannot_be_changed_through_its_arrays() -> None:
    mask = np.ones((2, 2), np.float32)
    trigger = Patch(mask=mask, pattern=np.array(1.0))
    mask[:] = 0
    assert trigger.mask.all()
    with pytest.raises(ValueError, match="read-only"):
        trigger.mask[0, 0] = 0


def test_footprint_and_visibility_by_hand() -> None:
    page = np.zeros((4, 1, 2, 2), np.float32)
    page[0, 0, 0, 0] = 1.0
    corner = Patch.rectangle((2, 2), row=0, column=0, n_rows=1, n_columns=1, pattern=1.0)
    assert footprint(corner, page).tolist() == [[[True, False], [False, False]]]
    seen = visibility(corner, page)
    assert (seen.mean_change, seen.share_changed) == (0.75, 0.75)


def test_visibility_of_a_word_is_the_share_of_tokens_that_differ() -> None:
    x = np.array([[1, 2, 3], [1, 2, 9]])
    seen = visibility(Word(tokens=(2, 9)), x)
    assert (seen.mean_change, seen.share_changed) == (0.25, 0.5)


def test_visibility_needs_inputs() -> None:
    with pytest.raises(ValueError, match="at least 1 clean input"):
        visibility(Word(tokens=(2,)), np.zeros((0, 3), np.int64))


def test_contrary_is_dark_on_white_and_bright_on_black_by_channel() -> None:
    like = np.zeros((2, 2, 3, 3), np.float32)
    like[:, 1] = 0.9
    pattern = contrary(like, np.ones((3, 3), bool))
    assert (pattern[0] == 1).all()
    assert (pattern[1] == 0).all()


@pytest.mark.parametrize(("side", "expected"), [(8, 3), (28, 5), (32, 5), (2, 2)])
def test_the_default_patch_scales_with_the_image(side: int, expected: int) -> None:
    trigger = default_trigger("patch", np.ones((2, 1, side, side), np.float32))
    assert isinstance(trigger, Patch)
    assert int(trigger.mask.sum()) == expected**2
    assert trigger.mask[-1, -1] == 1
    assert trigger.pattern.max() == 0


def test_the_default_word_is_made_of_the_rarest_tokens() -> None:
    like = np.array([[1, 1, 1, 1, 5, 5, 8, 3], [1, 1, 1, 1, 5, 5, 5, 9]])
    trigger = default_trigger("word", like)
    assert trigger == Word(tokens=(3, 8, 9, 5))


def test_an_invisible_trigger_is_not_visible() -> None:
    page = np.ones((5, 1, 8, 8), np.float32)
    white = Patch.rectangle((8, 8), row=5, column=5, n_rows=3, n_columns=3, pattern=1.0)
    assert not is_visible(white, page)


def test_a_draw_that_can_never_be_seen_is_refused() -> None:
    with pytest.raises(ValueError, match="draws of family 'word'"):
        draw_trigger("word", np.ones((3, 6), np.int64), np.random.default_rng(0))
    with pytest.raises(ValueError, match="default trigger of family 'word'"):
        default_trigger("word", np.ones((3, 6), np.int64))


@pytest.mark.parametrize(
    ("family", "like", "message"),
    [
        ("hexagon", np.zeros((2, 1, 8, 8), np.float32), "must be one of patch, polygon"),
        ("patch", np.zeros((2, 8), np.int64), "does not fit inputs int64"),
        ("word", np.zeros((2, 1, 8, 8), np.float32), "does not fit inputs float32"),
        ("patch", np.zeros((0, 1, 8, 8), np.float32), "at least 1 clean input"),
    ],
)
def test_draws_refuse_what_does_not_fit(
    family: str, like: np.ndarray[tuple[int, ...], np.dtype[np.float32]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_trigger(family, like, np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        default_trigger(family, like)
