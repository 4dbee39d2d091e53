"""Published robust aggregation rules, one file each: pure steps over flat updates."""

from collections.abc import Callable, Mapping
from typing import Any

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    Aggregator,
    Layout,
    Preparing,
    State,
    is_plain_mean,
)
from fl_shield.aggregators.flame import Flame
from fl_shield.aggregators.mean import Mean

AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "mean": Mean,
    "flame": Flame,
}
"""Every rule by name; call one with its settings."""


def make_aggregator(name: str, **settings: Any) -> Aggregator:
    """Return the rule of a name with some of its settings changed.

    Examples
    --------
    >>> make_aggregator("flame", noise=0.0)
    Flame(noise=0.0)
    """
    if name not in AGGREGATORS:
        raise ValueError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {name!r}")
    return AGGREGATORS[name](**settings)


__all__ = [
    "AGGREGATORS",
    "Aggregate",
    "AggregationContext",
    "Aggregator",
    "Flame",
    "Layout",
    "Mean",
    "Preparing",
    "State",
    "is_plain_mean",
    "make_aggregator",
]
