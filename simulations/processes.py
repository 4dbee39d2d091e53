"""Work shared between processes, its results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")


def map_in_processes(
    work: Callable[[Item], Found], items: Sequence[Item], n_workers: int
) -> Iterator[Found]:
    """Results for every item, in order; a process works on one thread.

    Parameters
    ----------
    work : callable
        A function of a module, or a :func:`functools.partial` of one: processes are spawned.
    items : sequence
    n_workers : int
        Processes; at most one, or a single item, is worked on in this process.

    Examples
    --------
    >>> list(map_in_processes(abs, [-1, 2, -3], 1))
    [1, 2, 3]
    """
    if min(n_workers, len(items)) <= 1:
        yield from map(work, items)
        return
    spawn, n_processes = get_context("spawn"), min(n_workers, len(items))
    with ProcessPoolExecutor(n_processes, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, items)
