"""Constrain-and-scale: poisoned training that pays for being unusual, then model replacement."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.attacks.arithmetic import move, update_norm
from fl_shield.attacks.local import check_n_epochs
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.attacks.projected_training import Loss, cross_entropy_loss, train_projected
from fl_shield.types import Arrays, AttackContext

Anomaly = Literal["l2", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ConstrainAndScale:
    """Trains on ``w * CE + (1 - w) * anomaly`` and uploads ``G + gamma * (X - G)``.

    The anomaly term is what the server is thought to look at, over all trainable tensors
    together: the L2 norm of X - G, or one minus the cosine between the global model G and the
    scaled model as it would be uploaded (X itself is nearly parallel to G, so its own cosine
    would cost nothing).

    Attributes
    ----------
    loss_weight : float
        Weight w of the classification loss, alpha in the paper, in (0, 1]; 1 leaves plain model
        replacement.
    anomaly : {"l2", "cosine"}
        How far from usual a model is.
    scale : float, optional
        gamma, > 0. By default the clients of the round over its malicious ones, as in
        :class:`~fl_shield.attacks.ModelReplacement`.
    max_norm : float, optional
        The bound S of *train-and-scale*, > 0: then ``gamma = S / norm(X - G)``, whatever
        ``scale`` says, so that the uploaded update is as long as the server lets pass.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020 (arXiv 1807.00459),
    section 4.3: constrain-and-scale (equation 4, algorithm 1) and train-and-scale. Its steps of
    the learning rate and its early stop are left out: rate and epochs are those of honest
    clients, unless told.
    """

    loss_weight: float = 0.5
    anomaly: Anomaly = "l2"
    scale: float | None = None
    max_norm: float | None = None
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 < self.loss_weight <= 1:
            raise ValueError(f"loss_weight must be in (0, 1], got {self.loss_weight}")
        if self.anomaly not in ("l2", "cosine"):
            raise ValueError(f"anomaly must be l2 or cosine, got {self.anomaly!r}")
        for name in ("scale", "max_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, or None, got {value}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the constrained and scaled model."""
        mix = poison(
            context.data, context.trigger, context.target_label, self.poison_rate, context.rng
        )
        shared = context.n_clients / max(1, len(context.peers))
        scale = shared if self.scale is None else self.scale
        lrs = [context.training.lr] * (self.n_epochs or context.training.n_epochs)
        loss = self.loss(context.global_arrays, scale)
        trained = train_projected(context, mix, lrs=lrs, loss=loss)
        if self.max_norm is not None:
            scale = self.max_norm / (update_norm(trained, context.global_arrays) or self.max_norm)
        return move(context.global_arrays, trained, scale)

    def loss(self, global_arrays: Arrays, scale: float) -> Loss:
        """Return the loss of one batch, as a function of network, inputs and labels."""

        def constrained(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            pairs = [
                (parameter.reshape(-1), torch.tensor(global_arrays[name]).reshape(-1))
                for name, parameter in model.named_parameters()
            ]
            own, start = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            unusual = anomaly_term(own, start, self.anomaly, scale)
            return (
                self.loss_weight * cross_entropy_loss(model, x, y)
                + (1 - self.loss_weight) * unusual
            )

        return constrained


def anomaly_term(own: Tensor, start: Tensor, anomaly: Anomaly, scale: float) -> Tensor:
    """How far a model (d,) is from the global one (d,): L2 norm, or cosine distance once scaled.

    Examples
    --------
    >>> start = torch.tensor([3.0, 4.0])
    >>> float(anomaly_term(torch.tensor([3.0, 0.0]), start, "l2", 1.0))
    4.0
    >>> round(float(anomaly_term(torch.tensor([3.0, 0.0]), start, "cosine", 1.0)), 3)
    0.4
    """
    if anomaly == "l2":
        distance: Tensor = torch.linalg.vector_norm(own - start)
        return distance
    submitted = start + scale * (own - start)
    return 1 - nn.functional.cosine_similarity(submitted, start, dim=0)
