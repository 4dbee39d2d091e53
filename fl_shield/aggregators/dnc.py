"""Divide and Conquer: filter out the updates that stretch the round along one direction."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    State,
    check_round,
    names_of,
)
from fl_shield.aggregators.krum import check_share, count_byzantine
from fl_shield.types import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class DnC:
    """Averages, without example counts, the updates with small parts along the top direction.

    Each pass draws some parameters, centres the updates on their mean there, and scores each by
    its squared projection on the top right singular vector; the clients of highest scores are
    filtered out. Who is filtered out in no pass is kept. If the passes leave nobody, those who
    were filtered out least often are kept.

    Attributes
    ----------
    byzantine_share : float
        Share of attackers that the server expects, in [0, 0.5): m = share x n of the paper,
        rounded down, at least 1 where the share is > 0. The paper takes the true number.
    filter_factor : float
        How many times m clients a pass filters out, > 0; c of the paper.
    n_passes : int
        Draws of parameters, >= 1; public implementations take 1 or 5.
    n_parameters : int
        How many parameters a pass draws at most, >= 1; b of the paper.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021, algorithm 2. Public implementations average an
    empty set, which is not a number, where the passes leave nobody (vio1etus/FLPoison), and fail
    on models with fewer parameters than they draw (JianXu95/SignGuard).

    Examples
    --------
    >>> outlier_scores(np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).round(6)
    array([1., 4., 1.])
    """

    byzantine_share: float = 0.2
    filter_factor: float = 1.0
    n_passes: int = 1
    n_parameters: int = 10_000

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_share(self.byzantine_share)
        if not self.filter_factor > 0:
            raise ValueError(f"filter_factor must be > 0, got {self.filter_factor}")
        if self.n_passes < 1 or self.n_parameters < 1:
            raise ValueError(
                f"n_passes and n_parameters must be >= 1, got {self.n_passes} and "
                f"{self.n_parameters}"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Filter and average; who is kept votes."""
        check_round(updates, weights, self.min_clients, "dnc")
        n, size = updates.shape
        expected = count_byzantine(self.byzantine_share, n, (n - 1) // 2)
        n_filtered = min(int(self.filter_factor * expected + 1e-9), n - 1)
        scores, times = np.zeros(n), np.zeros(n)
        for _ in range(self.n_passes):
            drawn = context.rng.choice(size, min(size, self.n_parameters), replace=False)
            found = outlier_scores(updates[:, drawn])
            times += highest(found, n_filtered)
            scores += found / self.n_passes
        kept = times == times.min()
        gone = names_of([context.client_ids[i] for i in np.flatnonzero(~kept)])
        note = f"filtered {int((~kept).sum())} of {n} ({gone}); passes: {self.n_passes}"
        update = updates[kept].mean(0)
        votes = kept.astype(np.float64)
        return Aggregate(update=update, votes=votes, scores=scores, note=note), state


def outlier_scores(updates: Floats) -> Floats:
    """Squared part of each centred update ``(n, b)`` along the top right singular vector: ``(n,)``.

    Computed from the n x n inner products, whose top eigenvector is the left singular vector.

    Examples
    --------
    >>> outlier_scores(np.ones((3, 2)))
    array([0., 0., 0.])
    """
    centred = updates.astype(np.float64)
    centred -= centred.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    scores: Floats = max(float(values[-1]), 0.0) * vectors[:, -1] ** 2
    return scores


def highest(scores: Floats, n_highest: int) -> Flags:
    """Flags ``(n,)`` of the n_highest scores.

    Examples
    --------
    >>> highest(np.array([1.0, 3.0, 2.0]), 1)
    array([False,  True, False])
    """
    flags = np.zeros(len(scores), bool)
    flags[np.argsort(-scores, kind="stable")[:n_highest]] = True
    return flags
