"""A guard for strategies that a single bad reply would stop, such as Flower's DP wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_shield.strategies.intake import take_in
from fl_shield.strategies.judgement import evaluation_votes
from fl_shield.strategies.nesting import divides_by_norm, limits_of, nested, refuse_unchanged
from fl_shield.strategies.recording import logger
from fl_shield.strategies.records import (
    CheckedReply,
    ReplyLimits,
    check_evaluation,
    check_reply,
    from_record,
    rebuilt_content,
    restored_record,
)
from fl_shield.strategies.reports import REPORT_KEY
from fl_shield.strategies.shield import ShieldedStrategy
from fl_shield.strategies.votes import agree_on_metrics
from fl_shield.types import Arrays


class SanitisedStrategy(Strategy):
    """Any Flower strategy, behind a guard that lets well-formed replies of asked nodes pass.

    Flower's DP wrappers give up the whole round at one error reply, pair arrays by position,
    and divide by the norm of each update. Around ``DP(ShieldedStrategy(...))`` this guard takes
    error replies, malformed replies and, for server-side clipping, updates that are exactly
    zero out before the wrapper sees them; the shield inside still records why. It scores
    nothing and caps no weights.

    The wrapper draws its noise for ``num_sampled_clients``: with fewer replies the noise is too
    small for the guarantee that it was computed for. So is it where the shield drops some.

    Parameters
    ----------
    strategy : Strategy
        What aggregates, such as a DP wrapper around a :class:`ShieldedStrategy`.
    limits : ReplyLimits, optional
        What a reply looks like; by default those of a shield inside, or read from the
        innermost strategy's own keys.

    Examples
    --------
    >>> from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
    >>> dp = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 4)
    >>> SanitisedStrategy(dp).limits.weighted_by_key
    'num-examples'
    """

    def __init__(self, strategy: Strategy, *, limits: ReplyLimits | None = None) -> None:
        self.strategy = strategy
        self.limits = limits or limits_of(strategy)
        self._refuses_unchanged = divides_by_norm(strategy)
        self._reference: Arrays = {}
        self._sent: Sequence[Message] = ()
        self._evaluation_sent: Sequence[Message] = ()

    def summary(self) -> None:
        """Log that the guard is there, then the inner strategy's own summary."""
        logger.info("\t├──> Malformed replies are kept from %s", type(self.strategy).__name__)
        self.strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run Flower's loop with the arguments of ``Strategy.start``; close a shield's audit."""
        status = "failed"
        try:
            result = super().start(grid, initial_arrays, *args, **kwargs)
            status = "finished"
        finally:
            for shield in self._shields():
                shield.finish(status)
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the inner strategy whom to train, and remember what they were sent."""
        self._reference = from_record(arrays)
        self._sent = list(self.strategy.configure_train(server_round, arrays, config, grid))
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Pass well-formed replies on, in the order in which their nodes were asked."""
        intake = take_in(self._sent, replies, self._check)
        for shield in self._shields():
            shield.refuse(intake.refused)
        for refused in intake.refused:
            logger.info("\t> node %d has no vote: %s", refused.node_id, refused.reason)
        key = self.limits.weighted_by_key
        agreed = agree_on_metrics([a.checked.metrics for a in intake.accepted], key)
        passed = replace(self.limits, config_records=(*self.limits.config_records, REPORT_KEY))
        for a, metrics in zip(intake.accepted, agreed.metrics, strict=True):
            a.reply.content = rebuilt_content(a.reply, a.checked, passed, metrics=metrics)
        kept = [a.reply for a in intake.accepted]
        arrays, aggregated = self.strategy.aggregate_train(server_round, kept)
        if arrays is not None:
            arrays = restored_record(arrays, self._reference)
        return arrays, aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the inner strategy whom to evaluate, and remember what they were sent."""
        sent = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        self._evaluation_sent = list(sent)
        return self._evaluation_sent

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Pass well-formed evaluation replies on."""
        intake = take_in(
            self._evaluation_sent, replies, lambda reply: check_evaluation(reply, self.limits)
        )
        kept = evaluation_votes(intake.accepted, self.limits, inf)
        return self.strategy.aggregate_evaluate(server_round, kept)

    def _check(self, reply: Message) -> CheckedReply:
        checked = check_reply(reply, self._reference, self.limits)
        if self._refuses_unchanged:
            refuse_unchanged(checked, self._reference)
        return checked

    def _shields(self) -> list[ShieldedStrategy]:
        return [s for s in nested(self.strategy) if isinstance(s, ShieldedStrategy)]
