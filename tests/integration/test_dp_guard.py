"""Flower's DP wrappers around the shield: the guard keeps from them what would stop them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)

from fl_shield.strategies import ReplyLimits, SanitisedStrategy, ShieldedStrategy, from_record
from fl_shield.strategies.reports import REPORT_KEY, write_report
from fl_shield.types import Action

pytestmark = pytest.mark.usefixtures("ordered_sampling")

Build = Callable[..., Any]
HOSTILE = 2


def dp(strategy: Strategy) -> Strategy:
    """Clip, without noise, so that results compare exactly."""
    return DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 0.3, 5)


def values(arrays: ArrayRecord) -> dict[str, Any]:
    return {name: (a.dtype.str, a.tolist()) for name, a in from_record(arrays).items()}


def echo(message: Message, reply: Message) -> list[Message]:
    reply.content["arrays"] = message.content["arrays"]
    return [reply]


def nearly_echo(message: Message, reply: Message) -> list[Message]:
    """Differ from the global model by numbers whose squares are zero in float32."""
    arrays = from_record(message.content.array_records["arrays"])
    arrays["k"] = arrays["k"] + np.float32(0)
    arrays["k"].flat[0] = np.float32(1e-30)
    reply.content["arrays"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
    return [reply]


def fail(message: Message, _reply: Message) -> list[Message]:
    return [Message(Error(2, "it broke"), reply_to=message)]


def poison(_message: Message, reply: Message) -> list[Message]:
    reply.content.array_records["arrays"]["w"] = Array(np.full(10, np.nan, np.float32))
    return [reply]


def scramble_and_shrink(_message: Message, reply: Message) -> list[Message]:
    reply.content.array_records["arrays"]["w"] = Array(np.ones(1, np.float32))
    return [reply]


def silence(_message: Message, _reply: Message) -> list[Message]:
    return []


TRICKS = {
    "echo": (echo, "exactly zero", Action.REJECT),
    "nearly an echo": (nearly_echo, "exactly zero", Action.REJECT),
    "error": (fail, "error 2: 'it broke'", Action.MISSING),
    "NaN": (poison, "NaN or infinite", Action.REJECT),
    "broadcast": (scramble_and_shrink, "must have shape", Action.REJECT),
    "silence": (silence, "no reply in time", Action.MISSING),
}


@pytest.fixture
def initial() -> ArrayRecord:
    """A model without counters in its norm, and with a zero to hide a tiny step behind."""
    w, k = np.linspace(-1, 1, 10, dtype=np.float32), np.zeros((2, 3), np.float32)
    return ArrayRecord({"w": Array(w), "k": Array(k)})


def by(node: int, trick: Any) -> Any:
    def transport(message: Message, reply: Message) -> list[Message]:
        hostile = message.metadata.dst_node_id == node
        if hostile and message.metadata.message_type == "train":
            return list(trick(message, reply))
        return [reply]

    return transport


@pytest.mark.parametrize("trick", TRICKS)
def test_the_guard_keeps_a_dp_wrapper_going(
    trick: str, new_grid: Build, new_shield: Build, node_of: Build, initial: ArrayRecord
) -> None:
    spoil, reason, action = TRICKS[trick]
    shield = new_shield(FedAvg())
    grid = new_grid(transport=by(node_of(HOSTILE), spoil))
    ours = SanitisedStrategy(dp(shield)).start(grid, initial, num_rounds=2)
    alone = SanitisedStrategy(dp(new_shield(FedAvg()))).start(
        new_grid(without=[HOSTILE]), initial, num_rounds=2
    )

    assert values(ours.arrays) == values(alone.arrays) != values(initial)
    assert len(shield.history_) == 2
    for record in shield.history_:
        [verdict] = [v for v in record.verdicts if v.action is not Action.KEEP]
        assert len(record.verdicts) == 5
        assert verdict.client_id == str(node_of(HOSTILE))
        assert verdict.action is action
        assert reason in verdict.reasons[0]


@pytest.mark.parametrize("trick", TRICKS)
def test_the_shield_around_a_dp_wrapper_needs_no_guard(
    trick: str, new_grid: Build, new_shield: Build, node_of: Build, initial: ArrayRecord
) -> None:
    spoil, reason, _ = TRICKS[trick]
    shield = new_shield(dp(FedAvg()))
    grid = new_grid(transport=by(node_of(HOSTILE), spoil))
    ours = shield.start(grid, initial, num_rounds=2)
    alone = new_shield(dp(FedAvg())).start(new_grid(without=[HOSTILE]), initial, num_rounds=2)
    assert values(ours.arrays) == values(alone.arrays) != values(initial)
    [verdict] = [v for v in shield.history_[0].verdicts if v.action is not Action.KEEP]
    assert reason in verdict.reasons[0]


def test_without_the_guard_one_echo_ends_the_run(
    new_grid: Build, node_of: Build, initial: ArrayRecord
) -> None:
    grid = new_grid(transport=by(node_of(HOSTILE), echo))
    with pytest.raises(ZeroDivisionError):
        dp(FedAvg()).start(grid, initial, num_rounds=1)


def test_an_echo_is_a_vote_where_nothing_divides_by_its_norm(
    new_grid: Build, new_shield: Build, node_of: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(FedAvg())
    shield.start(new_grid(transport=by(node_of(HOSTILE), echo)), initial, num_rounds=1)
    assert {v.action for v in shield.history_[0].verdicts} == {Action.KEEP}


def test_the_shield_inside_sees_reports_and_clipped_updates(
    new_grid: Build, new_shield: Build, scripted: Build, node_of: Build, initial: ArrayRecord
) -> None:
    def attach(_message: Message, reply: Message) -> list[Message]:
        reply.content[REPORT_KEY] = write_report({"fc": np.ones((1, 2))})
        return [reply]

    inspector = scripted(limit=0.3)
    shield = new_shield(FedAvg(), inspector=inspector)
    grid = new_grid(transport=by(node_of(HOSTILE), attach))
    SanitisedStrategy(dp(shield)).start(grid, initial, num_rounds=1)
    assert [r is None for r in inspector.reports[0]] == [True, True, False, True, True]
    # Client 5 moved each of ten weights by 0.5: clipped to norm 0.3, that is 0.095 each.
    assert {v.action for v in shield.history_[0].verdicts} == {Action.KEEP}


def test_a_guarded_run_whose_every_round_was_dropped_returns_the_initial_model(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(FedAvg(), inspector=scripted(limit=0.0))
    result = SanitisedStrategy(dp(shield)).start(new_grid(), initial, num_rounds=2)
    assert values(result.arrays) == values(initial)
    assert len(shield.history_) == 2


def test_adaptive_clipping_is_guarded_too(
    new_grid: Build, new_shield: Build, node_of: Build, initial: ArrayRecord
) -> None:
    adaptive = DifferentialPrivacyServerSideAdaptiveClipping(new_shield(FedAvg()), 0.0, 5)
    grid = new_grid(transport=by(node_of(HOSTILE), echo))
    result = SanitisedStrategy(adaptive).start(grid, initial, num_rounds=1)
    assert values(result.arrays) != values(initial)


def test_evaluation_is_guarded_too(new_grid: Build, node_of: Build, initial: ArrayRecord) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == node_of(HOSTILE):
            reply.content.metric_records["metrics"]["num-examples"] = float("nan")
        return [reply]

    ours = SanitisedStrategy(dp(FedAvg())).start(
        new_grid(transport=transport), initial, num_rounds=1
    )
    alone = SanitisedStrategy(dp(FedAvg())).start(
        new_grid(without=[HOSTILE]), initial, num_rounds=1
    )
    assert ours.evaluate_metrics_clientapp == alone.evaluate_metrics_clientapp
    assert values(ours.arrays) == values(alone.arrays)


def test_a_failed_run_is_closed_in_the_audit(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    class Broken(FedAvg):
        def aggregate_train(self, *_: Any) -> Any:
            raise LookupError("inner")

    finished: list[str] = []

    class Sink:
        def start_run(self, settings: Any) -> str:
            return "run"

        def write_round(self, run_id: str, record: Any) -> None:
            pass

        def finish_run(self, run_id: str, status: str = "finished") -> None:
            finished.append(status)

    guarded = SanitisedStrategy(new_shield(Broken(), audit=Sink()))
    with pytest.raises(LookupError):
        guarded.start(new_grid(), initial, num_rounds=1)
    assert finished == ["failed"]


def test_the_guard_reads_the_limits_of_the_shield_inside(
    new_shield: Callable[..., ShieldedStrategy], caplog: pytest.LogCaptureFixture
) -> None:
    limits = ReplyLimits(metricrecord_key="numbers")
    guarded = SanitisedStrategy(dp(new_shield(FedAvg(), limits=limits)))
    assert guarded.limits == limits
    with caplog.at_level("INFO", logger="flwr.fl_shield"):
        guarded.summary()
    assert "kept from DifferentialPrivacyServerSideFixedClipping" in caplog.text
