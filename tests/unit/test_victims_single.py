"""One network trained by itself: against a plain loop, and what half precision changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fl_shield.rng import keyed, torch_generator
from fl_shield.simulations.victims.single import train_single
from fl_shield.simulations.victims.zoo import IMAGE_MODELS, build_victim
from fl_shield.types import Samples

N_STEPS, BATCH, LR = 12, 8, 5e-3


def _images(n: int = 40) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(x=rng.random((n, 1, 8, 8), np.float32), y=rng.integers(0, 3, n))


def _trained(model: nn.Module, samples: Samples, *, half: bool = False) -> nn.Module:
    trained = copy.deepcopy(model)
    train_single(trained, samples, keyed(0), n_steps=N_STEPS, batch_size=BATCH, lr=LR, half=half)
    return trained


def _plainly(model: nn.Module, samples: Samples) -> nn.Module:
    """A loop without layouts or precisions; batches from one permutation after the other."""
    trained = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=N_STEPS)
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    generator = torch_generator(keyed(0))
    order = torch.cat([torch.randperm(len(y), generator=generator) for _ in range(3)])
    for batch in order[: N_STEPS * BATCH].view(N_STEPS, BATCH):
        optimiser.zero_grad()
        cross_entropy(trained(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return trained


def _farthest(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", [*IMAGE_MODELS])
def test_it_learns_what_a_plain_loop_learns(name: str) -> None:
    samples = _images()
    model = build_victim(name, (1, 8, 8), 3, 0, seed=0).double()
    double = Samples(x=samples.x.astype(np.float64), y=samples.y)
    trained = _trained(model, double)
    assert _farthest(trained, _plainly(model, double)) < 1e-9
    assert _farthest(trained, model) > 1e-3
    assert all(p.is_contiguous() and p.grad is None for p in trained.parameters())


def test_half_precision_changes_products_and_keeps_weights_whole() -> None:
    samples, model = _images(), build_victim("cnn", (1, 8, 8), 3, 0, seed=0)
    whole, half = (_trained(model, samples, half=h) for h in (False, True))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert 0 < _farthest(whole, half) < 0.1


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_networks_that_normalise_stay_in_whole_precision(name: str) -> None:
    samples, model = _images(), build_victim(name, (1, 8, 8), 3, 0, seed=0)
    assert _farthest(*(_trained(model, samples, half=h) for h in (False, True))) == 0
