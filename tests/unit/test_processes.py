"""Work shared between processes and on Ray: every result once, and errors that say what to do."""

from __future__ import annotations

import math

import pytest

from fl_shield.errors import ScenarioError
from fl_shield.simulations.processes import HERE, LOCAL, Workers, as_done, map_in_processes

WAYS = {
    "here": HERE,
    "processes": Workers(n_processes=2),
    "ray": Workers(n_processes=2, ray_address=LOCAL),
}


@pytest.mark.parametrize("workers", WAYS.values(), ids=WAYS)
def test_every_result_comes_once_whoever_works(workers: Workers) -> None:
    assert sorted(as_done(math.isqrt, [16, 0, 9, 1, 4], workers)) == [0, 1, 2, 3, 4]
    assert list(as_done(math.isqrt, [], workers)) == []
    with pytest.raises(ValueError, match="nonnegative"):
        list(as_done(math.isqrt, [-1], workers))


def test_a_cluster_that_does_not_answer_is_named() -> None:
    workers = Workers(ray_address="nowhere")
    with pytest.raises(ScenarioError, match=r"no Ray cluster answers at 'nowhere'.*ray start"):
        list(as_done(math.isqrt, [1], workers))


def test_results_in_order() -> None:
    for n_workers in (1, 2):
        assert list(map_in_processes(math.isqrt, [9, 1, 4], n_workers)) == [3, 1, 2]
