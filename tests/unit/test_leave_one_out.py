"""Leave-one-out geometry against the slow way: each reference beside a copy of the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_shield.frame import geometry
from fl_shield.geometry import Geometry
from fl_shield.leave_one_out import leave_one_out


def slowly(rows: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for i in range(len(rows)):
        others = torch.cat([rows[:i], rows[i + 1 :]])
        found.append(geometry(rows[i : i + 1], others))
    return torch.cat([g.columns for g in found]), torch.cat([g.keys for g in found])


def rows_like(kind: str, m: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(m * 100 + d)
    rows = torch.randn(m, d, generator=generator, dtype=torch.float64)
    if kind == "sparse":
        return rows * (rows > 1)
    if kind == "far":
        return rows + 20
    if kind == "lattice":
        return rows.round()
    if kind == "low rank":
        return rows[:, :2] @ torch.randn(2, d, generator=generator, dtype=torch.float64)
    if kind == "one moved":
        rows = torch.zeros_like(rows)
        rows[0, 0] = 1
    return rows


@pytest.mark.parametrize("kind", ["dense", "sparse", "far", "lattice", "low rank", "one moved"])
@pytest.mark.parametrize(("m", "d"), [(4, 2), (6, 40), (20, 20), (21, 20), (30, 8), (12, 300)])
def test_agrees_with_the_slow_way(kind: str, m: int, d: int) -> None:
    rows = rows_like(kind, m, d)
    fast, (columns, keys) = leave_one_out(rows), slowly(rows)
    torch.testing.assert_close(fast.columns.clamp(-8, 8), columns.clamp(-8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.keys.clamp(-8, 8), keys.clamp(-8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("describe", [leave_one_out, lambda rows: geometry(rows[..., :3, :], rows)])
def test_spaces_together_are_as_each_by_itself(describe: Callable[[Tensor], Geometry]) -> None:
    spaces = torch.stack([rows_like(kind, 12, 9) for kind in ("dense", "sparse", "one moved")])
    together = describe(spaces)
    for i, rows in enumerate(spaces):
        alone = describe(rows)
        torch.testing.assert_close(together.columns[i], alone.columns, atol=1e-6, rtol=0)
        torch.testing.assert_close(together.keys[i], alone.keys, atol=1e-6, rtol=0)
