"""What every robust aggregation rule is: one pure step from a round's updates to one update.

An update is flat: what a client's upload changes of the global model's trainable tensors, one
after another. Batch statistics and counters are no parameters: no rule reads them, and whoever
applies a rule averages them by the rule's own votes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.errors import AggregationError
from fl_shield.types import Arrays, Flags, Floats, Samples, TrainingConfig
from fl_shield.updates import Layer, find_update_layers

State = Mapping[str, NDArray[Any]]
"""What a rule carries from round to round: named arrays, so that it can be saved and restored."""

TINY = 1e-12
"""Added to norms before dividing by them."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each trainable tensor of the global model stands in a flat update.

    Attributes
    ----------
    layers : tuple of Layer
        In the model's order; the last one of two or more dimensions and all that follow it are
        the head.
    slices : mapping of str to slice
        By name of the tensor.

    Examples
    --------
    >>> model = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
    >>> layout = Layout.of(model)
    >>> layout.size, layout.slices["fc.bias"]
    (8, slice(6, 8, None))
    """

    layers: tuple[Layer, ...]
    slices: Mapping[str, slice]

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """Read the layout of a model."""
        layers = find_update_layers(arrays)
        ends = list(accumulate(layer.size for layer in layers))
        starts = [0, *ends[:-1]]
        slices = {
            layer.name: slice(start, end)
            for layer, start, end in zip(layers, starts, ends, strict=True)
        }
        return cls(layers=layers, slices=slices)

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(layer.size for layer in self.layers)

    @property
    def head(self) -> slice:
        """Parameters of the last dense layer, weight and bias."""
        own = [self.slices[layer.name] for layer in self.layers if layer.is_head]
        return slice(own[0].start, own[-1].stop) if own else slice(0, self.size)

    def flat(self, arrays: Arrays) -> Floats:
        """Parameters of a model, ``(P,)``, float32 unless one of them is wider."""
        parts = [np.ravel(arrays[layer.name]) for layer in self.layers]
        dtype = np.result_type(np.float32, *parts)
        return np.concatenate([part.astype(dtype, copy=False) for part in parts])

    def shaped(self, vector: Floats) -> dict[str, Floats]:
        """Tensors of a flat vector ``(P,)``, by name: views of it."""
        return {
            layer.name: vector[self.slices[layer.name]].reshape(layer.shape)
            for layer in self.layers
        }


@dataclass(frozen=True, kw_only=True)
class AggregationContext:
    """What the server knows in one round, beside the updates; nothing of it is ground truth.

    Attributes
    ----------
    server_round : int
        From 1.
    global_arrays : Arrays
        The model that the clients were sent.
    layout : Layout
        Of its parameters.
    client_ids : tuple of str
        Who sent each update, in the order of the updates.
    rng : numpy.random.Generator
        The server's own stream for this round.
    model : nn.Module, optional
        Scratch network of the global architecture; a rule may overwrite it.
    clean : Samples, optional
        The server's own clean examples.
    training : TrainingConfig
        How clients train, where the server trains beside them.
    """

    server_round: int
    global_arrays: Arrays
    layout: Layout
    client_ids: tuple[str, ...]
    rng: np.random.Generator
    model: nn.Module | None = None
    clean: Samples | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def global_vector(self) -> Floats:
        """Parameters of the global model, ``(P,)``."""
        return self.layout.flat(self.global_arrays)

    def arrays_of(self, update: Floats) -> dict[str, NDArray[Any]]:
        """Return the global model moved by an update ``(P,)``; batch statistics stay as they are.

        Examples
        --------
        >>> arrays = {"w": np.ones((1, 2), np.float32)}
        >>> context = AggregationContext(
        ...     server_round=1, global_arrays=arrays, layout=Layout.of(arrays), client_ids=(),
        ...     rng=np.random.default_rng(0))
        >>> context.arrays_of(np.array([1.0, 2.0]))
        {'w': array([[2., 3.]], dtype=float32)}
        """
        deltas = self.layout.shaped(update)
        return {
            name: np.asarray(array + deltas[name], dtype=array.dtype)
            if name in deltas
            else np.array(array)
            for name, array in self.global_arrays.items()
        }

    def need_model(self, rule: str) -> tuple[nn.Module, Samples]:
        """Return the scratch network and the clean examples of a rule that cannot do without."""
        if self.model is None or self.clean is None or len(self.clean) == 0:
            raise AggregationError(
                f"{rule} runs the model on clean examples of the server's own; give model= and "
                "clean_data="
            )
        return self.model, self.clean


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What a rule made of one round.

    Attributes
    ----------
    update : (P,) float array
        Change of the global model's parameters.
    votes : (n,) float array
        Part of its say that each update kept, in [0, 1]: 0 = rejected, 1 = heard in full. All 1
        for rules that judge coordinates and not clients.
    scores : (n,) float array, optional
        Suspicion of each update, higher = more suspicious, where the rule has such a thing.
    note : str
        What the rule did in this round, in plain words and numbers.
    """

    update: Floats
    votes: Floats
    scores: Floats | None = None
    note: str = ""

    @property
    def kept(self) -> Flags:
        """Which updates were not rejected, ``(n,)``."""
        return np.asarray(self.votes > 0)


class Aggregator(Protocol):
    """A published rule: frozen settings and one pure step."""

    min_clients: ClassVar[int]
    """Fewest updates that the rule can work with, at its default settings."""

    def step(
        self, updates: Floats, weights: Floats, state: State, context: AggregationContext
    ) -> tuple[Aggregate, State]:
        """Aggregate one round.

        Parameters
        ----------
        updates : (n, P) float array
            One flat update a client, finite; left untouched.
        weights : (n,) float array
            Example counts, > 0.
        state : mapping of str to array
            What the last step returned; empty in the first round.
        context : AggregationContext
            What else the server knows.

        Raises
        ------
        AggregationError
            With fewer updates than the rule needs, or without what the rule needs of the context.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A rule that changes the model before it is sent out."""

    def prepare(
        self, state: State, context: AggregationContext
    ) -> tuple[dict[str, NDArray[Any]], State]:
        """Return the model to send, names and shapes of the global one, and the new state."""
        ...


def check_round(updates: Floats, weights: Floats, n_least: int, rule: str) -> None:
    """Raise AggregationError unless a round has the shapes, and the updates, that a rule needs.

    Examples
    --------
    >>> check_round(np.zeros((3, 2)), np.ones(3), 3, "median")
    """
    if updates.ndim != 2 or weights.shape != updates.shape[:1]:
        raise AggregationError(
            f"updates must be (n, P) with n weights, got {updates.shape} and {weights.shape}"
        )
    if len(updates) < n_least:
        raise AggregationError(
            f"{rule} needs at least {n_least} updates, got {len(updates)}; ask more clients, or "
            "choose another rule"
        )
    if not (weights > 0).all():
        raise AggregationError(f"weights must be > 0, got {weights.min()}")


def weighted_mean(updates: Floats, weights: Floats) -> Floats:
    """Mean of updates ``(n, P)`` by weights ``(n,)`` that are >= 0; zeros where all weigh 0.

    Examples
    --------
    >>> weighted_mean(np.array([[0.0], [3.0]]), np.array([1.0, 2.0]))
    array([2.])
    """
    total = float(weights.sum())
    if total <= 0:
        return np.zeros_like(updates[0])
    shares = (weights / total).astype(updates.dtype)
    mean: Floats = shares @ updates
    return mean


def norms_of(updates: Floats) -> Floats:
    """Euclidean norm of each update ``(n, P)``, shape ``(n,)``, float64.

    Examples
    --------
    >>> norms_of(np.array([[3.0, 4.0]]))
    array([5.])
    """
    squared: Floats = np.einsum("np,np->n", updates, updates, dtype=np.float64)
    norms: Floats = np.sqrt(squared)
    return norms


def clipped(updates: Floats, clip_norm: float) -> Floats:
    """Updates ``(n, P)``, the longer ones shortened to a norm.

    Examples
    --------
    >>> clipped(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    shrunk = np.minimum(1.0, clip_norm / np.maximum(norms_of(updates), TINY))
    out: Floats = updates * shrunk.astype(updates.dtype)[:, None]
    return out


def cosines_of(a: Floats, b: Floats) -> Floats:
    """Cosine of every row of ``a`` ``(n, P)`` with every row of ``b`` ``(m, P)``: ``(n, m)``.

    A row of zeros has cosine 0 with everything.

    Examples
    --------
    >>> cosines_of(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])).round(3)
    array([[1.   , 0.707],
           [0.   , 0.   ]])
    """
    lengths = np.outer(np.maximum(norms_of(a), TINY), np.maximum(norms_of(b), TINY))
    dots: Floats = (a @ b.T).astype(np.float64)
    cosines: Floats = np.clip(dots / lengths, -1.0, 1.0)
    return cosines


def is_plain_mean(aggregate: Aggregate, updates: Floats, weights: Floats) -> bool:
    """Whether a rule returned nothing but the weighted mean: it did not act in this round.

    A defence that silently runs as FedAvg is the commonest fault of public implementations;
    whoever applies a rule asks this each round and writes the answer down.
    """
    mean = weighted_mean(updates, weights)
    off = float(np.linalg.norm(aggregate.update - mean))
    return off <= 1e-6 * max(float(np.linalg.norm(mean)), TINY)


def named(vectors: Mapping[str, Floats] | None = None) -> dict[str, NDArray[Any]]:
    """Return a state that holds copies of named arrays."""
    return {name: np.array(vector) for name, vector in (vectors or {}).items()}


def names_of(rows: Sequence[str]) -> str:
    """Names for a note, at most five of them."""
    shown = ", ".join(rows[:5])
    return f"{shown} and {len(rows) - 5} more" if len(rows) > 5 else shown or "none"
