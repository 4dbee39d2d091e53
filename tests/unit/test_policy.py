"""From scores and p-values to actions, worked out by hand.

With logarithms of two: a score of 2/3 has log-odds ln 2, 4/5 has ln 4, 8/9 has ln 8.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_shield.policy import (
    DOUBT,
    FAINTEST_VOTE,
    MODES,
    Decision,
    Mode,
    Policy,
    joint_p_value,
    log_odds,
    vote,
)
from fl_shield.types import Action

LN2 = log(2)
RARE, COMMON = 0.01, 0.5  # p-values on either side of a budget of 0.05


def once(policy: Policy, score: float, p_value: float, client: str = "a") -> Decision:
    (decision,) = policy.decide([client], [score], [p_value])
    return decision


# Log-odds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.5, 0.0), (2 / 3, LN2), (0.8, 2 * LN2), (0.2, -2 * LN2), (0.0, -8.0), (1.0, 8.0)],
)
def test_log_odds_by_hand(score: float, expected: float) -> None:
    assert float(log_odds(score)) == pytest.approx(expected, abs=1e-12)


def test_log_odds_keep_shape_order_and_limit() -> None:
    scores = np.array([[0.0, 0.1], [0.9, 1.0]])
    odds = log_odds(scores, limit=2.0)
    assert odds == pytest.approx(np.array([[-2.0, -2.0], [2.0, 2.0]]))
    assert log_odds(scores)[0, 1] == pytest.approx(-log(9))


# One round ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "p_value", "action"),
    [
        (0.99, 0.01, Action.DROP),
        (0.99, 0.06, Action.KEEP),  # suspicious to the detector, not rare
        (0.79, 0.01, Action.KEEP),  # rare, not four times likelier malicious than benign
        (0.10, 0.90, Action.KEEP),
        (0.80, 0.04, Action.DROP),  # both borders belong to the suspicious side
    ],
)
def test_both_conditions_must_hold(score: float, p_value: float, action: Action) -> None:
    decision = once(Policy(fpr_budget=0.05), score, p_value)
    assert decision.action is action
    assert (decision.weight == 0) == (action is Action.DROP)
    assert bool(decision.reason) == (decision.weight < 1)


def test_the_budget_is_the_operators() -> None:
    assert once(Policy(fpr_budget=0.2), 0.9, 0.15).action is Action.DROP
    assert once(Policy(fpr_budget=0.1), 0.9, 0.15).action is Action.KEEP


def test_decisions_come_in_the_order_of_the_clients() -> None:
    decisions = Policy().decide(["a", "b", "c"], [0.1, 0.99, 0.2], [0.5, 0.01, 0.4])
    assert [d.action for d in decisions] == [Action.KEEP, Action.DROP, Action.KEEP]


def test_an_empty_round_decides_nothing() -> None:
    policy = Policy()
    assert policy.decide([], [], []) == []
    assert policy.suspicion_ == {}


@pytest.mark.parametrize("short", [0, 1, 2], ids=["clients", "scores", "p_values"])
def test_rows_of_different_length_are_refused(short: int) -> None:
    rows: list[list[str] | list[float]] = [["a", "b"], [0.1, 0.2], [0.5, 0.5]]
    rows[short] = rows[short][:1]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Policy().decide(*rows)  # type: ignore[arg-type]


def test_the_reason_says_what_was_compared() -> None:
    policy = Policy(fpr_budget=0.05)
    assert once(policy, 16 / 17, 0.012).reason == "p = 0.012 <= 0.04, score 0.941"
    again = once(policy, 0.8, 0.012).reason
    assert again == "p = 0.012 <= 0.04, score 0.800, suspicious before (reputation was 0.25)"
    milder = once(policy, 0.8, 0.1).reason
    assert milder.startswith("p = 0.002 over its rounds <= 0.01, score 0.800, suspicious before")


# Doubt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_value", "score", "weight"),
    [
        (0.04 + 1e-9, 0.99, FAINTEST_VOTE),  # a hair above the cut at four fifths of the budget
        (0.145, 0.8, 0.5),  # even odds with the prior: halfway between the cut and no doubt
        (0.145, 4 / 7, 0.75),  # with the prior one to three: half the blame of even odds
        (0.145, 0.9, 0.5),  # no more blame than all
        (0.01, 4 / 7, 0.5),  # rare, but rather benign: half a vote
        (DOUBT, 0.99, 1.0),
        (0.9, 0.99, 1.0),
    ],
)
def test_the_vote_of_a_kept_update_by_hand(p_value: float, score: float, weight: float) -> None:
    decision = once(Policy(fpr_budget=0.05), score, p_value)
    assert decision.action is Action.KEEP
    assert decision.weight == pytest.approx(weight, abs=1e-6)


def test_doubt_is_told_and_the_least_trusted_are_no_references() -> None:
    policy = Policy(fpr_budget=0.05)
    doubtful = once(policy, 0.8, 0.06, "a")
    assert doubtful.reason == "in doubt: p = 0.06, vote 0.095"
    assert not doubtful.is_trusted
    milder = once(policy, 0.8, 0.07, "b")
    assert milder.reason == "in doubt: p = 0.07, vote 0.14"
    assert milder.is_trusted
    assert not once(policy, 0.9, 0.01, "c").is_trusted


def test_rounds_together_leave_a_doubt() -> None:
    policy = Policy(fpr_budget=0.05)
    for _ in range(3):
        once(policy, 0.4, 0.08, "a")
    again = once(policy, 0.4, 0.2, "a")
    assert "over its rounds" in again.reason
    assert again.weight < once(policy, 0.4, 0.2, "b").weight


def test_whoever_was_suspicious_votes_in_full_when_all_rounds_allow_it() -> None:
    """An attacker between two attacks, or an honest client that was wronged once."""
    policy = Policy(fpr_budget=0.05)
    once(policy, 0.9, 0.01)
    votes = [once(policy, 0.1, 0.5).weight for _ in range(6)]
    doubt = 1 - (joint_p_value([0.5, 0.01]) - 0.04) / 0.21
    blame = 2 / (1 + 16)  # odds 1 to 9, past 9 to 4, prior 1 to 4
    assert votes[0] == pytest.approx(1 - doubt * blame)
    assert votes == sorted(votes)
    assert votes[-1] == 1.0
    assert once(policy, 0.1, 0.5, "never suspicious").weight == 1.0


def test_a_budget_beyond_doubt_leaves_none() -> None:
    assert once(Policy(fpr_budget=0.5), 0.9, 0.41).weight == 1.0


def test_the_vote_never_falls_with_the_p_value_and_never_rises_with_the_odds() -> None:
    p_values, odds = np.linspace(0, 1, 60), np.linspace(-6, 6, 25)
    votes = np.array([[vote(p, o, cut=0.04) for p in p_values] for o in odds])
    assert (np.diff(votes, axis=1) >= 0).all()
    assert (np.diff(votes, axis=0) <= 0).all()
    assert votes.min() == FAINTEST_VOTE
    assert votes.max() == 1


# Rounds ------------------------------------------------------------------------------------------


def test_a_suspicious_past_by_hand() -> None:
    """Suspicion in units of ln 2, memory one half, prior -2: 3, then 2.5, then 1.25, then 0.625."""
    policy = Policy(fpr_budget=0.05, memory=0.5)
    assert policy.reputation("a") == 1.0

    first = once(policy, 32 / 33, RARE)  # posterior 5 - 2
    assert first.action is Action.DROP
    assert first.reputation == pytest.approx(2**-3)

    second = once(policy, 8 / 9, RARE)  # 3 + 3 - 2; its own 3 - 2 is added, the past not again
    assert second.action is Action.DROP
    assert second.reputation == pytest.approx(2**-2.5)

    third = once(policy, 0.5, RARE)  # 0 + 2.5 - 2, and nothing of its own
    assert third.action is Action.DROP
    assert third.reputation == pytest.approx(2**-1.25)

    fourth = once(policy, 0.99, COMMON)  # not rare: kept, and half is forgotten
    assert fourth.action is Action.KEEP
    assert fourth.reputation == pytest.approx(2**-0.625)
    assert policy.reputation("a") == fourth.reputation


def test_the_past_belongs_to_its_client() -> None:
    policy = Policy()
    once(policy, 0.99, RARE, "a")
    assert once(policy, 0.2, RARE, "b").action is Action.KEEP
    assert once(policy, 0.2, RARE, "a").action is Action.DROP
    assert policy.reputation("b") == 1.0
    assert policy.reputation("never seen") == 1.0


def test_the_past_alone_drops_nobody() -> None:
    """An update that is not unusual is kept, so a wronged client is heard again at once."""
    policy = Policy()
    for _ in range(20):
        once(policy, 1.0, RARE)
    assert once(policy, 1.0, DOUBT + 0.01).action is Action.KEEP


def test_a_repeated_offender_falls_with_a_milder_update() -> None:
    policy = Policy()
    assert once(policy, 0.9, 0.1, "newcomer").action is Action.KEEP
    for _ in range(2):
        once(policy, 0.9, 0.01)
    assert once(policy, 0.9, 0.1).action is Action.DROP
    assert once(policy, 0.9, 0.6).action is Action.KEEP


def test_a_calm_past_never_makes_a_round_milder() -> None:
    policy = Policy()
    for _ in range(10):
        once(policy, 0.1, 1.0)
    assert once(policy, 0.9, 0.039).action is Action.DROP


# A client's rounds taken together ----------------------------------------------------------------


def test_one_round_alone_is_its_own_p_value() -> None:
    assert joint_p_value([0.03]) == 0.03
    assert joint_p_value([0.173828125]) == 0.173828125  # the tail formula gives one ulp less


def test_two_rounds_by_hand() -> None:
    """Means 1 and 0.8: tail 5 exp(-t) - 4 exp(-t / 0.8)."""
    t = -np.log(0.1) - 0.8 * np.log(0.02)
    assert joint_p_value([0.1, 0.02]) == pytest.approx(5 * np.exp(-t) - 4 * np.exp(-t / 0.8))


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_the_joint_p_value_of_a_benign_client_is_uniform(n: int) -> None:
    p = np.random.default_rng(n).random((4000, n))
    found = np.array([joint_p_value(row.tolist()) for row in p])
    for level in (0.01, 0.05, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=4 * (level / 4000) ** 0.5)


def test_extremes_have_a_joint_p_value() -> None:
    assert joint_p_value([1.0] * 8) == pytest.approx(1.0)
    assert 0 <= joint_p_value([1e-300] * 8) < 1e-12


def test_a_round_of_absence_forgets_nothing() -> None:
    policy = Policy()
    before = once(policy, 0.9, RARE, "a").reputation
    once(policy, 0.1, COMMON, "b")
    assert policy.reputation("a") == before


def test_suspicion_is_bounded() -> None:
    """At most 4 a round, so it stays below 4 / (1 - memory) however long an attack lasts."""
    policy = Policy(memory=0.5)
    expected = [4.0, 6.0, 7.0, 7.5]
    for bound in expected:
        assert once(policy, 1.0, RARE).reputation == pytest.approx(exp(-bound))
    for _ in range(50):
        once(policy, 1.0, RARE)
    assert policy.suspicion_["a"] <= 8.0
    assert 0 < policy.reputation("a") < 1


def test_without_memory_only_the_last_round_counts() -> None:
    policy = Policy(memory=0.0)
    once(policy, 0.8, RARE)
    assert once(policy, 0.5, COMMON).reputation == 1.0
    assert once(policy, 0.4, RARE).action is Action.KEEP


def test_clean_rounds_earn_no_credit() -> None:
    patient, newcomer = Policy(), Policy()
    for _ in range(100):
        once(patient, 0.0, 1.0)
    assert once(patient, 0.5, 0.05) == once(newcomer, 0.5, 0.05)


def test_two_policies_share_no_memory() -> None:
    one, other = Policy(), Policy()
    once(one, 0.99, RARE)
    assert other.suspicion_ == {}


# Modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "weight"),
    [(0.8, 1 / 17), (8 / 9, 1 / 65)],
)
def test_downweight_by_hand(score: float, weight: float) -> None:
    """One over one plus the squared odds: 4 and 8."""
    decision = once(Policy(mode="downweight"), score, RARE)
    assert decision.action is Action.DOWNWEIGHT
    assert decision.weight == pytest.approx(weight)


def test_downweight_counts_the_past() -> None:
    policy = Policy(mode="downweight")
    once(policy, 16 / 17, RARE)
    assert once(policy, 2 / 3, RARE).weight == pytest.approx(1 / 65)  # odds 2, past 4: 8


def test_monitor_decides_and_remembers_like_filter() -> None:
    rng = np.random.default_rng(0)
    policies = Policy(mode="monitor"), Policy(mode="filter")
    for _ in range(30):
        scores, p_values = rng.random(5).tolist(), (rng.random(5) / 5).tolist()
        seen = [p.decide(list("abcde"), scores, p_values) for p in policies]
        assert seen[0] == seen[1]
    assert policies[0].suspicion_ == policies[1].suspicion_ != {}


def test_all_modes_suspect_the_same() -> None:
    for mode in MODES:
        decisions = Policy(mode=mode).decide(list("abc"), [0.9, 0.9, 0.1], [RARE, COMMON, RARE])
        assert [d.action is not Action.KEEP for d in decisions] == [True, False, False]


# Properties --------------------------------------------------------------------------------------

unit = st.floats(0, 1)
histories = st.lists(st.tuples(unit, unit), max_size=12)


@given(histories, unit, st.floats(1e-6, 1), st.sampled_from(MODES))
def test_history_never_helps(
    history: list[tuple[float, float]], score: float, p_value: float, mode: Mode
) -> None:
    known = Policy(mode=mode)
    for past in history:
        once(known, *past)
    assert once(known, score, p_value).weight <= once(Policy(mode=mode), score, p_value).weight


@given(histories, st.floats(0.01, 0.99), st.floats(0, 0.9))
def test_weights_and_reputations_stay_in_range(
    history: list[tuple[float, float]], budget: float, memory: float
) -> None:
    policy = Policy(mode="downweight", fpr_budget=budget, memory=memory)
    for score, p_value in history:
        decision = once(policy, score, p_value)
        assert 0 < decision.weight <= 1
        assert 0 < decision.reputation <= 1
        assert decision.action is Action.KEEP or decision.weight <= 0.5


def test_the_budget_bounds_what_benign_clients_lose() -> None:
    """Even if the detector calls everybody malicious, round after round."""
    policy, rng = Policy(fpr_budget=0.05), np.random.default_rng(0)
    clients = [str(i) for i in range(2000)]
    for _ in range(6):
        p_values = rng.random(2000).tolist()
        dropped = [d.action is Action.DROP for d in policy.decide(clients, [1.0] * 2000, p_values)]
        assert np.mean(dropped) <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_order_of_clients_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    clients = [str(i) for i in range(40)]
    forward, shuffled = Policy(), Policy()
    for _ in range(5):
        scores, p_values = rng.random(40), rng.random(40) / 10
        order = rng.permutation(40)
        expected = forward.decide(clients, scores.tolist(), p_values.tolist())
        found = shuffled.decide(
            [clients[i] for i in order], scores[order].tolist(), p_values[order].tolist()
        )
        assert found == [expected[i] for i in order]


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_impossible_budgets_are_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"fpr_budget must be in \(0, 1\), got"):
        Policy(fpr_budget=budget)


@pytest.mark.parametrize("memory", [-0.1, 1.0, float("nan")])
def test_impossible_memories_are_refused(memory: float) -> None:
    with pytest.raises(ValueError, match=r"memory must be in \[0, 1\), got"):
        Policy(memory=memory)


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="monitor, filter, downweight, got 'block'"):
        Policy(mode="block")  # type: ignore[arg-type]


def test_doubt_is_the_vote_that_was_lost() -> None:
    policy = Policy(fpr_budget=0.05)
    clients, scores, p_values = ["a", "b", "c"], [0.1, 0.6, 0.99], [0.9, 0.1, 0.001]
    sure, torn, dropped = policy.decide(clients, scores, p_values)
    assert sure.doubt == 0
    assert torn.doubt == pytest.approx(1 - torn.weight)
    assert 0 < torn.doubt < 1
    assert dropped.doubt == 1
    (moved,) = Policy(mode="downweight").decide(["c"], [0.99], [0.001])
    assert moved.doubt == 1  # whatever its weight
