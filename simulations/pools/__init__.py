"""Pools: labelled examples to train single victims on, one loader a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.parts import PartsRequest
from fl_shield.simulations.pools.control import control_pool, policy_return, teacher_return
from fl_shield.simulations.pools.pictures import (
    cifar10_pool,
    digits_pool,
    femnist_pool,
    glyphs_pool,
    gtsrb_pool,
    tiny_imagenet_pool,
)
from fl_shield.simulations.pools.pool import Pool
from fl_shield.simulations.pools.texts import (
    ag_news_pool,
    roles_pool,
    shakespeare_pool,
    sst2_pool,
)

__all__ = ["POOLS", "Pool", "load_pool", "policy_return", "teacher_return"]

POOLS: Mapping[str, Callable[[PartsRequest], Pool]] = {
    "digits": digits_pool,
    "glyphs": glyphs_pool,
    "femnist": femnist_pool,
    "cifar10": cifar10_pool,
    "gtsrb": gtsrb_pool,
    "tiny-imagenet": tiny_imagenet_pool,
    "ag-news": ag_news_pool,
    "sst2": sst2_pool,
    "shakespeare": shakespeare_pool,
    "roles": roles_pool,
    "cartpole": partial(control_pool, "cartpole"),
    "acrobot": partial(control_pool, "acrobot"),
    "mountaincar": partial(control_pool, "mountaincar"),
    "pong": partial(control_pool, "pong"),
}
"""Every pool by name."""


def load_pool(
    name: str,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    cache: str | Path | None = None,
) -> Pool:
    """Load a pool: same arguments and files, same arrays.

    Parameters
    ----------
    name : str
        A key of :data:`POOLS`.
    data_dir : path, optional
        Folder that holds the data sets' folders. None: the set is fetched where it can be; not
        read by digits, glyphs, roles and the control tasks.
    seed : int
        Seed of the draw, and of generated data and played episodes.
    n_train, n_test : int, optional
        Most examples of each part, classes in their proportions; None = all. A smaller draw is
        the beginning of a larger one.
    cache : path, optional
        Folder for decoded pictures (cifar10, tiny-imagenet) and recorded episodes; keep it out of
        version control.

    Raises
    ------
    DatasetError
        For an unknown name, and for a data set that is not there or is broken.

    Examples
    --------
    >>> pool = load_pool("digits", n_train=100)
    >>> pool.train.x.shape, len(pool.test), pool.n_classes
    ((100, 1, 8, 8), 359, 10)
    """
    if name not in POOLS:
        raise DatasetError(f"pool must be one of {', '.join(POOLS)}, got {name!r}")
    if data_dir is not None and not Path(data_dir).exists():
        raise DatasetError(f"data folder {str(data_dir)!r} does not exist: check data_dir")
    request = PartsRequest(
        seed=seed,
        data_dir=None if data_dir is None else Path(data_dir),
        n_train=n_train,
        n_test=n_test,
        cache=None if cache is None else Path(cache),
    )
    return POOLS[name](request)
