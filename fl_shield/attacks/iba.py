"""IBA: a generator of faint, image-dependent triggers that is trained along with the backdoor."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.local import check_n_epochs, pool_peers
from fl_shield.attacks.poisoning import check_poison_rate, poison
from fl_shield.attacks.projected_training import train_projected
from fl_shield.rng import keyed, torch_generator
from fl_shield.training import evaluating, set_arrays, train
from fl_shield.triggers.generated import Generated, generated_images
from fl_shield.types import AttackContext, Samples, Trigger

_STREAM = 0x1BA


@dataclass(frozen=True, kw_only=True)
class IBA:
    """Trains a trigger generator against the global model, then poisons with it.

    The generator and a copy of the global model learn in turn, on what the malicious clients of
    the round hold together: the generator to send ``clip(x + epsilon * g(x))`` to the target, the
    copy to follow it and to keep its own task. Only the generator is kept; the upload is trained
    from the global model on the client's own mix, the generator fixed.

    All malicious clients of a round come to the same generator. It goes on from the one in the
    context, where the given trigger is one (pass on the last), and starts anew otherwise. Where
    inputs are no images, the given trigger is used as it is, and the attack is plain poisoning.

    Attributes
    ----------
    epsilon : float
        Largest change of a pixel, in (0, 1]; 0.06 to 0.3 in the released code.
    n_turns : int
        How often generator and copy take turns, >= 1.
    n_steps : int
        Steps of the generator each time, one batch each, >= 1.
    generator_lr : float
        Learning rate of the generator (Adam), > 0.
    n_filters : int
        Width of the generator's three 3 x 3 convolutions, >= 1; a U-Net or an autoencoder in the
        paper.
    clip_norm : float, optional
        Radius of the L2 ball around the global model that the update is projected onto after
        every epoch, > 0; None leaves it out.
    scale : float
        Boost of the update, > 0.
    poison_rate : float
        Share of the non-target examples that get a triggered copy, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Nguyen et al., "IBA: Towards Irreversible Backdoor Attacks in Federated Learning", NeurIPS
    2023, section 4. Its second constraint, on rarely updated coordinates, is
    :class:`~fl_shield.attacks.Neurotoxin`.
    """

    epsilon: float = 0.3
    n_turns: int = 4
    n_steps: int = 25
    generator_lr: float = 0.01
    n_filters: int = 8
    clip_norm: float | None = None
    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {self.epsilon}")
        for name in ("n_turns", "n_steps", "n_filters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("generator_lr", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be > 0, or None for no ball, got {self.clip_norm}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model poisoned with the generator's triggers."""
        trigger = self.trigger(context)
        mix = poison(context.data, trigger, context.target_label, self.poison_rate, context.rng)
        lrs = [context.training.lr] * (self.n_epochs or context.training.n_epochs)
        poisoned = train_projected(context, mix, lrs=lrs, radius=self.clip_norm)
        return move(context.global_arrays, poisoned, self.scale)

    def trigger(self, context: AttackContext) -> Trigger:
        """Return the generator of this round; the client's stream is left alone."""
        pool = pool_peers(context)
        if pool.x.ndim != 4 or not np.issubdtype(pool.x.dtype, np.floating) or len(pool) == 0:
            return context.trigger
        rng = keyed(_STREAM, context.server_round)
        generator = self._start(context.trigger, pool.x.shape[1], rng)
        copy = set_arrays(context.model, context.global_arrays)
        batches = _batches(pool, context.training.batch_size)
        for _ in range(self.n_turns):
            generator = self.improve(generator, copy, batches, context.target_label)
            mix = poison(pool, generator, context.target_label, self.poison_rate, rng)
            train(copy, mix, replace(context.training, n_epochs=1), rng)
        return generator

    def improve(
        self, generator: Generated, model: nn.Module, batches: Iterator[Tensor], target_label: int
    ) -> Generated:
        """Train the generator for ``n_steps`` against a fixed classifier, in eval mode."""
        parameters = [p.requires_grad_() for p in generator.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.generator_lr)
        with evaluating(model):
            for _ in range(self.n_steps):
                x = next(batches)
                logits = model(generated_images(parameters, x, self.epsilon))
                cost = nn.functional.cross_entropy(logits, torch.full((len(x),), target_label))
                for parameter, grad in zip(
                    parameters, torch.autograd.grad(cost, parameters), strict=True
                ):
                    parameter.grad = grad
                optimiser.step()
        arrays = [p.detach().numpy() for p in parameters]
        return Generated(
            kernels=tuple(arrays[::2]), biases=tuple(arrays[1::2]), epsilon=self.epsilon
        )

    def _start(self, given: Trigger, n_channels: int, rng: np.random.Generator) -> Generated:
        """The given generator, if it is one for such images, or a new one."""
        if isinstance(given, Generated) and given.kernels[0].shape[1] == n_channels:
            return given
        widths = (n_channels, self.n_filters, self.n_filters, n_channels)
        source = torch_generator(rng)
        kernels = [
            torch.randn((out, into, 3, 3), generator=source) * (2 / (9 * into)) ** 0.5
            for into, out in pairwise(widths)
        ]
        kernels[-1] *= 0.1
        return Generated(
            kernels=tuple(kernel.numpy() for kernel in kernels),
            biases=tuple(np.zeros(width, np.float32) for width in widths[1:]),
            epsilon=self.epsilon,
        )


def _batches(samples: Samples, batch_size: int) -> Iterator[Tensor]:
    """Batches without end, each spread over all examples."""
    n_batches = -(-len(samples) // batch_size)
    while True:
        for first in range(n_batches):
            yield torch.from_numpy(samples.x[first::n_batches])
