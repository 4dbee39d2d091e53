"""From scores and p-values over rounds to actions: keep, downweight or drop, with a reputation.

History can only make a client more suspicious. A newcomer has no credit and a client with a
clean record gains none: patience buys an attacker nothing, and a fresh identity (Sybil) sheds a
bad past but never stands better than an honest newcomer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fl_shield.types import Action, Floats

EVIDENCE_MEMORY = 0.8
"""Weight of a client's earlier p-values in its joint one, a round; a half is left after three."""

MAX_EVIDENCE = 8
"""Earlier rounds of a client that are told apart; older ones weigh less than a sixth."""

JOINT_SHARE = 0.2
"""Share of the budget that is spent on a client's rounds taken together."""

DOUBT = 0.25
"""Largest p-value that leaves a doubt: the vote shrinks, and the client's past can condemn."""

FAINTEST_VOTE = 0.01
"""Smallest vote of an update that is kept."""

TRUSTED_VOTE = 0.1
"""Smallest vote of an update that may serve as a reference for later rounds."""

PRIOR_MALICIOUS = 0.2
"""Share of updates thought malicious before any is seen; the detector's log-odds take a half."""

_PRIOR_ODDS = math.log(PRIOR_MALICIOUS / (1 - PRIOR_MALICIOUS))
_MOST_ADDED = 4.0  # log-odds that one suspicious round adds to a client's past
_REMEMBERED = 0.05  # suspicion below it is forgotten

Mode = Literal["monitor", "filter", "downweight"]
MODES: tuple[Mode, ...] = ("monitor", "filter", "downweight")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the policy wants done with one update, and why.

    Attributes
    ----------
    action : Action
    weight : float
        Of its vote, in [0, 1]: below 1 also where an update is kept in doubt.
    reputation : float
        Of the client, in (0, 1].
    reason : str
        In words; empty where there is nothing to say.
    """

    action: Action
    weight: float
    reputation: float
    reason: str

    @property
    def is_trusted(self) -> bool:
        """Whether the update may serve as a reference for later rounds."""
        return self.action is Action.KEEP and self.weight >= TRUSTED_VOTE

    @property
    def doubt(self) -> float:
        """How much of a suspect the update is for later rounds, in [0, 1]: the vote it lost."""
        return 1 - self.weight if self.action is Action.KEEP else 1.0


def log_odds(score: Floats | float, limit: float = 8.0) -> Floats:
    """Natural log-odds of scores in [0, 1], clipped to ``[-limit, limit]``."""
    clipped = np.clip(np.asarray(score, dtype=np.float64), 1e-12, 1 - 1e-12)
    odds: Floats = np.asarray(np.log(clipped) - np.log1p(-clipped))
    return odds.clip(-limit, limit)


def joint_p_value(p_values: Sequence[float]) -> float:
    """Of a client's rounds taken together: Fisher's method with falling weights.

    With independent p-values, uniform for a benign client, the sum of ``-w_i ln p_i`` has the tail
    of a sum of exponential variables with means ``w_i`` (hypoexponential), here
    ``w_i = EVIDENCE_MEMORY**i``, the latest first.

    Parameters
    ----------
    p_values : sequence of float
        The latest first, in (0, 1]; at most :data:`MAX_EVIDENCE` are read.

    References
    ----------
    I. J. Good, "On the weighted combination of significance tests", JRSS B 17, 1955.

    Examples
    --------
    >>> round(joint_p_value([0.05]), 6), round(joint_p_value([0.1, 0.01, 0.01]), 4)
    (0.05, 0.0016)
    """
    p = np.clip(np.asarray(p_values[:MAX_EVIDENCE], dtype=np.float64), 1e-12, 1.0)
    if len(p) == 1:
        return float(p[0])  # exactly: a rounding error must not look like a suspicious past
    means = EVIDENCE_MEMORY ** np.arange(len(p))
    total = float(-(means * np.log(p)).sum())
    others = means[:, None] - means[None]
    np.fill_diagonal(others, 1.0)
    shares = (means ** (len(p) - 1)) / others.prod(1)
    return float(np.clip((shares * np.exp(-total / means)).sum(), 0.0, 1.0))


def vote(p_value: float, posterior: float, cut: float) -> float:
    """Weight of the vote of an update that is kept.

    A cut that is missed by a hair must not give a whole vote: one backdoored update in full
    leaves so much of the backdoor in the model that later ones hardly differ from honest updates.
    So the vote rises evenly with the p-value, from 0 at the cut to 1 at :data:`DOUBT`; where the
    detector itself rather thinks the update benign, only a part of that is taken away.

    Parameters
    ----------
    p_value : float
        In [0, 1].
    posterior : float
        Log-odds that the update is malicious, the prior included.
    cut : float
        p-value up to which suspicious updates are dropped.

    Returns
    -------
    float
        In [:data:`FAINTEST_VOTE`, 1].

    Examples
    --------
    >>> [round(vote(p, 0.0, cut=0.05), 2) for p in (0.05, 0.10, 0.15, 0.25)]
    [0.01, 0.25, 0.5, 1.0]
    """
    if p_value >= DOUBT:
        return 1.0
    sure = max(p_value - cut, 0.0) / (DOUBT - cut) if cut < DOUBT else 0.0
    blame = min(1.0, 2 / (1 + float(np.exp(min(-posterior, 700.0)))))
    return max(1 - (1 - sure) * blame, FAINTEST_VOTE)


def _suspicious_vote(odds: float) -> float:
    """Weight of a suspicious update's vote where it is not dropped."""
    return 1 / (1 + float(np.exp(min(2 * odds, 700.0))))


@dataclass(kw_only=True)
class Policy:
    """Decides on each update of a round and remembers how suspicious each client has been.

    An update is suspicious when its p-value is within the budget *and* its posterior is at least
    one half: the detector's log-odds, raised by the client's own suspicious past, with the prior
    :data:`PRIOR_MALICIOUS` (the detector learned from as many backdoored tasks as benign ones).
    The first condition bounds the share of benign updates dropped; the second asks the
    detector itself. Four fifths of the budget are spent on the update alone, one fifth on the
    client's rounds taken together (:func:`joint_p_value`), where the update itself is at least a
    little unusual: a repeated offender does not get away with one milder update, and nothing is
    judged more mildly for what came before. An update that is kept has a smaller :func:`vote`
    where it, or its client's rounds, leave a doubt; a client that was suspicious before votes in
    full again only when all its rounds allow it.

    Parameters
    ----------
    mode : {"monitor", "filter", "downweight"}
        ``monitor`` decides like ``filter``; whoever applies the decision does not.
    fpr_budget : float
        Largest share of benign updates that may be dropped, in (0, 1).
    memory : float
        How much of a client's past suspicion is carried to its next round, in [0, 1).

    Examples
    --------
    >>> policy = Policy(fpr_budget=0.05)
    >>> [d.action.value for d in policy.decide(["a", "b"], [0.1, 0.99], [0.6, 0.01])]
    ['keep', 'drop']
    """

    mode: Mode = "filter"
    fpr_budget: float = 0.05
    memory: float = 0.5
    suspicion_: dict[str, float] = field(default_factory=dict)
    evidence_: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not 0 < self.fpr_budget < 1:
            raise ValueError(f"fpr_budget must be in (0, 1), got {self.fpr_budget}")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory must be in [0, 1), got {self.memory}")

    def decide(
        self, client_ids: Sequence[str], scores: Sequence[float], p_values: Sequence[float]
    ) -> list[Decision]:
        """Decide on one round, clients in the order given, and remember it.

        Raises
        ------
        ValueError
            Where rows differ in length, or a score or p-value is no number in [0, 1]; nothing is
            remembered then.
        """
        rows = list(zip(client_ids, map(float, scores), map(float, p_values), strict=True))
        for client, score, p_value in rows:
            if not (0 <= score <= 1 and 0 <= p_value <= 1):
                raise ValueError(
                    f"score and p-value must be in [0, 1], got {score} and {p_value} for client "
                    f"{client}: replace NaN by the worst there is (1 and 0) before deciding"
                )
        return [self._decide(*row) for row in rows]

    def reputation(self, client_id: str) -> float:
        """Trust in a client, in (0, 1]: 1 without a suspicious past."""
        return float(np.exp(-self.suspicion_.get(client_id, 0.0)))

    def _decide(self, client_id: str, score: float, p_value: float) -> Decision:
        past = self.suspicion_.get(client_id, 0.0)
        own = float(log_odds(score))
        odds = own + past
        rounds = (p_value, *self.evidence_.get(client_id, ()))[:MAX_EVIDENCE]
        joint = joint_p_value(rounds)
        alone = p_value <= (1 - JOINT_SHARE) * self.fpr_budget
        repeated = p_value <= DOUBT and joint <= JOINT_SHARE * self.fpr_budget
        suspicious = (alone or repeated) and odds + _PRIOR_ODDS >= 0
        self.evidence_[client_id] = rounds
        added = min(max(own + _PRIOR_ODDS, 0.0), _MOST_ADDED) if suspicious else 0.0
        self.suspicion_[client_id] = self.memory * past + added
        reputation = self.reputation(client_id)
        if not suspicious:
            weight = self._vote(p_value, joint, past, odds)
            reason = "" if weight == 1 else _doubt(p_value, joint, weight)
            return Decision(action=Action.KEEP, weight=weight, reputation=reputation, reason=reason)
        told, bound = ("", 1 - JOINT_SHARE) if alone else (" over its rounds", JOINT_SHARE)
        shown = p_value if alone else joint
        reason = f"p = {shown:.3g}{told} <= {bound * self.fpr_budget:.2g}, score {score:.3f}"
        if past > _REMEMBERED:
            reason += f", suspicious before (reputation was {np.exp(-past):.2f})"
        if self.mode == "downweight":
            return Decision(
                action=Action.DOWNWEIGHT,
                weight=_suspicious_vote(odds),
                reputation=reputation,
                reason=reason,
            )
        return Decision(action=Action.DROP, weight=0.0, reputation=reputation, reason=reason)

    def _vote(self, p_value: float, joint: float, past: float, odds: float) -> float:
        """Vote of an update that is kept, smaller where it or its client's rounds leave a doubt."""
        cut = (1 - JOINT_SHARE) * self.fpr_budget
        least = min(p_value, joint) if p_value < DOUBT else p_value
        posterior = odds + _PRIOR_ODDS
        weight = vote(least, posterior, cut)
        if past > _REMEMBERED:  # whoever was suspicious is heard in full when all rounds allow it
            weight = min(weight, vote(joint, posterior, cut))
        if self.mode == "downweight":
            weight = max(weight, _suspicious_vote(odds))
        return weight


def _doubt(p_value: float, joint: float, weight: float) -> str:
    over = f", over its rounds {joint:.3g}" if joint < p_value else ""
    return f"in doubt: p = {p_value:.3g}{over}, vote {weight:.2g}"
