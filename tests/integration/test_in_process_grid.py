"""The in-process grid behaves like Flower's, only in order and without shared objects."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fl_shield.simulations.in_process import InProcessGrid, node_configs, unavailable
from fl_shield.strategies import from_record

Build = Callable[..., InProcessGrid]


def counting(message: Message, context: Context) -> Message:
    """Count calls in the node's own state, and scribble over everything that was received."""
    state = context.state.setdefault("calls", MetricRecord({"n": 0}))
    assert isinstance(state, MetricRecord)
    seen = state["n"]
    assert isinstance(seen, int)
    state["n"] = seen + 1
    for record in message.content.config_records.values():
        record["note"] = "scribbled"
    reply = RecordDict({"calls": MetricRecord({"n": seen + 1}), **message.content})
    return Message(reply, reply_to=message)


def ask(grid: InProcessGrid, node: int, content: RecordDict | None = None) -> Message:
    message = Message(content or RecordDict(), node, "query")
    [reply] = grid.send_and_receive([message])
    return reply


def test_node_ids_are_large_distinct_and_repeatable() -> None:
    configs = node_configs(100, seed=3)
    assert configs == node_configs(100, seed=3)
    assert list(configs) != list(node_configs(100, seed=4))
    assert len(configs) == 100
    assert all(2**32 <= node < 2**63 for node in configs)
    assert [c["partition-id"] for c in configs.values()] == list(range(100))


def test_replies_come_in_the_order_of_the_messages_and_once() -> None:
    grid = InProcessGrid(counting, node_configs(4))
    nodes = list(grid.get_node_ids())[::-1]
    messages = [Message(RecordDict(), node, "query") for node in nodes]
    ids = list(grid.push_messages(iter(messages)))
    assert [m.metadata.message_id for m in messages] == ids
    assert len(set(ids)) == 4
    replies = list(grid.pull_messages(ids))
    assert [r.metadata.src_node_id for r in replies] == nodes
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_node_keeps_its_own_state() -> None:
    grid = InProcessGrid(counting, node_configs(2))
    first, second = grid.get_node_ids()
    ask(grid, first)
    assert ask(grid, first).content.metric_records["calls"]["n"] == 2
    assert ask(grid, second).content.metric_records["calls"]["n"] == 1
    assert grid.context(first).state.metric_records["calls"]["n"] == 2


def test_server_and_clients_share_no_objects() -> None:
    grid = InProcessGrid(counting, node_configs(1))
    [node] = grid.get_node_ids()
    arrays = ArrayRecord([np.arange(3.0)])
    content = RecordDict(
        {"arrays": arrays, "config": ConfigRecord({"note": "clean", "list": [1, 2]})}
    )
    reply = ask(grid, node, content)
    assert content.config_records["config"]["note"] == "clean"
    assert reply.content.config_records["config"]["note"] == "scribbled"
    assert reply.content.array_records["arrays"] == arrays
    assert reply.content.array_records["arrays"]["0"] is not arrays["0"]
    assert (
        reply.content.config_records["config"]["list"]
        is not content.config_records["config"]["list"]
    )


def test_an_exception_is_raised_or_becomes_an_error_reply() -> None:
    def broken(message: Message, context: Context) -> Message:
        raise ZeroDivisionError("it broke")

    with pytest.raises(ZeroDivisionError, match="it broke"):
        ask(InProcessGrid(broken, {7: {}}), 7)
    reply = ask(InProcessGrid(broken, {7: {}}, on_error="reply"), 7)
    assert (reply.error.code, reply.error.reason) == (2, "ZeroDivisionError: it broke")
    assert reply.metadata.src_node_id == 7


def test_an_unknown_node_is_answered_by_the_superlink() -> None:
    reply = ask(InProcessGrid(counting, {7: {}}), 8)
    assert reply.error.code == 5
    assert reply.metadata.src_node_id == 1


def test_a_transport_may_lose_and_double_replies() -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        return {7: [], 8: [reply, reply], 9: [unavailable(message)]}[message.metadata.dst_node_id]

    grid = InProcessGrid(counting, {7: {}, 8: {}, 9: {}}, transport=transport)
    replies = list(grid.send_and_receive([Message(RecordDict(), n, "query") for n in (7, 8, 9)]))
    assert [r.metadata.src_node_id for r in replies] == [8, 8, 1]
    assert replies[0].content is not replies[1].content


def test_run_and_run_config_reach_the_client() -> None:
    seen: list[Context] = []

    def look(message: Message, context: Context) -> Message:
        seen.append(context)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(look, {7: {"partition-id": 3}}, run_config={"lr": 0.5}, run_id=12)
    ask(grid, 7)
    assert (seen[0].run_id, seen[0].node_id) == (12, 7)
    assert seen[0].node_config == {"partition-id": 3}
    assert seen[0].run_config == {"lr": 0.5}
    assert grid.run.run_id == 12
    grid.set_run(grid.run)
    message = grid.create_message(RecordDict(), "query", 7, "group")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (7, "group")


def test_an_unknown_error_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="raise or reply, got 'ignore'"):
        InProcessGrid(counting, {}, on_error="ignore")  # type: ignore[arg-type]


@pytest.mark.usefixtures("ordered_sampling")
def test_plain_fedavg_runs_on_it_the_same_way_twice(new_grid: Build, initial: ArrayRecord) -> None:
    results = [FedAvg(min_train_nodes=5).start(new_grid(), initial, num_rounds=2) for _ in range(2)]
    first, second = ({n: a.tolist() for n, a in from_record(r.arrays).items()} for r in results)
    assert first == second
    # Clients move w[0] by 0.1 .. 0.5, weighted by 10 .. 14 examples, twice.
    mean_step = sum(0.1 * (i + 1) * (10 + i) for i in range(5)) / 60
    assert first["w"][0] == pytest.approx(-1 + 2 * mean_step, rel=1e-6)


def test_messages_of_any_kind_are_copied(new_grid: Build, node_of: Any) -> None:
    message = Message(RecordDict({"metrics": MetricRecord({"l": [1.0]})}), node_of(0), "evaluate")
    [reply] = new_grid().send_and_receive([message])
    assert reply.content.metric_records["metrics"]["num-examples"] == 10
