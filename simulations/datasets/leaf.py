"""LEAF's json folders, read one shard at a time.

A shard is ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y":
[...]}}}``, plain or gzipped; LEAF writes each user into one shard of ``train/`` and one of
``test/``.

References
----------
S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets.corpus import Owner
from fl_shield.types import Samples

Decode = Callable[[list[Any], list[Any]], Samples]
"""Turns one user's lists x and y into samples; raises ValueError where they cannot be."""


@dataclass(frozen=True, kw_only=True)
class LeafFiles:
    """The shards of one LEAF data set.

    Attributes
    ----------
    train, test : tuple of Path
        Shards in order of their names, at least one each.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...]


def find_leaf(folder: Path) -> LeafFiles | None:
    """Find LEAF shards in a folder, or None where there are none.

    Looks for ``train/`` and ``test/`` in the folder, in its ``data/`` (LEAF's own layout) and in
    its ``leaf_json/``, then for pairs ``*_train.json`` and ``*_test.json`` lying side by side,
    the largest pair first.
    """
    for base in (folder, folder / "data", folder / "leaf_json"):
        train, test = _shards(base / "train"), _shards(base / "test")
        if train and test:
            return LeafFiles(train=train, test=test)
    for base in (folder, folder / "data", folder / "leaf_json"):
        pairs = [(train, partner(train)) for train in _shards(base) if "_train." in train.name]
        pairs = [(train, test) for train, test in pairs if test.is_file()]
        if pairs:
            largest, test_file = max(pairs, key=lambda pair: pair[0].stat().st_size)
            return LeafFiles(train=(largest,), test=(test_file,))
    return None


def partner(train: Path) -> Path:
    """Test shard that lies beside a training shard.

    Examples
    --------
    >>> partner(Path("roles_train.json.gz")).name
    'roles_test.json.gz'
    """
    return train.with_name(train.name.replace("_train.", "_test."))


def _shards(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")]))


def read_leaf(
    files: LeafFiles, decode: Decode, n_owners: int, rng: np.random.Generator
) -> tuple[Owner, ...]:
    """Read usable owners in a drawn order, holding one shard of json in memory at a time.

    Parameters
    ----------
    files : LeafFiles
        Training shards, taken in a drawn order until there are enough owners, and test shards.
    decode : callable
        Lists x, y of one user -> Samples.
    n_owners : int
        Usable owners wanted; fewer come back where the shards hold fewer.
    rng : numpy.random.Generator
        Draws the order of shards and of owners.
    """
    tests = dict(_all_users(files.test, decode))
    owners: dict[str, Owner] = {}
    for i in rng.permutation(len(files.train)):
        for name, train in read_shard(files.train[i], decode):
            if name in owners:
                raise DatasetError(
                    f"user {name!r} occurs twice in {files.train[i].parent}: LEAF writes each "
                    "user once, so join the records first"
                )
            if name in tests:
                owners[name] = Owner(name=name, train=train, test=tests[name])
        if sum(owner.usable for owner in owners.values()) >= n_owners:
            break
    usable = [owner for owner in owners.values() if owner.usable]
    return tuple(usable[i] for i in rng.permutation(len(usable))[:n_owners])


def _all_users(paths: Sequence[Path], decode: Decode) -> Iterator[tuple[str, Samples]]:
    for path in paths:
        yield from read_shard(path, decode)


def read_shard(path: Path, decode: Decode) -> Iterator[tuple[str, Samples]]:
    """Yield each user of one shard with the decoded examples.

    Parameters
    ----------
    path : Path
        ``*.json`` or ``*.json.gz``.
    decode : callable
        Lists x, y of one user -> Samples.
    """
    shard = _parse(path)
    users, user_data = shard.get("users"), shard.get("user_data")
    if not isinstance(users, list) or not isinstance(user_data, dict):
        raise DatasetError(
            f"{path} lacks a list 'users' or an object 'user_data': a LEAF shard has users, "
            "num_samples and user_data; write it again with LEAF's preprocess.sh"
        )
    for user in users:
        record = user_data.get(user) if isinstance(user, str) else None
        x, y = (record.get("x"), record.get("y")) if isinstance(record, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise DatasetError(
                f"user {user!r} in {path} needs lists x and y of one length in user_data: write "
                "the shard again with LEAF's preprocess.sh"
            )
        if y:
            yield user, _decoded(path, user, x, y, decode)


def _parse(path: Path) -> dict[str, Any]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            shard = json.load(stream)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path} cannot be read as LEAF json ({error}): copy it again or leave it out"
        ) from error
    if not isinstance(shard, dict):
        raise DatasetError(f"{path} holds a {type(shard).__name__}: a LEAF shard is a json object")
    return shard


def _decoded(path: Path, user: str, x: list[Any], y: list[Any], decode: Decode) -> Samples:
    try:
        return decode(x, y)
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"examples of user {user!r} in {path} are not of this data set ({error}): point "
            "--data-dir at the right folder"
        ) from error
