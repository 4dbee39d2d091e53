"""What scoring costs as rounds and models grow: the shield, its probes, and every published rule.

What is timed is in :mod:`~fl_shield.simulations.benchmarks.scoring_measures`. Rules run where all
updates fit and where the rule ends within its limit of seconds. Each cell has a process of its own,
forked from one that has loaded everything. A run that was cut short goes on from the file that it
wrote.

Run ``python -m fl_shield.simulations.benchmarks.scoring_scale --out results.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, setrlimit
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fl_shield.errors import AggregationError
from fl_shield.simulations.benchmarks.scoring_measures import (
    LEAST_PARAMETERS,
    MEASURES,
    Figures,
    Ready,
)
from fl_shield.simulations.benchmarks.scoring_reading import (
    ANCHORS,
    BAR,
    bars,
    growth,
    key_of,
    ratios,
    table,
    verdicts,
)

VERSIONED = ("fl-shield", "flwr", "torch", "numpy")
PRELOADED = ("fl_shield.simulations.benchmarks.scoring_measures",)
WIDTH = 130


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure.

    Attributes
    ----------
    clients, parameters : tuple of int
        The grid.
    measures : tuple of str
        Rows of :data:`MEASURES`.
    probed : int
        Clients whose models run on the probes, at most: each runs by itself.
    seconds, anchor_seconds : float
        Longest that a rule may take in a cell; the second for :data:`ANCHORS` at :data:`BAR`.
    held_gb, memory_gb : float
        Largest updates that a rule is given, and the most memory that it may take beside.
    most_read : float
        Most numbers, clients times parameters, that the shield reads in a cell.
    threads : int
        Threads of each cell: one, for two that wait for one another on a busy machine are slower.
    apart : bool
        Whether each cell has a process of its own; without, no limit is kept.
    out : Path, optional
        JSON file of the figures; cells that it holds of the same settings are not run again.
    seed : int
        Draws the model and the replies.
    """

    clients: tuple[int, ...] = (10, 100, 1000, 10_000)
    parameters: tuple[int, ...] = (100_000, 1_000_000, 25_000_000)
    measures: tuple[str, ...] = ()
    probed: int = 10
    seconds: float = 8.0
    anchor_seconds: float = 300.0
    held_gb: float = 4.5
    memory_gb: float = 11.0
    most_read: float = 3e10
    threads: int = 1
    apart: bool = True
    out: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.measures) - set(MEASURES))
        if unknown:
            raise ValueError(f"measures must be of {', '.join(MEASURES)}, got {unknown}")
        if min(self.clients) < 3 or min(self.parameters) < LEAST_PARAMETERS:
            raise ValueError(
                f"a round needs 3 clients and the network {LEAST_PARAMETERS} parameters, got "
                f"{min(self.clients)} and {min(self.parameters)}"
            )


def main(args: Args) -> Figures:
    """Measure every cell, print one table and return all figures, all times in seconds."""
    console = Console()
    console.width = max(console.width, WIDTH)
    cells = resumed(args)
    grid = sorted((n * p, n, p) for n in args.clients for p in args.parameters)
    with console.status("measuring") as status:
        for _, n, p in grid:
            for name in args.measures or MEASURES:
                key = key_of(name, n, p)
                if key in cells:
                    continue
                status.update(f"measuring {key}")
                reason = reason_to_skip(args, name, n, p, cells)
                cells[key] = skipped(reason) if reason else measured(args, name, n, p)
                written(args, cells)
    figures = written(args, cells)
    console.print(table(figures))
    for line in verdicts(figures):
        console.print(line)
    return figures


def measured(args: Args, name: str, n: int, n_parameters: int) -> Figures:
    """Figures of one cell, from a process of its own where that is asked for."""
    if not args.apart:
        return here(name, args, n, n_parameters, lambda: None)
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, name, args, n, n_parameters))
    process.start()
    sender.close()
    limit = limit_of(args, name, n, n_parameters)
    try:
        begun = receiver.recv()
        if begun is not None:
            return dict(begun)
        return dict(receiver.recv()) if receiver.poll(limit) else skipped(f"over {limit:g} s")
    except EOFError:
        return skipped("the process died")
    finally:
        process.kill()
        process.join()


def _work(sender: Any, name: str, args: Args, n: int, n_parameters: int) -> None:
    lines = Path("/proc/self/statm")
    if name != "shield" and lines.exists():
        own = int(lines.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = own + int((args.memory_gb + args.held_gb) * 2**30)
        setrlimit(RLIMIT_AS, (most, RLIM_INFINITY))
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        sender.send(here(name, args, n, n_parameters, lambda: sender.send(None)))


def here(name: str, args: Args, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Figures of one cell, or why there are none."""
    try:
        return MEASURES[name](args.seed, n, n_parameters, ready)
    except MemoryError:
        return skipped(f"over {args.memory_gb:g} GB beside the updates")
    except AggregationError as error:
        return skipped(str(error))


def limit_of(args: Args, name: str, n: int, n_parameters: int) -> float | None:
    """Seconds that a measure may take; None for no limit."""
    if name in ("shield", "probes"):
        return None
    return args.anchor_seconds if name in ANCHORS and (n, n_parameters) == BAR else args.seconds


def reason_to_skip(
    args: Args, name: str, n: int, n_parameters: int, cells: Mapping[str, Figures]
) -> str:
    """Why a cell is not run; empty where it is.

    Examples
    --------
    >>> reason_to_skip(Args(), "krum", 10_000, 25_000_000, {})
    'the updates alone take 1000 GB'
    >>> reason_to_skip(Args(), "shield", 10, 100_000, {})
    ''
    """
    if name == "shield":
        return "too many numbers to read here" if n * n_parameters > args.most_read else ""
    if name == "probes":
        return f"each of more than {args.probed} costs the same" if n > args.probed else ""
    gigabytes = 4 * n * n_parameters / 1e9
    if gigabytes > args.held_gb:
        return f"the updates alone take {gigabytes:.0f} GB"
    if name in ANCHORS and (n, n_parameters) == BAR:
        return ""
    smaller = [key_of(name, k, p) for k in args.clients for p in args.parameters]
    within = [key for key in smaller if _is_within(key, n, n_parameters)]
    over = [key for key in within if "skipped" in cells.get(key, {})]
    return f"so was {over[0]}: {cells[over[0]]['skipped']}" if over else ""


def _is_within(key: str, n: int, n_parameters: int) -> bool:
    k, p = map(int, key.split("/")[1:])
    return k <= n and p <= n_parameters and (k, p) != (n, n_parameters)


def skipped(reason: str) -> Figures:
    """Stand for a cell without figures."""
    return {"skipped": reason}


def resumed(args: Args) -> dict[str, Figures]:
    """Cells that the file already holds, of the same settings apart from the grid."""
    if args.out is None or not args.out.exists():
        return {}
    figures = json.loads(args.out.read_text())
    if _settings(figures["args"]) != _settings(plain(args)):
        return {}
    cells: dict[str, Figures] = figures["cells"]
    return cells


def _settings(args: Figures) -> Figures:
    return {k: v for k, v in args.items() if k not in ("clients", "parameters", "measures", "out")}


def plain(args: Args) -> Figures:
    """Return the settings as JSON has them."""
    told: Figures = json.loads(json.dumps(asdict(args), default=str))
    return told


def written(args: Args, cells: dict[str, Figures]) -> Figures:
    """All figures so far, in the file too."""
    figures: Figures = {
        "args": plain(args),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in VERSIONED},
        "cells": {key: {**own, **ratios(key, own, cells)} for key, own in cells.items()},
        "exponents": growth(cells),
        "bars": bars(cells),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def command(
    clients: Annotated[str, typer.Option(help="Clients in a round.")] = "10,100,1000,10000",
    parameters: Annotated[
        str, typer.Option(help="Sizes of the model.")
    ] = "100000,1000000,25000000",
    measures: Annotated[str, typer.Option(help="Rows, comma between; all without.")] = "",
    probed: Annotated[int, typer.Option(min=1, help="Most clients run on probes.")] = 10,
    seconds: Annotated[float, typer.Option(help="Longest that a rule may take.")] = 8.0,
    anchor_seconds: Annotated[
        float, typer.Option(help="The same for MultiKrum and FLAME.")
    ] = 300.0,
    held_gb: Annotated[float, typer.Option(help="Largest updates that a rule is given.")] = 4.5,
    memory_gb: Annotated[float, typer.Option(help="Memory of a rule beside the updates.")] = 11,
    most_read: Annotated[float, typer.Option(help="Most numbers that the shield reads.")] = 3e10,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a cell.")] = 1,
    apart: Annotated[bool, typer.Option(help="A process for each cell.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write and to go on from.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Time scoring over a grid of clients and parameters."""
    main(
        Args(
            clients=_numbers(clients),
            parameters=_numbers(parameters),
            measures=tuple(filter(None, measures.split(","))),
            probed=probed,
            seconds=seconds,
            anchor_seconds=anchor_seconds,
            held_gb=held_gb,
            memory_gb=memory_gb,
            most_read=most_read,
            threads=threads,
            apart=apart,
            out=out,
            seed=seed,
        )
    )


def _numbers(told: str) -> tuple[int, ...]:
    return tuple(int(number) for number in told.split(","))


if __name__ == "__main__":
    typer.run(command)
