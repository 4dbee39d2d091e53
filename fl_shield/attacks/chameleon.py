"""Chameleon: a contrastively trained encoder that holds the backdoor, and a head on top of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.activations import watching
from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import check_n_epochs
from fl_shield.attacks.norm_clipped import project
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.attacks.projected_training import Loss, train_projected
from fl_shield.stages import find_layers
from fl_shield.types import Arrays, AttackContext, Flags


@dataclass(frozen=True, kw_only=True)
class Chameleon:
    """Draws poisoned inputs to the target class in the encoder, then trains the head alone.

    Stage 1 trains everything but the head by supervised contrastive loss on the mix, so that
    stamped inputs lie with the target's own. Stage 2 leaves the encoder exactly as it is, batch
    statistics included, and trains the head by cross-entropy. The head is the last dense layer;
    the encoder's output is what goes into it. A network that is only a head has no stage 1.

    Attributes
    ----------
    temperature : float
        Of the contrastive loss, > 0.
    target_weight : float
        Weight of the target class's anchors in it, > 0; other classes have 1.
    contrastive_lr : float
        First learning rate of stage 1, > 0.
    milestones : tuple of int
        Epochs of stage 1 before which the rate is multiplied by ``decay``.
    decay : float
        In (0, 1].
    n_contrastive_epochs : int, optional
        Passes of stage 1, 10 in the paper; as many as honest clients make by default, so that
        batch counters stay as they are used to.
    n_epochs : int, optional
        Passes of stage 2; as many as honest clients make by default.
    clip_norm : float, optional
        Radius of the L2 ball around the global model that the update is projected onto after
        every epoch of stage 1 and once at the end, > 0; None leaves it out.
    scale : float
        Boost of the update, > 0.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].

    References
    ----------
    Dai and Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated
    Learning", ICML 2023, section 4; contrastive loss: Khosla et al., "Supervised Contrastive
    Learning", NeurIPS 2020, equation 2 (L_out). Momentum and the rate of stage 2 are those of
    honest clients (there 0.9 and 0.005).
    """

    temperature: float = 0.07
    target_weight: float = 2.0
    contrastive_lr: float = 0.015
    milestones: tuple[int, ...] = (2, 4, 6, 8)
    decay: float = 0.3
    n_contrastive_epochs: int | None = None
    n_epochs: int | None = None
    clip_norm: float | None = None
    scale: float = 1.0
    poison_rate: float = 0.5

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        check_n_epochs(self.n_contrastive_epochs)
        for name in ("temperature", "target_weight", "contrastive_lr", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None for no ball, got {self.clip_norm}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model of both stages, scaled."""
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        head = find_layers(context.model, 1)[0]
        encoder, top = encoder_and_head(context, head)
        honest = context.training
        adapted: Arrays = context.global_arrays
        if encoder:
            adapted = train_projected(
                context,
                mix,
                lrs=self.contrastive_lrs(honest.n_epochs),
                loss=self.contrastive_loss(head, context.target_label),
                free=encoder,
                radius=self.clip_norm,
            )
        finished = train_projected(
            context,
            mix,
            start=adapted,
            lrs=[honest.lr] * (self.n_epochs or honest.n_epochs),
            free=top,
            statistics=False,
        )
        if self.clip_norm is not None:
            finished = project(finished, context.global_arrays, self.clip_norm)
        return move(context.global_arrays, finished, self.scale)

    def contrastive_lrs(self, n_honest_epochs: int) -> list[float]:
        """Learning rate of each epoch of stage 1.

        Examples
        --------
        >>> Chameleon(contrastive_lr=1.0, decay=0.5, milestones=(1, 3)).contrastive_lrs(4)
        [1.0, 0.5, 0.5, 0.25]
        """
        n_epochs = self.n_contrastive_epochs or n_honest_epochs
        n_decays = [sum(epoch >= mark for mark in self.milestones) for epoch in range(n_epochs)]
        return [self.contrastive_lr * self.decay**n for n in n_decays]

    def contrastive_loss(self, head: str, target_label: int) -> Loss:
        """Return the loss of one batch, as a function of network, inputs and labels."""

        def contrastive(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with watching(model, (head,), live=True) as seen:
                model(x)
            weights = torch.where(y == target_label, self.target_weight, 1.0)
            return supervised_contrastive(seen[head], y, weights, self.temperature)

        return contrastive


def encoder_and_head(
    context: AttackContext, head: str
) -> tuple[dict[str, Flags], dict[str, Flags]]:
    """Flags of all coordinates of the encoder's trainable tensors, and of the head's."""
    parts: tuple[dict[str, Flags], dict[str, Flags]] = {}, {}
    for name, parameter in context.model.named_parameters():
        is_head = name.startswith(f"{head}.")
        parts[is_head][name] = np.ones(parameter.shape, bool)
    return parts


def supervised_contrastive(
    features: Tensor, labels: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Supervised contrastive loss of one batch.

    Every anchor i costs ``-w_i / |P(i)| * sum over P(i) of log softmax_a(z_i . z_a / t)``, with
    features z of length 1, the other inputs a of the batch, and P(i) those of them that have its
    label. An anchor without any costs nothing. The mean is over the whole batch.

    Parameters
    ----------
    features : (n, d) tensor
        What the encoder says, not yet of length 1.
    labels : (n,) tensor
    weights : (n,) tensor
        Weight w of each anchor.
    temperature : float
        t, > 0.

    Examples
    --------
    Two inputs of one class have nobody to be told apart from:

    >>> float(supervised_contrastive(torch.eye(2), torch.tensor([1, 1]), torch.ones(2), 0.1))
    0.0
    """
    directions = nn.functional.normalize(features, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool)
    logits = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)
    positive = (labels[:, None] == labels[None]) & ~itself
    log_shares = logits - logits.logsumexp(1, keepdim=True)
    totals = torch.where(positive, log_shares, 0.0).sum(1)
    costs: Tensor = -weights * totals / positive.sum(1).clamp_min(1)
    return costs.mean()
