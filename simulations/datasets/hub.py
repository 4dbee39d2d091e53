"""Data sets of flwrlabs on the Hugging Face hub, by owner, through flwr-datasets."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fl_shield.simulations.datasets.corpus import MIN_EXAMPLES, Owner, missing
from fl_shield.types import Samples

DecodeRows = Callable[[Any], Samples]
"""Turns the ``datasets.Dataset`` of one owner into samples, in its order."""


def fetch(name: str, partition_by: str) -> Any:
    """Partitioner over ``flwrlabs/{name}``, one partition an owner.

    Without a network this fails at once, except that ``HF_HUB_OFFLINE=1`` allows a copy in
    Hugging Face's own cache.

    Parameters
    ----------
    name : str
        ``femnist`` or ``shakespeare``.
    partition_by : str
        Column that names the owner.
    """
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not offline and not reachable(hub):
        raise missing(name, f"reach of {hub}", "could not be fetched: no network")
    # imported here: five seconds that no other data set should pay
    from flwr_datasets import FederatedDataset
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner(partition_by=partition_by)
    try:
        federated = FederatedDataset(
            dataset=f"flwrlabs/{name}", partitioners={"train": partitioner}
        )
        federated.load_partition(0, "train")
    except (OSError, ValueError, RuntimeError) as error:
        why = f"could not be fetched ({error})"
        raise missing(name, f"flwr-datasets from {hub}", why) from error
    return partitioner


def reachable(url: str) -> bool:
    """Whether the host of a URL has a known address, or a proxy stands before it."""
    parts = urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme):
        return True
    try:
        socket.getaddrinfo(parts.hostname, parts.port or 443)
    except OSError:
        return False
    return True


def read_partitioner(
    partitioner: Any,
    decode: DecodeRows,
    n_owners: int,
    rng: np.random.Generator,
    *,
    train_share: float,
    gap: int | None = None,
) -> tuple[Owner, ...]:
    """Read a draw of usable owners and split each into train and test.

    Parameters
    ----------
    partitioner : flwr_datasets.partitioner.NaturalIdPartitioner
        With its data set.
    decode : callable
        Rows of one owner -> Samples.
    n_owners : int
        Usable owners wanted; fewer come back where there are fewer.
    rng : numpy.random.Generator
        Draws the owners, and the split where it is drawn.
    train_share : float
        Share of an owner's examples that go to train, in (0, 1).
    gap : int, optional
        None draws the split at random. A number cuts in order of the rows and drops this many
        examples behind the cut, for windows that overlap.
    """
    owners: list[Owner] = []
    for partition_id in rng.permutation(partitioner.num_partitions):
        rows = partitioner.load_partition(int(partition_id))
        if len(rows) < MIN_EXAMPLES:
            continue
        samples = decode(rows)
        n_train = round(train_share * len(samples))
        order = np.arange(len(samples)) if gap is not None else rng.permutation(len(samples))
        owner = Owner(
            name=str(partitioner.partition_id_to_natural_id[int(partition_id)]),
            train=samples.take(np.sort(order[:n_train])),
            test=samples.take(np.sort(order[n_train + (gap or 0) :])),
        )
        if owner.usable:
            owners.append(owner)
        if len(owners) == n_owners:
            break
    return tuple(owners)
