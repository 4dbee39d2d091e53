"""The shield around Flower's own strategies: what it drops, keeps, and leaves untouched."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    Krum,
    MultiKrum,
    Strategy,
)
from torch import nn

from fl_shield.audit import AuditStore
from fl_shield.errors import ShieldError
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.strategies import ReplyLimits, ShieldedStrategy, from_record, to_record
from fl_shield.strategies.reports import REPORT_KEY, write_report
from fl_shield.training import get_arrays
from fl_shield.types import Action, Flags, Floats, Inspection, RoundRecord, Samples

pytestmark = pytest.mark.usefixtures("ordered_sampling")

Build = Callable[..., Any]
INNER: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(),
    "FedAdam": lambda: FedAdam(),
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedMedian": lambda: FedMedian(),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(),
    "Krum": lambda: Krum(num_malicious_nodes=0),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=0, num_nodes_to_select=3),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=0),
    "DP": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 0.3, 5),
}


class Eavesdropper(FedAvg):
    """FedAvg that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(min_train_nodes=5)
        self.heard: list[Message] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.heard = list(replies)
        return super().aggregate_train(server_round, self.heard)


class Notebook:
    """An audit that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def start_run(self, settings: Any) -> str:
        self.lines.append(("start", dict(settings)))
        return "run-1"

    def write_round(self, run_id: str, record: RoundRecord) -> None:
        self.lines.append((run_id, record))

    def finish_run(self, run_id: str, status: str = "finished") -> None:
        self.lines.append((run_id, status))


def values(arrays: ArrayRecord) -> dict[str, Any]:
    return {name: (a.dtype.str, a.tolist()) for name, a in from_record(arrays).items()}


@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_dropped_clients_leave_no_trace_in_any_strategy(
    make: Callable[[], Strategy],
    new_grid: Build,
    new_shield: Build,
    scripted: Build,
    initial: ArrayRecord,
) -> None:
    shield = new_shield(make(), inspector=scripted(limit=0.45))
    ours = shield.start(new_grid(), initial, num_rounds=2)
    alone = new_shield(make()).start(new_grid(without=[4]), initial, num_rounds=2)

    assert values(ours.arrays) == values(alone.arrays)
    actions = [[v.action for v in r.verdicts] for r in shield.history_]
    assert actions == [[Action.KEEP] * 4 + [Action.DROP]] * 2


@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_dtypes_and_order_of_the_global_model_are_kept(
    make: Callable[[], Strategy], new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    result = new_shield(make()).start(new_grid(), initial, num_rounds=2)
    kept = {name: array.dtype for name, array in result.arrays.items()}
    assert list(kept.items()) == [("w", "float32"), ("k", "float32"), ("steps", "int64")]


def test_int64_counters_survive_fedavg(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    result = new_shield(FedAvg()).start(new_grid(), initial, num_rounds=2)
    assert result.arrays["steps"].numpy() == 3 + 2 + 2


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "MultiKrum", "FedTrimmedAvg"])
def test_monitor_changes_nothing(
    name: str, new_grid: Build, new_shield: Build, scripted: Build
) -> None:
    initial = to_record({"w": np.linspace(0, 1, 7, dtype=np.float32), "k": np.ones((2, 3), "f4")})

    shield = new_shield(INNER[name](), mode="monitor", inspector=scripted(limit=0.25))
    ours = shield.start(new_grid(), initial, num_rounds=3)
    plain = INNER[name]().start(new_grid(), initial, num_rounds=3)

    assert values(ours.arrays) == values(plain.arrays)
    assert ours.train_metrics_clientapp == plain.train_metrics_clientapp
    assert ours.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp
    suspects = [v for v in shield.history_[0].verdicts if v.action is Action.DROP]
    assert len(suspects) == 3
    assert not any(v.applied for v in suspects)


def test_a_run_whose_every_round_was_dropped_returns_the_initial_model(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    inspector = scripted(limit=0.0)
    shield = new_shield(FedAvg(), inspector=inspector)
    evaluated = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        evaluated.append(values(arrays))
        return MetricRecord({"round": server_round})

    result = shield.start(new_grid(), initial, num_rounds=2, evaluate_fn=evaluate)
    assert values(result.arrays) == values(initial)
    assert evaluated == [values(initial)] * 3
    assert [r.notes for r in shield.history_] == [
        ("0 replies left, 1 needed: the old model stays",)
    ] * 2
    assert inspector.remembered == [[False] * 5] * 2


def test_min_kept_is_the_fewest_replies_that_make_a_round(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    def run(min_kept: int) -> Any:
        inspector = scripted(limit=0.35)
        shield = new_shield(FedAvg(), inspector=inspector, min_kept=min_kept)
        return shield.start(new_grid(), initial, num_rounds=1), inspector.remembered

    moved, remembered = run(3)
    assert values(moved.arrays) != values(initial)
    assert remembered == [[True, True, True, False, False]]
    stayed, remembered = run(4)
    assert values(stayed.arrays) == values(initial)
    assert remembered == [[False] * 5]


def test_an_inner_strategy_that_gives_up_is_on_record(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(Bulyan(num_malicious_nodes=1))
    result = shield.start(new_grid(), initial, num_rounds=1)
    assert values(result.arrays) == values(initial)
    assert shield.history_[0].notes == (
        "the inner strategy made nothing of 5 replies: the old model stays",
    )


def test_an_inner_strategy_that_fails_is_not_silenced(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    class Broken(FedAvg):
        def aggregate_train(self, *_: Any) -> Any:
            raise LookupError("inner")

    notebook = Notebook()
    shield = new_shield(Broken(), audit=notebook)
    with pytest.raises(LookupError, match="inner"):
        shield.start(new_grid(), initial, num_rounds=1)
    assert shield.history_[0].notes == ("Broken failed: LookupError",)
    assert notebook.lines[-1] == ("run-1", "failed")


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "MultiKrum", "DP"])
def test_downweighting_moves_an_update_towards_the_global_model(
    name: str, new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    # Score 5 / 6 has odds 5, so the policy's weight is 1 / (1 + 5**2) = 1 / 26.
    seen = scripted(limit=0.45, score=5 / 6)
    shield = new_shield(INNER[name](), mode="downweight", inspector=seen)
    ours = shield.start(new_grid(), initial, num_rounds=1)

    def moderate(message: Message, reply: Message) -> list[Message]:
        for key, record in reply.content.array_records.items():
            if reply.content.metric_records["metrics"]["num-examples"] == 14:
                start = from_record(initial)
                sent = from_record(record)
                near = {
                    n: np.asarray(a + 1 / 26 * (sent[n].astype(float) - a))
                    for n, a in start.items()
                }
                reply.content[key] = to_record(near, like=start)
        return [reply]

    expected = new_shield(INNER[name]()).start(new_grid(transport=moderate), initial, num_rounds=1)
    assert values(ours.arrays) == values(expected.arrays)
    last = shield.history_[0].verdicts[-1]
    assert last.action is Action.DOWNWEIGHT
    assert last.weight == pytest.approx(1 / 26)


@pytest.mark.parametrize("mode", ["filter", "downweight"])
def test_an_update_in_doubt_votes_with_fewer_examples(
    mode: str, new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    # Halfway between the cut at 0.04 and the end of doubt at 0.25: half of 14 examples.
    inspector = scripted(limit=0.45, score=0.99, p_value=0.145)
    shield = new_shield(FedAvg(), mode=mode, inspector=inspector)
    ours = shield.start(new_grid(), initial, num_rounds=1)

    def halved(message: Message, reply: Message) -> list[Message]:
        metrics = reply.content.metric_records["metrics"]
        if metrics["num-examples"] == 14:
            metrics["num-examples"] = 7.0
        return [reply]

    expected = new_shield(FedAvg()).start(new_grid(transport=halved), initial, num_rounds=1)
    assert values(ours.arrays) == values(expected.arrays)
    last = shield.history_[0].verdicts[-1]
    assert (last.action, last.applied) == (Action.KEEP, True)
    assert last.weight == pytest.approx(0.5)
    assert last.reasons == ("in doubt: p = 0.145, vote 0.5",)


@pytest.mark.parametrize(
    ("p_value", "trusted", "doubt"),
    [(0.9, True, 0.0), (0.145, True, 0.5), (0.05, False, 1 - 0.01 / 0.21), (0.001, False, 1.0)],
)
def test_the_inspector_learns_whom_to_trust_and_whom_to_doubt(
    p_value: float,
    trusted: bool,
    doubt: float,
    new_grid: Build,
    new_shield: Build,
    scripted: Build,
    initial: ArrayRecord,
) -> None:
    inspector = scripted(limit=0.45, score=0.99, p_value=p_value)
    shield = new_shield(FedAvg(), inspector=inspector)
    shield.start(new_grid(), initial, num_rounds=1)
    assert inspector.remembered == [[True, True, True, True, trusted]]
    assert inspector.doubts[0] == pytest.approx([0.0, 0.0, 0.0, 0.0, doubt])
    assert inspector.clients == [[v.client_id for v in shield.history_[0].verdicts]]


def test_monitoring_gives_an_update_in_doubt_its_whole_vote(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    inspector = scripted(limit=0.45, score=0.99, p_value=0.145)
    shield = new_shield(FedAvg(), mode="monitor", inspector=inspector)
    ours = shield.start(new_grid(), initial, num_rounds=1)
    plain = new_shield(FedAvg()).start(new_grid(), initial, num_rounds=1)
    assert values(ours.arrays) == values(plain.arrays)
    assert not shield.history_[0].verdicts[-1].applied


def test_a_tiny_weight_is_left_out(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(
        INNER["DP"](), mode="downweight", inspector=scripted(limit=0.45, score=0.999)
    )
    ours = shield.start(new_grid(), initial, num_rounds=1)
    alone = new_shield(INNER["DP"]()).start(new_grid(without=[4]), initial, num_rounds=1)
    assert values(ours.arrays) == values(alone.arrays)
    last = shield.history_[0].verdicts[-1]
    assert (last.action, last.weight) == (Action.DOWNWEIGHT, 0.0)
    assert last.reasons[1].endswith("is below 0.01: left out")


def test_claimed_weights_are_capped(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    def claim(n: int) -> Any:
        def transport(message: Message, reply: Message) -> list[Message]:
            metrics = reply.content.metric_records["metrics"]
            if metrics["num-examples"] == 14:
                metrics["num-examples"] = n
            return [reply]

        return new_grid(transport=transport)

    inspector = scripted()
    inner = Eavesdropper()
    shield = new_shield(inner, inspector=inspector, max_weight=2.0)
    ours = shield.start(claim(10**6), initial, num_rounds=1)
    fair = new_shield(FedAvg()).start(claim(24), initial, num_rounds=1)

    assert values(ours.arrays) == values(fair.arrays)
    assert inspector.n_examples == [[10, 11, 12, 13, 24]]
    counts = [m.content.metric_records["metrics"]["num-examples"] for m in inner.heard]
    assert counts == [10, 11, 12, 13, 24]
    assert all(type(n) is int for n in counts)
    last = shield.history_[0].verdicts[-1]
    assert (last.action, last.n_examples) == (Action.KEEP, 24)
    assert last.reasons == ("claimed 1e+06 examples, capped at 24",)


def test_reports_reach_the_inspector_and_never_the_inner_strategy(
    new_grid: Build, new_shield: Build, scripted: Build, node_of: Build, initial: ArrayRecord
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == node_of(1):
            reply.content[REPORT_KEY] = write_report({"fc": np.full((2, 3), 0.5)})
            reply.content["stowaway"] = ConfigRecord({"x": b"y"})
        return [reply]

    inner, inspector = Eavesdropper(), scripted()
    shield = new_shield(inner, inspector=inspector)
    shield.start(new_grid(transport=transport), initial, num_rounds=1)

    [reports] = inspector.reports
    assert [r is None for r in reports] == [True, False, True, True, True]
    assert reports[1].layers["fc"].tolist() == [[0.5] * 3] * 2
    assert all(sorted(m.content) == ["arrays", "metrics"] for m in inner.heard)
    assert shield.history_[0].verdicts[1].reasons == ("dropped unknown ConfigRecord 'stowaway'",)


def test_wanted_config_records_pass(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    def transport(_message: Message, reply: Message) -> list[Message]:
        reply.content["wanted"] = ConfigRecord({"x": 1})
        return [reply]

    inner = Eavesdropper()
    shield = new_shield(inner, limits=ReplyLimits(config_records=("wanted",)))
    shield.start(new_grid(transport=transport), initial, num_rounds=1)
    assert all(m.content.config_records["wanted"]["x"] == 1 for m in inner.heard)


def test_replies_are_aggregated_in_the_order_of_the_messages(
    new_grid: Build, new_shield: Build, node_of: Build, initial: ArrayRecord
) -> None:
    grid, inner = new_grid(), Eavesdropper()
    shield = new_shield(inner)
    sent = shield.configure_train(1, initial, ConfigRecord(), grid)
    replies = list(grid.send_and_receive(sent))[::-1]
    shield.aggregate_train(1, iter(replies))
    assert [m.metadata.src_node_id for m in inner.heard] == [node_of(i) for i in range(5)]


def test_scrambled_arrays_are_put_in_the_global_models_order(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    def scramble(_message: Message, reply: Message) -> list[Message]:
        for key, record in reply.content.array_records.items():
            names = list(record)[::-1]
            reply.content[key] = ArrayRecord({n: record[n] for n in names})
        return [reply]

    ours = new_shield(INNER["DP"]()).start(new_grid(transport=scramble), initial, num_rounds=1)
    plain = new_shield(INNER["DP"]()).start(new_grid(), initial, num_rounds=1)
    assert values(ours.arrays) == values(plain.arrays)


@pytest.mark.parametrize("mode", ["filter", "downweight", "monitor"])
def test_an_update_that_outgrew_the_round_is_not_even_inspected(
    mode: str,
    new_grid: Build,
    new_shield: Build,
    scripted: Build,
    node_of: Build,
    initial: ArrayRecord,
) -> None:
    def boost(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == node_of(2):
            for record in reply.content.array_records.values():
                record.update(to_record({"k": np.full((2, 3), 5e4, np.float32)}))
        return [reply]

    inspector = scripted()
    shield = new_shield(FedAvg(), mode=mode, inspector=inspector)
    grid = new_grid(transport=boost)
    ours = shield.start(grid, initial, num_rounds=1)
    alone = new_shield(FedAvg()).start(new_grid(without=[2]), initial, num_rounds=1)

    if mode != "monitor":
        assert values(ours.arrays) == values(alone.arrays)
    assert inspector.n_examples == [[10, 11, 13, 14]]
    assert inspector.remembered == [[True] * 4]
    verdict = shield.history_[0].verdicts[2]
    assert verdict.action is (Action.DOWNWEIGHT if mode == "downweight" else Action.DROP)
    assert (verdict.applied, verdict.weight) == (mode != "monitor", 0.0)
    # 5e4 * sqrt(6) beside the global model's sqrt(0 + 1 + 4 + 9 + 16 + 25) / 7.
    assert verdict.reasons == ("the norm of array 'k' is 1.16e+05 times the round's",)


def test_unreadable_scores_count_as_the_worst(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(FedAvg(), inspector=scripted(limit=0.45, score=float("nan")))
    shield.start(new_grid(), initial, num_rounds=1)
    assert [v.action for v in shield.history_[0].verdicts] == [Action.KEEP] * 4 + [Action.DROP]


def test_clients_are_remembered_by_the_operators_name(
    new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    grid = new_grid()
    shield = new_shield(
        FedAvg(),
        inspector=scripted(limit=0.45),
        client_id=lambda node: f"site-{grid.context(node).node_config['partition-id']}",
    )
    shield.start(grid, initial, num_rounds=2)
    last = shield.history_[1].verdicts[-1]
    assert last.client_id == "site-4"
    assert last.reputation < shield.history_[0].verdicts[-1].reputation < 1
    assert "suspicious before" in last.reasons[0]


def test_the_audit_is_told_everything_in_order(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    notebook = Notebook()
    shield = new_shield(FedAvg(), audit=notebook, seed=5)
    assert shield.run_id_ == ""
    shield.start(new_grid(), initial, num_rounds=2)
    (start, settings), *rounds, end = notebook.lines
    assert start == "start"
    assert (settings["strategy"], settings["mode"], settings["seed"]) == ("FedAvg", "filter", 5)
    assert (settings["n_parameters"], settings["n_clean"]) == (17, 4)
    assert tuple(record for _, record in rounds) == shield.history_
    assert end == ("run-1", "finished")
    assert shield.run_id_ == "run-1"
    for record in shield.history_:
        assert 0 < record.shield_seconds < record.round_seconds


def test_the_same_shield_runs_a_second_time_as_a_run_of_its_own(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    notebook = Notebook()
    shield = new_shield(FedAvg(), audit=notebook)
    for _ in range(2):
        shield.start(new_grid(), initial, num_rounds=1)
    kinds = [line[0] if line[0] == "start" else type(line[1]).__name__ for line in notebook.lines]
    assert kinds == ["start", "RoundRecord", "str"] * 2


def test_no_training_asked_for_is_no_round(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(FedAvg(fraction_train=0.0))
    result = shield.start(new_grid(), initial, num_rounds=1)
    assert values(result.arrays) == values(initial)
    assert shield.history_ == ()


def test_summary_says_what_is_set(new_shield: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="flwr.fl_shield"):
        new_shield(FedAvg(), mode="downweight", min_kept=2).summary()
    assert "Shield around FedAvg" in caplog.text
    assert "Mode: downweight (FPR budget 0.05)" in caplog.text
    assert "Fewest replies kept: 2" in caplog.text


def test_impossible_settings_are_refused(new_shield: Build, clean: Samples) -> None:
    with pytest.raises(ValueError, match="min_kept must be >= 1, got 0"):
        new_shield(FedAvg(), min_kept=0)
    with pytest.raises(ValueError, match="mode must be one of"):
        new_shield(FedAvg(), mode="block")
    with pytest.raises(ValueError, match="max_weight must be at least 1"):
        new_shield(FedAvg(), max_weight=0.5)
    with pytest.raises(ValueError, match="FedXgbBagging aggregates trees"):
        new_shield(FedXgbBagging())
    with pytest.raises(ShieldError, match="call configure_train before aggregate_train"):
        new_shield(FedAvg()).aggregate_train(1, [])


def test_a_model_of_another_architecture_is_refused(
    clean: Samples, new_grid: Callable[..., Grid], initial: ArrayRecord
) -> None:
    shield = ShieldedStrategy(FedAvg(), model=nn.Linear(2, 2), clean_data=clean)
    with pytest.raises(ValueError, match=r"not one of Linear: .*ArrayRecord\(model.state_dict"):
        shield.start(new_grid(), initial)


def test_an_audit_may_be_given_as_a_url_or_a_path(
    tmp_path: Path, new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    path = tmp_path / "audit.db"
    for audit in (f"sqlite:///{path}", path):
        shield = new_shield(FedAvg(), audit=audit)
        shield.start(new_grid(), initial, num_rounds=2)
        store = AuditStore(path)
        assert len(list(store.rounds(shield.run_id_))) == 2
        assert store.verify().ok


def test_an_evaluation_that_nobody_answered_is_no_metric(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    def transport(message: Message, reply: Message) -> list[Message]:
        return [reply] if message.metadata.message_type == "train" else []

    shield = new_shield(FedAvg())
    result = shield.start(new_grid(transport=transport), initial, num_rounds=1)
    assert result.evaluate_metrics_clientapp == {}
    assert [v.action for v in shield.evaluation_refusals_[1]] == [Action.MISSING] * 5


def test_an_inspector_that_miscounts_is_found_out(
    new_grid: Build, new_shield: Build, initial: ArrayRecord
) -> None:
    class Miscounting:
        def inspect(self, *_: Any, **__: Any) -> Inspection:
            one = np.ones(1)
            return Inspection(scores=one, p_values=one, view_names=(), view_scores=one[:, None])

        def remember(self, trusted: Flags, doubts: Floats | None = None) -> None:
            raise AssertionError("nothing to remember")

    shield = new_shield(FedAvg(), inspector=Miscounting())
    with pytest.raises(ValueError, match="must return 5 scores and p-values, got shapes"):
        shield.start(new_grid(), initial, num_rounds=1)


def test_the_shipped_detector_stands_guard_by_default() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((12, 1, 8, 8)).astype(np.float32)
    y = np.arange(12) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    start = {
        name: rng.normal(scale=0.2, size=a.shape).astype(np.float32)
        for name, a in get_arrays(model).items()
    }

    def client(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        own = np.random.default_rng(i)
        arrays = from_record(message.content.array_records["arrays"])
        noise = {n: own.normal(scale=0.01, size=a.shape) for n, a in arrays.items()}
        moved = to_record({n: (a + noise[n]).astype(a.dtype) for n, a in arrays.items()})
        metrics = MetricRecord({"num-examples": 10})
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    shield = ShieldedStrategy(
        FedAvg(fraction_evaluate=0.0), model=model, clean_data=(torch.from_numpy(x), y)
    )
    shield.start(InProcessGrid(client, node_configs(6)), to_record(start), num_rounds=1)
    [record] = shield.history_
    assert len(record.verdicts) == 6
    for verdict in record.verdicts:
        assert verdict.score is not None
        assert 0 <= verdict.score <= 1
        assert "update:1.weight" in verdict.view_scores
