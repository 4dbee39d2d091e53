"""What a guard costs: a ResNet-18 alone and behind a guard, one call after the other.

Model and guard are timed in pairs, the order of a pair drawn by chance, so that a busy machine
slows both alike; the cost is the ratio within a pair. Where a machine is too busy for that, the
share of a guarded call before and after the model's own forward pass tells most of it: all but
the pooling in the hooks. Weights are drawn, not trained: time does not depend on them. The head's
bias is set so that predicted classes vary, as a guard demands.

Run ``python -m fl_shield.simulations.benchmarks.guard_overhead --out results.json``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fl_shield.guard import Guard
from fl_shield.rng import keyed, torch_generator
from fl_shield.simulations.victims.resnet import Norm, resnet18
from fl_shield.types import Floats

VERSIONED = ("fl-shield", "torch", "numpy")
QUANTILES = (0.05, 0.5, 0.95)
Timing = dict[str, float]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure.

    Attributes
    ----------
    side : int
        Height and width of the images; from 128 on the stem is that for 224x224.
    batch_size, pairs, references : int
        Images a call, timed pairs, and clean images that the guard is fitted to.
    n_classes : int
    norm : {"batch", "group"}
    threads : int
        Threads of torch on the CPU.
    device : str
        ``auto`` is CUDA where there is one.
    out : Path, optional
        Where to write the figures as JSON.
    seed : int
        Draws weights, images and the order within pairs.
    """

    side: int = 32
    batch_size: int = 64
    pairs: int = 30
    references: int = 20
    n_classes: int = 10
    norm: Norm = "batch"
    threads: int = 2
    device: str = "auto"
    out: Path | None = None
    seed: int = 0


def main(args: Args) -> Figures:
    """Measure, print one table and return every figure, all times in seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        figures = measured(args)
    finally:
        torch.set_num_threads(threads)
    Console().print(table(figures))
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def measured(args: Args) -> Figures:
    """Fit a guard, time the pairs."""
    device = torch.device(device_name(args))
    clean, x = (
        drawn(args, n, k).to(device) for k, n in enumerate((args.references, args.batch_size))
    )
    model = victim(args, clean)
    start = perf_counter()
    guard = Guard.fit(model, clean)
    fit_seconds = perf_counter() - start
    alone, guarded = timed(args, model, guard, x)
    return {
        **about(args, device),
        "fit_seconds": fit_seconds,
        "state_bytes": guard.n_bytes,
        "promise": guard.promise_,
        "layers": guard.layers,
        "seconds": compared(alone, guarded, "seconds"),
        "cpu_seconds": compared(alone, guarded, "cpu_seconds"),
        "outside_forward": quantiles(outside(model, guard, x, args.pairs)),
        "pairs": [{"alone": a, "guarded": g} for a, g in zip(alone, guarded, strict=True)],
    }


def device_name(args: Args) -> str:
    """Where to run."""
    if args.device != "auto":
        return args.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def drawn(args: Args, n: int, key: int) -> Tensor:
    """Standard normal images (n, 3, side, side)."""
    generator = torch_generator(keyed(args.seed, 1, key))
    return torch.randn(n, 3, args.side, args.side, generator=generator)


def victim(args: Args, clean: Tensor) -> nn.Module:
    """A ResNet-18 in eval mode whose predictions on the clean images vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = resnet18(args.n_classes, norm=args.norm, large=args.side >= 128)
    model = model.to(clean.device).eval()
    with torch.no_grad():
        model.get_submodule("fc").bias -= model(clean).mean(0)
    return model


def timed(
    args: Args, model: nn.Module, guard: Guard, x: Tensor
) -> tuple[list[Timing], list[Timing]]:
    """Seconds of the model and of the guard in pairs, after two untimed pairs."""
    order = keyed(args.seed, 2).random(args.pairs + 2) < 0.5
    alone: list[Timing] = []
    guarded: list[Timing] = []
    with torch.inference_mode():
        for guard_first in order:
            if guard_first:
                guarded.append(seconds(guard, x))
            alone.append(seconds(model, x))
            if not guard_first:
                guarded.append(seconds(guard, x))
    return alone[2:], guarded[2:]


def seconds(call: nn.Module | Guard, x: Tensor) -> Timing:
    """Wall and processor seconds of one call, to the end of its work on the device."""
    settle(x)
    wall, cpu = perf_counter(), process_time()
    call(x)
    settle(x)
    return {"seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}


def outside(model: nn.Module, guard: Guard, x: Tensor, n: int) -> Floats:
    """Share of each of n guarded calls that is not the model's forward pass."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        settle(x)
        marks.append(perf_counter())

    handles = [model.register_forward_pre_hook(mark), model.register_forward_hook(mark)]
    shares = []
    with torch.inference_mode():
        for _ in range(n):
            marks.clear()
            mark()
            guard(x)
            mark()
            start, first, last, end = marks
            shares.append(1 - (last - first) / (end - start))
    for handle in handles:
        handle.remove()
    return np.array(shares)


def quantiles(values: Floats) -> dict[str, float]:
    """Quantiles by their level."""
    return {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES}


def settle(x: Tensor) -> None:
    """Wait for the device."""
    if x.is_cuda:
        torch.cuda.synchronize()


def compared(alone: list[Timing], guarded: list[Timing], clock: str) -> Figures:
    """Medians of one clock, and quantiles of the ratio of pairs minus one."""
    model, both = (np.array([t[clock] for t in rows]) for rows in (alone, guarded))
    return {
        "alone": float(np.median(model)),
        "guarded": float(np.median(both)),
        "overhead": quantiles(both / model - 1),
        "overhead_of_fastest": float(both.min() / model.min() - 1),
    }


def about(args: Args, device: torch.device) -> Figures:
    """What was run, on what."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
    return {
        "args": plain,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        },
        "versions": {name: version(name) for name in VERSIONED},
    }


def table(figures: Figures) -> Table:
    """Lay the figures out, a clock a row."""
    args, machine = figures["args"], figures["machine"]
    out = Table(
        "clock",
        title=(
            f"ResNet-18, {args['batch_size']} images of {args['side']}x{args['side']}, "
            f"{machine['device']}"
        ),
        caption=(
            f"fitted in {figures['fit_seconds']:.2f} s, {figures['state_bytes']:,} bytes of state, "
            f"{len(figures['pairs'])} pairs, load {machine['load']:.1f}"
        ),
    )
    headings = ("alone", "guarded", *(f"cost {q:.0%}" for q in QUANTILES), "fastest")
    for heading in headings:
        out.add_column(heading, justify="right")
    for clock in ("seconds", "cpu_seconds"):
        row = figures[clock]
        shares = [*row["overhead"].values(), row["overhead_of_fastest"]]
        out.add_row(
            clock,
            f"{row['alone']:.4f}",
            f"{row['guarded']:.4f}",
            *(f"{share:+.2%}" for share in shares),
        )
    shares = [f"{share:.2%}" for share in figures["outside_forward"].values()]
    out.add_row("outside forward", "", "", *shares, "")
    return out


def command(
    side: Annotated[int, typer.Option(min=8, help="Height and width of the images.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a call.")] = 64,
    pairs: Annotated[int, typer.Option(min=1, help="Timed pairs.")] = 30,
    references: Annotated[int, typer.Option(min=4, help="Clean images.")] = 20,
    n_classes: Annotated[int, typer.Option(min=2)] = 10,
    group_norm: Annotated[bool, typer.Option(help="Group instead of batch normalisation.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Time a ResNet-18 alone and behind a guard."""
    main(
        Args(
            side=side,
            batch_size=batch_size,
            pairs=pairs,
            references=references,
            n_classes=n_classes,
            norm="group" if group_norm else "batch",
            threads=threads,
            device=device,
            out=out,
            seed=seed,
        )
    )


if __name__ == "__main__":
    typer.run(command)
