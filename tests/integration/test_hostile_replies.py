"""Every hostile reply, through a real start loop: it costs its sender the vote and nothing else."""

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Result

from fl_shield.simulations.in_process import unavailable
from fl_shield.strategies import ShieldedStrategy, from_record
from fl_shield.strategies.payload import MAX_INTEGER
from fl_shield.strategies.reports import REPORT_KEY
from fl_shield.types import Action

pytestmark = pytest.mark.usefixtures("ordered_sampling")

HOSTILE = 2
Build = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """What one client does to its reply, and what the record must say about it."""

    name: str
    spoil: Callable[[ArrayRecord, MetricRecord, Message], None]
    reason: str
    action: Action = Action.REJECT
    replies: Callable[[Message, Message], list[Message]] = field(default=lambda m, r: [r])


def put(name: str, value: Any) -> Callable[[ArrayRecord, MetricRecord, Message], None]:
    def spoil(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
        arrays[name] = Array(np.asarray(value))

    return spoil


def count(value: Any) -> Callable[[ArrayRecord, MetricRecord, Message], None]:
    def spoil(_arrays: ArrayRecord, metrics: MetricRecord, _reply: Message) -> None:
        metrics["num-examples"] = value

    return spoil


def payload(data: bytes) -> Callable[[ArrayRecord, MetricRecord, Message], None]:
    def spoil(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
        arrays["w"] = Array("float32", (10,), "numpy.ndarray", data)

    return spoil


def report(**values: Any) -> Callable[[ArrayRecord, MetricRecord, Message], None]:
    def spoil(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
        reply.content[REPORT_KEY] = ConfigRecord(values)

    return spoil


def with_value(value: float) -> Any:
    w = np.zeros(10, np.float32)
    w[7] = value
    return put("w", w)


def nothing(_arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
    """Leave the reply's content as it is."""


def rename(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
    arrays["W"] = arrays.pop("w")


def drop_array(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
    del arrays["k"]


def rename_record(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    reply.content["weights"] = reply.content.pop("arrays")


def drop_record(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    del reply.content["arrays"]


def second_arrays(arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    reply.content["again"] = arrays.copy()


def second_metrics(_arrays: ArrayRecord, metrics: MetricRecord, reply: Message) -> None:
    reply.content["again"] = metrics.copy()


def rename_metrics(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    reply.content["numbers"] = reply.content.pop("metrics")


def drop_metrics(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    del reply.content["metrics"]


def drop_count(_arrays: ArrayRecord, metrics: MetricRecord, _reply: Message) -> None:
    del metrics["num-examples"]


def many_metrics(_arrays: ArrayRecord, metrics: MetricRecord, _reply: Message) -> None:
    metrics.update({f"m{i}": 0.0 for i in range(1000)})


def swap_type(_arrays: ArrayRecord, _metrics: MetricRecord, reply: Message) -> None:
    del reply.content["arrays"]
    reply.content["arrays"] = ConfigRecord({"w": b"0123"})


def pickled(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
    arrays["w"] = Array("float32", (10,), "pickle", pickle.dumps(np.zeros(10, np.float32)))


def empty_all(arrays: ArrayRecord, _metrics: MetricRecord, _reply: Message) -> None:
    arrays.clear()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def forge_source(reply: Message, node_id: int) -> Message:
    reply.metadata.__dict__["_src_node_id"] = node_id
    return reply


def forge_subject(reply: Message) -> Message:
    reply.metadata.__dict__["_reply_to_message_id"] = "never-sent"
    return reply


def hollow(reply: Message) -> Message:
    reply.__dict__["_content"] = None
    return reply


W_BYTES = np.ones(10, np.float32).tobytes()
CASES = (
    Case("missing array", drop_array, "missing 'k'"),
    Case("renamed array", rename, "missing 'w'; unknown 'W'"),
    Case("extra array", put("extra", [1.0]), "unknown 'extra'"),
    Case("no arrays", empty_all, "missing 'w', 'k', 'steps'"),
    Case("missing record", drop_record, "one ArrayRecord, named 'arrays'; this one holds none"),
    Case("renamed record", rename_record, "this one holds 'weights'"),
    Case("duplicate record", second_arrays, "holds 'arrays', 'again'"),
    Case("record of another type", swap_type, "one ArrayRecord"),
    Case("missing metrics", drop_metrics, "one MetricRecord, named 'metrics'"),
    Case("renamed metrics", rename_metrics, "this one holds 'numbers'"),
    Case("duplicate metrics", second_metrics, "holds 'metrics', 'again'"),
    Case("too many metrics", many_metrics, "1002 metrics; at most 64"),
    Case("wrong shape", put("w", np.ones(9, np.float32)), r"shape \(10,\), got \(9,\)"),
    Case("broadcast to one", put("w", np.ones(1, np.float32)), r"got \(1,\)"),
    Case("broadcast a row", put("k", np.ones((1, 3), np.float32)), r"got \(1, 3\)"),
    Case("broadcast a scalar", put("w", np.float32(1)), r"got \(\)"),
    Case("transposed", put("k", np.ones((3, 2), np.float32)), r"got \(3, 2\)"),
    Case("grown counter", put("steps", np.array([1], np.int64)), r"shape \(\), got \(1,\)"),
    Case("float64", put("w", np.ones(10)), "must be float32, got 'float64'"),
    Case("integers", put("w", np.ones(10, np.int32)), "must be float32, got 'int32'"),
    Case("big-endian", put("w", np.ones(10, ">f4")), "must be float32, got '>f4'"),
    Case("complex", put("w", np.ones(10, np.complex64)), "got 'complex64'"),
    Case("float counter", put("steps", np.array(3.0)), "'steps' must be int64"),
    Case("NaN", with_value(np.nan), "1 NaN or infinite"),
    Case("Inf", with_value(np.inf), "1 NaN or infinite"),
    Case("-Inf", with_value(-np.inf), "1 NaN or infinite"),
    Case("overflowing norm", with_value(3e38), "norm of array 'w' is beyond"),
    Case("absurd norm", with_value(1e9), "norm of array 'w' is beyond"),
    Case("absurd counter", put("steps", np.array(MAX_INTEGER + 1)), "beyond 2\\*\\*53"),
    Case("least counter", put("steps", np.array(-(2**63))), "beyond 2\\*\\*53"),
    Case("empty array", put("w", np.zeros(0, np.float32)), r"got \(0,\)"),
    Case("no bytes", payload(b""), "readable .npy header"),
    Case("garbage bytes", payload(b"\x00\xff" * 500), "readable .npy header"),
    Case("header only", payload(b"\x93NUMPY\x01\x00"), "readable .npy header"),
    Case("header without end", payload(b"\x93NUMPY\x01\x00\xff\xff{'descr'"), "readable .npy"),
    Case("header of 4 GB", payload(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"), "readable .npy"),
    Case("header is no mapping", payload(npy("[1, 2]", W_BYTES)), "readable .npy header"),
    Case("header is code", payload(npy("__import__('os')", W_BYTES)), "readable .npy header"),
    Case("deep header", payload(npy("(" * 110, W_BYTES)), "readable .npy header"),
    Case(
        "huge shape in the header",
        payload(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,)}", W_BYTES)),
        "readable .npy header",
    ),
    Case(
        "another huge shape",
        payload(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15},)}}")),
        "declares one shape or dtype and carries another",
    ),
    Case(
        "objects in the header",
        payload(npy("{'descr': '|O', 'fortran_order': False, 'shape': (10,)}", pickle.dumps(1))),
        "declares one shape or dtype and carries another",
    ),
    Case(
        "truncated",
        payload(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10,)}", W_BYTES[:-1])),
        "must carry 40 bytes, got 39",
    ),
    Case(
        "oversized",
        payload(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10,)}", W_BYTES * 9999)),
        "must carry 40 bytes, got 399960",
    ),
    Case("pickled", pickled, "not in numpy's format"),
    Case("missing count", drop_count, "'num-examples' is missing"),
    Case("negative count", count(-10), "got -10"),
    Case("no examples", count(0), "got 0"),
    Case("NaN count", count(float("nan")), "got nan"),
    Case("infinite count", count(float("inf")), "a huge number"),
    Case("huge count", count(10**12), "got 1e\\+12"),
    Case("unbounded count", count(10**400), "a huge number"),
    Case("list of counts", count([10, 10]), "must be one number"),
    Case(
        "oversized report",
        report(data=b"x" * (1 << 21), layers=["a"], widths=[1], **{"n-rows": 1}),
        "2097152 bytes; at most 1048576",
    ),
    Case("empty report", report(), "holds layers, widths, n-rows and data"),
    Case(
        "lying report",
        report(data=b"1234", layers=["a"], widths=[10**9], **{"n-rows": 1}),
        "shapes do not match its data",
    ),
    Case(
        "NaN report",
        report(data=b"\xff" * 4, layers=["a"], widths=[1], **{"n-rows": 1}),
        "report holds NaN",
    ),
    Case("two replies", nothing, "2 replies of one node", replies=lambda m, r: [r, r]),
    Case(
        "reply and error",
        nothing,
        "2 replies of one node",
        replies=lambda m, r: [r, Message(Error(2, "late"), reply_to=m)],
    ),
    Case(
        "reply to nothing",
        nothing,
        "that this round did not send",
        replies=lambda m, r: [forge_subject(r)],
    ),
    Case(
        "neither content nor error",
        nothing,
        "neither content nor error",
        replies=lambda m, r: [hollow(r)],
    ),
    Case(
        "client error",
        nothing,
        "error 2: 'it broke'",
        Action.MISSING,
        replies=lambda m, r: [Message(Error(2, "it broke"), reply_to=m)],
    ),
    Case(
        "vanished node",
        nothing,
        "error 5: 'node unavailable'",
        Action.MISSING,
        replies=lambda m, r: [unavailable(m)],
    ),
    Case("silence", nothing, "no reply in time", Action.MISSING, replies=lambda m, r: []),
)


def run(shield: ShieldedStrategy, grid: Any, initial: ArrayRecord) -> Result:
    return shield.start(grid, initial, num_rounds=2)


def assert_same(ours: Result, reference: Result) -> None:
    expected = from_record(reference.arrays)
    for name, array in from_record(ours.arrays).items():
        assert array.dtype == expected[name].dtype
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize("mode", ["filter", "monitor", "downweight"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_costs_the_vote_and_never_the_round(
    case: Case,
    mode: str,
    new_grid: Build,
    new_shield: Build,
    node_of: Callable[[int], int],
    initial: ArrayRecord,
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        if reply.metadata.src_node_id != node_of(HOSTILE):
            return [reply]
        if message.metadata.message_type != "train":
            return [reply]
        arrays, metrics = (reply.content[key] for key in ("arrays", "metrics"))
        assert isinstance(arrays, ArrayRecord)
        assert isinstance(metrics, MetricRecord)
        case.spoil(arrays, metrics, reply)
        return case.replies(message, reply)

    shield = new_shield(FedAvg(min_train_nodes=5), mode=mode)
    ours = run(shield, new_grid(transport=transport), initial)
    alone = run(new_shield(FedAvg(min_train_nodes=4)), new_grid(without=[HOSTILE]), initial)

    assert_same(ours, alone)
    assert ours.train_metrics_clientapp == alone.train_metrics_clientapp
    assert [record.server_round for record in shield.history_] == [1, 2]
    for record in shield.history_:
        verdicts = {v.client_id: v for v in record.verdicts}
        assert len(verdicts) == len(record.verdicts) == 5
        hostile = verdicts.pop(str(node_of(HOSTILE)))
        assert hostile.action is case.action
        assert hostile.weight == 0
        assert re.search(case.reason, hostile.reasons[0])
        assert {v.action for v in verdicts.values()} == {Action.KEEP}


def test_a_reply_in_anothers_name_is_charged_to_its_sender(
    new_grid: Build, new_shield: Build, node_of: Callable[[int], int], initial: ArrayRecord
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        victim = message.metadata.dst_node_id == node_of(0)
        if message.metadata.message_type == "train" and victim:
            forged = Message(reply.content, reply_to=message)
            return [reply, forge_source(forged, node_of(HOSTILE))]
        return [reply]

    shield = new_shield(FedAvg(min_train_nodes=5))
    ours = run(shield, new_grid(transport=transport), initial)
    alone = run(new_shield(FedAvg(min_train_nodes=4)), new_grid(without=[HOSTILE]), initial)

    assert_same(ours, alone)
    verdicts = {v.client_id: v for v in shield.history_[0].verdicts}
    assert verdicts[str(node_of(0))].action is Action.KEEP
    assert verdicts[str(node_of(HOSTILE))].action is Action.REJECT


def test_a_stranger_has_no_vote(
    new_grid: Build, new_shield: Build, node_of: Callable[[int], int], initial: ArrayRecord
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id != node_of(0):
            return [reply]
        return [reply, forge_source(Message(reply.content, reply_to=message), 77)]

    shield = new_shield(FedAvg(min_train_nodes=5))
    ours = run(shield, new_grid(transport=transport), initial)

    assert_same(ours, run(new_shield(FedAvg(min_train_nodes=5)), new_grid(), initial))
    assert shield.history_[0].verdicts[-1].client_id == "77"
    assert shield.history_[0].verdicts[-1].reasons == (f"a reply in the name of node {node_of(0)}",)
    assert shield.evaluation_refusals_[1][0].client_id == "77"


def test_unknown_metrics_are_dropped_and_recorded(
    new_grid: Build, new_shield: Build, node_of: Callable[[int], int], initial: ArrayRecord
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == node_of(HOSTILE):
            metrics = reply.content["metrics"]
            assert isinstance(metrics, MetricRecord)
            metrics.pop("loss", None)
            metrics.pop("accuracy", None)
            metrics["surprise"] = [1.0, 2.0]
            metrics["poison"] = float("nan")
        return [reply]

    shield = new_shield(FedAvg(min_train_nodes=5))
    ours = run(shield, new_grid(transport=transport), initial)
    plain = run(new_shield(FedAvg(min_train_nodes=5)), new_grid(), initial)

    assert_same(ours, plain)
    assert list(ours.train_metrics_clientapp[1]) == ["loss"]
    assert list(ours.evaluate_metrics_clientapp[1]) == ["accuracy"]
    verdict = {v.client_id: v for v in shield.history_[0].verdicts}[str(node_of(HOSTILE))]
    assert verdict.action is Action.KEEP
    assert verdict.reasons == (
        "dropped unusable metrics 'poison'",
        "dropped metric 'surprise'",
        "metric 'loss' missing: the round's median stands in",
    )


@pytest.mark.parametrize("value", [float("nan"), -1, 0, 10**400, [1]])
def test_evaluation_replies_are_checked_too(
    value: Any,
    new_grid: Build,
    new_shield: Build,
    node_of: Callable[[int], int],
    initial: ArrayRecord,
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        hostile = message.metadata.dst_node_id == node_of(HOSTILE)
        if hostile and message.metadata.message_type == "evaluate":
            count(value)(ArrayRecord(), reply.content.metric_records["metrics"], reply)
        return [reply]

    shield = new_shield(FedAvg(min_train_nodes=5, min_evaluate_nodes=5))
    ours = run(shield, new_grid(transport=transport), initial)
    alone = run(new_shield(FedAvg(min_train_nodes=4)), new_grid(without=[HOSTILE]), initial)

    assert ours.evaluate_metrics_clientapp == alone.evaluate_metrics_clientapp
    [refused] = shield.evaluation_refusals_[1]
    assert refused.client_id == str(node_of(HOSTILE))
