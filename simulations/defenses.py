"""The strategies that a scenario can put in charge, and what each one rejected.

A defence here is a Flower strategy with a way to ask it afterwards whom it turned away. Flower's
MultiKrum is told how many clients attack; nobody is told which, but the perfect defence, which
is no defence but the line that others are measured by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, MultiKrum, Strategy

from fl_shield.aggregators import make_aggregator
from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.simulations.outcome import ClientRow
from fl_shield.simulations.scenario import ROBUST_DEFENSES
from fl_shield.simulations.task import FederatedTask
from fl_shield.strategies import RobustStrategy, ShieldedStrategy
from fl_shield.types import Action, AuditSink, ClientVerdict

FLAGGED = frozenset({Action.DROP, Action.DOWNWEIGHT, Action.REJECT})
"""Actions of the shield that count as a rejected update."""

_VOTELESS = frozenset({Action.DROP, Action.REJECT})


ClientId = Callable[[int], str]
"""From a node id to the name under which the shield remembers and records a client."""


class Defense(Protocol):
    """A strategy, and what it decided on the round just aggregated."""

    strategy: Strategy

    @property
    def shield_seconds(self) -> float:
        """Time that the shield took for the last round; 0 without a shield."""
        ...

    @property
    def run_id(self) -> str:
        """The audit's name for this run; empty without an audit."""
        ...

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Hear which partitions are asked next, and which of them attack."""
        ...

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Return one client's row with what was decided on its reply."""
        ...


def _all_nodes() -> dict[str, Any]:
    return {
        "fraction_train": 1.0,
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_available_nodes": 1,
    }


class Undefended:
    """Plain FedAvg: everybody is kept."""

    shield_seconds = 0.0
    run_id = ""

    def __init__(self) -> None:
        self.strategy: Strategy = FedAvg(**_all_nodes())

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Need to know nothing."""

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Return the row as it is: nobody is rejected."""
        return row


class Perfect:
    """FedAvg over the clients that do not attack: told who does, the line for all others.

    What success is left under it a trigger has by itself, and what accuracy is lost no defence can
    keep.
    """

    shield_seconds = 0.0
    run_id = ""

    def __init__(self, task: FederatedTask, audit: AuditSink | None, client_id: ClientId) -> None:
        self._task, self._client_id = task, client_id
        self._attacking: frozenset[str] = frozenset()
        self.strategy: Strategy = _Without(self._attacks, **_all_nodes())

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Note who attacks."""
        self._attacking = frozenset(self._task.data.client_names[p] for p in attacking)

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Mark the row of a client that attacks."""
        attacks = self._attacks(reply)
        action = Action.DROP if attacks else Action.KEEP
        return replace(row, rejected=attacks, action=action, vote=float(not attacks))

    def _attacks(self, reply: Message) -> bool:
        return self._client_id(reply.metadata.src_node_id) in self._attacking


class _Without(FedAvg):
    """FedAvg that leaves some replies out."""

    def __init__(self, left_out: Callable[[Message], bool], **settings: Any) -> None:
        super().__init__(**settings)
        self._left_out = left_out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        kept = [reply for reply in replies if not self._left_out(reply)]
        return super().aggregate_train(server_round, kept)


class OracleMultiKrum:
    """Flower's MultiKrum, told each round's true number of attackers f and keeping n - f."""

    shield_seconds = 0.0
    run_id = ""

    def __init__(self) -> None:
        self._multikrum = MultiKrum(**_all_nodes(), train_metrics_aggr_fn=self._note_selected)
        self.strategy: Strategy = self._multikrum
        self._selected: list[RecordDict] = []

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Set f, and how many to keep."""
        self._multikrum.num_malicious_nodes = len(attacking)
        self._multikrum.num_nodes_to_select = len(asked) - len(attacking)

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Mark the row of a client that was not selected."""
        kept = any(reply.content is content for content in self._selected)
        action = Action.KEEP if kept else Action.DROP
        return replace(row, rejected=not kept, action=action, vote=float(kept))

    def _note_selected(self, selected: list[RecordDict], weight_key: str) -> MetricRecord:
        """Remember whom MultiKrum selected; it tells nobody but its metrics function."""
        self._selected = selected
        return MetricRecord({"n-selected": len(selected)})


class Shielded:
    """FedAvg inside the shield, which is told nothing but the server's clean examples."""

    def __init__(self, task: FederatedTask, audit: AuditSink | None, client_id: ClientId) -> None:
        scenario, model = task.scenario, task.new_model()
        self._client_id = client_id
        detector = MetaShield.from_pretrained(scenario.weights)
        self.inspector = inspector = Inspector(
            model, task.data.clean, detector, seed=scenario.seed, probes=scenario.probes
        )
        self._shield = ShieldedStrategy(
            FedAvg(**_all_nodes()),
            model=model,
            clean_data=task.data.clean,
            inspector=inspector,
            mode=scenario.mode,
            fpr_budget=scenario.fpr_budget,
            audit=audit,
            seed=scenario.seed,
            client_id=client_id,
        )
        self.strategy: Strategy = self._shield

    @property
    def run_id(self) -> str:
        """The audit's name for this run; empty without an audit."""
        return self._shield.run_id_

    @property
    def verdicts(self) -> tuple[ClientVerdict, ...]:
        """What it decided in the last round, and why."""
        return self._shield.history_[-1].verdicts

    @property
    def shield_seconds(self) -> float:
        """Time that the shield took for the last round."""
        return self._shield.history_[-1].shield_seconds

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Need to know nothing."""

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Copy the shield's verdict on the client's node."""
        name = self._client_id(reply.metadata.src_node_id)
        return _judged(row, self._shield.history_[-1].verdicts, name, FLAGGED)


class Robust:
    """A published aggregation rule, told nothing but the server's clean examples."""

    def __init__(
        self, rule: str, task: FederatedTask, audit: AuditSink | None, client_id: ClientId
    ) -> None:
        self._client_id = client_id
        self._robust = RobustStrategy(
            make_aggregator(rule, **task.scenario.defense_options),
            strategy=FedAvg(**_all_nodes()),
            model=task.new_model(),
            clean_data=task.data.clean,
            training=task.scenario.local_training,
            audit=audit,
            seed=task.scenario.seed,
            client_id=client_id,
        )
        self.strategy: Strategy = self._robust

    @property
    def run_id(self) -> str:
        """The audit's name for this run; empty without an audit."""
        return self._robust.run_id_

    @property
    def shield_seconds(self) -> float:
        """Time that the rule took for the last round."""
        return self._robust.history_[-1].shield_seconds

    def expect(self, asked: Sequence[int], attacking: Sequence[int]) -> None:
        """Need to know nothing."""

    def judge(self, row: ClientRow, reply: Message) -> ClientRow:
        """Copy the rule's vote; an update without any was rejected."""
        name = self._client_id(reply.metadata.src_node_id)
        judged = _judged(row, self._robust.history_[-1].verdicts, name, _VOTELESS)
        return replace(judged, score=self._robust.scores_.get(name))


def _judged(
    row: ClientRow, verdicts: Sequence[ClientVerdict], name: str, rejecting: frozenset[Action]
) -> ClientRow:
    verdict = next(v for v in verdicts if v.client_id == name)
    return replace(
        row,
        rejected=verdict.action in rejecting,
        action=verdict.action.value,
        vote=verdict.weight if verdict.applied else 1.0,
        score=verdict.score,
        p_value=verdict.p_value,
    )


MakeDefense = Callable[[FederatedTask, AuditSink | None, ClientId], Defense]
MAKE_DEFENSE: Mapping[str, MakeDefense] = {
    "none": lambda task, audit, client_id: Undefended(),
    "perfect": Perfect,
    "multikrum": lambda task, audit, client_id: OracleMultiKrum(),
    "shield": Shielded,
    **{rule: partial(Robust, rule) for rule in ROBUST_DEFENSES},
}
"""How to put each defence in charge of a task."""
