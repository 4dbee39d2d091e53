"""fl_shield at the edge to Flower: a shield around any strategy, client mods, one converter."""

from fl_shield.strategies.records import (
    CheckedReply,
    ReplyLimits,
    check_reply,
    from_record,
    to_record,
)
from fl_shield.strategies.shield import ShieldedStrategy

__all__ = [
    "CheckedReply",
    "ReplyLimits",
    "ShieldedStrategy",
    "check_reply",
    "from_record",
    "to_record",
]
