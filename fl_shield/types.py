"""The few shapes that every layer of fl_shield agrees on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]
Representation = Literal["profile", "pca"]
"""What the detector reads of a view: comparable numbers, or raw principal coordinates."""

Arrays = Mapping[str, NDArray[Any]]
"""One model: its named tensors, in the order of the global model."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled examples of one owner.

    Attributes
    ----------
    x : (n, ...) array
        Inputs: float32 images ``(n, channels, height, width)`` in [0, 1], or int64 tokens
        ``(n, length)``.
    y : (n,) int64 array
        Labels in ``0 .. n_classes - 1``.

    Examples
    --------
    >>> len(Samples(x=np.zeros((3, 1, 8, 8), np.float32), y=np.zeros(3, np.int64)))
    3
    """

    x: NDArray[Any]
    y: Ints

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y must be equally long, got {len(self.x)} and {len(self.y)}")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Ints | Flags | slice) -> Samples:
        """Return the examples at ``index``."""
        return Samples(x=self.x[index], y=self.y[index])

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        """Return all examples of ``parts``, in order."""
        x = np.concatenate([p.x for p in parts])
        return Samples(x=x, y=np.concatenate([p.y for p in parts]))


class Trigger(Protocol):
    """A fixed backdoor trigger: stamping is deterministic and leaves its input untouched."""

    @property
    def name(self) -> str:
        """Family of the trigger, such as ``patch``."""
        ...

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of inputs ``(n, ...)``: same shape, dtype and value range."""
        ...


@dataclass(frozen=True, kw_only=True)
class View:
    """Points of one space beside clean references of the same space.

    Attributes
    ----------
    name : str
        Where the points come from, such as ``layer:fc1`` or ``update:conv1.weight``.
    points : (n, d) float array
        What is to be judged.
    references : (m, d) float array
        Clean points of the same space, m >= 3.
    statistics, reference_statistics : (n, s) and (m, s) float arrays, optional
        Scalars beside each point that the space itself does not hold, by slot (see
        :mod:`fl_shield.profile`); NaN marks a slot that this view lacks.
    kind : str
        One of :data:`fl_shield.columns.KINDS`.
    depth : float
        Where the view sits in the network, from 0 (input) to 1 (head).
    """

    name: str
    points: Floats
    references: Floats
    statistics: Floats | None = None
    reference_statistics: Floats | None = None
    kind: str = "activation"
    depth: float = 1.0


class Detector(Protocol):
    """The contract of every detector, ours and the published ones: higher = more suspicious."""

    def fit(self, model_or_view: Any, clean: Any = None) -> Self:
        """Learn from clean references only and return self; a second fit forgets the first."""
        ...

    def score(self, points: Any) -> Floats:
        """Suspicion of each point, shape (n,)."""
        ...

    def p_values(self, points: Any) -> Floats:
        """Conformal p-value of each point, shape (n,), in (0, 1]; small = suspicious."""
        ...

    def predict(self, points: Any) -> Flags:
        """True where ``score(points) > threshold_``, shape (n,)."""
        ...


class Action(StrEnum):
    """What the shield did with one client's reply."""

    KEEP = "keep"
    DOWNWEIGHT = "downweight"
    DROP = "drop"
    """A well-formed update that the detector found suspicious."""
    REJECT = "reject"
    """A reply that breaks the contract of the global model."""
    MISSING = "missing"
    """An error reply, or none at all."""


@dataclass(frozen=True, kw_only=True)
class ClientVerdict:
    """Everything decided about one client in one round.

    Attributes
    ----------
    client_id : str
        The authenticated node id, or what the operator's callback made of it.
    action : Action
        What was done (in monitor mode: what would have been done; ``applied`` is then False).
    applied : bool
        Whether the action changed the aggregate.
    weight : float
        Multiplier of the client's vote, in [0, 1]; a kept update in doubt has one below 1.
    n_examples : float, optional
        Example count after capping; None where the reply had no usable one.
    score, p_value : float, optional
        Suspicion in [0, 1] and conformal p-value in (0, 1]; None for malformed replies.
    reputation : float
        Trust after this round, in [0, 1].
    view_scores : mapping of str to float
        Additive contribution of each view to the score's log-odds.
    reasons : tuple of str
        Why, in plain words, the most important first.
    """

    client_id: str
    action: Action
    applied: bool = True
    weight: float = 1.0
    n_examples: float | None = None
    score: float | None = None
    p_value: float | None = None
    reputation: float = 0.0
    view_scores: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round as the shield saw it: the unit that the audit writes in one transaction.

    Attributes
    ----------
    server_round : int
        Flower's round number, from 1.
    mode : str
        ``monitor``, ``filter`` or ``downweight``.
    verdicts : tuple of ClientVerdict
        One for each client that was asked (and each reply nobody asked for).
    shield_seconds : float
        Time spent inside the shield, without the inner strategy.
    round_seconds : float
        Time from the end of configure_train to the end of aggregate_train.
    notes : tuple of str
        What concerned the whole round, such as "nobody left: the old model stays".
    """

    server_round: int
    mode: str
    verdicts: tuple[ClientVerdict, ...]
    shield_seconds: float = 0.0
    round_seconds: float = 0.0
    notes: tuple[str, ...] = ()


class AuditSink(Protocol):
    """Where the shield writes its decisions, such as :class:`fl_shield.audit.AuditStore`."""

    def start_run(self, settings: Mapping[str, Any]) -> str:
        """Open a run and return its id."""
        ...

    def write_round(self, run_id: str, record: RoundRecord) -> None:
        """Write one round in one transaction."""
        ...

    def finish_run(self, run_id: str, status: str = "finished") -> None:
        """Close a run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the detector thinks of one round's well-formed updates, in the order they were given.

    Attributes
    ----------
    scores, p_values : (n,) float arrays
        Suspicion in [0, 1] and conformal p-value in (0, 1] of each update.
    view_names : tuple of str
        The V views that were scored.
    view_scores : (n, V) float array
        Additive contribution of each view to the score's log-odds.
    standard_scores : (n,) float array
        Log-odds beside the references' own, in their spread: what a p-value is read from. Empty
        where an inspector has none.
    notes : tuple of str
        What concerned the whole round, such as "2 references: p-values cannot go below 0.33".
    """

    scores: Floats
    p_values: Floats
    view_names: tuple[str, ...]
    view_scores: Floats
    standard_scores: Floats = field(default_factory=lambda: np.zeros(0))
    notes: tuple[str, ...] = ()


class UpdateInspector(Protocol):
    """Scores one round of client updates; :class:`fl_shield.inspector.Inspector` is ours."""

    def inspect(
        self,
        global_arrays: Arrays,
        updates: Iterable[Arrays],
        n_examples: Floats,
        reports: Sequence[ActivationReport | None] | None = None,
        clients: Sequence[str] = (),
    ) -> Inspection:
        """Read each update once, in order (a generator is welcome), and score them together.

        ``clients`` names who sent each, so that nobody is compared with their own past.
        """
        ...

    def remember(self, trusted: Flags, doubts: Floats | None = None) -> None:
        """Learn from the round just inspected: references for later rounds, and suspects.

        ``doubts`` are in [0, 1]: how much of a suspect each update is, to compare later ones with.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """Pooled activations of a few local samples, as one client claims them: untrusted.

    Attributes
    ----------
    layers : mapping of str to (k, d) float32 array
        One row a sample, by layer name.
    """

    layers: Mapping[str, Floats]


class Attack(Protocol):
    """What a malicious client uploads: a pure function of its context."""

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the arrays to upload: names, shapes and dtypes of the global model."""
        ...


@runtime_checkable
class ShapesTrigger(Protocol):
    """An attack that optimises its own trigger, and stamps with that instead of the given one."""

    def trigger(self, context: AttackContext) -> Trigger:
        """Return the trigger of this round: the same for all malicious clients of the round."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a client trains on its own examples.

    Examples
    --------
    >>> TrainingConfig(n_epochs=2, lr=0.1).batch_size
    32
    """

    n_epochs: int = 1
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Largest gradient norm of one step; 0 = no clipping."""

    def __post_init__(self) -> None:
        if self.n_epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"n_epochs and batch_size must be >= 1, got {self.n_epochs} and {self.batch_size}"
            )
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be > 0, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """All that a malicious client knows in one round.

    Attributes
    ----------
    model : nn.Module
        A scratch network of the global architecture; the attack may overwrite it.
    global_arrays : Arrays
        The model that the server sent.
    data : Samples
        The client's own clean examples.
    peers : tuple of Samples
        Clean examples of every malicious client of this round, this one's first.
    trigger, target_label
        The backdoor that all malicious clients share.
    training : TrainingConfig
        How honest clients train.
    n_clients : int
        Clients in this round.
    rng : numpy.random.Generator
        This client's own stream for this round.
    score : callable, optional
        The server's rule as an adaptive attacker would query it: higher = more suspicious.
    suspicion : callable, optional
        The same with gradients: from the trainable tensors of an upload, by name, to a scalar
        tensor, higher = more suspicious. An attacker who holds the server's detector has it.
    server_round : int
        From 1.
    member, n_members : int
        Place of this client among all malicious clients of the federation, from 0, and their
        number: who plays which part in a distributed attack.
    previous_arrays : Arrays, optional
        The model that the server sent in the round before, where this client knows it.
    benign_uploads : tuple of Arrays
        What benign clients upload in this round: known to an omniscient attacker only. Empty =
        the attacker estimates them by honest training on its peers' examples.
    """

    model: nn.Module
    global_arrays: Arrays
    data: Samples
    peers: tuple[Samples, ...]
    trigger: Trigger
    target_label: int
    training: TrainingConfig
    n_clients: int
    rng: np.random.Generator
    score: Callable[[Arrays], float] | None = None
    suspicion: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    server_round: int = 1
    member: int = 0
    n_members: int = 1
    previous_arrays: Arrays | None = None
    benign_uploads: tuple[Arrays, ...] = ()
