"""A shield around any Flower strategy: suspicious updates lose their vote, and it is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import flwr
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fl_shield import __version__
from fl_shield.errors import ShieldError
from fl_shield.inspector import Inspector
from fl_shield.policy import Mode, Policy
from fl_shield.recollection import Recollection, recall, recollection_of
from fl_shield.strategies.clean_data import CleanData, as_samples
from fl_shield.strategies.intake import Intake, Refused, take_in
from fl_shield.strategies.judgement import Judge, Judgement, evaluation_votes, votes
from fl_shield.strategies.nesting import (
    divides_by_norm,
    limits_of,
    nested,
    refuse_unchanged,
    require_one_shape,
)
from fl_shield.strategies.recording import Recorder, logger
from fl_shield.strategies.records import (
    CheckedReply,
    ReplyLimits,
    check_evaluation,
    check_reply,
    from_record,
    quoted,
    restored_record,
)
from fl_shield.strategies.votes import WeightCap
from fl_shield.types import (
    Arrays,
    AuditSink,
    ClientVerdict,
    RoundRecord,
    UpdateInspector,
)

if TYPE_CHECKING:
    from fl_shield.detector import MetaShield


@dataclass(kw_only=True)
class _Round:
    """What the shield knows between configure_train and aggregate_train."""

    reference: Arrays = field(default_factory=dict)
    sent: Sequence[Message] = ()
    refused: tuple[Refused, ...] = ()
    begun: float = 0.0
    spent: float = 0.0


class ShieldedStrategy(Strategy):
    """Any Flower strategy, with every client update inspected before it is aggregated.

    Each reply is checked against the global model (see :mod:`fl_shield.strategies.records`), a
    malformed one costs its sender the vote and never the round; the well-formed ones are scored
    together, and the policy decides. The inner strategy sees kept replies only, in the order in
    which the nodes were asked, with one array record and one metric record each; it sees no
    error replies and no activation reports. What it returns is given the dtypes of the global
    model. With fewer than ``min_kept`` replies left the old model stays and the run goes on.

    Parameters
    ----------
    strategy : Strategy
        What aggregates: ``FedAvg(...)``, ``FedAdam(...)``, a DP wrapper, and so on.
    model : nn.Module
        A network of the global architecture; the shield works on it as on scratch paper.
    clean_data : Samples or (x, y)
        Clean examples held by the server, 10 to 20 are enough to start.
    detector : MetaShield, optional
        By default the one shipped with the package.
    mode : {"filter", "downweight", "monitor"}
        ``filter`` leaves suspicious updates out; ``downweight`` moves them towards the global
        model; ``monitor`` records what ``filter`` would have done and changes nothing but
        replies that no strategy could read.
    fpr_budget : float
        Largest share of benign updates that may be dropped, in (0, 1).
    min_kept : int
        Fewest replies that make a round.
    audit : AuditSink, str or Path, optional
        Where each round is recorded; a string is a database URL such as ``sqlite:///audit.db``,
        a path an SQLite file.
    seed : int
        Draws sketches and probes; keep it secret from clients.
    client_id : callable, optional
        From a node id to the name under which a client is remembered; ``str`` by default.
    max_weight : float
        Largest example count, in medians of the round (see :class:`WeightCap`).
    limits : ReplyLimits, optional
        What a reply looks like; by default read from the inner strategy's own keys. Clients
        that do not name their records ``arrays`` and ``metrics`` need it.
    inspector : UpdateInspector, optional
        Replaces ``model``, ``clean_data`` and ``detector``.

    Attributes
    ----------
    history_ : tuple of RoundRecord
        Every round so far.
    run_id_ : str
        The audit's name for this run; empty without an audit.
    evaluation_refusals_ : dict of int to tuple of ClientVerdict
        Clients whose evaluation reply was refused or missing, by round.

    Notes
    -----
    A node has one vote a round: two replies cost it that vote, also where the inner strategy
    sent it two messages. Only the outermost strategy's ``start`` runs. A DP wrapper inside sees
    kept replies only and adds the noise of ``num_sampled_clients``; one that keeps accounts of
    its privacy budget demands every reply it asked for, and gives up each round in which the
    shield drops one. For a DP wrapper outside see :class:`SanitisedStrategy`.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr.serverapp.strategy import FedAvg
    >>> clean = (np.zeros((10, 4), np.float32), np.zeros(10, np.int64))
    >>> shield = ShieldedStrategy(FedAvg(), model=nn.Linear(4, 2), clean_data=clean)
    >>> shield.history_
    ()
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        model: nn.Module,
        clean_data: CleanData,
        detector: MetaShield | None = None,
        mode: Mode = "filter",
        fpr_budget: float = 0.05,
        min_kept: int = 1,
        audit: AuditSink | str | Path | None = None,
        seed: int = 0,
        client_id: Callable[[int], str] | None = None,
        max_weight: float = 3.0,
        limits: ReplyLimits | None = None,
        inspector: UpdateInspector | None = None,
    ) -> None:
        require_one_shape(strategy)
        if min_kept < 1:
            raise ValueError(f"min_kept must be >= 1, got {min_kept}")
        self.strategy = strategy
        self.model = model
        self.clean_data = as_samples(clean_data)
        self.detector = detector
        self.mode: Mode = mode
        self.fpr_budget = fpr_budget
        self.min_kept = min_kept
        self.audit = audit
        self.seed = seed
        self.client_id = client_id or str
        self.max_weight = max_weight
        self.limits = limits or limits_of(strategy)
        self.inspector = inspector
        self.policy_ = Policy(mode=mode, fpr_budget=fpr_budget)
        self.caps_ = WeightCap(max_weight=max_weight)
        self.evaluation_refusals_: dict[int, tuple[ClientVerdict, ...]] = {}
        self._recorder = Recorder(audit)
        self._round = _Round()
        self._evaluation_sent: Sequence[Message] = ()
        self._opened: Judge | None = None
        self._recalled: Recollection | None = None
        self._clips = divides_by_norm(strategy)

    @property
    def history_(self) -> tuple[RoundRecord, ...]:
        """Every round so far."""
        return tuple(self._recorder.history)

    @property
    def run_id_(self) -> str:
        """The audit's name for this run; empty without an audit."""
        return self._recorder.run_id

    def summary(self) -> None:
        """Log what the shield is set to, then the inner strategy's own summary."""
        logger.info("\t├──> Shield around %s:", type(self.strategy).__name__)
        logger.info("\t│\t├── Mode: %s (FPR budget %g)", self.mode, self.fpr_budget)
        logger.info("\t│\t├── Clean examples: %d", len(self.clean_data))
        logger.info("\t│\t├── Fewest replies kept: %d", self.min_kept)
        logger.info("\t│\t├── Largest vote: %g medians", self.max_weight)
        logger.info("\t│\t└── Audit: %s", "off" if self.audit is None else "on")
        self.strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run Flower's loop with the arguments of ``Strategy.start``.

        A run whose every round was dropped returns the initial model. The audit's run is closed
        whatever happens.
        """
        status = "failed"
        try:
            result = super().start(grid, initial_arrays, *args, **kwargs)
            status = "finished"
        finally:
            self.finish(status)
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def finish(self, status: str = "finished") -> None:
        """Close the audit's run; ``start`` does it, call it where another strategy wraps this."""
        self._recorder.finish(status)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the inner strategy whom to train, and remember what they were sent."""
        begun = perf_counter()
        reference = from_record(arrays)
        self._open(reference)
        before = perf_counter()
        sent = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._round = _Round(
            reference=reference, sent=sent, begun=perf_counter(), spent=before - begun
        )
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check, inspect and decide; then let the inner strategy aggregate what is left."""
        received = list(replies)
        this = self._round
        begun = perf_counter()
        monitor = self.mode == "monitor"
        intake = take_in(this.sent, received, self._check)
        judgement = self._judge.judge(intake.accepted, this.reference)
        kept = votes(judgement, this.reference, self.limits, monitor=monitor)
        verdicts = self._judge.verdicts(judgement, self._refused(intake), monitor=monitor)
        this.spent += perf_counter() - begun
        try:
            arrays, metrics = self._aggregate(server_round, kept)
        except Exception as error:
            failed = f"{type(self.strategy).__name__} failed: {type(error).__name__}"
            self._record(server_round, verdicts, (*judgement.notes, failed))
            raise
        begun = perf_counter()
        self._learn(judgement, accepted=arrays is not None)
        if arrays is not None:
            arrays = restored_record(arrays, this.reference)
        this.spent += perf_counter() - begun
        note = _note_on(arrays, len(kept), self.min_kept)
        self._record(server_round, verdicts, judgement.notes + note)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the inner strategy whom to evaluate, and remember what they were sent."""
        sent = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._evaluation_sent = sent
        return sent

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the metrics of replies that are well-formed.

        Example counts are capped by the round's median as in training; the metrics themselves
        are what clients claim, and a mean of claims is no more than that.
        """
        intake = take_in(self._evaluation_sent, replies, self._check_evaluation)
        refused = tuple(self._judge.verdict_on(r) for r in intake.refused)
        if refused:
            self.evaluation_refusals_[server_round] = refused
            logger.warning("aggregate_evaluate: %d replies without a vote", len(refused))
        if not intake.accepted and self._evaluation_sent:
            return None
        max_weight = inf if self.mode == "monitor" else self.max_weight
        return self.strategy.aggregate_evaluate(
            server_round, evaluation_votes(intake.accepted, self.limits, max_weight)
        )

    def refuse(self, refused: Iterable[Refused]) -> None:
        """Learn why a guard around this strategy took replies of this round out.

        Without it those clients would stand in the record as having sent no reply.
        """
        self._round.refused = tuple(refused)

    def _open(self, reference: Arrays) -> None:
        if self._opened is None:
            inspector = self.inspector or self._new_inspector(reference)
            if self._recalled is not None and isinstance(inspector, Inspector):
                recall(inspector, self._recalled)
            self._opened = Judge(
                inspector=inspector,
                policy=self.policy_,
                caps=self.caps_,
                client_id=self.client_id,
                limits=self.limits,
            )
        self._recorder.begin(self._settings(reference))

    @property
    def _judge(self) -> Judge:
        if self._opened is None:
            raise ShieldError("no round is open: call configure_train before aggregate_train")
        return self._opened

    def _new_inspector(self, reference: Arrays) -> UpdateInspector:
        own = {name: tuple(t.shape) for name, t in self.model.state_dict().items()}
        sent = {name: a.shape for name, a in reference.items()}
        if own != sent:
            odd = sorted(name for name in own | sent if own.get(name) != sent.get(name))
            raise ValueError(
                f"the global model is not one of {type(self.model).__name__}: {quoted(odd)} "
                "differ in name or shape; start with ArrayRecord(model.state_dict())"
            )
        return Inspector(self.model, self.clean_data, self.detector, seed=self.seed)

    @property
    def recollection_(self) -> Recollection:
        """What the inspector has learned from earlier rounds; nothing of one that is not ours."""
        inspector = self.inspector if self._opened is None else self._opened.inspector
        if isinstance(inspector, Inspector):
            return recollection_of(inspector)
        return self._recalled or Recollection()

    def recall(self, recollection: Recollection) -> None:
        """Give the inspector back what an earlier run had learned, when the next round opens."""
        self._recalled, self._opened = recollection, None

    def _settings(self, reference: Arrays) -> dict[str, Any]:
        return {
            "strategy": " > ".join(type(s).__name__ for s in nested(self.strategy)),
            "mode": self.mode,
            "fpr_budget": self.fpr_budget,
            "min_kept": self.min_kept,
            "max_weight": self.max_weight,
            "seed": self.seed,
            "model": type(self.model).__name__,
            "n_parameters": sum(a.size for a in reference.values()),
            "n_clean": len(self.clean_data),
            "fl_shield": __version__,
            "flwr": flwr.__version__,
        }

    def _check(self, reply: Message) -> CheckedReply:
        checked = check_reply(reply, self._round.reference, self.limits)
        if self._clips:
            refuse_unchanged(checked, self._round.reference)
        return checked

    def _check_evaluation(self, reply: Message) -> CheckedReply:
        return check_evaluation(reply, self.limits)

    def _refused(self, intake: Intake) -> tuple[Refused, ...]:
        """Refusals of this round, with the guard's reasons for replies that it took out."""
        told = {r.node_id: r for r in self._round.refused}
        own = {r.node_id: told.pop(r.node_id, r) for r in intake.refused}
        return (*own.values(), *told.values())

    def _aggregate(
        self, server_round: int, kept: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if len(kept) < self.min_kept and self._round.sent:
            return None, None
        return self.strategy.aggregate_train(server_round, kept)

    def _learn(self, judgement: Judgement, *, accepted: bool) -> None:
        if judgement.judged:
            self._judge.inspector.remember(judgement.trusted & accepted, judgement.doubts)

    def _record(
        self, server_round: int, verdicts: tuple[ClientVerdict, ...], notes: tuple[str, ...]
    ) -> None:
        if not verdicts:
            return
        record = RoundRecord(
            server_round=server_round,
            mode=self.mode,
            verdicts=verdicts,
            shield_seconds=self._round.spent,
            round_seconds=perf_counter() - self._round.begun,
            notes=notes,
        )
        self._recorder.write(record)


def _note_on(arrays: ArrayRecord | None, n_kept: int, min_kept: int) -> tuple[str, ...]:
    if arrays is not None:
        return ()
    if n_kept < min_kept:
        return (f"{n_kept} replies left, {min_kept} needed: the old model stays",)
    return (f"the inner strategy made nothing of {n_kept} replies: the old model stays",)
