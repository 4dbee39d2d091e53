"""Any published robust aggregation rule as a Flower strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import flwr
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from numpy.typing import NDArray
from torch import nn

from fl_shield import __version__
from fl_shield.aggregators import (
    Aggregate,
    AggregationContext,
    Aggregator,
    Layout,
    Preparing,
    State,
    is_plain_mean,
    make_aggregator,
)
from fl_shield.aggregators.contract import weighted_mean
from fl_shield.errors import AggregationError
from fl_shield.rng import keyed
from fl_shield.strategies.clean_data import CleanData, as_samples
from fl_shield.strategies.intake import Accepted, Intake, Refused, take_in
from fl_shield.strategies.judgement import evaluation_votes
from fl_shield.strategies.nesting import limits_of
from fl_shield.strategies.recording import Recorder, logger
from fl_shield.strategies.records import (
    CheckedReply,
    ReplyLimits,
    check_evaluation,
    check_reply,
    from_record,
    rebuilt_content,
    to_record,
)
from fl_shield.strategies.votes import agree_on_metrics
from fl_shield.types import (
    Action,
    Arrays,
    AuditSink,
    ClientVerdict,
    Floats,
    RoundRecord,
    TrainingConfig,
)

_STREAM = 0xA66  # keeps a rule's draws apart from others of the same seed


class RobustStrategy(Strategy):
    """A rule of :mod:`fl_shield.aggregators` in charge of a federation.

    Replies are checked as the shield checks them; a malformed one costs its sender the vote. The
    rule sees the trainable tensors of well-formed replies as flat updates; batch statistics and
    counters are averaged by the rule's own votes and never enter a distance. A round that the rule
    cannot aggregate, for want of replies or of anything else, leaves the old model and says so.

    Parameters
    ----------
    aggregator : Aggregator or str
        A rule, or its name in :data:`fl_shield.aggregators.AGGREGATORS`.
    strategy : FedAvg, optional
        Says whom to ask, averages metrics, and evaluates; its own averaging of arrays is not used.
    model : nn.Module, optional
        A network of the global architecture, for rules that run one.
    clean_data : Samples or (x, y), optional
        Clean examples held by the server, for rules that need some.
    training : TrainingConfig, optional
        How clients train, for rules that train on the server.
    audit : AuditSink, str or Path, optional
        Where each round is recorded, as by the shield.
    seed : int
        Of the rule's draws.
    client_id : callable, optional
        From a node id to the name under which a client is remembered; ``str`` by default.
    limits : ReplyLimits, optional
        What a reply looks like; by default read from the strategy's own keys.

    Attributes
    ----------
    state_ : mapping of str to array
        What the rule carries from round to round; safe to save and to restore.
    history_ : tuple of RoundRecord
        Every round so far, with the rule's own account of it among the notes.
    run_id_ : str
        The audit's name for this run; empty without an audit.
    scores_ : mapping of str to float
        The rule's suspicion of each client of the last round, where it has such a thing.
    n_plain_ : int
        Rounds in which the rule returned nothing but the plain mean.

    Examples
    --------
    >>> RobustStrategy("flame").aggregator
    Flame(noise=0.001)
    """

    def __init__(
        self,
        aggregator: Aggregator | str,
        *,
        strategy: FedAvg | None = None,
        model: nn.Module | None = None,
        clean_data: CleanData | None = None,
        training: TrainingConfig | None = None,
        audit: AuditSink | str | Path | None = None,
        seed: int = 0,
        client_id: Callable[[int], str] | None = None,
        limits: ReplyLimits | None = None,
    ) -> None:
        self.aggregator: Aggregator = (
            make_aggregator(aggregator) if isinstance(aggregator, str) else aggregator
        )
        self.strategy = strategy or FedAvg()
        self.model = model
        self.clean_data = None if clean_data is None else as_samples(clean_data)
        self.training = training or TrainingConfig()
        self.seed = seed
        self.client_id = client_id or str
        self.limits = limits or limits_of(self.strategy)
        self.state_: State = {}
        self.scores_: Mapping[str, float] = {}
        self.n_plain_ = 0
        self._recorder = Recorder(audit)
        self._reference: Arrays = {}
        self._sent: Sequence[Message] = ()
        self._evaluation_sent: Sequence[Message] = ()
        self._begun = 0.0

    @property
    def history_(self) -> tuple[RoundRecord, ...]:
        """Every round so far."""
        return tuple(self._recorder.history)

    @property
    def run_id_(self) -> str:
        """The audit's name for this run; empty without an audit."""
        return self._recorder.run_id

    @property
    def rule(self) -> str:
        """Name of the rule's class."""
        return type(self.aggregator).__name__

    def summary(self) -> None:
        """Log the rule, then the summary of who is asked."""
        logger.info("\t├──> Robust aggregation: %s", self.aggregator)
        self.strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run Flower's loop with the arguments of ``Strategy.start``; the audit's run is closed."""
        status = "failed"
        try:
            result = super().start(grid, initial_arrays, *args, **kwargs)
            status = "finished"
        finally:
            self._recorder.finish(status)
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask whom to train; a rule that prepares the model does so before it is sent."""
        reference: Arrays = from_record(arrays)
        if isinstance(self.aggregator, Preparing):
            context = self._context(server_round, reference, ())
            reference, self.state_ = self.aggregator.prepare(self.state_, context)
            arrays = to_record(reference, like=from_record(arrays))
        self._reference = from_record(arrays)
        self._recorder.begin(self._settings())
        self._sent = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._begun = perf_counter()
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, take the rule's step, and put the whole model together."""
        received = list(replies)
        begun = perf_counter()
        intake = take_in(self._sent, received, self._check)
        try:
            found = self._step(server_round, intake.accepted)
        except AggregationError as error:
            self._record(server_round, intake, None, f"the old model stays: {error}", begun)
            return None, None
        arrays = self._whole(found, intake.accepted)
        self._record(server_round, intake, found, f"{self.rule}: {found.note}", begun)
        return to_record(arrays, like=self._reference), self._metrics(intake.accepted, found.votes)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask whom to evaluate, and remember what they were sent."""
        sent = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._evaluation_sent = sent
        return sent

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of well-formed evaluation replies."""
        intake = take_in(
            self._evaluation_sent, replies, lambda reply: check_evaluation(reply, self.limits)
        )
        kept = evaluation_votes(intake.accepted, self.limits, float("inf"))
        return self.strategy.aggregate_evaluate(server_round, kept)

    def _step(self, server_round: int, accepted: Sequence[Accepted]) -> Aggregate:
        context = self._context(
            server_round, self._reference, tuple(self.client_id(a.node_id) for a in accepted)
        )
        start = context.global_vector
        updates = np.empty((len(accepted), context.layout.size), start.dtype)
        for row, a in zip(updates, accepted, strict=True):
            np.subtract(context.layout.flat(a.checked.arrays), start, out=row)
        weights = np.array([a.checked.n_examples for a in accepted], dtype=np.float64)
        found, self.state_ = self.aggregator.step(updates, weights, self.state_, context)
        scores = [] if found.scores is None else found.scores.tolist()
        self.scores_ = dict(zip(context.client_ids, scores, strict=False))
        self.n_plain_ += int(is_plain_mean(found, updates, weights))
        return found

    def _context(
        self, server_round: int, arrays: Arrays, client_ids: tuple[str, ...]
    ) -> AggregationContext:
        return AggregationContext(
            server_round=server_round,
            global_arrays=arrays,
            layout=Layout.of(arrays),
            client_ids=client_ids,
            rng=keyed(self.seed, _STREAM, server_round),
            model=self.model,
            clean=self.clean_data,
            training=self.training,
        )

    def _whole(self, found: Aggregate, accepted: Sequence[Accepted]) -> dict[str, NDArray[Any]]:
        """Return the global model moved by the rule's update; all else by the rule's votes."""
        layout = Layout.of(self._reference)
        moved = layout.shaped(found.update)
        weights = found.votes * np.array([a.checked.n_examples for a in accepted])
        uploads = [a.checked.arrays for a in accepted]
        return {
            name: array + moved[name]
            if name in moved
            else _averaged([upload[name] for upload in uploads], weights, array)
            for name, array in self._reference.items()
        }

    def _metrics(self, accepted: Sequence[Accepted], votes: Floats) -> MetricRecord:
        key = self.limits.weighted_by_key
        kept = [a for a, vote in zip(accepted, votes, strict=True) if vote > 0] or list(accepted)
        agreed = agree_on_metrics([a.checked.metrics for a in kept], key)
        contents = [
            rebuilt_content(a.reply, a.checked, self.limits, metrics=metrics)
            for a, metrics in zip(kept, agreed.metrics, strict=True)
        ]
        return self.strategy.train_metrics_aggr_fn(contents, key)

    def _check(self, reply: Message) -> CheckedReply:
        return check_reply(reply, self._reference, self.limits)

    def _settings(self) -> Mapping[str, Any]:
        return {
            "strategy": f"{type(self).__name__} > {self.rule}",
            "rule": repr(self.aggregator),
            "seed": self.seed,
            "n_parameters": sum(a.size for a in self._reference.values()),
            "fl_shield": __version__,
            "flwr": flwr.__version__,
        }

    def _record(
        self,
        server_round: int,
        intake: Intake,
        found: Aggregate | None,
        note: str,
        begun: float,
    ) -> None:
        votes = np.zeros(len(intake.accepted)) if found is None else found.votes
        heard = [
            _verdict(self.client_id(a.node_id), a.checked, float(vote))
            for a, vote in zip(intake.accepted, votes, strict=True)
        ]
        unheard = [_refusal(self.client_id(r.node_id), r) for r in intake.refused]
        now = perf_counter()
        self._recorder.write(
            RoundRecord(
                server_round=server_round,
                mode="filter",
                verdicts=(*heard, *unheard),
                shield_seconds=now - begun,
                round_seconds=now - self._begun,
                notes=(note,),
            )
        )


def _averaged(arrays: Sequence[NDArray[Any]], weights: Floats, like: NDArray[Any]) -> NDArray[Any]:
    """Weighted mean of a tensor that no rule judges, the global model's own where all weigh 0."""
    if not weights.sum() > 0:
        return like
    rows = np.stack([np.ravel(array).astype(np.float64) for array in arrays])
    return np.asarray(weighted_mean(rows, weights).reshape(like.shape))


def _verdict(client_id: str, checked: CheckedReply, vote: float) -> ClientVerdict:
    action = Action.DROP if vote <= 0 else Action.KEEP if vote >= 1 else Action.DOWNWEIGHT
    return ClientVerdict(
        client_id=client_id,
        action=action,
        weight=vote,
        n_examples=checked.n_examples,
        reputation=1.0,
        reasons=checked.notes,
    )


def _refusal(client_id: str, refused: Refused) -> ClientVerdict:
    return ClientVerdict(
        client_id=client_id, action=refused.action, weight=0.0, reasons=(refused.reason,)
    )
