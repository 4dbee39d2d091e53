"""From a corpus to a federation: who is a client, what the server holds, what is tested."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets.corpus import MIN_EXAMPLES, SPLIT_STREAM, Corpus, Owner
from fl_shield.simulations.datasets.federated_data import FederatedData
from fl_shield.simulations.datasets.partitions import PARTITIONS, dirichlet, iid
from fl_shield.types import Flags, Ints, Samples


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a corpus becomes a federation.

    Attributes
    ----------
    n_clients : int
        Clients, 1 or more.
    partition : str
        ``natural``, ``dirichlet`` or ``iid``.
    alpha : float
        Concentration of the Dirichlet partition.
    n_clean : int
        Examples that the server holds, 1 or more.
    n_test : int
        Most test examples, drawn from all clients together.
    max_per_client : int, optional
        Most training examples of one client; None = all.
    seed : int
        Seed of every draw.
    """

    n_clients: int
    partition: str = "natural"
    alpha: float = 0.5
    n_clean: int = 20
    n_test: int = 2000
    max_per_client: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = ["natural", *PARTITIONS]
        if self.partition not in known:
            raise DatasetError(
                f"partition must be one of {', '.join(known)}, got {self.partition!r}"
            )
        for name in ("n_clients", "n_clean", "n_test", "max_per_client"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"{name} must be >= 1, got {value}")


def federate(corpus: Corpus, split: Split) -> FederatedData:
    """Make clients, a test set and the server's clean examples out of a corpus.

    No example occurs twice: those of the test part are taken out of training, and the clean
    examples come from owners who are not clients, or are cut out before anything is shared.

    Parameters
    ----------
    corpus : Corpus
        Examples by owner.
    split : Split
        Clients, partition, sizes, seed.
    """
    if not corpus.owners:
        raise DatasetError(
            f"{corpus.name} has no owner with {MIN_EXAMPLES} or more training examples and a test "
            "example: take a larger sample"
        )
    stages = ("clean", "partition", "cap", "test")
    rngs = {stage: keyed(split.seed, SPLIT_STREAM, i) for i, stage in enumerate(stages)}
    if split.partition == "natural":
        names, clients, test, clean = _natural(corpus, split, rngs["clean"])
    else:
        names, clients, test, clean = _pooled(corpus, split, rngs["clean"], rngs["partition"])
    if split.max_per_client is not None:
        clients = [_at_most(part, split.max_per_client, rngs["cap"]) for part in clients]
    return FederatedData(
        name=corpus.name,
        kind=corpus.kind,
        clients=tuple(clients),
        client_names=tuple(names),
        test=_at_most(test, split.n_test, rngs["test"]),
        clean=clean,
        n_classes=corpus.n_classes,
        vocabulary=corpus.vocabulary,
    )


Parts = tuple[list[str], list[Samples], Samples, Samples]
"""Client names, clients, test, clean."""


def _natural(corpus: Corpus, split: Split, rng: np.random.Generator) -> Parts:
    if not corpus.natural:
        raise DatasetError(
            f"partition 'natural' needs owners and {corpus.name} has none: "
            "use --partition dirichlet or --partition iid"
        )
    if len(corpus.owners) < split.n_clients:
        raise DatasetError(
            f"{split.n_clients} clients were asked for and {corpus.name} has {len(corpus.owners)} "
            f"owners with {MIN_EXAMPLES} or more training examples: ask for fewer --clients"
        )
    chosen, reserve = corpus.owners[: split.n_clients], corpus.owners[split.n_clients :]
    test = Samples.join([owner.test for owner in chosen])
    clients = _without_repeats([owner.train for owner in chosen], test)
    held = _unseen(reserve, [*clients, test])
    if held is not None and len(held) >= split.n_clean:
        clean = held.take(class_spread(held.y, split.n_clean, rng))
    else:
        clients, clean = _cut(clients, split.n_clean, rng)
    return [owner.name for owner in chosen], clients, test, clean


def _pooled(
    corpus: Corpus, split: Split, clean_rng: np.random.Generator, rng: np.random.Generator
) -> Parts:
    test = Samples.join([owner.test for owner in corpus.owners])
    pool = _without_repeats([owner.train for owner in corpus.owners], test)
    (rest,), clean = _cut([Samples.join(pool)], split.n_clean, clean_rng)
    shares = (
        dirichlet(rest.y, split.n_clients, rng, alpha=split.alpha)
        if split.partition == "dirichlet"
        else iid(rest.y, split.n_clients, rng)
    )
    names = [f"client-{i:03d}" for i in range(split.n_clients)]
    return names, [rest.take(share) for share in shares], test, clean


def class_spread(labels: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Draw ``n`` indices that spread over the classes as evenly as the labels allow.

    Parameters
    ----------
    labels : (m,) int array
        Labels to draw from, m >= n.
    n : int
        How many to draw.
    rng : numpy.random.Generator
        Draws the examples, and the classes that get one more where n is no multiple.

    Examples
    --------
    >>> labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    >>> picked = class_spread(labels, 9, np.random.default_rng(0))
    >>> np.bincount(labels[picked]).tolist() in ([4, 3, 2], [3, 4, 2])
    True
    """
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    rank_of_class = np.empty(len(labels), dtype=np.int64)
    classes = rng.permutation(np.unique(labels))
    for rank, label in enumerate(classes):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
        rank_of_class[members] = rank
    picked: Ints = np.sort(np.lexsort((rank_of_class, turn))[:n])
    return picked


def _cut(parts: list[Samples], n: int, rng: np.random.Generator) -> tuple[list[Samples], Samples]:
    """Move ``n`` class-spread examples out of the parts, at most half of all."""
    pool = Samples.join(parts)
    if len(pool) < 2 * n:
        raise DatasetError(
            f"{n} clean examples cannot be cut out of {len(pool)} (half of them must stay with "
            "the clients): ask for fewer clean examples or more clients"
        )
    picked = np.zeros(len(pool), dtype=np.bool_)
    picked[class_spread(pool.y, n, rng)] = True
    masks = np.split(picked, np.cumsum([len(part) for part in parts])[:-1])
    rest = [part.take(~mask) for part, mask in zip(parts, masks, strict=True)]
    return rest, pool.take(picked)


def _at_most(samples: Samples, n: int, rng: np.random.Generator) -> Samples:
    if len(samples) <= n:
        return samples
    return samples.take(np.sort(rng.permutation(len(samples))[:n]))


def _digests(x: NDArray[Any]) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]


def _without_repeats(parts: list[Samples], test: Samples) -> list[Samples]:
    """Drop training inputs that are in the test part or came before, byte by byte."""
    seen = set(_digests(test.x))
    return [part.take(_new(part.x, seen)) for part in parts]


def _new(x: NDArray[Any], seen: set[bytes]) -> Flags:
    """True where an input is not yet in ``seen``, which it then joins, shape (n,)."""
    fresh = np.zeros(len(x), dtype=np.bool_)
    for i, digest in enumerate(_digests(x)):
        fresh[i] = digest not in seen
        seen.add(digest)
    return fresh


def _unseen(reserve: tuple[Owner, ...], elsewhere: list[Samples]) -> Samples | None:
    """All examples of the owners in reserve that nobody else holds."""
    if not reserve:
        return None
    held = Samples.join([part for owner in reserve for part in (owner.train, owner.test)])
    seen = {digest for part in elsewhere for digest in _digests(part.x)}
    return held.take(_new(held.x, seen))
