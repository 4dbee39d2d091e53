"""FLDetector: predict each client's update from its last one; whoever surprises is malicious."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_shield.aggregators.contract import (
    TINY,
    Aggregate,
    AggregationContext,
    State,
    check_round,
    names_of,
    norms_of,
    weighted_mean,
)
from fl_shield.aggregators.inner_products import inner_products
from fl_shield.types import Flags, Floats

Memory = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class FLDetector:
    """Drops clients whose updates do not follow from their own past, found by clustering.

    An update is predicted as the client's previous one plus an integrated Hessian times the way
    the global model went since; the Hessian is that of L-BFGS over the last ``window`` rounds of
    global models and aggregates. Distances to the predictions, divided by their mean over the
    round, are averaged over each client's last ``window`` ones. Where the gap statistic sees more
    than one cluster of these scores, the higher one of two is malicious.

    The paper has every client in every round. Here a client that was away is predicted over all
    rounds since its last update; one that was away for more than ``window`` rounds counts as
    new. New clients are kept, and score 1 (the mean), until they have a distance. Dividing by the
    mean instead of the sum changes nothing where the same clients take part.

    After a detection the paper starts the training again without those clients. A rule cannot:
    it rejects them from then on, keeps the model, and collects its rounds afresh. Until it has
    ``window`` rounds of history and ``window`` rounds of distances, it keeps everybody: the note
    says so. What it keeps is averaged by example counts (the paper leaves the rule open).

    Attributes
    ----------
    window : int
        Rounds of history, and rounds that a score averages over, >= 1: N of the paper.
    first_round : int
        Last round without predictions: 50 in the authors' code, whose attacks begin there. A
        short federation needs a smaller one, or this rule is the plain mean.
    n_references, max_clusters : int
        Uniform data sets, and most clusters, of the gap statistic: 10 and 7.

    References
    ----------
    Zhang et al., "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via
    Detecting Malicious Clients", KDD 2022, section 4. Byrd et al.,
    "Representations of quasi-Newton matrices", 1994, theorem 2.3 (the compact form). Tibshirani
    et al., "Estimating the number of clusters in a data set via the gap statistic", 2001.
    Public versions compare a client with whoever had its place in the round before
    (thinh-dao/BackFed), or pair a change of the aggregate with the step after it
    (vio1etus/FLPoison).

    Examples
    --------
    >>> FLDetector(first_round=5, window=3).max_clusters
    7
    """

    window: int = 10
    first_round: int = 50
    n_references: int = 10
    max_clusters: int = 7

    min_clients: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.window < 1 or self.first_round < 0:
            raise ValueError(
                f"window must be >= 1 and first_round >= 0, got {self.window} and "
                f"{self.first_round}; the paper takes 10 and 50"
            )
        if self.n_references < 1 or self.max_clusters < 2:
            raise ValueError(
                f"n_references must be >= 1 and max_clusters >= 2, got {self.n_references} and "
                f"{self.max_clusters}; the paper takes 10 and 7"
            )

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Predict, score, cluster, drop, average; remember the round."""
        check_round(updates, weights, self.min_clients, "fldetector")
        memory, ids = dict(state), context.client_ids
        ready = context.server_round > self.first_round and self._is_full(memory)
        known = np.array([f"detected/{client}" not in memory for client in ids])
        if ready:
            self._add_distances(memory, updates, known, context)
        found = self._detected(memory, context.rng) if ready else {}
        kept = known & np.array([client not in found for client in ids])
        update = weighted_mean(updates, weights * kept)
        scores = np.array([_score(memory, client) for client in ids]) if ready else None
        note = self._note(memory, ready, kept, found)
        if found:
            memory = _restarted(memory, found)
        self._remember(memory, updates, kept, update, context)
        votes = kept.astype(np.float64)
        return Aggregate(update=update, votes=votes, scores=scores, note=note), memory

    def _is_full(self, memory: Memory) -> bool:
        return len(memory.get("steps", ())) == self.window

    def _note(self, memory: Memory, ready: bool, kept: Flags, found: dict[str, float]) -> str:
        if not ready:
            return (
                f"kept {int(kept.sum())} of {len(kept)}: {len(memory.get('steps', ()))} of "
                f"{self.window} rounds of history, no prediction before round "
                f"{self.first_round + 1}"
            )
        scored = min(int(memory["scored"]), self.window)
        names = names_of(sorted(found))
        return (
            f"kept {int(kept.sum())} of {len(kept)}, {scored} of {self.window} rounds scored; "
            f"newly detected: {names}"
        )

    def _add_distances(
        self, memory: Memory, updates: Floats, known: Flags, context: AggregationContext
    ) -> None:
        """Append this round's normalised distance of every client that has a past."""
        ids = context.client_ids
        rows = [i for i, c in enumerate(ids) if known[i] and f"update/{c}" in memory]
        memory["scored"] = np.asarray(int(memory.get("scored", 0)) + 1)
        if not rows:
            return
        ages = np.array([int(memory["round"] - memory[f"seen/{ids[i]}"]) for i in rows])
        moved = context.global_vector - memory["model"]
        changes = predicted_changes(memory["steps"], memory["changes"], moved, ages)
        past = np.stack([memory[f"update/{ids[i]}"] for i in rows])
        distances = norms_of(past + changes - updates[rows])
        relative = distances / max(float(distances.mean()), TINY)
        for i, distance in zip(rows, relative, strict=True):
            key = f"distances/{ids[i]}"
            memory[key] = np.append(memory.get(key, np.empty(0)), distance)[-self.window :]

    def _detected(self, memory: Memory, rng: np.random.Generator) -> dict[str, float]:
        """Scores of the clients in the higher of two clusters, by client; of none if it is one."""
        clients = [key.removeprefix("distances/") for key in memory if key.startswith("distances/")]
        if int(memory["scored"]) < self.window or len(clients) < self.min_clients:
            return {}
        scores = np.array([_score(memory, client) for client in clients])
        if n_clusters(scores, rng, self.n_references, self.max_clusters) < 2:
            return {}
        high = scores >= boundary(scores)
        return {client: score for client, score, h in zip(clients, scores, high, strict=True) if h}

    def _remember(
        self,
        memory: Memory,
        updates: Floats,
        kept: Flags,
        aggregate: Floats,
        context: AggregationContext,
    ) -> None:
        """Write the round into the memory; forget what left the window."""
        model, round_now = context.global_vector, int(memory.get("round", 0))
        if "model" in memory:
            for key, row in (
                ("steps", model - memory["model"]),
                ("changes", aggregate - memory["aggregate"]),
            ):
                past = memory.get(key, np.empty((0, len(row)), row.dtype))
                memory[key] = np.vstack([past, row[None]])[-self.window :]
        memory["model"], memory["aggregate"] = model, aggregate.copy()
        for i in np.flatnonzero(kept):
            memory[f"update/{context.client_ids[i]}"] = updates[i].copy()
            memory[f"seen/{context.client_ids[i]}"] = np.asarray(round_now)
        memory["round"] = np.asarray(round_now + 1)
        _forget_absent(memory, self.window)


def _score(memory: Memory, client: str) -> float:
    if f"detected/{client}" in memory:
        return float(memory[f"detected/{client}"])
    distances = memory.get(f"distances/{client}")
    return 1.0 if distances is None else float(distances.mean())


def _restarted(memory: Memory, found: dict[str, float]) -> Memory:
    """Return what outlives a detection: who was detected, and with which score."""
    old = {key: array for key, array in memory.items() if key.startswith("detected/")}
    return {**old, **{f"detected/{c}": np.asarray(score) for c, score in found.items()}}


def _forget_absent(memory: Memory, window: int) -> None:
    """Drop clients whose last update is too old to be predicted from."""
    now = int(memory["round"])
    for client in [key.removeprefix("seen/") for key in memory if key.startswith("seen/")]:
        if now - int(memory[f"seen/{client}"]) > window + 1:
            for part in ("seen", "update", "distances"):
                memory.pop(f"{part}/{client}", None)


def predicted_changes(steps: Floats, changes: Floats, moved: Floats, ages: Any) -> Floats:
    """Hessian times the way of the global model since each client's last update: ``(n, P)``.

    Parameters
    ----------
    steps, changes : (m, P) float array
        Moves of the global model and changes of the aggregate over the last m rounds, oldest
        first.
    moved : (P,) float array
        The latest move of the global model: it belongs to no pair yet.
    ages : (n,) int array
        Rounds since each client's last update, 1 to m + 1.

    Examples
    --------
    >>> steps, changes = np.array([[1.0, 0.0]]), np.array([[-2.0, 0.0]])
    >>> predicted_changes(steps, changes, np.array([1.0, 1.0]), np.array([1, 2]))
    array([[-2., -2.],
           [-4., -2.]])
    """
    ways = np.cumsum(np.vstack([moved[None], steps[::-1]]), axis=0)
    different, which = np.unique(np.asarray(ages), return_inverse=True)
    products = hessian_products(steps, changes, ways[different - 1])
    found: Floats = products[which]
    return found


def hessian_products(steps: Floats, changes: Floats, vectors: Floats) -> Floats:
    """L-BFGS approximation of a Hessian times each of some vectors, ``(k, P)``.

    The compact form of BFGS from the pairs, started from a multiple of the identity that fits
    the latest one. Pairs that say nothing, such as rounds in which nothing moved, are solved in
    the sense of least squares.

    Parameters
    ----------
    steps, changes : (m, P) float array
        Pairs, oldest first: a move, and what it changed of the gradient. The sign of the
        gradient may be turned round: the product then is too.
    vectors : (k, P) float array

    Examples
    --------
    >>> hessian_products(np.array([[2.0, 0.0]]), np.array([[6.0, 0.0]]), np.array([[1.0, 1.0]]))
    array([[3., 3.]])
    """
    by_step, by_change = inner_products(steps, steps), inner_products(steps, changes)
    scale = by_change[-1, -1] / max(by_step[-1, -1], TINY**2)
    lower = np.tril(by_change, -1)
    middle = np.block([[scale * by_step, lower], [lower.T, -np.diag(np.diag(by_change))]])
    toward = np.vstack([scale * inner_products(steps, vectors), inner_products(changes, vectors)])
    solved = np.linalg.lstsq(middle, toward, rcond=None)[0]
    m = len(steps)
    correction = (scale * solved[:m]).T.astype(steps.dtype) @ steps
    correction += solved[m:].T.astype(steps.dtype) @ changes
    products: Floats = np.asarray(scale, steps.dtype) * vectors - correction
    return products


def n_clusters(
    scores: Floats, rng: np.random.Generator, n_references: int = 10, most: int = 7
) -> int:
    """Clusters of scores ``(n,)`` by the gap statistic.

    The first k whose gap the next one does not beat by its error. Scores are scaled to [0, 1]
    and compared with uniform ones. Equal scores are one cluster; where every further cluster
    helps, the answer is ``most`` (or n - 1 if that is fewer).

    Examples
    --------
    >>> n_clusters(np.array([1.0, 1.1, 1.2, 5.0, 5.1, 5.2]), np.random.default_rng(0))
    2
    """
    spread = float(np.ptp(scores))
    if spread <= 1e-9 * max(float(np.abs(scores).max()), TINY):
        return 1
    most = min(most, len(scores) - 1)
    own = np.log(split_costs((scores - scores.min()) / spread, most))
    drawn = rng.uniform(size=(n_references, len(scores)))
    others = np.log([split_costs(values, most) for values in drawn])
    gaps = others.mean(0) - own
    errors = others.std(0) * np.sqrt(1.0 + 1.0 / n_references)
    enough = gaps[:-1] >= gaps[1:] - errors[1:]
    return int(np.argmax(enough)) + 1 if enough.any() else most


def _costs(ordered: Floats) -> Floats:
    """Sum of squares about the mean of ``ordered[i:j]`` at ``[i, j]``; infinite where i > j."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    size = np.arange(len(sums)) - np.arange(len(sums))[:, None]
    total = sums - sums[:, None]
    costs = squares - squares[:, None] - total**2 / np.maximum(size, 1)
    found: Floats = np.where(size < 0, np.inf, np.maximum(costs, 0.0))
    return found


def split_costs(values: Floats, most: int) -> Floats:
    """Least sum of squares within 1, 2 ... ``most`` clusters of values ``(n,)``, exactly.

    Clusters of numbers are intervals, so dynamic programming finds the best ones. At least
    1e-12, so that logarithms stay finite.

    Examples
    --------
    >>> split_costs(np.array([0.0, 1.0, 10.0]), 2).round(3)
    array([60.667,  0.5  ])
    """
    costs = _costs(np.sort(values).astype(np.float64))
    best = costs[0]
    found = [best[-1]]
    for _ in range(1, most):
        best = (best[:, None] + costs).min(0)
        found.append(best[-1])
    return np.maximum(found, 1e-12)


def boundary(scores: Floats) -> float:
    """Smallest score of the higher of the two best clusters of scores ``(n,)``.

    Examples
    --------
    >>> boundary(np.array([5.0, 1.0, 1.5, 6.0]))
    5.0
    """
    ordered = np.sort(scores).astype(np.float64)
    costs = _costs(ordered)
    cuts = costs[0, 1:-1] + costs[1:-1, -1]
    return float(ordered[int(np.argmin(cuts)) + 1])
