"""What a round says about its members: votes, norms and metrics that a minority cannot bend."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np
from flwr.app import MetricRecordValues

from fl_shield.types import Arrays

HISTORY = 9
_MIN_HISTORY = 3


@dataclass(kw_only=True)
class WeightCap:
    """Winsorises the example counts that clients claim.

    A count may be at most ``max_weight`` times the low median of the round's well-formed
    counts and, once a client has answered three rounds, at most twice the median of its own
    (capped) counts: data sets grow slowly. The low median is a count that somebody claimed and
    that at least half of the round did not undercut, so one claim in a round of two cannot
    raise it.

    Parameters
    ----------
    max_weight : float
        At least 1.

    Examples
    --------
    >>> WeightCap(max_weight=3).apply(["a", "b", "c"], [100, 120, 9000])
    [100, 120, 360]
    """

    max_weight: float = 3.0
    history_: dict[str, deque[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.max_weight >= 1:
            raise ValueError(
                f"max_weight must be at least 1 (times the round's median), got {self.max_weight}"
            )

    def apply(self, client_ids: Sequence[str], counts: Sequence[float]) -> list[float]:
        """Cap one round's counts, clients in the order given, and remember them."""
        if not counts:
            return []
        limit = self.max_weight * median_low(counts)
        capped = []
        for client_id, count in zip(client_ids, counts, strict=True):
            past = self.history_.setdefault(client_id, deque(maxlen=HISTORY))
            own = 2 * median_low(past) if len(past) >= _MIN_HISTORY else limit
            capped.append(min(count, limit, own))
            past.append(capped[-1])
        return capped


def outgrown(
    norms: Sequence[Mapping[str, float]], reference: Arrays, max_growth: float
) -> list[tuple[str, ...]]:
    """Find updates with an array far larger than anything of its name in this round.

    The yardstick of an array is the largest of 1, the global model's norm and the low median of
    the round's norms; an update is out when one of its arrays is more than ``max_growth`` times
    as large. No honest client does that, and what a detector computes from such numbers could
    spoil the comparison of all the others.

    Parameters
    ----------
    norms : sequence of mappings of str to float
        Norm of each array, one mapping a reply.
    reference : Arrays
        The global model.
    max_growth : float
        At least 1.

    Returns
    -------
    list of tuple of str
        Empty for each update that is within bounds, else one reason.

    Examples
    --------
    >>> outgrown([{"w": 2.0}, {"w": 3.0}, {"w": 900.0}], {"w": np.ones(4)}, 100)
    [(), (), ("the norm of array 'w' is 300 times the round's",)]
    """
    names = list(reference)
    own = np.array([[reply[name] for name in names] for reply in norms])
    beside = np.sort(own, axis=0)[(len(own) - 1) // 2]
    ours = np.array([np.linalg.norm(a) if a.dtype.kind == "f" else 0 for a in reference.values()])
    growth = own / np.maximum(1.0, np.maximum(beside, ours))
    worst = growth.argmax(axis=1)
    return [
        (f"the norm of array {names[j]!r} is {row[j]:.3g} times the round's",)
        if row[j] > max_growth
        else ()
        for j, row in zip(worst, growth, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class AgreedMetrics:
    """Metrics of each reply with the same keys and kinds everywhere, and what was changed."""

    metrics: tuple[Mapping[str, MetricRecordValues], ...]
    notes: tuple[tuple[str, ...], ...]


def agree_on_metrics(
    metrics: Sequence[Mapping[str, MetricRecordValues]], key: str
) -> AgreedMetrics:
    """Give every reply the same metrics, by a rule that a minority cannot bend.

    A metric is agreed on when more than half of the replies carry it in the same kind (one
    number, or a list of the same length). Others are dropped. A reply without an agreed metric
    gets the low median of those that have it: it neither loses its vote nor shifts the mean.

    Parameters
    ----------
    metrics : sequence of mappings
        Usable metrics of each reply.
    key : str
        The example count; it stays with each reply as it is.

    Examples
    --------
    >>> agree_on_metrics([{"n": 1, "loss": 0.5}, {"n": 2, "loss": 0.7}, {"n": 3, "x": 9}], "n")
    AgreedMetrics(metrics=({'n': 1, 'loss': 0.5}, {'n': 2, 'loss': 0.7}, {'n': 3, 'loss': 0.5}), \
notes=((), (), ("dropped metric 'x'", "metric 'loss' missing: the round's median stands in")))
    """
    agreed = _agreed_values(metrics, key)
    stand_ins = {name: _median(values) for name, values in agreed.items()}
    out, notes = [], []
    for own in metrics:
        same = {n for n in agreed if n in own and _kind(own[n]) == _kind(stand_ins[n])}
        lost = [n for n in agreed if n not in same]
        dropped = [n for n in own if n != key and n not in agreed]
        out.append({key: own[key], **{n: own[n] if n in same else stand_ins[n] for n in agreed}})
        notes.append(
            tuple(f"dropped metric {n[:40]!a}" for n in dropped[:3])
            + tuple(f"metric {n[:40]!r} missing: the round's median stands in" for n in lost)
        )
    return AgreedMetrics(metrics=tuple(out), notes=tuple(notes))


def _agreed_values(
    metrics: Sequence[Mapping[str, MetricRecordValues]], key: str
) -> dict[str, list[MetricRecordValues]]:
    votes: dict[tuple[str, int], list[MetricRecordValues]] = {}
    for own in metrics:
        for name, value in own.items():
            if name != key:
                votes.setdefault((name, _kind(value)), []).append(value)
    return {name: values for (name, _), values in votes.items() if 2 * len(values) > len(metrics)}


def _kind(value: MetricRecordValues) -> int:
    return len(value) if isinstance(value, list) else -1


def _median(values: Sequence[MetricRecordValues]) -> MetricRecordValues:
    lists = [v for v in values if isinstance(v, list)]
    if lists:
        return [median_low(column) for column in zip(*lists, strict=True)]
    return median_low([v for v in values if not isinstance(v, list)])
