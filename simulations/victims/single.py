"""One network trained by itself: photographs keep a processor busy without stacking."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from fl_shield.rng import torch_generator
from fl_shield.types import Samples


def train_single(
    model: nn.Module,
    samples: Samples,
    rng: np.random.Generator,
    *,
    n_steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    half: bool = False,
    device: str = "cpu",
) -> None:
    """Train a network in place by AdamW with a cosine schedule.

    Images are laid out with their channels last, which is faster on processors.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits; without batch statistics.
    samples : Samples
    rng : numpy.random.Generator
        Orders the examples: a permutation, another when it is used up.
    n_steps, batch_size : int
    lr, weight_decay : float
        Highest rate of the schedule, and AdamW's decay.
    half : bool
        Multiply in bfloat16, unless the network normalises (the way there and back costs more than
        it saves). Weights and their updates stay in float32.
    device : str

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> rows = Samples(x=np.eye(2, dtype=np.float32), y=np.array([0, 2]))
    >>> train_single(net, rows, np.random.default_rng(0), n_steps=200, batch_size=2, lr=0.1)
    >>> net(torch.eye(2)).argmax(1).tolist()
    [0, 2]
    """
    first = next(model.parameters())
    home, own_type = first.device, first.dtype
    layout = torch.channels_last if samples.x.ndim == 4 else torch.contiguous_format
    model.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    x, y = torch.from_numpy(samples.x).to(device), torch.from_numpy(samples.y).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=n_steps)
    feed = batches(len(samples), batch_size, torch_generator(rng))
    in_half = half and not _normalises(model)
    for _ in range(n_steps):
        index = next(feed).to(device)
        shown = x[index].contiguous(memory_format=layout)
        optimiser.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=in_half):
            found = model(shown)
        loss = nn.functional.cross_entropy(found.to(own_type), y[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    optimiser.zero_grad()
    model.to(home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _normalises(model: nn.Module) -> bool:
    return any(isinstance(m, nn.GroupNorm | nn.LayerNorm) for m in model.modules())


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of n examples without end, (size,) each: a permutation, another when it is used up.

    Examples
    --------
    >>> drawn = batches(3, 2, torch.Generator().manual_seed(0))
    >>> sorted(torch.cat([next(drawn) for _ in range(3)]).tolist())
    [0, 0, 1, 1, 2, 2]
    """
    waiting = torch.zeros(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
