"""A3FL: the trigger's pattern is optimised to outlive a global model that unlearns it."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.local import check_n_epochs, pool_peers
from fl_shield.attacks.poisoning import check_poison_rate
from fl_shield.rng import keyed
from fl_shield.training import evaluating, set_arrays, train
from fl_shield.triggers.vision import PixelTrigger
from fl_shield.types import AttackContext, Samples, TrainingConfig, Trigger

_STREAM = 0xA3F1


@dataclass(frozen=True, kw_only=True)
class A3FL:
    """Shapes the given trigger within its mask, then poisons with it.

    Every step moves the pattern by the sign of the gradient of
    ``CE(G(x + t), target) + lambda * s * CE(G'(x + t), target)`` on one batch of what the
    malicious clients of the round hold together. G' is a copy of the global model G that was
    trained to give stamped inputs their own label, s the cosine between the weights of both: the
    nearer the unlearning stays to G, the more it counts. G' is made before the first step and
    again every ``refresh_every`` steps.

    The search starts from the pattern of the trigger it is given (pass on the last one to go on
    from round to round), and all malicious clients of a round come to the same trigger. It asks
    for a trigger of pixels with a mask; one of another kind, such as a word, stays as it is, and
    the attack is then plain data poisoning.

    Attributes
    ----------
    n_steps : int
        Sign steps, >= 1.
    step_size : float
        Length of a step in pixel values, > 0.
    adversary_weight : float
        lambda, >= 0; 0 leaves out the copy.
    adversary_lr : float
        Learning rate of the unlearning, > 0 (momentum 0.9, weight decay 5e-4).
    n_adversary_epochs : int
        Passes of the unlearning, >= 1.
    refresh_every : int
        Steps between two copies, >= 1.
    scale : float
        Boost of the update, > 0.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Zhang et al., "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS
    2023, section 3, equations 2 to 4, algorithm 1. The released code takes one step a batch and
    200 passes, and measures s between gradients of convolutions; the weights are the paper's.
    """

    n_steps: int = 100
    step_size: float = 0.01
    adversary_weight: float = 0.01
    adversary_lr: float = 0.01
    n_adversary_epochs: int = 5
    refresh_every: int = 25
    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        for name in ("n_steps", "n_adversary_epochs", "refresh_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("step_size", "adversary_lr", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.adversary_weight < float("inf"):
            raise ValueError(f"adversary_weight must be >= 0, got {self.adversary_weight}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model poisoned with the shaped trigger."""
        attack = BadNets(poison_rate=self.poison_rate, n_epochs=self.n_epochs)
        poisoned = attack(replace(context, trigger=self.trigger(context)))
        return move(context.global_arrays, poisoned, self.scale)

    def trigger(self, context: AttackContext) -> Trigger:
        """Return the shaped trigger of this round; the client's stream is left alone."""
        given, pool = context.trigger, pool_peers(context)
        if not isinstance(given, PixelTrigger) or len(pool) == 0:
            return given
        model = set_arrays(context.model, context.global_arrays)
        rng = keyed(_STREAM, context.server_round)
        shape = pool.x.shape[1:]
        weight = torch.from_numpy(np.array(np.broadcast_to(given.mask * given.opacity, shape)))
        pattern = torch.from_numpy(np.array(np.broadcast_to(given.pattern, shape)))
        n_batches = -(-len(pool) // context.training.batch_size)
        for step in range(self.n_steps):
            if step % self.refresh_every == 0:
                shaped = replace(given, pattern=pattern.numpy())
                adversary = self.unlearning_copy(model, shaped, pool, context.training, rng)
                share = self.adversary_weight * similarity(model, adversary)
            x = torch.from_numpy(pool.x[step % n_batches :: n_batches])
            gradient = trigger_gradient(
                x, pattern, weight, context.target_label, [(model, 1.0), (adversary, share)]
            )
            pattern = (pattern - self.step_size * gradient.sign()).clamp(0, 1)
        return replace(given, pattern=pattern.numpy())

    def unlearning_copy(
        self,
        model: nn.Module,
        trigger: Trigger,
        samples: Samples,
        training: TrainingConfig,
        rng: np.random.Generator,
    ) -> nn.Module:
        """Train a copy of a model to give stamped inputs their own label."""
        copy = deepcopy(model)
        config = TrainingConfig(
            n_epochs=self.n_adversary_epochs,
            batch_size=training.batch_size,
            lr=self.adversary_lr,
            momentum=0.9,
            weight_decay=5e-4,
        )
        if self.adversary_weight > 0:
            train(copy, Samples(x=trigger.stamp(samples.x), y=samples.y), config, rng)
        return copy


def similarity(one: nn.Module, other: nn.Module) -> float:
    """Cosine between all trainable weights of two networks of one architecture.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> round(similarity(layer, deepcopy(layer)), 3)
    1.0
    """
    first, second = (
        torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in (one, other)
    )
    return float(nn.functional.cosine_similarity(first, second, dim=0))


def trigger_gradient(
    x: Tensor,
    pattern: Tensor,
    weight: Tensor,
    target_label: int,
    models: list[tuple[nn.Module, float]],
) -> Tensor:
    """Gradient of the summed cross-entropy towards the target, by pattern.

    Parameters
    ----------
    x : (n, channels, height, width) tensor
        Clean images.
    pattern, weight : (channels, height, width) tensor
        What is shown, and how strongly: 0 outside the mask, so the gradient is 0 there too.
    target_label : int
    models : list of (network, weight)
        Read in eval mode.
    """
    pattern = pattern.clone().requires_grad_()
    stamped = (1 - weight) * x + weight * pattern
    target = torch.full((len(x),), target_label)
    cost = torch.zeros(())
    for model, share in models:
        with evaluating(model):
            cost = cost + share * nn.functional.cross_entropy(model(stamped), target)
    return torch.autograd.grad(cost, pattern)[0]
