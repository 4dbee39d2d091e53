"""Insertions into token sequences by hand and against a slow loop over lists."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.triggers import Insertion, draw_rare_token, draw_trigger, visibility
from fl_shield.triggers.draw_text import middling_words, rarest_words
from fl_shield.triggers.text import insert_run, real_lengths

ROW = np.array([[0, 0, 5, 6, 7]])


def _padded(n: int = 60, length: int = 20) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(2, 50, size=(n, length))
    x[np.arange(length) < rng.integers(0, length + 1, size=n)[:, None]] = 0
    return x


def test_one_token_goes_in_and_the_leftmost_falls_out() -> None:
    expected = {0: [0, 5, 6, 7, 9], 1: [0, 5, 6, 9, 7], 3: [0, 9, 5, 6, 7], 4: [0, 9, 5, 6, 7]}
    for from_end, row in expected.items():
        trigger = Insertion(runs=((9,),), from_end=(from_end,))
        assert trigger.stamp(ROW).tolist() == [row]
        assert trigger.written(ROW)[0].tolist() == [token == 9 for token in row]


def test_without_padding_a_real_token_falls_out() -> None:
    full = np.array([[1, 2, 3, 4]])
    assert Insertion(runs=((9,),), from_end=(2,)).stamp(full).tolist() == [[2, 9, 3, 4]]
    assert Insertion(runs=((9,),), from_end=(99,)).stamp(full).tolist() == [[9, 2, 3, 4]]
    assert Insertion(runs=((8, 9),), from_end=(1,)).stamp(full).tolist() == [[3, 8, 9, 4]]


def test_two_runs_go_in_one_after_the_other_and_both_stay() -> None:
    full = np.array([[1, 2, 3, 4]])
    two = Insertion(runs=((8,), (9,)), from_end=(2, 0), name="two_tokens")
    assert two.stamp(full).tolist() == [[8, 3, 4, 9]]
    for places in [(9, 9), (9, 0), (0, 9), (0, 0)]:
        stamped = Insertion(runs=((8,), (9,)), from_end=places).stamp(full)[0].tolist()
        assert {8, 9} <= set(stamped)
    assert Insertion(runs=((8,), (9,))).written(full).sum() == 2


def test_all_padding_takes_the_token_at_the_end() -> None:
    empty = np.zeros((1, 3), np.int64)
    assert Insertion(runs=((9,),), from_end=(2,)).stamp(empty).tolist() == [[0, 0, 9]]
    assert Insertion(runs=((9,),)).stamp(empty).tolist() == [[0, 0, 9]]


def test_insertion_agrees_with_a_loop_over_lists() -> None:
    x, run = _padded(), np.array([90, 91, 92])
    from_end = np.random.default_rng(1).integers(0, 18, size=len(x))
    slow = []
    for row, right in zip(x.tolist(), from_end.tolist(), strict=True):
        place = len(row) - right
        slow.append(row[3:place] + run.tolist() + row[place:])
    assert insert_run(x, run, from_end).tolist() == slow


def test_random_places_lie_among_the_real_tokens_and_follow_content_alone() -> None:
    x = _padded()
    trigger = Insertion(runs=((90,), (91,)), key=3)
    places = trigger.places(x)
    assert (places <= real_lengths(x)[:, None]).all()
    assert (places >= 0).all()
    order = np.random.default_rng(2).permutation(len(x))
    np.testing.assert_array_equal(trigger.places(x[order]), places[order])
    assert (Insertion(runs=((90,), (91,)), key=4).places(x) != places).any()
    full = np.random.default_rng(3).integers(2, 9, size=(300, 4))
    counts = np.bincount(Insertion(runs=((90,),)).places(full)[:, 0], minlength=4)
    assert len(counts) == 4
    assert counts.min() > 45


def test_what_was_in_a_sequence_stays_in_order() -> None:
    x = _padded()
    stamped = Insertion(runs=((90, 91),), key=1).stamp(x)
    for before, after in zip(x.tolist(), stamped.tolist(), strict=True):
        rest = [token for token in after if token < 90]
        assert rest == before[len(before) - len(rest) :]
        assert [token for token in after if token >= 90] == [90, 91]


def test_visibility_is_the_share_of_inserted_tokens_that_differ() -> None:
    x = np.array([[2, 3], [3, 9]])
    seen = visibility(Insertion(runs=((9,),), from_end=(0,)), x)
    assert (seen.mean_change, seen.share_changed) == (0.5, 0.5)


def test_middling_and_rare_words_by_hand() -> None:
    like = np.array([[0] * 8 + [1] * 4, [2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7]])
    # twelfths of words 2 to 7: 4, 3, 2, 1, 1, 1, with middles 2, 5.5, 8, 9.5, 10.5, 11.5
    assert middling_words(like).tolist() == [3, 4, 5]
    assert rarest_words(like).tolist() == [5, 6, 7, 4, 3]
    assert middling_words(np.array([[7, 7, 7, 8]])).tolist() == [7]


def test_rare_tokens_are_rare_or_never_seen() -> None:
    like = np.concatenate([np.repeat(np.arange(2, 40), 20), np.arange(40, 45)])[None]
    rng = np.random.default_rng(0)
    words = {draw_rare_token(like, rng).runs[0][0] for _ in range(60)}
    assert words == {40, 41, 42, 43, 44}
    trigger = draw_rare_token(like, rng, unseen=(77,))
    assert (trigger.runs, trigger.from_end, trigger.name) == (((77,),), None, "rare_token")


def test_drawn_insertions_have_the_lengths_of_their_family() -> None:
    like = _padded(200, 60)
    lengths: dict[str, set[int]] = {}
    for family in ("token", "two_tokens", "phrase", "sentence", "rare_token"):
        for seed in range(30):
            trigger = draw_trigger(family, like, np.random.default_rng(seed))
            assert isinstance(trigger, Insertion)
            lengths.setdefault(family, set()).add(trigger.n_tokens)
            assert 0 not in {token for run in trigger.runs for token in run}
    assert lengths["token"] == lengths["rare_token"] == {1}
    assert lengths["two_tokens"] == {2}
    assert lengths["phrase"] == {3, 4}
    assert lengths["sentence"] == {6, 7, 8, 9, 10}


def test_half_the_sentences_are_cut_out_of_the_data() -> None:
    like = _padded(40, 60)
    text = " | ".join(" ".join(map(str, row)) for row in like.tolist())
    drawn = [draw_trigger("sentence", like, np.random.default_rng(seed)) for seed in range(40)]
    runs = [t.runs[0] for t in drawn if isinstance(t, Insertion)]
    cut_out = sum(f" {' '.join(map(str, run))} " in f" {text} " for run in runs)
    assert 8 <= cut_out <= 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": ()}, "runs must be 1 to 8"),
        ({"runs": ((1,),) * 9}, "runs must be 1 to 8"),
        ({"runs": ((),)}, "one or more ids"),
        ({"runs": ((-1,),)}, "one or more ids"),
        ({"runs": ((1,),), "from_end": (1, 2)}, "one place a run"),
        ({"runs": ((1,),), "from_end": (-1,)}, "from_end must be >= 0"),
        ({"runs": ((1,),), "key": -1}, "key must be"),
    ],
)
def test_impossible_insertions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Insertion(**settings)


def test_insertion_refuses_inputs_it_was_not_made_for() -> None:
    token = Insertion(runs=((9,),))
    with pytest.raises(ValueError, match="int64 tokens"):
        token.stamp(np.zeros((2, 5), np.int32))
    with pytest.raises(ValueError, match="int64 tokens"):
        token.stamp(np.zeros((2, 1, 5), np.float32))
    with pytest.raises(ValueError, match="cannot be inserted into sequences of 2"):
        Insertion(runs=((7, 8, 9),)).stamp(np.zeros((2, 2), np.int64))


def test_draws_say_what_the_data_lack() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no token ids >= 2"):
        draw_trigger("token", np.zeros((3, 6), np.int64), rng)
    with pytest.raises(ValueError, match="two_tokens needs two words"):
        draw_trigger("two_tokens", np.full((3, 6), 5), rng)
    with pytest.raises(ValueError, match="changed too little"):
        draw_trigger("rare_token", np.full((3, 6), 5), rng)
