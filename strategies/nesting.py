"""Strategies inside strategies: what a wrapper has to know about what it wraps."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedXgbBagging,
    FedXgbCyclic,
    Strategy,
)

from fl_shield.errors import InvalidReplyError
from fl_shield.strategies.records import CheckedReply, ReplyLimits, is_unchanged
from fl_shield.types import Arrays

_DIVIDES_BY_NORM = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
)


def nested(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy and everything it wraps, from the outside in.

    Flower's wrappers and ours hold the inner strategy as ``strategy``.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> dp = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 4)
    >>> [type(s).__name__ for s in nested(dp)]
    ['DifferentialPrivacyServerSideFixedClipping', 'FedAvg']
    """
    current: object = strategy
    while isinstance(current, Strategy):
        yield current
        current = getattr(current, "strategy", None)


def require_one_shape(strategy: Strategy) -> None:
    """Refuse strategies whose arrays are not the global model's, names and shapes.

    Raises
    ------
    ValueError
        For Flower's tree strategies: their model grows in each round.
    """
    for inner in nested(strategy):
        if isinstance(inner, FedXgbBagging | FedXgbCyclic):
            raise ValueError(
                f"{type(inner).__name__} aggregates trees, and the shield compares each update "
                "with a global model of the same shape; wrap a strategy that averages arrays"
            )


def limits_of(strategy: Strategy) -> ReplyLimits:
    """Limits of a shield inside, or the record keys that the innermost strategy was given.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> limits_of(FedAvg(weighted_by_key="n")).weighted_by_key
    'n'
    """
    weighted_by_key, arrayrecord_key = "num-examples", "arrays"
    for inner in nested(strategy):
        own = getattr(inner, "limits", None)
        if isinstance(own, ReplyLimits):
            return own
        weighted_by_key = getattr(inner, "weighted_by_key", weighted_by_key)
        arrayrecord_key = getattr(inner, "arrayrecord_key", arrayrecord_key)
    return ReplyLimits(weighted_by_key=weighted_by_key, arrayrecord_key=arrayrecord_key)


def divides_by_norm(strategy: Strategy) -> bool:
    """Whether an update that is exactly zero would end the run in a division by zero.

    Flower's server-side clipping divides by the norm of each update without looking at it.
    """
    return any(isinstance(inner, _DIVIDES_BY_NORM) for inner in nested(strategy))


def refuse_unchanged(checked: CheckedReply, reference: Arrays) -> None:
    """Refuse an echo of the global model.

    Raises
    ------
    InvalidReplyError
        If the update's norm is exactly zero.
    """
    if is_unchanged(checked.arrays, reference):
        raise InvalidReplyError(
            "the update is exactly zero, and the clipping strategy divides by its norm"
        )
