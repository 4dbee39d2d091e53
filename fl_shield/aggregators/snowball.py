"""Snowball: clients elect a few updates from below, and those let more in from above."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    Layout,
    State,
    check_round,
    names_of,
    weighted_mean,
)
from fl_shield.aggregators.difference_autoencoder import DifferenceAutoencoder
from fl_shield.aggregators.inner_products import squared_distances
from fl_shield.rng import torch_generator
from fl_shield.types import Floats, Ints

_SAME = 1e-9  # votes that differ by less are the same, whatever order they were added in


@dataclass(frozen=True, kw_only=True)
class Snowball:
    """Elects a few updates by everybody's votes, then enlarges them by an autoencoder.

    Election from below: in each tensor of the first and of the last layer, every client groups
    all updates by K-means, starting from itself and from the updates farthest from it, and votes
    for its own group; the vote counts by how well its groups are separated. The most voted tenth
    is elected. Election from above: a variational autoencoder learns the differences between
    elected updates, and those whose differences from them it reproduces best join, step by step,
    up to half of the round. The elected are averaged by example counts.

    The best separated groups have the most say: attackers who are much more alike than honest
    clients are, and who all come to one round, vote themselves in. The rule is made for attackers
    who are scattered, or who hide among honest clients.

    Attributes
    ----------
    n_far : int
        Farthest updates that start a group of their own; at most n - 2 in a round of n.
    elected_share, final_share, growth : float
        Shares of the round elected from below, elected in the end, and added in one step.
    n_warmup_rounds : int
        First rounds with the election from below only. Published: MNIST 25, FEMNIST 80, CIFAR-10
        100, others 30.
    n_first_epochs, n_later_epochs : int
        Epochs of the autoencoder on the first elected, and after each enlargement. Published: 270
        and 30 (FEMNIST 360 and 40); the defaults here are quicker.
    n_hidden, n_latent : int
        Widths of the autoencoder; the defaults are the published ones.

    References
    ----------
    Qin et al., "Resisting Backdoor Attacks in Federated Learning via Bidirectional Elections and
    Individual Perspective", AAAI 2024, algorithms 1 to 3. The public implementation elects a
    single update in rounds of ten or fewer and then has no difference to learn; it divides by 0
    where all separations are equal, and finds the first layer by a part of its name, which other
    layers share. Here at least two are elected, equal separations all count in full, and layers
    are found by their place in the model. Equal votes go by the order of client names.

    Examples
    --------
    >>> arrays = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 2), np.float32)}
    >>> context = AggregationContext(
    ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays),
    ...     client_ids=tuple("abcd"), rng=np.random.default_rng(0))
    >>> updates = np.array([[1.0, 0, 0, 1], [1.1, 0, 0, 1], [0.8, 0, 0, 1], [-5, 3, 3, -5]])
    >>> found, _ = Snowball().step(updates, np.ones(4), {}, context)
    >>> found.votes, found.note
    (array([1., 1., 0., 0.]), 'elected 2 of 4 from below, then 0 from above (warm-up): a, b')
    """

    n_far: int = 10
    elected_share: float = 0.1
    final_share: float = 0.5
    growth: float = 0.05
    n_warmup_rounds: int = 30
    n_first_epochs: int = 60
    n_later_epochs: int = 10
    n_hidden: int = 256
    n_latent: int = 64

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        shares = (self.elected_share, self.final_share, self.growth)
        if not all(0 < share <= 1 for share in shares):
            raise ValueError(f"elected_share, final_share, growth must be in (0, 1], got {shares}")
        if min(self.n_far, self.n_hidden, self.n_latent) < 1:
            raise ValueError(
                "n_far, n_hidden and n_latent must be >= 1, got "
                f"{self.n_far}, {self.n_hidden} and {self.n_latent}"
            )
        if min(self.n_warmup_rounds, self.n_first_epochs, self.n_later_epochs) < 0:
            raise ValueError(
                "n_warmup_rounds, n_first_epochs and n_later_epochs must be >= 0, got "
                f"{self.n_warmup_rounds}, {self.n_first_epochs} and {self.n_later_epochs}"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Elect from below and, after the warm-up, from above; average the elected."""
        check_round(updates, weights, self.min_clients, "snowball")
        order = np.argsort(context.client_ids, kind="stable")
        watched = [updates[order, s].astype(float) for s in watched_tensors(context.layout)]
        votes = sum((tensor_votes(rows, self.n_far) for rows in watched), np.zeros(len(order)))
        first = most_voted(votes, max(math.ceil(self.elected_share * len(order)), 2))
        warm = context.server_round <= self.n_warmup_rounds
        chosen = first if warm else self._enlarged(np.hstack(watched), first, context.rng)
        kept = np.zeros(len(order))
        kept[order[chosen]] = 1.0
        suspicion = np.empty(len(order))
        suspicion[order] = 1.0 - votes / max(float(votes.max()), _SAME)
        names = names_of([context.client_ids[i] for i in order[np.sort(chosen)]])
        note = (
            f"elected {len(first)} of {len(order)} from below, then {len(chosen) - len(first)} "
            f"from above{' (warm-up)' if warm else ''}: {names}"
        )
        update = weighted_mean(updates, weights * kept)
        return Aggregate(update=update, votes=kept, scores=suspicion, note=note), state

    def _enlarged(self, rows: Floats, first: Ints, rng: np.random.Generator) -> Ints:
        """Let in those whose differences from the elected ``rows`` are reproduced best."""
        points = torch.from_numpy(rows.astype(np.float32))
        generator = torch_generator(rng)
        autoencoder = DifferenceAutoencoder(
            points.shape[1], self.n_hidden, self.n_latent, generator=generator
        )
        chosen = [int(i) for i in first]
        n_final = int(self.final_share * len(rows))
        n_epochs = self.n_first_epochs + self.n_later_epochs
        while len(chosen) < n_final:
            autoencoder.train_on(differences(points, chosen, chosen), n_epochs, generator)
            rest = [i for i in range(len(rows)) if i not in chosen]
            errors = [
                float(autoencoder.errors(differences(points, chosen, [i]), generator).mean())
                for i in rest
            ]
            n_more = min(math.ceil(self.growth * len(rows)), n_final - len(chosen))
            chosen += [rest[i] for i in np.argsort(errors, kind="stable")[:n_more]]
            n_epochs = self.n_later_epochs
        return np.array(chosen)


def watched_tensors(layout: Layout) -> list[slice]:
    """Where the first layer's and the last layer's tensors stand in a flat update.

    The first layer owns the first tensor of two or more dimensions; the last layer is the head.
    A model without either is watched as a whole.

    Examples
    --------
    >>> shapes = {"a.weight": (2, 3), "a.bias": (2,), "norm.weight": (2,), "fc.weight": (4, 2)}
    >>> watched_tensors(Layout.of({n: np.zeros(s, np.float32) for n, s in shapes.items()}))
    [slice(0, 6, None), slice(6, 8, None), slice(10, 18, None)]
    """
    matrices = [layer.name for layer in layout.layers if len(layer.shape) >= 2]
    first = matrices[0].rpartition(".")[0] if matrices else ""
    mine = {matrices[0]} if matrices else set()
    if first:
        mine |= {la.name for la in layout.layers if la.name.rpartition(".")[0] == first}
    return [layout.slices[la.name] for la in layout.layers if la.is_head or la.name in mine] or [
        slice(0, layout.size)
    ]


def tensor_votes(rows: Floats, n_far: int) -> Floats:
    """Votes that each update ``(n, d)`` of one tensor gets from all clients, ``(n,)``.

    K-means and the separation depend on distances only, and the differences of all updates from
    one's own have the distances of the updates themselves: so all clients share one table of
    distances, and the work in ``d`` is done once.

    Examples
    --------
    >>> tensor_votes(np.array([[0.0], [0.1], [0.2], [9.0]]), 1).round(2)
    array([3., 3., 3., 1.])
    """
    squared = squared_distances(rows)
    n_clients = len(rows)
    n_starts = min(n_far, n_clients - 2)
    groups, separations = [], []
    for i in range(n_clients):
        far = np.argsort(squared[i], kind="stable")
        far = far[far != i][-n_starts:]
        labels = grouped(squared, [i, *far])
        groups.append(labels == labels[i])
        separations.append(separation(squared, labels))
    spread, most = float(np.ptp(separations)), max(separations)
    say = np.ones(n_clients)
    if spread > _SAME * most:
        say = (np.array(separations) - min(separations)) / spread
    votes: Floats = say @ np.stack(groups)
    return votes


def grouped(squared: Floats, starts: Sequence[int] | Ints) -> Ints:
    """Groups of Lloyd's K-means, told by squared distances ``(n, n)`` alone: labels ``(n,)``.

    The first centres are the points at ``starts``; a point between equally near centres goes to
    the first of them, and a group that loses all its points ends.

    Examples
    --------
    >>> grouped(squared_distances(np.array([[0.0], [1.0], [10.0], [11.0]])), [0, 3])
    array([0, 0, 1, 1])
    """
    members = np.eye(len(squared))[list(starts)]
    labels: Ints = np.full(len(squared), -1)
    for _ in range(300):
        inner = squared @ members.T
        own = np.einsum("kn,nk->k", members, inner)
        nearest = np.argmin(inner - own / 2, axis=1)
        if (nearest == labels).all():
            break
        labels = nearest
        members = np.stack([labels == k for k in np.unique(labels)]).astype(np.float64)
        labels = np.unique(labels, return_inverse=True)[1]
        members /= members.sum(1, keepdims=True)
    return labels


def separation(squared: Floats, labels: Ints) -> float:
    """Calinski-Harabasz score of groups told by squared distances ``(n, n)``; 0 for one group.

    Examples
    --------
    >>> squared = squared_distances(np.array([[0.0], [1.0], [10.0], [11.0]]))
    >>> separation(squared, np.array([0, 0, 1, 1]))
    200.0
    """
    n_points, names = len(labels), np.unique(labels)
    if not 1 < len(names) < n_points:
        return 0.0
    within = sum(
        float(squared[np.ix_(labels == k, labels == k)].sum()) / (2 * int((labels == k).sum()))
        for k in names
    )
    between = float(squared.sum()) / (2 * n_points) - within
    if within <= 0:
        return 1.0
    return between * (n_points - len(names)) / (within * (len(names) - 1))


def most_voted(votes: Floats, n_elected: int) -> Ints:
    """Indices of the most votes, the first of equal ones first.

    Examples
    --------
    >>> most_voted(np.array([1.0, 3.0, 3.0, 2.0]), 2)
    array([1, 2])
    """
    ranks: Ints = np.argsort(-(votes / _SAME).round(), kind="stable")
    return ranks[:n_elected]


def differences(points: Tensor, a: Sequence[int], b: Sequence[int]) -> Tensor:
    """Differences of points ``(n, d)`` at ``a`` and at ``b``, both ways round; none with itself.

    Examples
    --------
    >>> differences(torch.tensor([[1.0], [3.0]]), [0], [1])
    tensor([[-2.],
            [ 2.]])
    """
    pairs = [(i, j) for i in a for j in b if i != j]
    if list(a) != list(b):
        pairs = [pair for i, j in pairs for pair in ((i, j), (j, i))]
    index = torch.tensor(pairs)
    return points[index[:, 0]] - points[index[:, 1]]
