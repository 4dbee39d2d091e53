"""Many networks of one kind trained at once: stacked parameters, one program, their own data.

One small network keeps a processor waiting between operations; thirty of them stacked keep it
busy. Each network's gradient is its own, for the loss is a sum over networks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fl_shield.rng import torch_generator
from fl_shield.simulations.victims.single import batches, train_single
from fl_shield.types import Samples


def train_stacked(
    models: Sequence[nn.Module],
    samples: Sequence[Samples],
    rngs: Sequence[np.random.Generator],
    *,
    n_steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    half: bool = False,
    device: str = "cpu",
) -> None:
    """Train networks of one architecture in place by AdamW with a cosine schedule.

    One alone is not stacked: see :func:`~fl_shield.simulations.victims.single.train_single`.

    Parameters
    ----------
    models : sequence of nn.Module
        The same module with other values.
    samples : sequence of Samples
        Training examples of each, all of one input shape; their numbers may differ.
    rngs : sequence of numpy.random.Generator
        Order the examples of each: a permutation, another when it is used up.
    n_steps, batch_size : int
    lr, weight_decay : float
    half : bool
        Multiply in bfloat16; of one network alone only.
    device : str

    Examples
    --------
    >>> nets = [nn.Sequential(nn.Linear(2, 3)) for _ in range(4)]
    >>> rows = Samples(x=np.eye(2, dtype=np.float32), y=np.array([0, 2]))
    >>> rngs = [np.random.default_rng(i) for i in range(4)]
    >>> train_stacked(nets, [rows] * 4, rngs, n_steps=200, batch_size=2, lr=0.1)
    >>> [net(torch.eye(2)).argmax(1).tolist() for net in nets]
    [[0, 2], [0, 2], [0, 2], [0, 2]]
    """
    if len(models) == 1:
        train_single(
            models[0],
            samples[0],
            rngs[0],
            n_steps=n_steps,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            half=half,
            device=device,
        )
        return
    parameters, buffers = stack_module_state(list(models))
    live = {
        n: p.detach().clone().to(device, memory_format=torch.contiguous_format).requires_grad_()
        for n, p in parameters.items()
    }
    fixed = {n: b.to(device) for n, b in buffers.items()}
    skeleton = copy.deepcopy(models[0]).to("meta").train()
    optimiser = torch.optim.AdamW(live.values(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=n_steps)
    feed = _Feed(samples, rngs, batch_size, device)

    def logits(params: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(skeleton, (params, state), (x,))
        return out

    together = vmap(logits, in_dims=(0, 0, 0))
    for _ in range(n_steps):
        x, y = feed.draw()
        optimiser.zero_grad()
        found = together(live, fixed, x)
        loss = nn.functional.cross_entropy(found.flatten(0, 1), y.flatten()) * len(models)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    _give_back(models, live)


class _Feed:
    """Batches of each network's examples, without end: (k, batch, ...) and (k, batch)."""

    def __init__(
        self,
        samples: Sequence[Samples],
        rngs: Sequence[np.random.Generator],
        batch_size: int,
        device: str,
    ) -> None:
        self._x = torch.cat([torch.from_numpy(s.x) for s in samples]).to(device)
        self._y = torch.cat([torch.from_numpy(s.y) for s in samples]).to(device)
        self._starts = np.cumsum([0, *(len(s) for s in samples[:-1])]).tolist()
        self._batches = [
            batches(len(s), batch_size, torch_generator(rng))
            for s, rng in zip(samples, rngs, strict=True)
        ]

    def draw(self) -> tuple[Tensor, Tensor]:
        drawn = zip(self._batches, self._starts, strict=True)
        index = torch.stack([next(own) + start for own, start in drawn]).to(self._y.device)
        return self._x[index], self._y[index]


@torch.no_grad()
def _give_back(models: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    for i, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.copy_(stacked[name][i])
