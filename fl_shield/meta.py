"""Model-agnostic meta-learning over small simulated backdoor tasks: pure functions over dicts.

The inner loop sees clean references only and pushes their scores down; the outer loop asks the
adapted detector to tell clean from triggered points it has not seen, with second-order
gradients through the inner steps. With a one-class inner loop first-order gradients fail
(one-class MAML), so they are an option for the ablation only.

References
----------
.. [1] C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep
   networks", ICML 2017, Algorithm 1.
.. [2] A. Frikha et al., "Few-shot one-class classification via meta-learning" (OC-MAML),
   AAAI 2021, arXiv 2007.04146: one-class inner loop, balanced outer loop.
.. [3] Z. Li et al., "Meta-SGD", arXiv 1707.09835: learned inner rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fl_shield.network import Params, log_odds
from fl_shield.rng import torch_generator
from fl_shield.types import Flags, Floats, Ints, Representation

RATE_PREFIX = "rate."

Standard = Callable[[Floats], Floats]
"""Brings profiles (n, V, columns) to the scale of meta-training."""


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """How the detector is meta-trained and adapted.

    Attributes
    ----------
    n_hidden : int
        Width of the two-layer MLP.
    n_inner_steps, inner_lr
        Steps and initial rate of the clean-only inner loop; rates are learned, one a tensor.
    outer_lr, n_epochs, batch_size, weight_decay
        Adam on the outer loop; a batch holds that many episodes.
    n_support, n_query : int
        References and points drawn from each episode, n_query / 2 of each class.
    second_order : bool
        Differentiate through the inner gradients.
    dropout : float
        Share of columns that are masked at random in an episode, the same in support and query.
    representation : {"profile", "pca"}
        What the detector reads of a view, see :mod:`fl_shield.representation`.
    conditioned : bool
        Whether it reads each number beside the references' own too, see
        :mod:`fl_shield.conditioning`.
    ensemble : bool
        Whether a verdict on inputs is the mean of the log-odds before and after adaptation, see
        :func:`fl_shield.network.verdicts`. Updates are judged after adaptation: only the round can
        tell what is usual among its clients. Training is the same.
    view_dropout : float
        Share of views that are left out at random of an episode of inputs, at least one stays: a
        detector that can do without any one layer asks less of networks that it has never seen.
        Episodes of updates keep theirs: a federation's model is known, and an attack on one of its
        layers is seen there alone.
    """

    n_hidden: int = 32
    n_inner_steps: int = 3
    inner_lr: float = 0.05
    outer_lr: float = 3e-3
    n_epochs: int = 20
    batch_size: int = 16
    weight_decay: float = 0.1
    n_support: int = 20
    n_query: int = 24
    second_order: bool = True
    dropout: float = 0.3
    representation: Representation = "profile"
    conditioned: bool = False
    ensemble: bool = False
    view_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_hidden", "n_epochs", "batch_size", "n_support", "n_query"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.n_inner_steps < 0:
            raise ValueError(f"n_inner_steps must be >= 0, got {self.n_inner_steps}")
        for name in ("dropout", "view_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One meta-learning task: a victim (or a round), its references and labelled points.

    Attributes
    ----------
    support : (m, V, 135) float array
        Leave-one-out profiles of clean references, one row a view.
    query : (n, V, 135) float array
    labels : (n,) int array
        1 = triggered input or malicious update.
    family, domain : str
        Trigger or attack family, and where the task comes from, such as ``cv-gtsrb``.
    settled : bool
        Whether a round's references include accepted updates of earlier rounds.
    """

    support: Floats
    query: Floats
    labels: Ints
    family: str
    domain: str
    settled: bool = True

    @property
    def of_updates(self) -> bool:
        """Whether its points are clients' updates; inputs otherwise."""
        return self.domain.partition("-")[0] == "fl"


def initial_params(
    n_columns: int, config: MetaConfig, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Draw fresh parameters: two layers, one attention vector, one inner rate a tensor."""
    generator = torch_generator(rng)
    hidden = config.n_hidden
    scale = (1 / n_columns) ** 0.5
    params = {
        name: torch.randn(n_columns, hidden, generator=generator) * scale
        for name in ("w1", "w_mean", "w_max")
    }
    params |= {
        "b1": torch.zeros(hidden),
        "w2": torch.randn(hidden, generator=generator) * (1 / hidden) ** 0.5,
        "b2": torch.zeros(()),
        "attention": torch.zeros(hidden),
    }
    rate = float(np.log(config.inner_lr))
    return params | {RATE_PREFIX + name: torch.tensor(rate) for name in params}


def inner_loss(params: Params, support: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of clean references against "clean": low when their scores are low."""
    losses = torch.nn.functional.softplus(log_odds(params, support, present))
    return (losses * weights).sum() / weights.sum().clamp_min(1e-9)


def adapt(
    params: Params,
    support: Tensor,
    present: Tensor,
    weights: Tensor,
    n_steps: int,
    *,
    second_order: bool = True,
) -> dict[str, Tensor]:
    """Clean-only inner loop: gradient steps on the references, each tensor at its learned rate."""
    fast, rates = _split(params)
    for _ in range(n_steps):
        gradients = torch.func.grad(inner_loss)(fast, support, present, weights)
        if not second_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        fast = _stepped(fast, gradients, rates)
    return {**fast, **rates}


def adapt_each(
    params: Params, support: Tensor, present: Tensor, weights: Tensor, n_steps: int
) -> dict[str, Tensor]:
    """Adapt to the same references under several weights at once, for use and not for training.

    The steps are those of :func:`adapt`. Plain autograd takes the gradients: the first
    ``torch.func.grad`` of a process imports torch's compiler, which takes seconds and 70 MB.

    Parameters
    ----------
    params : mapping
        See :func:`fl_shield.network.contributions`, with one rate a tensor.
    support : (m, V, n_columns) tensor
    present : (V,) tensor
    weights : (k, m) tensor
        A row an adaptation.
    n_steps : int
        Gradient steps.

    Returns
    -------
    dict of str to tensor
        The k adapted values of each parameter along a first axis; no rates.
    """
    fast, rates = _split(params)
    fast = {name: p.expand(len(weights), *p.shape) for name, p in fast.items()}
    losses = torch.func.vmap(inner_loss, in_dims=(0, None, None, 0))
    for _ in range(n_steps):
        live = {name: p.detach().requires_grad_() for name, p in fast.items()}
        with torch.enable_grad():
            total = losses(live, support, present, weights).sum()
        gradients = torch.autograd.grad(total, list(live.values()))
        fast = _stepped(live, dict(zip(live, gradients, strict=True)), rates)
    return {name: p.detach() for name, p in fast.items()}


def _split(params: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters that the inner loop moves, and its rates."""
    rates = {k: v for k, v in params.items() if k.startswith(RATE_PREFIX)}
    return {k: v for k, v in params.items() if k not in rates}, rates


def _stepped(fast: Params, gradients: Params, rates: Params) -> dict[str, Tensor]:
    return {
        name: p - torch.exp(rates[RATE_PREFIX + name]) * gradients[name] for name, p in fast.items()
    }


def balanced_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy in which each class that occurs weighs the same.

    Examples
    --------
    >>> zeros = torch.zeros(3)
    >>> loss = balanced_loss(zeros, torch.tensor([0.0, 0.0, 1.0]), torch.ones(3))
    >>> round(float(loss), 4)
    0.6931
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    positive, negative = weights * labels, weights * (1 - labels)
    shares = positive / positive.sum().clamp_min(1e-9) + negative / negative.sum().clamp_min(1e-9)
    return (losses * shares).sum() / shares.sum().clamp_min(1e-9)


@dataclass(frozen=True)
class Batch:
    """Episodes padded to one shape: B episodes, M references, N points, V views."""

    support: Tensor  # (B, M, V, columns)
    support_weights: Tensor  # (B, M)
    query: Tensor  # (B, N, V, columns)
    query_weights: Tensor  # (B, N)
    labels: Tensor  # (B, N)
    present: Tensor  # (B, V)


def outer_loss(params: Params, batch: Batch, config: MetaConfig) -> Tensor:
    """Mean balanced loss of the adapted detectors on their own queries."""

    def one(s: Tensor, sw: Tensor, q: Tensor, qw: Tensor, y: Tensor, present: Tensor) -> Tensor:
        fast = adapt(params, s, present, sw, config.n_inner_steps, second_order=config.second_order)
        return balanced_loss(log_odds(fast, q, present), y, qw)

    losses = torch.func.vmap(one)(
        batch.support,
        batch.support_weights,
        batch.query,
        batch.query_weights,
        batch.labels,
        batch.present,
    )
    return losses.mean()


def as_it_stands(rows: Floats) -> Floats:
    """Standardise nothing: profiles that have their scale already."""
    return rows


def draw_batch(
    episodes: Sequence[Episode],
    config: MetaConfig,
    rng: np.random.Generator,
    standard: Standard = as_it_stands,
) -> Batch:
    """Draw references and points of each episode, standardise them, and pad them to one shape."""
    n_views = max(e.query.shape[1] for e in episodes)
    n_columns = episodes[0].query.shape[2]
    shape = (len(episodes), n_views, n_columns)
    support = np.zeros((shape[0], config.n_support, *shape[1:]), np.float32)
    query = np.zeros((shape[0], config.n_query, *shape[1:]), np.float32)
    support_weights = np.zeros(support.shape[:2], np.float32)
    query_weights = np.zeros(query.shape[:2], np.float32)
    labels = np.zeros(query.shape[:2], np.float32)
    present = np.zeros(shape[:2], np.float32)
    for i, episode in enumerate(episodes):
        columns = np.asarray(rng.random(n_columns) >= config.dropout, dtype=np.float32)
        views = episode.query.shape[1]
        present[i, :views] = (
            1 if episode.of_updates else _kept_views(views, config.view_dropout, rng)
        )
        rows = _draw(np.arange(len(episode.support)), config.n_support, rng)
        support[i, : len(rows), :views] = standard(episode.support[rows]) * columns
        support_weights[i, : len(rows)] = 1
        picked = _draw_balanced(episode.labels, config.n_query, rng)
        query[i, : len(picked), :views] = standard(episode.query[picked]) * columns
        query_weights[i, : len(picked)] = 1
        labels[i, : len(picked)] = episode.labels[picked]
    tensors = (support, support_weights, query, query_weights, labels, present)
    return Batch(*map(torch.from_numpy, tensors))


def _kept_views(n: int, dropout: float, rng: np.random.Generator) -> Flags:
    """Which of n views an episode shows this time: all of them where none would be left, (n,)."""
    kept: Flags = rng.random(n) >= dropout
    return kept if kept.any() else ~kept


def _draw(index: Ints, n: int, rng: np.random.Generator) -> Ints:
    return rng.permutation(index)[:n]


def _draw_balanced(labels: Ints, n: int, rng: np.random.Generator) -> Ints:
    positive = _draw(np.flatnonzero(labels == 1), n // 2, rng)
    negative = _draw(np.flatnonzero(labels == 0), n - len(positive), rng)
    return np.concatenate([positive, negative])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One epoch of meta-training, for logs, plots and progress bars."""

    epoch: int
    loss: float
    validation_loss: float


def meta_train(
    params: dict[str, Tensor],
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    config: MetaConfig,
    rng: np.random.Generator,
    standard: Standard = as_it_stands,
) -> Iterator[tuple[dict[str, Tensor], Progress]]:
    """Outer loop: yields the parameters and the losses after each epoch.

    Parameters
    ----------
    params : dict of str to tensor
        See :func:`initial_params`; not changed in place.
    episodes, validation : sequence of Episode
        Training tasks, and tasks of families or data that training never sees.
    config : MetaConfig
    rng : numpy.random.Generator
    standard : callable
        Brings what is drawn to one scale: thousands of tasks are kept once, as they are.
    """
    live = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    optimiser = torch.optim.AdamW(
        live.values(), lr=config.outer_lr, weight_decay=config.weight_decay
    )
    steps = config.n_epochs * -(-len(episodes) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    calm = _without_dropout(config)
    held_out = draw_batch(validation, calm, rng, standard) if validation else None
    for epoch in range(config.n_epochs):
        order, losses = rng.permutation(len(episodes)), []
        for start in range(0, len(order), config.batch_size):
            drawn = [episodes[i] for i in order[start : start + config.batch_size]]
            optimiser.zero_grad()
            loss = outer_loss(live, draw_batch(drawn, config, rng, standard), config)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(live.values(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        frozen = {name: p.detach().clone() for name, p in live.items()}
        held = float(outer_loss(frozen, held_out, config)) if held_out else float("nan")
        yield frozen, Progress(epoch=epoch, loss=float(np.mean(losses)), validation_loss=held)


def _without_dropout(config: MetaConfig) -> MetaConfig:
    return replace(config, dropout=0.0, view_dropout=0.0)
