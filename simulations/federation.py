"""The ServerApp and the ClientApp of every simulated federation, in Flower's Message API.

The same two apps run on every engine (:mod:`fl_shield.simulations.engines`). Their run config
names a folder; its ``scenario.json`` says everything else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save_file
from torch import nn

from fl_shield.audit import AuditStore
from fl_shield.simulations.clients import local_update, shaped_inputs
from fl_shield.simulations.defenses import MAKE_DEFENSE, Defense
from fl_shield.simulations.outcome import ClientRow, OnRound, Outcome, RoundRow
from fl_shield.simulations.round_grid import TRUTH, RoundGrid, nodes_by_partition
from fl_shield.simulations.round_log import append_round, start_log
from fl_shield.simulations.scenario import Scenario, attackers, participants
from fl_shield.simulations.task import FederatedTask, open_task
from fl_shield.simulations.warm_start import warm_arrays
from fl_shield.strategies.records import from_record, to_record
from fl_shield.types import Arrays, AuditSink, RoundRecord, Samples

SCENARIO_FILE, OUTCOME_FILE, MODEL_FILE = "scenario.json", "outcome.json", "model.safetensors"
WARM_FOLDER = "warm"
"""Beside the federations' own folders: models that they start from."""

# The client's half

client_app = ClientApp()


@client_app.query()
def _say_partition(message: Message, context: Context) -> Message:
    """Answer the harness's only question before the first round."""
    record = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
    return Message(content=RecordDict({TRUTH: record}), reply_to=message)


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    """Upload what :func:`local_update` makes of the server's model."""
    folder = Path(str(context.run_config["folder"]))
    task, model = _opened((folder / SCENARIO_FILE).read_text())
    update = local_update(
        task,
        model,
        from_record(message.content.array_records["arrays"]),
        server_round=int(str(message.content.config_records["config"]["server-round"])),
        partition=int(context.node_config["partition-id"]),
    )
    metrics = MetricRecord({"train_loss": update.train_loss, "num-examples": update.n_examples})
    content = RecordDict(
        {
            "arrays": to_record(update.arrays),
            "metrics": metrics,
            TRUTH: ConfigRecord({"equals-honest": update.equals_honest}),
        }
    )
    return Message(content=content, reply_to=message)


@lru_cache(maxsize=2)
def _opened(scenario_json: str) -> tuple[FederatedTask, nn.Module]:
    """Load a scenario's data and one scratch network, once in each process."""
    task = open_task(Scenario.from_json(scenario_json))
    return task, task.new_model()


# The server's half

server_app = ServerApp()


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    """Serve the scenario in the run config's folder."""
    serve(grid, Path(str(context.run_config["folder"])), str(context.run_config["audit"]))


def serve(grid: Grid, folder: Path, audit_url: str, on_round: OnRound | None = None) -> Outcome:
    """Run one federation on a grid.

    Parameters
    ----------
    grid : Grid
        Reaches ``n_clients`` nodes that run :data:`client_app`.
    folder : Path
        Holds ``scenario.json``; takes ``rounds.jsonl`` (a line a round, as it ends), the final
        model as ``model.safetensors`` and ``outcome.json``.
    audit_url : str
        SQLAlchemy URL where the shield writes its decisions.
    on_round : callable, optional
        Told of each round as it ends.
    """
    task, _ = _opened((folder / SCENARIO_FILE).read_text())
    scenario = task.scenario
    store = AuditStore(audit_url) if scenario.defense == "shield" else None
    nodes = nodes_by_partition(grid, scenario.n_clients)
    names = {node: task.data.client_names[partition] for partition, node in nodes.items()}
    audit = _ScenarioAudit(store, scenario) if store is not None else None
    defense = MAKE_DEFENSE[scenario.defense](task, audit, names.__getitem__)
    recorder = _Recorder(task, defense, RoundGrid(grid, nodes), folder, on_round)
    defense.strategy.start(
        grid=recorder.grid,
        initial_arrays=to_record(warm_arrays(task, folder.parent / WARM_FOLDER)),
        num_rounds=scenario.n_rounds,
        evaluate_fn=recorder.after_round,
    )
    where = {}
    if store is not None:
        where = {"run_id": defense.run_id, "head": store.head(defense.run_id)}
    outcome = Outcome(rounds=tuple(recorder.rows), audit=where)
    (folder / OUTCOME_FILE).write_text(json.dumps(outcome.to_dict()))
    return outcome


class _ScenarioAudit:
    """An audit sink whose runs say which scenario they belong to."""

    def __init__(self, sink: AuditSink, scenario: Scenario) -> None:
        self._sink, self._scenario = sink, scenario

    def start_run(self, settings: Mapping[str, Any]) -> str:
        scenario = self._scenario
        name = f"{scenario.dataset}: {scenario.attack}, seed {scenario.seed}"
        return self._sink.start_run({"name": name, **settings, "scenario": scenario.to_dict()})

    def write_round(self, run_id: str, record: RoundRecord) -> None:
        self._sink.write_round(run_id, record)

    def finish_run(self, run_id: str, status: str = "finished") -> None:
        self._sink.finish_run(run_id, status)


class _Recorder:
    """Judges the model after each round, writes the round down and opens the next one."""

    def __init__(
        self,
        task: FederatedTask,
        defense: Defense,
        grid: RoundGrid,
        folder: Path,
        on_round: OnRound | None,
    ) -> None:
        self.task, self.defense, self.grid = task, defense, grid
        self.folder, self.on_round = folder, on_round
        self.rows: list[RoundRow] = []
        self._model = task.new_model()
        self._sent: Arrays = {}
        self._started = perf_counter()
        start_log(folder)

    def after_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Flower's ``evaluate_fn``: called before the first round and after each."""
        round_seconds = perf_counter() - self._started
        named = from_record(arrays)
        accuracy, asr = self.task.evaluate(self._model, named, self._shaped(server_round))
        self._sent = named
        row = RoundRow(
            server_round=server_round,
            accuracy=accuracy,
            asr=asr,
            round_seconds=round_seconds if server_round else 0.0,
            shield_seconds=self.defense.shield_seconds if server_round else 0.0,
            clients=self._client_rows(server_round),
        )
        self._note(row, named)
        self._open(server_round + 1)
        return MetricRecord({"accuracy": accuracy, "asr": asr})

    def _shaped(self, server_round: int) -> Samples | None:
        """Test inputs with the trigger that this round's attackers shaped on the model they got."""
        if server_round == 0:
            return None
        return shaped_inputs(self.task, self._model, self._sent, server_round)

    def _client_rows(self, server_round: int) -> tuple[ClientRow, ...]:
        attacking = attackers(self.task.scenario, server_round)
        rows = []
        for reply in self.grid.replies:
            partition = self.grid.partition_of(reply)
            row = ClientRow(
                partition=partition,
                malicious=partition in attacking,
                equals_honest=bool(self.grid.truth[partition]["equals-honest"]),
            )
            rows.append(self.defense.judge(row, reply))
        return tuple(rows)

    def _note(self, row: RoundRow, arrays: Arrays) -> None:
        self.rows.append(row)
        append_round(self.folder, row)
        if row.server_round == self.task.scenario.n_rounds:
            save_file(dict(arrays), self.folder / MODEL_FILE)
        if self.on_round is not None:
            self.on_round(row)

    def _open(self, server_round: int) -> None:
        partitions = participants(self.task.scenario, server_round)
        self.grid.open_round(partitions)
        self.defense.expect(partitions, attackers(self.task.scenario, server_round))
        random.seed(server_round)  # Flower orders its nodes with the global generator
        self._started = perf_counter()
