"""From a round's well-formed replies to what each is worth, and to the verdicts on record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MetricRecordValues

from fl_shield.policy import FAINTEST_VOTE, Decision, Policy
from fl_shield.strategies.intake import Accepted, Refused
from fl_shield.strategies.records import CheckedReply, ReplyLimits, rebuilt_content, scaled_towards
from fl_shield.strategies.votes import WeightCap, agree_on_metrics, outgrown
from fl_shield.types import (
    Action,
    Arrays,
    ClientVerdict,
    Flags,
    Floats,
    Inspection,
    UpdateInspector,
)

MIN_WEIGHT = FAINTEST_VOTE
"""A vote that weighs less is left out: its update would round to the global model itself."""

_WORST_P = 1e-12


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One well-formed reply and what the shield thinks of it."""

    accepted: Accepted
    client_id: str
    capped: float
    metrics: Mapping[str, MetricRecordValues]
    decision: Decision
    score: float
    p_value: float
    view_scores: Mapping[str, float]
    inspected: bool
    notes: tuple[str, ...]

    @property
    def weight(self) -> float:
        """Multiplier of the vote, in [0, 1]."""
        return self.decision.weight if self.decision.weight >= MIN_WEIGHT else 0.0

    @property
    def in_doubt(self) -> bool:
        """Whether the update is kept, and votes with fewer examples than it could."""
        return self.decision.action is Action.KEEP and self.decision.weight < 1


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One round's well-formed replies, judged together."""

    judged: tuple[Judged, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def trusted(self) -> Flags:
        """Which of the inspected updates may serve as references for later rounds."""
        return np.array([d.is_trusted for d in self._inspected], dtype=np.bool_)

    @property
    def doubts(self) -> Floats:
        """How much of a suspect each inspected update is for later rounds, in [0, 1]."""
        return np.array([d.doubt for d in self._inspected], dtype=np.float64)

    @property
    def _inspected(self) -> list[Decision]:
        return [j.decision for j in self.judged if j.inspected]


@dataclass(frozen=True, kw_only=True)
class _Found:
    scores: Floats
    p_values: Floats
    views: Sequence[Mapping[str, float]]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores a round and decides on it.

    Parameters
    ----------
    inspector : UpdateInspector
        Gives scores and p-values.
    policy : Policy
        Gives decisions.
    caps : WeightCap
        Bounds the example counts that clients claim.
    client_id : callable
        From a node id to the name under which a client is remembered.
    limits : ReplyLimits
        Names the example count among the metrics.
    """

    inspector: UpdateInspector
    policy: Policy
    caps: WeightCap
    client_id: Callable[[int], str]
    limits: ReplyLimits

    def judge(self, accepted: Sequence[Accepted], reference: Arrays) -> Judgement:
        """Judge the well-formed replies of one round; each update is read once, in order."""
        if not accepted:
            return Judgement()
        replies = [a.checked for a in accepted]
        ids = [self.client_id(a.node_id) for a in accepted]
        capped = self.caps.apply(ids, [r.n_examples for r in replies])
        too_far = outgrown([r.norms for r in replies], reference, self.limits.max_growth)
        found = self._inspect(replies, ids, capped, too_far, reference)
        decisions = self.policy.decide(ids, found.scores.tolist(), found.p_values.tolist())
        agreed = agree_on_metrics([r.metrics for r in replies], self.limits.weighted_by_key)
        judged = tuple(
            Judged(
                accepted=a,
                client_id=ids[i],
                capped=capped[i],
                metrics=agreed.metrics[i],
                decision=decisions[i],
                score=float(found.scores[i]),
                p_value=float(found.p_values[i]),
                view_scores=found.views[i],
                inspected=not too_far[i],
                notes=too_far[i] + a.checked.notes + agreed.notes[i] + _cap_note(a, capped[i]),
            )
            for i, a in enumerate(accepted)
        )
        return Judgement(judged=judged, notes=found.notes)

    def _inspect(
        self,
        replies: Sequence[CheckedReply],
        ids: Sequence[str],
        capped: Sequence[float],
        too_far: Sequence[tuple[str, ...]],
        reference: Arrays,
    ) -> _Found:
        """Ask the inspector about all that did not outgrow the round; the rest is suspicious."""
        sane = [i for i, reason in enumerate(too_far) if not reason]
        reports = [replies[i].report for i in sane]
        inspection = self.inspector.inspect(
            reference,
            (replies[i].arrays for i in sane),
            np.array([capped[i] for i in sane], dtype=np.float64),
            reports if any(r is not None for r in reports) else None,
            [ids[i] for i in sane],
        )
        scores, p_values = np.ones(len(replies)), np.full(len(replies), _WORST_P)
        scores[sane], p_values[sane] = _readable(inspection, len(sane))
        views: list[Mapping[str, float]] = [{} for _ in replies]
        for row, i in enumerate(sane):
            views[i] = _by_view(inspection, row)
        return _Found(scores=scores, p_values=p_values, views=views, notes=inspection.notes)

    def verdicts(
        self, judgement: Judgement, refused: Sequence[Refused], *, monitor: bool
    ) -> tuple[ClientVerdict, ...]:
        """What goes on record: judged clients in order, then those without a vote."""
        heard = tuple(_verdict(j, monitor=monitor) for j in judgement.judged)
        unheard = tuple(self.verdict_on(r) for r in refused)
        return heard + unheard

    def verdict_on(self, refused: Refused) -> ClientVerdict:
        """What goes on record about a node without a vote."""
        client_id = self.client_id(refused.node_id)
        return ClientVerdict(
            client_id=client_id,
            action=refused.action,
            weight=0.0,
            reputation=self.policy.reputation(client_id),
            reasons=(refused.reason,),
        )


def votes(
    judgement: Judgement, reference: Arrays, limits: ReplyLimits, *, monitor: bool
) -> list[Message]:
    """Replies for the inner strategy, rebuilt so that it can trust their form.

    In monitor mode everything well-formed passes with its own arrays and example count. Else a
    suspicious update is left out, or moved towards the global model by its weight: the one way
    of downweighting that every inner strategy honours, also those that ignore example counts.
    An update in doubt keeps its arrays and votes with fewer examples, so that doubts about some
    do not shorten the step of the round.
    """
    messages = []
    for j in judgement.judged:
        if not (monitor or j.weight > 0):
            continue
        checked, reply = j.accepted.checked, j.accepted.reply
        metrics = dict(j.metrics)
        arrays = None
        if not monitor:
            claimed = metrics[limits.weighted_by_key]
            metrics[limits.weighted_by_key] = (
                j.capped * j.weight
                if j.in_doubt
                else _as_claimed(claimed, j.capped, checked.n_examples)
            )
            if j.decision.action is Action.DOWNWEIGHT:
                arrays = scaled_towards(checked.arrays, reference, j.weight)
        reply.content = rebuilt_content(reply, checked, limits, metrics=metrics, arrays=arrays)
        messages.append(reply)
    return messages


def evaluation_votes(
    accepted: Sequence[Accepted], limits: ReplyLimits, max_weight: float
) -> list[Message]:
    """Evaluation replies for the inner strategy: agreed metrics, counts capped by the round."""
    key = limits.weighted_by_key
    replies = [a.checked for a in accepted]
    ids = [str(a.node_id) for a in accepted]
    capped = WeightCap(max_weight=max_weight).apply(ids, [r.n_examples for r in replies])
    agreed = agree_on_metrics([r.metrics for r in replies], key)
    messages = []
    for a, own, cap in zip(accepted, agreed.metrics, capped, strict=True):
        metrics = {**own, key: _as_claimed(own[key], cap, a.checked.n_examples)}
        a.reply.content = rebuilt_content(a.reply, a.checked, limits, metrics=metrics)
        messages.append(a.reply)
    return messages


def _as_claimed(
    claimed: MetricRecordValues, capped: float, n_examples: float
) -> MetricRecordValues:
    """Capped count in the type that the client used, the claim itself where it was not capped."""
    if capped >= n_examples:
        return claimed
    return max(1, int(capped)) if isinstance(claimed, int) else capped


def _verdict(judged: Judged, *, monitor: bool) -> ClientVerdict:
    decision = judged.decision
    reasons = [decision.reason] if decision.reason and judged.inspected else []
    if decision.action is Action.DOWNWEIGHT and judged.inspected and judged.weight == 0:
        reasons.append(f"weight {decision.weight:.2g} is below {MIN_WEIGHT}: left out")
    return ClientVerdict(
        client_id=judged.client_id,
        action=decision.action,
        applied=not monitor or judged.weight == 1,
        weight=judged.weight,
        n_examples=judged.capped,
        score=judged.score,
        p_value=judged.p_value,
        reputation=decision.reputation,
        view_scores=judged.view_scores,
        reasons=(*reasons, *judged.notes),
    )


def _readable(inspection: Inspection, n: int) -> tuple[Floats, Floats]:
    """Scores and p-values, where NaN counts as the worst there is: fail closed."""
    scores = np.asarray(inspection.scores, dtype=np.float64)
    p_values = np.asarray(inspection.p_values, dtype=np.float64)
    if scores.shape != (n,) or p_values.shape != (n,):
        raise ValueError(
            f"the inspector must return {n} scores and p-values, got shapes "
            f"{scores.shape} and {p_values.shape}"
        )
    readable = np.isfinite(scores) & np.isfinite(p_values)
    return np.where(readable, scores, 1.0), np.where(readable, p_values, _WORST_P)


def _by_view(inspection: Inspection, i: int) -> dict[str, float]:
    row = np.asarray(inspection.view_scores)[i]
    return {name: float(s) for name, s in zip(inspection.view_names, row, strict=True)}


def _cap_note(accepted: Accepted, capped: float) -> tuple[str, ...]:
    claimed = accepted.checked.n_examples
    return (f"claimed {claimed:g} examples, capped at {capped:g}",) if capped < claimed else ()
