"""A published rule in charge of a Flower federation: its own checks, votes, state and record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl_shield.aggregators import Aggregate, AggregationContext, State
from fl_shield.aggregators.contract import check_round
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.strategies import RobustStrategy, from_record, to_record
from fl_shield.types import Action, Floats

pytestmark = pytest.mark.usefixtures("ordered_sampling")

N_CLIENTS = 5
Upload = Callable[[int, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def _global() -> dict[str, NDArray[Any]]:
    return {
        "w": np.ones((2, 3), np.float32),
        "running_mean": np.zeros(2, np.float32),
        "steps": np.array(7, np.int64),
    }


def _honest(i: int, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        "w": arrays["w"] + np.float32(1 + i / 10),
        "running_mean": arrays["running_mean"] + np.float32(i),
        "steps": arrays["steps"] + 2,
    }


def _grid(upload: Upload) -> InProcessGrid:
    def client(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        sent = from_record(message.content.array_records["arrays"])
        content = RecordDict(
            {
                "arrays": to_record(upload(i, sent)),
                "metrics": MetricRecord({"num-examples": 10, "loss": 0.5}),
            }
        )
        return Message(content=content, reply_to=message)

    return InProcessGrid(client, node_configs(N_CLIENTS))


def _run(strategy: RobustStrategy, upload: Upload, n_rounds: int = 1) -> dict[str, NDArray[Any]]:
    grid = _grid(upload)
    result = strategy.start(grid, to_record(_global()), num_rounds=n_rounds)
    return from_record(result.arrays)


@dataclass(frozen=True, kw_only=True)
class FirstOnly:
    """Keeps the first update, halves the vote of the second, and counts its rounds."""

    min_clients: ClassVar[int] = 3

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        check_round(updates, weights, self.min_clients, "first only")
        votes = np.zeros(len(updates))
        votes[:2] = 1.0, 0.5
        n_rounds = np.asarray(state.get("n_rounds", np.zeros(()))) + 1
        return Aggregate(update=updates[0], votes=votes, note="kept one"), {"n_rounds": n_rounds}


def test_a_rule_moves_parameters_and_its_votes_average_everything_else() -> None:
    strategy = RobustStrategy(FirstOnly())
    arrays = _run(strategy, _honest)
    np.testing.assert_allclose(arrays["w"], 2.0)
    np.testing.assert_allclose(arrays["running_mean"], (0 * 1 + 1 * 0.5) / 1.5, rtol=1e-6)
    assert arrays["steps"] == 9
    assert arrays["steps"].dtype == np.int64


def test_the_record_holds_every_vote_and_the_rules_own_account() -> None:
    strategy = RobustStrategy(FirstOnly())
    _run(strategy, _honest, n_rounds=2)
    record = strategy.history_[-1]
    actions = [v.action for v in record.verdicts]
    assert actions == [Action.KEEP, Action.DOWNWEIGHT, Action.DROP, Action.DROP, Action.DROP]
    assert [v.weight for v in record.verdicts] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert record.notes == ("FirstOnly: kept one",)
    assert strategy.state_["n_rounds"] == 2


def test_a_malformed_reply_costs_its_sender_the_vote_and_never_the_round() -> None:
    def broken(i: int, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        upload = _honest(i, arrays)
        return {**upload, "w": upload["w"] * np.float32(np.nan)} if i == 0 else upload

    strategy = RobustStrategy(FirstOnly())
    arrays = _run(strategy, broken)
    np.testing.assert_allclose(arrays["w"], 2.1, rtol=1e-6)
    refused = [v for v in strategy.history_[0].verdicts if v.action is Action.REJECT]
    assert len(refused) == 1


def test_too_few_replies_leave_the_old_model_and_say_so() -> None:
    def mostly_broken(i: int, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"other": arrays["w"]} if i > 1 else _honest(i, arrays)

    strategy = RobustStrategy(FirstOnly())
    arrays = _run(strategy, mostly_broken)
    np.testing.assert_array_equal(arrays["w"], _global()["w"])
    assert strategy.history_[0].notes == (
        "the old model stays: first only needs at least 3 updates, got 2; ask more clients, or "
        "choose another rule",
    )


def test_a_rule_that_did_nothing_is_counted() -> None:
    plain, acting = RobustStrategy("mean"), RobustStrategy(FirstOnly())
    for strategy in (plain, acting):
        _run(strategy, _honest, n_rounds=2)
    assert (plain.n_plain_, acting.n_plain_) == (2, 0)


def test_a_preparing_rule_changes_what_clients_are_sent() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Raised(FirstOnly):
        def prepare(
            self, state: State, context: AggregationContext
        ) -> tuple[dict[str, NDArray[Any]], State]:
            moved = {n: np.array(a) for n, a in context.global_arrays.items()}
            return {**moved, "w": moved["w"] + np.float32(5)}, {**state, "sent": np.ones(1)}

    arrays = _run(RobustStrategy(Raised()), _honest)
    np.testing.assert_allclose(arrays["w"], 7.0)


def test_metrics_are_averaged_over_updates_with_a_vote() -> None:
    strategy = RobustStrategy(FirstOnly())
    result = strategy.start(_grid(_honest), to_record(_global()), num_rounds=1)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(0.5)
    assert isinstance(result.arrays, ArrayRecord)
