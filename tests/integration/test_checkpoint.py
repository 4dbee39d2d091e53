"""A run that is saved, lost and resumed goes on as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedYogi
from safetensors.numpy import save_file

from fl_shield.errors import ShieldError
from fl_shield.strategies import (
    SanitisedStrategy,
    checkpointing,
    from_record,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.usefixtures("ordered_sampling")

Build = Callable[..., Any]


def values(arrays: ArrayRecord) -> dict[str, Any]:
    return {name: (a.dtype.str, a.tolist()) for name, a in from_record(arrays).items()}


def test_a_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, new_grid: Build, new_shield: Build, scripted: Build, initial: ArrayRecord
) -> None:
    def new() -> Any:
        return new_shield(FedYogi(), inspector=scripted(limit=0.45))

    path = tmp_path / "runs" / "state.safetensors"
    whole = new()
    expected = whole.start(new_grid(), initial, num_rounds=4)

    first = new()
    first.start(new_grid(), initial, num_rounds=2, evaluate_fn=checkpointing(path, first))
    second = new()
    checkpoint = load_checkpoint(path, second)
    assert checkpoint.server_round == 2
    evaluate = checkpointing(path, second, rounds_done=checkpoint.server_round)
    resumed = second.start(new_grid(), checkpoint.arrays, num_rounds=2, evaluate_fn=evaluate)

    assert values(resumed.arrays) == values(expected.arrays)
    assert second.policy_.suspicion_ == whole.policy_.suspicion_
    assert second.policy_.evidence_ == whole.policy_.evidence_
    assert second.caps_.history_ == whole.caps_.history_
    last, uninterrupted = second.history_[-1].verdicts[-1], whole.history_[-1].verdicts[-1]
    assert last.reputation == uninterrupted.reputation < 1
    assert load_checkpoint(path, new()).server_round == 4
    assert list(path.parent.iterdir()) == [path]


def test_names_order_and_dtypes_come_back(
    tmp_path: Path, new_shield: Build, initial: ArrayRecord
) -> None:
    path = tmp_path / "state.safetensors"
    guarded = SanitisedStrategy(new_shield(FedAvg()))
    save_checkpoint(path, guarded, 7, initial)
    checkpoint = load_checkpoint(path, guarded)
    assert checkpoint.server_round == 7
    assert list(checkpoint.arrays) == list(initial)
    assert values(checkpoint.arrays) == values(initial)


def test_evaluation_goes_on_beside_saving(
    tmp_path: Path, new_shield: Build, initial: ArrayRecord
) -> None:
    def count(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"round": server_round, "n": len(arrays)})

    evaluate = checkpointing(tmp_path / "s.safetensors", new_shield(FedAvg()), count)
    assert evaluate(3, initial) == MetricRecord({"round": 3, "n": 3})


def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, new_shield: Build, initial: ArrayRecord
) -> None:
    shield = new_shield(FedAvg())
    with pytest.raises(ShieldError, match=r"no readable checkpoint at .*save_checkpoint"):
        load_checkpoint(tmp_path / "absent", shield)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x80\x04garbage")
    with pytest.raises(ShieldError, match="no readable checkpoint"):
        load_checkpoint(garbage, shield)
    other = tmp_path / "other"
    save_file({"w": np.zeros(2)}, other)
    with pytest.raises(ShieldError, match="is no fl-shield-checkpoint-1"):
        load_checkpoint(other, shield)
    with pytest.raises(ShieldError, match="FedAvg holds no ShieldedStrategy"):
        save_checkpoint(tmp_path / "x", FedAvg(), 1, initial)
