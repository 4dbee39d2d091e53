"""Likeness to doubted updates of other clients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_shield.suspects import (
    MOST,
    N_COMPANIONS,
    N_SUSPECTS,
    PRIOR,
    Suspects,
    first_doubts,
    kinship_evidence,
)
from fl_shield.types import Floats


def _round(n: int, d: int = 6, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {"update:fc": rng.normal(size=(n, d)), "stamp:local": rng.normal(size=(n, 3))}


def _slow(
    past: list[tuple[str, float, dict[str, Floats]]], points: dict[str, Floats], clients: list[str]
) -> dict[str, list[float]]:
    """Likeness by loops over every pair; ``past`` has one entry a client."""
    found: dict[str, list[float]] = {}
    for view, rows in points.items():
        found[view] = []
        for client, row in zip(clients, rows, strict=True):
            total, weight = 0.0, PRIOR
            for other, doubt, directions in past:
                if other != client:
                    length = float(np.linalg.norm(row) * np.linalg.norm(directions[view]))
                    total += doubt * float(row @ directions[view]) / length
                    weight += doubt
            found[view].append(total / weight)
    return found


def test_likeness_equals_the_slow_way() -> None:
    past, clients = _round(5, seed=1), ["a", "b", "c", "d", "e"]
    doubts = [1.0, 0.3, 0.05, 0.8, 0.6]
    suspects = Suspects()
    suspects.add(clients, past, doubts)
    entries = [
        (c, w, {view: rows[i] for view, rows in past.items()})
        for i, (c, w) in enumerate(zip(clients, doubts, strict=True))
    ]
    now = _round(4, seed=2)
    asked = ["c", "new", "", "a"]
    slow = _slow(entries, now, asked)
    for view, values in suspects.likeness(now, asked).items():
        np.testing.assert_allclose(values, slow[view], atol=1e-12)


def test_nobody_is_compared_with_their_own_past() -> None:
    suspects, points = Suspects(), _round(1)
    suspects.add(["mallory"], points, [1.0])
    own, other = (suspects.likeness(points, [name])["update:fc"][0] for name in ("mallory", "eve"))
    assert own == 0
    assert other == pytest.approx(1 / (1 + PRIOR))


def test_a_client_is_remembered_once_and_the_latest_time() -> None:
    suspects, first, second = Suspects(), _round(1, seed=1), _round(1, seed=2)
    suspects.add(["mallory"], first, [1.0])
    suspects.add(["mallory"], second, [1.0])
    fresh = Suspects()
    fresh.add(["mallory"], second, [1.0])
    assert len(suspects) == 1
    for view, values in suspects.likeness(first, ["eve"]).items():
        np.testing.assert_array_equal(values, fresh.likeness(first, ["eve"])[view])


def test_an_update_without_doubt_neither_adds_nor_clears() -> None:
    suspects, points = Suspects(), _round(2)
    suspects.add(["alice", "mallory"], points, [0.0, 1.0])
    assert len(suspects) == 1
    suspects.add(["mallory"], _round(1, seed=5), [0.0])
    assert suspects.likeness(points, ["a", "b"])["update:fc"][1] == pytest.approx(1 / (1 + PRIOR))


def test_what_nobody_sent_is_not_remembered() -> None:
    suspects = Suspects()
    suspects.add(["", "eve"], _round(2), [1.0, 1.0])
    assert len(suspects) == 1


def test_the_longest_unseen_suspect_is_forgotten_first() -> None:
    suspects, n = Suspects(), N_SUSPECTS + 1
    points = {"update:fc": np.eye(n)}
    names = [f"client {i}" for i in range(n)]
    suspects.add(names[:-1], {"update:fc": points["update:fc"][:-1]}, [1.0] * (n - 1))
    suspects.add(names[:1], {"update:fc": points["update:fc"][:1]}, [1.0])  # seen again
    suspects.add(names[-1:], {"update:fc": points["update:fc"][-1:]}, [1.0])
    assert len(suspects) == N_SUSPECTS
    known = suspects.likeness(points, [""] * n)["update:fc"] > 0
    assert np.flatnonzero(~known).tolist() == [1]


def test_without_suspects_nothing_is_alike() -> None:
    for values in Suspects().likeness(_round(3), ["a", "b", ""]).values():
        np.testing.assert_array_equal(values, 0)


def test_a_view_that_a_suspect_lacks_counts_as_unlike() -> None:
    suspects = Suspects()
    suspects.add(["eve"], {"update:fc": np.ones((1, 6))}, [1.0])
    found = suspects.likeness(_round(2), ["a", "b"])
    assert (found["stamp:local"] == 0).all()
    assert (found["update:fc"] != 0).all()


def test_zero_points_are_like_nobody() -> None:
    suspects = Suspects()
    suspects.add(["eve", "mallory"], {"u": np.array([[0.0, 0.0], [1.0, 0.0]])}, [1.0, 1.0])
    found = suspects.likeness({"u": np.array([[0.0, 0.0], [1.0, 0.0]])}, ["a", "b"])["u"]
    np.testing.assert_allclose(found, [0, 1 / (2 + PRIOR)])


@given(
    st.integers(0, 2**31), st.floats(1e-3, 1e3), st.lists(st.floats(0, 1), min_size=4, max_size=4)
)
def test_bounded_and_blind_to_length(seed: int, scale: float, doubts: list[float]) -> None:
    suspects = Suspects()
    suspects.add(list("abcd"), _round(4, seed=seed), doubts)
    points = _round(3, seed=seed + 1)
    longer = {view: rows * scale for view, rows in points.items()}
    for view, values in suspects.likeness(points, ["a", "x", ""]).items():
        assert (np.abs(values) < 1).all()
        np.testing.assert_allclose(
            values, suspects.likeness(longer, ["a", "x", ""])[view], atol=1e-9
        )


def test_a_round_joins_the_suspects_for_a_while_and_nobody_is_forgotten() -> None:
    suspects, asked = Suspects(), ["a", "new"]
    suspects.add([f"old {i}" for i in range(N_SUSPECTS)], _round(N_SUSPECTS), [1.0] * N_SUSPECTS)
    before = suspects.likeness(_round(2, seed=7), asked)
    both = suspects.joined_by(["a", "b", ""], _round(3, seed=1), [1.0, 0.5, 1.0])
    assert len(both) == N_SUSPECTS + 2  # whoever has no name cannot be remembered
    assert len(suspects) == N_SUSPECTS
    entries = [
        (name, doubt, {view: rows[i] for view, rows in _round(n, seed=seed).items()})
        for n, seed, names, doubts in (
            (N_SUSPECTS, 0, [f"old {i}" for i in range(N_SUSPECTS)], [1.0] * N_SUSPECTS),
            (3, 1, ["a", "b"], [1.0, 0.5]),
        )
        for i, (name, doubt) in enumerate(zip(names, doubts, strict=True))
    ]
    slow = _slow(entries, _round(2, seed=7), asked)
    for view, values in both.likeness(_round(2, seed=7), asked).items():
        np.testing.assert_allclose(values, slow[view], atol=1e-12)
    after = suspects.likeness(_round(2, seed=7), asked)
    assert all((before[view] == after[view]).all() for view in before)


def test_of_a_large_round_the_most_doubted_join() -> None:
    n = N_COMPANIONS + 10
    doubts = np.linspace(0.1, 0.9, n)
    both = Suspects().joined_by([f"c{i}" for i in range(n)], _round(n), doubts.tolist())
    assert len(both) == N_COMPANIONS
    assert min(doubt for _, doubt, _ in both.known()) == pytest.approx(doubts[10])


def test_first_doubts_by_hand() -> None:
    found = first_doubts(np.array([1e-9, 0.1, 0.2, 1.0]))
    np.testing.assert_allclose(found, [1.0, 0.5, 0.0, 0.0], atol=1e-8)


def test_evidence_by_hand() -> None:
    references = {"a": np.array([-0.08, 0.08]), "b": np.array([-0.08, 0.08])}
    own = {"a": np.array([0.10, 0.10, -0.90, 0.90]), "b": np.array([0.20, 0.10, -0.90, 0.90])}
    # mean 0 and spread 0.08 + 0.02: 1.5, 1, -9 and 9 deviations, of which one is tolerated
    np.testing.assert_allclose(kinship_evidence(own, references), [1.5, 0.0, 0.0, MOST], atol=1e-12)


def test_what_all_references_share_is_no_evidence() -> None:
    references = {"a": np.full(10, 0.6)}
    np.testing.assert_array_equal(kinship_evidence({"a": np.array([0.6, 0.2])}, references), 0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.integers(0, 2**31))
def test_evidence_is_bounded_and_grows_with_likeness(values: list[float], seed: int) -> None:
    references = {"a": np.random.default_rng(seed).uniform(-0.5, 0.5, 24)}
    found = kinship_evidence({"a": np.sort(values)}, references)
    assert ((found >= 0) & (found <= MOST)).all()
    assert (np.diff(found) >= 0).all()
