"""One integer becomes streams: the same every time, and nothing to do with each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fl_shield.rng import keyed, streams, torch_generator


def test_streams_are_numpys_spawned_children_in_order() -> None:
    first, second = np.random.SeedSequence(7).spawn(2)
    found = streams(7, ["clients", "attack"])
    assert list(found) == ["clients", "attack"]
    assert found["clients"].random() == np.random.default_rng(first).random()
    assert found["attack"].random() == np.random.default_rng(second).random()


def test_streams_repeat_with_the_seed_and_differ_without_it() -> None:
    def draw(seed: int) -> list[float]:
        return [float(g.random()) for g in streams(seed, ["a", "b", "c"]).values()]

    assert draw(3) == draw(3)
    assert len({*draw(3), *draw(4)}) == 6


def test_a_name_appended_at_the_end_changes_no_other_stream() -> None:
    short, long = streams(1, ["a", "b"]), streams(1, ["a", "b", "c"])
    assert [g.random() for g in short.values()] == [long["a"].random(), long["b"].random()]


def test_drawing_from_one_stream_moves_no_other() -> None:
    used, fresh = streams(1, ["a", "b"]), streams(1, ["a", "b"])
    used["a"].random(1000)
    assert used["b"].random() == fresh["b"].random()


def test_streams_are_not_correlated() -> None:
    draws = np.array([g.normal(size=4000) for g in streams(0, list("abcdef")).values()])
    correlation = np.corrcoef(draws) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_no_names_no_streams() -> None:
    assert streams(0, []) == {}


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        streams(-1, ["a"])
    with pytest.raises(ValueError, match="non-negative"):
        keyed(-1, 0)


def test_every_cell_of_a_grid_has_its_own_generator() -> None:
    cells = [*itertools.product(range(8), range(8)), *((i,) for i in range(8)), (0, 0, 0)]
    first = {cell: float(keyed(5, *cell).random()) for cell in cells}
    assert len(set(first.values())) == len(cells)
    assert first == {cell: float(keyed(5, *cell).random()) for cell in reversed(cells)}
    assert keyed(6, 1, 1).random() != first[1, 1]


def test_keyed_takes_large_node_ids() -> None:
    """Flower's node ids are 64 bits wide; the high word counts."""
    low, high = keyed(0, 1), keyed(0, 1 + 2**63)
    assert low.random() != high.random()


def test_torch_generator_follows_the_numpy_one() -> None:
    def draw(seed: int, skip: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        for _ in range(skip):
            torch_generator(rng)
        return torch.rand(4, generator=torch_generator(rng))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), draw(0, skip=1))
    seed = int(np.random.default_rng(0).integers(0, 2**63 - 1))
    assert torch.equal(draw(0), torch.rand(4, generator=torch.Generator().manual_seed(seed)))


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(keyed(0, 1)))
    assert torch.equal(torch.get_rng_state(), before)
