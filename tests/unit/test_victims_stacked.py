"""Networks trained stacked against a slow loop that trains each alone.

In double precision: the bias of an attention's keys has no gradient but rounding, which AdamW
makes as large as any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_shield.rng import keyed, torch_generator
from fl_shield.simulations.victims.stacked import train_stacked
from fl_shield.simulations.victims.zoo import build_victim
from fl_shield.types import Samples

N_STEPS, BATCH, LR, DECAY = 9, 8, 5e-3, 0.1


def _samples(n: int, kind: str, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    if kind == "text":
        return Samples(x=rng.integers(0, 20, (n, 6)), y=rng.integers(0, 3, n))
    shape = (1, 8, 8) if kind == "image" else (4, 4)
    return Samples(x=rng.random((n, *shape)), y=rng.integers(0, 3, n))


def _models(name: str, samples: Samples, n: int) -> list[nn.Module]:
    return [build_victim(name, samples.x.shape[1:], 3, 20, seed).double() for seed in range(n)]


def _order(n: int, rng: np.random.Generator) -> Tensor:
    """Indices of all batches: permutations, one after the other."""
    generator = torch_generator(rng)
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-N_STEPS * BATCH // n))]
    return torch.cat(rounds)[: N_STEPS * BATCH].view(N_STEPS, BATCH)


def _alone(model: nn.Module, samples: Samples, rng: np.random.Generator) -> None:
    """One network, one optimiser, one step after the other."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=N_STEPS)
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    for batch in _order(len(samples), rng):
        optimiser.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _train(
    models: Sequence[nn.Module],
    samples: Sequence[Samples],
    first: int = 0,
    device: str = "cpu",
) -> None:
    rngs = [keyed(7, first + i) for i in range(len(models))]
    train_stacked(
        models,
        samples,
        rngs,
        n_steps=N_STEPS,
        batch_size=BATCH,
        lr=LR,
        weight_decay=DECAY,
        device=device,
    )


def _moved(one: nn.Module, other: nn.Module) -> bool:
    """Whether the first layers differ, which the last one's gradient reaches only through all."""
    a, b = next(one.parameters()), next(other.parameters())
    return float((a - b).detach().abs().max()) > 1e-3


def _close(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) < 1e-9, name


NETWORKS = [
    ("mlp", "image"),
    ("cnn", "image"),
    ("resnet", "image"),
    ("vit", "image"),
    ("text-cnn", "text"),
    ("gru", "text"),
    ("transformer", "text"),
    ("policy-mlp", "state"),
    ("policy-tanh", "state"),
]


@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_each_of_a_stack_learns_what_it_learns_alone(name: str, kind: str) -> None:
    samples = [_samples(n, kind, seed=n) for n in (40, 23, 9)]  # also fewer than two batches
    stacked = _models(name, samples[0], 3)
    before = [copy.deepcopy(model) for model in stacked]
    slow = [copy.deepcopy(model) for model in stacked]
    _train(stacked, samples)
    for i, model in enumerate(slow):
        _alone(model, samples[i], keyed(7, i))
        _close(stacked[i], model)
        assert _moved(stacked[i], before[i])


@pytest.mark.parametrize(("name", "kind"), [("mlp", "image"), ("gru", "text")])
def test_one_network_takes_another_path_to_the_same_end(name: str, kind: str) -> None:
    samples = [_samples(30, kind, 0), _samples(17, kind, 1)]
    together = _models(name, samples[0], 2)
    apart = [copy.deepcopy(model) for model in together]
    _train(together, samples)
    for i, model in enumerate(apart):
        _train([model], [samples[i]], first=i)
        _close(model, together[i])


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_a_gpu_trains_what_a_processor_trains(name: str, kind: str, n: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    samples = [_samples(20, kind, i) for i in range(n)]
    here = _models(name, samples[0], n)
    there = [copy.deepcopy(model) for model in here]
    _train(here, samples)
    _train(there, samples, device="cuda")
    for one, other in zip(here, there, strict=True):
        assert all(p.device.type == "cpu" and p.is_contiguous() for p in other.parameters())
        _close(one, other)


def test_a_network_does_not_depend_on_its_neighbours() -> None:
    own, other = _samples(30, "state", 0), _samples(30, "state", 1)
    first, second = (_models("policy-mlp", own, 2) for _ in range(2))
    _train(first, [own, own])
    _train(second, [own, other])
    _close(first[0], second[0])
    assert _moved(first[1], second[1])


def test_the_same_seeds_give_the_same_networks_and_global_generators_rest() -> None:
    samples = [_samples(20, "state", i) for i in range(2)]
    before = torch.get_rng_state()
    runs = [_models("policy-mlp", samples[0], 2) for _ in range(2)]
    for models in runs:
        _train(models, samples)
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(*runs, strict=True):
        assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_gradients_and_graphs_do_not_stay_on_the_networks() -> None:
    samples = _samples(20, "state", 0)
    for n in (1, 2):
        models = _models("policy-mlp", samples, n)
        _train(models, [samples] * n)
        assert all(p.grad is None for m in models for p in m.parameters())
        assert all(p.is_leaf and p.requires_grad for m in models for p in m.parameters())


def test_the_examples_are_learned() -> None:
    x = np.eye(6, dtype=np.float32)
    samples = [Samples(x=x, y=np.roll(np.repeat([0, 1, 2], 2), shift)) for shift in range(3)]
    models: list[nn.Module] = [nn.Sequential(nn.Linear(6, 3)) for _ in range(3)]
    rngs = [keyed(0, i) for i in range(3)]
    train_stacked(models, samples, rngs, n_steps=100, batch_size=6, lr=0.1)
    for model, own in zip(models, samples, strict=True):
        assert model(torch.from_numpy(x)).argmax(1).tolist() == own.y.tolist()
