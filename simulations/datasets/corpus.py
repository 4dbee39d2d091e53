"""A data set before it is federated: owners with examples of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_shield.errors import DatasetError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets.parts import Parts, PartsRequest, unavailable
from fl_shield.types import Samples

MIN_EXAMPLES = 20
"""Owners with fewer training examples than this, or without a test example, are left out."""


SOURCE_STREAM, SPLIT_STREAM = 0xDA7A, 0xDA7B
"""First keys of the streams of this package, far from the rounds and clients of a simulation."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One writer or role, split into training and test examples.

    Attributes
    ----------
    name : str
        As the source calls the owner.
    train, test : Samples
        This owner's examples.
    """

    name: str
    train: Samples
    test: Samples

    @property
    def usable(self) -> bool:
        """Whether there is enough to make a client of this owner."""
        return len(self.train) >= MIN_EXAMPLES and len(self.test) >= 1


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Examples by owner.

    Attributes
    ----------
    name, kind, n_classes, vocabulary
        As in :class:`~fl_shield.simulations.datasets.federated_data.FederatedData`.
    owners : tuple of Owner
        In drawn order: the first ones become the clients of a natural partition.
    natural : bool
        Whether the owners are real ones (writers, roles) and not one common pool.
    """

    name: str
    kind: str
    n_classes: int
    owners: tuple[Owner, ...]
    vocabulary: str | tuple[str, ...] = ""
    natural: bool = True


def common_pool(name: str, kind: str, parts: Parts) -> Corpus:
    """Corpus without owners, of a data set with a train and a test part.

    Examples
    --------
    >>> few = Samples(x=np.zeros((2, 1, 8, 8), np.float32), y=np.zeros(2, np.int64))
    >>> common_pool("demo", "image", Parts(train=few, test=few, n_classes=2)).natural
    False
    """
    owner = Owner(name=name, train=parts.train, test=parts.test)
    return Corpus(
        name=name,
        kind=kind,
        n_classes=parts.n_classes,
        owners=(owner,),
        vocabulary=parts.words or "",
        natural=False,
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What :func:`~fl_shield.simulations.datasets.load` asks a source for.

    Attributes
    ----------
    n_owners : int
        Usable owners wanted: clients and a reserve for the server; a source may give fewer.
    seed : int
        Seed of the draw (and of generated data).
    data_dir : Path, optional
        Where the user's files are; None = fetch, where the data set can be fetched.
    n_train, n_test : int, optional
        Most examples of each part of a source without owners; None = all.
    """

    n_owners: int
    seed: int = 0
    data_dir: Path | None = None
    n_train: int | None = None
    n_test: int | None = None

    @property
    def parts(self) -> PartsRequest:
        """What it asks of a data set with a train and a test part."""
        return PartsRequest(
            seed=self.seed, data_dir=self.data_dir, n_train=self.n_train, n_test=self.n_test
        )

    def rng(self, *key: int) -> np.random.Generator:
        """Stream of the source, or of one of its owners: no other part draws from it."""
        return keyed(self.seed, SOURCE_STREAM, *key)


def missing(name: str, where: Path | str, why: str = "was not found") -> DatasetError:
    """Error that names the three ways to get a data set.

    Examples
    --------
    >>> str(missing("femnist", "here")).startswith("femnist was not found in here: ")
    True
    """
    ways = (
        "point --data-dir at LEAF's json (train/*.json and test/*.json, also .gz), point it at an "
        "npz file (x, y, owner, split), or leave it out on a machine with a network to fetch "
        f"flwrlabs/{name} through flwr-datasets"
    )
    return unavailable(name, where, ways, why)
