"""The apps against plain arithmetic: who trains how, who sees what, who is turned away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fl_shield.errors import EngineError, ScenarioError
from fl_shield.simulations import clients
from fl_shield.simulations.clients import local_update
from fl_shield.simulations.defenses import OracleMultiKrum
from fl_shield.simulations.engines import flower_log, run
from fl_shield.simulations.federation import MODEL_FILE
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.simulations.outcome import ClientRow, RoundRow
from fl_shield.simulations.round_grid import TRUTH, RoundGrid, nodes_by_partition
from fl_shield.simulations.round_log import RoundFollower, append_round, start_log
from fl_shield.simulations.scenario import Scenario, attackers, participants, stream
from fl_shield.simulations.task import FederatedTask, open_task
from fl_shield.strategies.records import to_record
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Arrays, AttackContext

SMALL = Scenario(
    model="digits-mlp", n_clients=5, clients_per_round=3, n_rounds=2, malicious_fraction=0.4
)


@pytest.fixture(scope="module")
def task() -> FederatedTask:
    return open_task(SMALL)


def arrays_of(task: FederatedTask) -> Arrays:
    return get_arrays(task.new_model())


def equal(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in b)


def test_a_benign_client_trains_on_its_own_examples(task: FederatedTask) -> None:
    start = arrays_of(task)
    update = local_update(task, task.new_model(), start, server_round=1, partition=2)
    model = set_arrays(task.new_model(), start)
    loss = train(model, task.data.clients[2], SMALL.local_training, stream(SMALL, "client", 1, 2))
    assert equal(update.arrays, get_arrays(model))
    assert update.train_loss == loss
    assert update.n_examples == len(task.data.clients[2])


def test_an_update_depends_on_nothing_but_its_arguments(task: FederatedTask) -> None:
    start, model = arrays_of(task), task.new_model()
    first = local_update(task, model, start, server_round=2, partition=0)
    local_update(task, model, first.arrays, server_round=3, partition=1)
    again = local_update(task, model, start, server_round=2, partition=0)
    assert equal(first.arrays, again.arrays)
    other = local_update(task, model, start, server_round=3, partition=0)
    assert not equal(first.arrays, other.arrays)


def test_dropout_draws_from_the_clients_own_stream() -> None:
    task = open_task(
        SMALL.with_(dataset="glyphs", model="fed-cnn", partition="", n_clients=3, n_test=50)
    )
    with torch.random.fork_rng(devices=[]):
        one = local_update(task, task.new_model(), arrays_of(task), server_round=1, partition=0)
        torch.manual_seed(77)
        two = local_update(task, task.new_model(), arrays_of(task), server_round=1, partition=0)
    assert equal(one.arrays, two.arrays)


class Spy:
    """An attack that notes what it is told and uploads a constant."""

    seen: ClassVar[list[AttackContext]] = []

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        self.seen.append(context)
        return {name: np.full_like(a, 7) for name, a in context.global_arrays.items()}


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[AttackContext]:
    Spy.seen.clear()
    monkeypatch.setattr(clients, "ATTACKS", {"badnets": Spy})
    return Spy.seen


def test_an_attacker_knows_its_round_and_its_peers(
    task: FederatedTask, spied: list[AttackContext]
) -> None:
    scenario = SMALL.with_(attack="badnets", n_clients=5, clients_per_round=5, target_label=3)
    attacked = FederatedTask(
        scenario=scenario, data=task.data, trigger=task.trigger, stamped=task.stamped
    )
    first, second = attackers(scenario, 1)
    start = arrays_of(task)
    update = local_update(attacked, task.new_model(), start, server_round=1, partition=second)
    assert float(next(iter(update.arrays.values())).max()) == 7
    assert not update.equals_honest
    (context,) = spied
    assert context.data is task.data.clients[second]
    assert [p is task.data.clients[i] for p, i in zip(context.peers, (second, first), strict=True)]
    assert context.peers[0] is context.data
    assert (context.target_label, context.n_clients) == (3, 5)
    assert (context.server_round, context.member, context.n_members) == (1, 1, 2)
    assert context.training == scenario.local_training


def test_benign_clients_never_attack(task: FederatedTask, spied: list[AttackContext]) -> None:
    scenario = SMALL.with_(attack="badnets", clients_per_round=5, attack_from=2)
    attacked = FederatedTask(
        scenario=scenario, data=task.data, trigger=task.trigger, stamped=task.stamped
    )
    start = arrays_of(task)
    for partition in range(5):
        local_update(attacked, task.new_model(), start, server_round=1, partition=partition)
    assert spied == []


def test_an_attack_that_uploads_the_honest_model_is_noticed(
    task: FederatedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def honest() -> Any:
        def attack(context: AttackContext) -> dict[str, NDArray[Any]]:
            set_arrays(context.model, context.global_arrays)
            train(context.model, context.data, context.training, context.rng)
            return get_arrays(context.model)

        return attack

    monkeypatch.setattr(clients, "ATTACKS", {"badnets": honest})
    scenario = SMALL.with_(attack="badnets", clients_per_round=5)
    attacked = FederatedTask(
        scenario=scenario, data=task.data, trigger=task.trigger, stamped=task.stamped
    )
    partition = attackers(scenario, 1)[0]
    start = arrays_of(task)
    update = local_update(attacked, task.new_model(), start, server_round=1, partition=partition)
    assert update.equals_honest


def test_the_stamped_test_set_has_no_target_class(task: FederatedTask) -> None:
    assert not (task.stamped.y == SMALL.target_label).any()
    n_others = int((task.data.test.y != SMALL.target_label).sum())
    assert len(task.stamped) == n_others
    assert not np.array_equal(
        task.stamped.x, task.data.test.x[task.data.test.y != SMALL.target_label]
    )


def test_asr_and_accuracy_of_a_constant_model(task: FederatedTask) -> None:
    arrays = {name: np.zeros_like(a) for name, a in arrays_of(task).items()}
    arrays["head.bias"][SMALL.target_label] = 1
    accuracy, asr = task.evaluate(task.new_model(), arrays)
    assert asr == 1.0
    assert accuracy == pytest.approx(float((task.data.test.y == SMALL.target_label).mean()))


def test_a_target_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ScenarioError, match="target_label 10 is no class of digits"):
        open_task(SMALL.with_(target_label=10))


def test_a_run_equals_weighted_averaging_by_hand(task: FederatedTask, tmp_path: Path) -> None:
    outcome = run(SMALL, tmp_path, f"sqlite:///{tmp_path}/audit.db")
    current: dict[str, NDArray[Any]] = dict(arrays_of(task))
    model = task.new_model()
    for server_round in (1, 2):
        asked = participants(SMALL, server_round)
        updates = [
            local_update(task, model, current, server_round=server_round, partition=p)
            for p in asked
        ]
        total = sum(u.n_examples for u in updates)
        current = {
            name: np.sum([u.n_examples / total * u.arrays[name] for u in updates], axis=0)
            for name in current
        }
        row = outcome.rounds[server_round]
        assert tuple(c.partition for c in row.clients) == asked
        assert not any(c.rejected or c.malicious for c in row.clients)
    final = load_file(tmp_path / MODEL_FILE)
    for name, array in current.items():
        np.testing.assert_allclose(final[name], array, atol=1e-5)
    assert outcome.audit == {}


def test_runs_repeat_to_the_bit(tmp_path: Path) -> None:
    scenario = SMALL.with_(attack="badnets", defense="multikrum")
    finals = []
    for name in ("a", "b"):
        run(scenario, tmp_path / name, "sqlite://")
        finals.append(load_file(tmp_path / name / MODEL_FILE))
    assert equal(finals[0], finals[1])


def test_rounds_are_told_as_they_end(tmp_path: Path) -> None:
    told: list[RoundRow] = []
    outcome = run(SMALL, tmp_path, "sqlite://", told.append)
    assert tuple(told) == outcome.rounds
    assert [row.server_round for row in told] == [0, 1, 2]


def answer(message: Message, context: Context) -> Message:
    """Stand in for a client: uploads its partition as a number."""
    partition = int(context.node_config["partition-id"])
    if message.metadata.message_type == MessageType.QUERY:
        content = RecordDict({TRUTH: ConfigRecord({"partition-id": partition})})
    else:
        content = RecordDict(
            {
                "arrays": to_record({"w": np.full(3, float(partition))}),
                "metrics": MetricRecord({"num-examples": 1}),
                TRUTH: ConfigRecord({"equals-honest": False}),
            }
        )
    return Message(content, reply_to=message)


def a_grid(n_nodes: int) -> InProcessGrid:
    return InProcessGrid(answer, node_configs(n_nodes, seed=3))


def test_nodes_are_found_by_partition() -> None:
    grid = a_grid(4)
    nodes = nodes_by_partition(grid, 4)
    assert sorted(nodes) == [0, 1, 2, 3]
    assert [grid.context(nodes[p]).node_config["partition-id"] for p in range(4)] == [0, 1, 2, 3]


def test_missing_nodes_end_the_run_with_a_reason() -> None:
    with pytest.raises(EngineError, match="only 4 of 5 nodes came up within 0 s"):
        nodes_by_partition(a_grid(4), 5, patience=0.0)


def test_two_nodes_with_one_partition_are_refused() -> None:
    config = {"partition-id": 0, "num-partitions": 2}
    grid = InProcessGrid(answer, {10: dict(config), 11: dict(config)})
    with pytest.raises(EngineError, match="not 0 to 1"):
        nodes_by_partition(grid, 2)


def test_a_failing_client_ends_the_run_with_a_reason() -> None:
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError("no memory")

    grid = InProcessGrid(fail, node_configs(2), on_error="reply")
    with pytest.raises(EngineError, match="no memory"):
        nodes_by_partition(grid, 2)
    rounds = RoundGrid(grid, dict(enumerate(node_configs(2))))
    rounds.open_round([0])
    (node_id,) = rounds.get_node_ids()
    with pytest.raises(EngineError, match="no memory"):
        rounds.send_and_receive([Message(RecordDict(), node_id, MessageType.TRAIN)])


def test_a_strategy_sees_this_rounds_nodes_in_order_and_not_the_truth() -> None:
    grid = a_grid(5)
    rounds = RoundGrid(grid, nodes_by_partition(grid, 5))
    rounds.open_round([1, 2, 4])
    node_ids = list(rounds.get_node_ids())
    messages = [Message(RecordDict(), n, MessageType.TRAIN) for n in reversed(node_ids)]
    replies = list(rounds.send_and_receive(messages))
    assert [rounds.partition_of(reply) for reply in replies] == [1, 2, 4]
    assert [reply.metadata.src_node_id for reply in replies] == node_ids
    assert all(set(reply.content) == {"arrays", "metrics"} for reply in replies)
    assert set(rounds.truth) == {1, 2, 4}
    assert list(rounds.send_and_receive([])) == []
    assert len(rounds.replies) == 3
    rounds.open_round([0])
    assert (rounds.replies, rounds.truth) == ([], {})


def test_multikrum_is_told_how_many_attack_and_says_whom_it_left_out() -> None:
    """Five clients upload 0, 0.1, 0.2, 0.3 and 50; with f = 1 the one at 50 is left out."""
    defense = OracleMultiKrum()
    defense.expect(range(5), [2])
    values = {0: 0.0, 1: 0.1, 2: 50.0, 3: 0.2, 4: 0.3}

    def client(message: Message, context: Context) -> Message:
        value = values[int(context.node_config["partition-id"])]
        content = RecordDict(
            {
                "arrays": to_record({"w": np.full(3, value)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    grid = InProcessGrid(client, node_configs(5))
    arrays = to_record({"w": np.zeros(3)})
    sent = defense.strategy.configure_train(1, arrays, ConfigRecord(), grid)
    replies = list(grid.send_and_receive(sent))
    aggregate, _ = defense.strategy.aggregate_train(1, replies)
    assert aggregate is not None
    np.testing.assert_allclose(aggregate["w"].numpy(), 0.15)
    partition = {n: int(grid.context(n).node_config["partition-id"]) for n in grid.get_node_ids()}
    rejected = set()
    for reply in replies:
        row = ClientRow(partition=partition[reply.metadata.src_node_id], malicious=False)
        if defense.judge(row, reply).rejected:
            rejected.add(row.partition)
    assert rejected == {2}


def test_the_shield_names_clients_scores_them_and_leaves_an_audit(tmp_path: Path) -> None:
    from fl_shield.audit import AuditStore

    scenario = SMALL.with_(attack="model_replacement", defense="shield", clients_per_round=5)
    url = f"sqlite:///{tmp_path}/audit.db"
    outcome = run(scenario, tmp_path / "run", url)
    for row in outcome.rounds[1:]:
        assert 0 < row.shield_seconds < row.round_seconds
        assert all(c.score is not None and c.p_value is not None for c in row.clients)
        assert {c.partition for c in row.clients if c.malicious} == set(attackers(scenario, 1))
    store = AuditStore(url)
    assert store.verify(outcome.audit["head"]).ok
    names = set(open_task(scenario).data.client_names)
    verdicts = list(store.verdicts(outcome.audit["run_id"]))
    assert {v.verdict.client_id for v in verdicts} == names
    assert len(verdicts) == 2 * 5
    assert store.run("latest").settings["scenario"]["attack"] == "model_replacement"
    assert store.run("latest").status == "finished"


def test_flowers_log_goes_to_the_file_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    logger = logging.getLogger("flwr")
    before = list(logger.handlers)
    with flower_log(tmp_path / "log"):
        logger.warning("quiet please")
    assert logger.handlers == before
    assert "quiet please" in (tmp_path / "log").read_text()
    assert "quiet please" not in "".join(capfd.readouterr())


def test_a_follower_tells_each_round_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    told: list[RoundRow] = []
    follower = RoundFollower(tmp_path, told.append)
    follower.poll()
    start_log(tmp_path)
    rows = [RoundRow(server_round=r, accuracy=0.5, asr=0.0) for r in range(3)]
    append_round(tmp_path, rows[0])
    append_round(tmp_path, rows[1])
    follower.poll()
    follower.poll()
    assert told == rows[:2]
    path = tmp_path / "rounds.jsonl"
    append_round(tmp_path, rows[2])
    whole = path.read_text()
    path.write_text(whole[:-10])
    follower.poll()
    assert told == rows[:2]
    path.write_text(whole)
    follower.poll()
    assert told == rows
