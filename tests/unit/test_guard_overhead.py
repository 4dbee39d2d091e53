"""The guard's benchmark at a tiny size: what it reports, not how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fl_shield.simulations.benchmarks.guard_overhead import Args, main
from fl_shield.simulations.victims.resnet import Norm, resnet18


def test_model_and_guard_are_timed_in_pairs(tmp_path: Path) -> None:
    out, threads = tmp_path / "cost.json", torch.get_num_threads()
    args = Args(side=8, batch_size=2, pairs=2, references=20, threads=1, device="cpu", out=out)
    figures = main(args)
    assert torch.get_num_threads() == threads
    assert json.loads(out.read_text()) == json.loads(json.dumps(figures))
    assert len(figures["pairs"]) == 2
    assert 0 < figures["state_bytes"] < 1_000_000
    assert all(0 < share < 1 for share in figures["outside_forward"].values())
    for clock in ("seconds", "cpu_seconds"):
        row = figures[clock]
        assert row["alone"] > 0
        shares = list(row["overhead"].values())
        assert shares == sorted(shares)
        ratios = [p["guarded"][clock] / p["alone"][clock] - 1 for p in figures["pairs"]]
        assert row["overhead"]["0.5"] == pytest.approx(sum(ratios) / 2)


@pytest.mark.parametrize(("side", "large", "deep"), [(32, False, 4), (64, True, 2)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet_shapes(norm: Norm, side: int, large: bool, deep: int) -> None:
    net = resnet18(7, norm=norm, large=large).eval()
    shapes: list[torch.Size] = []
    net.get_submodule("layer4").register_forward_hook(lambda *parts: shapes.append(parts[2].shape))
    with torch.no_grad():
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 7)
    assert shapes == [(2, 512, deep, deep)]
    assert any(True for _ in net.buffers()) is (norm == "batch")
