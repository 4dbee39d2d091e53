"""fl_shield at the edge to Flower: a shield around any strategy, client mods, one converter."""

from fl_shield.strategies.checkpoint import (
    Checkpoint,
    checkpointing,
    load_checkpoint,
    save_checkpoint,
)
from fl_shield.strategies.mods import malicious, report_activations
from fl_shield.strategies.records import (
    CheckedReply,
    ReplyLimits,
    check_reply,
    from_record,
    to_record,
)
from fl_shield.strategies.robust import RobustStrategy
from fl_shield.strategies.sanitise import SanitisedStrategy
from fl_shield.strategies.shield import ShieldedStrategy

__all__ = [
    "CheckedReply",
    "Checkpoint",
    "ReplyLimits",
    "RobustStrategy",
    "SanitisedStrategy",
    "ShieldedStrategy",
    "check_reply",
    "checkpointing",
    "from_record",
    "load_checkpoint",
    "malicious",
    "report_activations",
    "save_checkpoint",
    "to_record",
]
