"""One defence on a recorded federation: the same replies, through its real strategy."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl_shield.aggregators import AGGREGATORS, Preparing
from fl_shield.metrics import auroc
from fl_shield.simulations.arena.recording import RecordedRound, Recording
from fl_shield.simulations.defenses import MAKE_DEFENSE, Defense
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.simulations.outcome import ClientRow, RoundRow, rejection_rates
from fl_shield.simulations.round_grid import TRUTH, RoundGrid
from fl_shield.simulations.scenario import participants
from fl_shield.simulations.task import FederatedTask
from fl_shield.strategies.records import from_record, to_record
from fl_shield.types import Arrays, Samples

N_JUDGED = 250
"""Test examples, and stamped ones, that one aggregated round is judged on."""

_NO_OPTIONS: Mapping[str, float] = {}


def is_replayable(defense: str) -> bool:
    """Whether a defence can be asked about replies that were recorded without it.

    A rule that changes the model before it is sent cannot: clients would have trained from
    another one.
    """
    return defense not in AGGREGATORS or not isinstance(AGGREGATORS[defense](), Preparing)


def replay(
    recording: Recording, defense_name: str, options: Mapping[str, float] = _NO_OPTIONS
) -> list[RoundRow]:
    """Ask a defence about every recorded round; its memory lives for the federation.

    Accuracy and success rate of a row are those of the recorded model after this defence has
    aggregated this round once: what one attacked round does to a clean model under it.
    """
    scenario = recording.scenario.with_(defense=defense_name, defense_options=options)
    task = replace(recording.task, scenario=scenario)
    stage = Stage(task)
    defense = MAKE_DEFENSE[defense_name](task, None, stage.names.__getitem__)
    return [
        stage.play(defense, recording.round(server_round))
        for server_round in range(1, scenario.n_rounds + 1)
    ]


class Stage:
    """A grid whose nodes answer with what was recorded of them.

    Parameters
    ----------
    task : FederatedTask
        The federation; its scenario names the defence.
    """

    def __init__(self, task: FederatedTask) -> None:
        scenario = task.scenario
        self.task = task
        self._recorded: RecordedRound | None = None
        self._model = task.new_model()
        configs = node_configs(scenario.n_clients, scenario.seed)
        nodes = {int(str(config["partition-id"])): node for node, config in configs.items()}
        self.names = {node: task.data.client_names[p] for p, node in nodes.items()}
        self.grid = RoundGrid(InProcessGrid(self._answer, configs), nodes)

    def play(self, defense: Defense, recorded: RecordedRound) -> RoundRow:
        """Put one round before a defence and see what it makes of it."""
        self._recorded = recorded
        asked = participants(self.task.scenario, recorded.server_round)
        self.grid.open_round(asked)
        defense.expect(asked, recorded.malicious)
        random.seed(recorded.server_round)  # Flower orders its nodes with the global generator
        sent = defense.strategy.configure_train(
            recorded.server_round,
            to_record(recorded.global_arrays),
            ConfigRecord({"server-round": recorded.server_round}),
            self.grid,
        )
        replies = list(self.grid.send_and_receive(sent))
        begun = perf_counter()
        arrays, _ = defense.strategy.aggregate_train(recorded.server_round, replies)
        seconds = perf_counter() - begun
        after = recorded.global_arrays if arrays is None else from_record(arrays)
        accuracy, asr = self.judge(after, recorded.stamped)
        return RoundRow(
            server_round=recorded.server_round,
            accuracy=accuracy,
            asr=asr,
            round_seconds=seconds,
            shield_seconds=defense.shield_seconds,
            clients=tuple(self._row(defense, recorded, reply) for reply in self.grid.replies),
        )

    def judge(self, arrays: Arrays, stamped: Samples | None = None) -> tuple[float, float]:
        """Accuracy and attack success of a model, on the few examples that one round is judged on.

        Success is counted on ``stamped``, where attackers have shaped a trigger of their own.
        """
        few = slice(0, N_JUDGED)
        data = replace(self.task.data, test=self.task.data.test.take(few))
        inputs = (stamped or self.task.stamped).take(few)
        return replace(self.task, data=data, stamped=inputs).evaluate(self._model, arrays)

    def _row(self, defense: Defense, recorded: RecordedRound, reply: Message) -> ClientRow:
        partition = self.grid.partition_of(reply)
        row = ClientRow(
            partition=partition,
            malicious=partition in recorded.malicious,
            equals_honest=partition in recorded.equal_to_honest,
        )
        return defense.judge(row, reply)

    def _answer(self, message: Message, context: Context) -> Message:
        partition = int(str(context.node_config["partition-id"]))
        assert self._recorded is not None
        n_examples = len(self.task.data.clients[partition])
        content = RecordDict(
            {
                "arrays": to_record(self._recorded.uploads[partition]),
                "metrics": MetricRecord({"num-examples": n_examples}),
                TRUTH: ConfigRecord({"equals-honest": False}),
            }
        )
        return Message(content=content, reply_to=message)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defence against one attack on one recorded federation.

    Attributes
    ----------
    malicious_rejected, benign_rejected : float, optional
        Shares of updates that lost their vote; None where there are none to count.
    auc : float, optional
        Mean over attacked rounds of the AUC of the defence's scores; None without scores.
    accuracy, asr, worst_asr : float
        After one aggregated round from the recorded model: means over rounds, and the worst.
    seconds : float
        Of one aggregation, in the mean.
    """

    malicious_rejected: float | None
    benign_rejected: float | None
    malicious_vote: float | None
    benign_vote: float | None
    auc: float | None
    accuracy: float
    asr: float
    worst_asr: float
    seconds: float


def cell_of(rows: list[RoundRow]) -> Cell:
    """Sum up what a defence made of a recorded federation."""
    rates = rejection_rates([client for row in rows for client in row.clients])
    aucs = [auc for row in rows if (auc := _round_auc(row)) is not None]
    return Cell(
        malicious_rejected=rates["tpr"],
        benign_rejected=rates["fpr"],
        malicious_vote=rates["malicious_vote"],
        benign_vote=rates["benign_vote"],
        auc=float(np.mean(aucs)) if aucs else None,
        accuracy=float(np.mean([row.accuracy for row in rows])),
        asr=float(np.mean([row.asr for row in rows])),
        worst_asr=max(row.asr for row in rows),
        seconds=float(np.mean([row.round_seconds for row in rows])),
    )


def _round_auc(row: RoundRow) -> float | None:
    scored = [c for c in row.clients if c.score is not None and not c.equals_honest]
    labels = np.array([c.malicious for c in scored], dtype=np.int64)
    if len(np.unique(labels)) < 2:
        return None
    return auroc(labels, np.array([c.score for c in scored], dtype=np.float64))
