"""Work shared between processes, on this machine or on a Ray cluster."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from fl_shield.errors import ScenarioError

Item = TypeVar("Item")
Found = TypeVar("Found")

LOCAL = "local"
"""Address of a Ray cluster that is started for the work, on this machine."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who works.

    Attributes
    ----------
    n_processes : int
        Processes of this machine; at most one is this process itself.
    ray_address : str, optional
        A Ray cluster that works instead: ``local``, ``auto`` or ``host:port``. Its machines must
        see the data and the cache under the same paths.
    """

    n_processes: int = 1
    ray_address: str | None = None


HERE = Workers()
"""This process alone."""


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
    with _pool(n_workers, len(items)) as pool:
        yield from pool.map(work, items)


def as_done(
    work: Callable[[Item], Found], items: Sequence[Item], workers: Workers
) -> Iterator[Found]:
    """Results for every item, as they come; a process works on one thread.

    Parameters
    ----------
    work : callable
        A function of a module, or a :func:`functools.partial` of one.
    items : sequence
    workers : Workers

    Examples
    --------
    >>> sorted(as_done(abs, [-1, 2, -3], Workers()))
    [1, 2, 3]
    """
    if not items:
        return
    if workers.ray_address is not None:
        yield from _on_ray(work, items, workers, workers.ray_address)
    elif workers.n_processes <= 1:
        yield from map(work, items)
    else:
        with _pool(workers.n_processes, len(items)) as pool:
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()


def _pool(n_workers: int, n_items: int) -> ProcessPoolExecutor:
    spawn = get_context("spawn")
    return ProcessPoolExecutor(min(n_workers, n_items), spawn, torch.set_num_threads, (1,))


def _on_ray(
    work: Callable[[Item], Found], items: Sequence[Item], workers: Workers, address: str
) -> Iterator[Found]:
    import ray  # takes seconds

    def alone(item: Item) -> Found:
        torch.set_num_threads(1)
        return work(item)

    _join(ray, workers, address)
    try:
        remote = ray.remote(num_cpus=1)(alone)
        pending = [remote.remote(item) for item in items]
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    finally:
        ray.shutdown()


def _join(ray: Any, workers: Workers, address: str) -> None:
    """Start a cluster on this machine, or join the one at an address."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == LOCAL:
        settings |= {"num_cpus": workers.n_processes, "include_dashboard": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a tip about accelerators
            ray.init(address=address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ScenarioError(
            f"no Ray cluster answers at {address!r} ({error}); start one with 'ray start --head' "
            "and name its host:port, or leave --ray-address out to use processes"
        ) from error
