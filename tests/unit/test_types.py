"""The contracts that every layer shares: what they refuse, what they promise."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from fl_shield.types import Action, ClientVerdict, RoundRecord, Samples, View


def three() -> Samples:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return Samples(x=x, y=np.array([2, 0, 1], dtype=np.int64))


def test_samples_refuse_inputs_and_labels_of_different_length() -> None:
    with pytest.raises(ValueError, match="equally long, got 3 and 2"):
        Samples(x=np.zeros((3, 4), np.float32), y=np.zeros(2, np.int64))


def test_samples_are_as_long_as_their_labels() -> None:
    assert len(three()) == 3
    assert len(Samples(x=np.zeros((0, 4), np.float32), y=np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize(
    "index",
    [np.array([2, 0]), np.array([False, True, True]), slice(1, 3), slice(0, 0)],
    ids=["rows", "mask", "slice", "nothing"],
)
def test_take_keeps_inputs_beside_their_labels(index: np.ndarray | slice) -> None:
    taken = three().take(index)
    assert np.array_equal(taken.y, three().y[index])
    assert np.array_equal(taken.x, three().x[index])
    assert taken.x.dtype == np.float32
    assert taken.y.dtype == np.int64


def test_take_follows_the_order_asked_for_and_repeats() -> None:
    taken = three().take(np.array([2, 2, 0]))
    assert taken.y.tolist() == [1, 1, 2]
    assert taken.x[:, 0].tolist() == [8.0, 8.0, 0.0]


def test_join_keeps_the_order_of_the_parts() -> None:
    joined = Samples.join([three().take(slice(2, 3)), three().take(slice(0, 2))])
    assert joined.y.tolist() == [1, 2, 0]
    assert joined.x[:, 0].tolist() == [8.0, 0.0, 4.0]


def test_join_copies() -> None:
    part = three()
    joined = Samples.join([part])
    joined.x[0, 0] = 99
    assert part.x[0, 0] == 0


def test_join_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Samples.join([])


def test_records_cannot_be_rewritten() -> None:
    verdict = ClientVerdict(client_id="7", action=Action.KEEP)
    with pytest.raises(FrozenInstanceError):
        verdict.action = Action.DROP  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        three().x = np.zeros((3, 4))  # type: ignore[misc]


def test_a_verdict_trusts_nobody_by_default() -> None:
    verdict = ClientVerdict(client_id="7", action=Action.REJECT)
    assert verdict.reputation == 0.0
    assert verdict.n_examples is None
    assert verdict.score is None
    assert verdict.p_value is None
    assert verdict.view_scores == {}
    assert verdict.reasons == ()


def test_default_mappings_are_not_shared() -> None:
    one = ClientVerdict(client_id="1", action=Action.KEEP)
    other = ClientVerdict(client_id="2", action=Action.KEEP)
    assert one.view_scores is not other.view_scores


def test_actions_are_their_words() -> None:
    """The audit database and the JSON files store them as text."""
    assert [str(a) for a in Action] == ["keep", "downweight", "drop", "reject", "missing"]
    assert Action("drop") is Action.DROP
    with pytest.raises(ValueError, match="ban"):
        Action("ban")


def test_a_round_keeps_its_verdicts_in_order() -> None:
    verdicts = tuple(ClientVerdict(client_id=c, action=Action.KEEP) for c in "ba")
    record = RoundRecord(server_round=1, mode="filter", verdicts=verdicts)
    assert [v.client_id for v in record.verdicts] == ["b", "a"]
    assert (record.shield_seconds, record.round_seconds, record.notes) == (0.0, 0.0, ())


def test_a_view_lacks_statistics_unless_given() -> None:
    view = View(name="layer:fc", points=np.zeros((2, 3)), references=np.zeros((4, 3)))
    assert view.statistics is None
    assert view.reference_statistics is None
    assert (view.kind, view.depth) == ("activation", 1.0)
