"""What a round's training costs: one by one, together in one batched pass, and beside the probes.

Stacked parameters, one program, every client's own batches: what makes victims of some kinds
several times faster. Clients of a federation differ in their number of examples, so the smaller
ones wait for the largest. Both ways start from one model and end at the same ones, as far as
floating point goes, which is told. The probes are what the server runs each client's model on; they
are told as a share of what the clients themselves compute in the round. Run::

    python -m fl_shield.simulations.benchmarks.round_training --scenarios femnist,cartpole \
        --data-dir DATA --out round-training.json
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fl_shield.probes import Probes
from fl_shield.rng import keyed, torch_generator
from fl_shield.simulations.arena.tables import TABLES
from fl_shield.simulations.campaign import versions, write_json
from fl_shield.simulations.scenario import participants
from fl_shield.simulations.task import FederatedTask, open_task
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import Arrays, Samples, TrainingConfig

Tensors = dict[str, Tensor]


def train_together(
    models: Sequence[nn.Module],
    samples: Sequence[Samples],
    config: TrainingConfig,
    rngs: Sequence[np.random.Generator],
) -> None:
    """Train networks in place as :func:`fl_shield.training.train` trains each, all at once.

    Networks without dropout or running statistics only.

    Examples
    --------
    >>> nets = [nn.Linear(2, 2) for _ in range(2)]
    >>> rows = Samples(x=np.eye(2, dtype=np.float32), y=np.array([0, 1]))
    >>> config = TrainingConfig(n_epochs=30, batch_size=2, lr=1.0)
    >>> train_together(nets, [rows, rows], config, [np.random.default_rng(i) for i in range(2)])
    >>> [net(torch.eye(2)).argmax(1).tolist() for net in nets]
    [[0, 1], [0, 1]]
    """
    stacked, state = stack_module_state(list(models))
    params = {name: p.detach().clone() for name, p in stacked.items()}
    speed = {name: torch.zeros_like(p) for name, p in params.items()}
    skeleton = copy.deepcopy(models[0]).to("meta").train()

    def loss(own: Tensors, buffers: Tensors, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        each = nn.functional.cross_entropy(
            functional_call(skeleton, (own, buffers), (x,)), y, reduction="none"
        )
        return (each * weights).sum() / weights.sum().clamp(min=1)

    gradients = vmap(grad(loss))
    for x, y, weights in _batches(samples, config, rngs):
        found = _clipped(gradients(params, state, x, y, weights), config.clip_norm)
        present = weights.sum(1) > 0
        for name, p in params.items():
            moved = present.reshape(-1, *(1,) * (p.ndim - 1))
            now = config.momentum * speed[name] + found[name] + config.weight_decay * p
            speed[name] = torch.where(moved, now, speed[name])
            params[name] = torch.where(moved, p - config.lr * speed[name], p)
    with torch.no_grad():
        for i, model in enumerate(models):
            for name, own in model.named_parameters():
                own.copy_(params[name][i])


def _batches(
    samples: Sequence[Samples], config: TrainingConfig, rngs: Sequence[np.random.Generator]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (k, b, ...) and (k, b) of all clients, with weights 0 where a client has no more."""
    x = torch.cat([torch.from_numpy(s.x) for s in samples])
    y = torch.cat([torch.from_numpy(s.y) for s in samples])
    starts = np.cumsum([0, *(len(s) for s in samples[:-1])]).tolist()
    generators = [torch_generator(rng) for rng in rngs]
    for _ in range(config.n_epochs):
        orders = [
            torch.split(torch.randperm(len(s), generator=generator), config.batch_size)
            for s, generator in zip(samples, generators, strict=True)
        ]
        for step in range(max(map(len, orders))):
            index = torch.zeros(len(samples), config.batch_size, dtype=torch.long)
            weights = torch.zeros(len(samples), config.batch_size)
            for i, order in enumerate(orders):
                if step < len(order):
                    n = len(order[step])
                    index[i, :n], weights[i, :n] = order[step] + starts[i], 1.0
            yield x[index], y[index], weights


def _clipped(gradients: Tensors, most: float) -> Tensors:
    """Gradients of each client no longer than ``most``, as torch clips them."""
    if most <= 0:
        return gradients
    lengths = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    scale = (most / (lengths + 1e-6)).clamp(max=1)
    return {name: g * scale.reshape(-1, *(1,) * (g.ndim - 1)) for name, g in gradients.items()}


def measured(task: FederatedTask, n_repeats: int) -> dict[str, Any]:
    """Processor seconds of both ways and of the probes on one round's clients, in turn."""
    scenario = task.scenario
    clients = [task.data.clients[p] for p in participants(scenario, 1)]
    start, config = get_arrays(task.new_model()), scenario.local_training

    def rngs() -> list[np.random.Generator]:
        return [keyed(scenario.seed, 7, i) for i in range(len(clients))]

    seconds, apart = np.zeros((n_repeats, 3)), 0.0
    for repeat in range(n_repeats):
        one_by_one = [set_arrays(task.new_model(), start) for _ in clients]
        together = [set_arrays(task.new_model(), start) for _ in clients]
        begun = process_time()
        for model, samples, rng in zip(one_by_one, clients, rngs(), strict=True):
            train(model, samples, config, rng)
        middle = process_time()
        train_together(together, clients, config, rngs())
        seconds[repeat, :2] = middle - begun, process_time() - middle
        seconds[repeat, 2] = _probing(task, start, one_by_one)
        apart = max(map(_difference, one_by_one, together))
    own, other, probing = np.median(seconds, axis=0)
    return {
        "table": scenario.dataset,
        "examples": [len(samples) for samples in clients],
        "seconds one by one": float(own),
        "seconds together": float(other),
        "times as fast together": float(own / other),
        "seconds of the probes": float(probing),
        "probes as a share of training one by one": float(probing / own),
        "largest difference of a parameter": apart,
    }


def _probing(task: FederatedTask, start: Arrays, trained: Sequence[nn.Module]) -> float:
    """Seconds of the probes of one round; 0 where the table does without."""
    if not task.scenario.probes:
        return 0.0
    probes = Probes(task.new_model(), task.data.clean.x, seed=task.scenario.seed)
    uploads = [get_arrays(model) for model in trained]
    begun = process_time()
    probes.set_global(start)
    for upload in uploads:
        probes.shifts(upload)
    return process_time() - begun


def _difference(a: nn.Module, b: nn.Module) -> float:
    other = get_arrays(b)
    return max(float(np.abs(own - other[name]).max()) for name, own in get_arrays(a).items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", default="digits", help="named tables, comma between")
    parser.add_argument("--data-dir", default=None, help="folder that holds the data sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    names = given.scenarios.split(",")
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        parser.error(f"--scenarios must be some of {', '.join(TABLES)}, got {unknown[0]!r}")
    torch.set_num_threads(1)
    found = []
    for name in names:
        table = TABLES[name]
        folder = Path(given.data_dir or "") / table.base["dataset"].replace("-", "_")
        if given.data_dir and folder.exists():  # some data sets are no files
            table = table.settings(data_dir=str(folder))
        found.append(measured(open_task(table.recorded("none", 0)), given.repeats))
        Console().print_json(json.dumps(found[-1]))
    facts = {
        "rounds": found,
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, facts)


if __name__ == "__main__":
    main()
