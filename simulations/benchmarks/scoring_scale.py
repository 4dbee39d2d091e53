"""What scoring costs as rounds and models grow: the shield, its probes, and every published rule.

Replies are drawn one at a time from seeds. The shield is fed by a generator that checks each
encoded reply before it hands the arrays on, so that both clocks run on the same replies in turn
and nothing but one reply is ever held. What remains once the last reply was read does not know how
large the model is: it works on sketches, and that part alone may grow with the square of the
clients. The published rules need all updates at once; they run where those fit and where the rule
ends within its limit of seconds.

Each cell has a process of its own, forked from one that has loaded everything. Peak memory is the
growth of its high-water mark beside the replies: for the shield beside one reply, for a rule
beside all updates. A run that was cut short goes on from the file that it wrote.

Run ``python -m fl_shield.simulations.benchmarks.scoring_scale --out results.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, setrlimit
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from fl_shield.aggregators import AGGREGATORS, AggregationContext, Layout, Preparing
from fl_shield.errors import AggregationError
from fl_shield.inspector import Inspector
from fl_shield.rng import keyed
from fl_shield.simulations.benchmarks.aggregation_cost import high_water
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.strategies.records import ReplyLimits, check_reply, to_record
from fl_shield.training import get_arrays
from fl_shield.types import Floats, Samples

VERSIONED = ("fl-shield", "flwr", "torch", "numpy")
PRELOADED = ("fl_shield.simulations.benchmarks.aggregation_cost", "fl_shield.aggregators")
OFFSETS = 1 << 16
WIDTH = 130
ANCHORS = ("flower_multi_krum", "multi_krum", "flame")
BAR = (1000, 1_000_000)
Figures = dict[str, Any]
Ready = Callable[[], None]


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


def network(n_parameters: int, seed: int) -> nn.Module:
    """Two convolutions, a dense layer as wide as it takes, and a head, for 28x28 images."""
    n_hidden = max(round((n_parameters - 18_878) / 9_279), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(9216, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 62)),
        )


LEAST_PARAMETERS = 28_157


class Replies:
    """A global model and its clients' replies: a common way, and noise cut from one pool."""

    def __init__(self, seed: int, n_parameters: int) -> None:
        self.model = network(n_parameters, seed)
        self.arrays = get_arrays(self.model)
        self.layout = Layout.of(self.arrays)
        rng, self._seed = keyed(seed, 1), seed
        self.clean = Samples(
            x=rng.random((20, 1, 28, 28), dtype=np.float32), y=rng.integers(0, 62, size=20)
        )
        size = self.layout.size
        self._grid = InProcessGrid(_unasked, node_configs(1, seed))
        self._common = 0.02 * rng.standard_normal(size, dtype=np.float32)
        self._pool = 0.02 * rng.standard_normal(size + OFFSETS, dtype=np.float32)

    def update(self, i: int) -> Floats:
        """What client i changes, ``(P,)``."""
        rng = keyed(self._seed, 2, i)
        start = int(rng.integers(OFFSETS))
        along = np.float32(rng.normal(1, 0.2))
        moved: Floats = self._common * along + self._pool[start : start + self.layout.size]
        return moved

    def updates(self, n: int) -> Floats:
        """Updates of n clients, ``(n, P)``."""
        rows = np.empty((n, self.layout.size), np.float32)
        for i, row in enumerate(rows):
            row[:] = self.update(i)
        return rows

    def content(self, i: int) -> RecordDict:
        """Encode what client i sends."""
        moved = self.layout.shaped(self.update(i))
        arrays: dict[str, NDArray[Any]] = {n: a + moved[n] for n, a in self.arrays.items()}
        metrics = MetricRecord({"num-examples": 100 + i % 100})
        return RecordDict({"arrays": to_record(arrays), "metrics": metrics})

    def message(self, i: int) -> Message:
        """Wrap it as Flower does."""
        return self._grid.create_message(self.content(i), "train", 1, "1")


def _unasked(message: Message, context: Context) -> Message:
    raise RuntimeError("nobody is asked anything here")


class Clock:
    """Wall and processor seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._wall, self._cpu = perf_counter(), process_time()

    def lap(self) -> Floats:
        """Seconds, (2,): wall, processor."""
        wall, cpu = self._wall, self._cpu
        self._wall, self._cpu = perf_counter(), process_time()
        return np.array([self._wall - wall, self._cpu - cpu])


def shield(args: Args, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Read and check replies, and score them without probes: both clocks on the same replies."""
    replies, laps, clock = Replies(args.seed, n_parameters), dict[str, Floats](), Clock()

    def add(what: str) -> None:
        laps[what] = laps.get(what, np.zeros(2)) + clock.lap()

    def checked(n_replies: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        for i in range(n_replies):
            add("sketch")
            reply = replies.message(i)
            add("draw")
            arrays = check_reply(reply, replies.arrays, ReplyLimits()).arrays
            add("check")
            yield arrays
            reply.content.clear()  # it holds views of itself, and would stay till it is collected
        add("sketch")

    list(map(len, checked(1)))
    ready()
    before = high_water()
    inspector = Inspector(replies.model, replies.clean, seed=args.seed, probes=False)
    inspector.inspect(replies.arrays, checked(2), np.ones(2))  # simulates references, once a model
    add("first")
    first = laps["first"][0]
    laps.clear()
    clock.lap()
    inspector.inspect(replies.arrays, checked(n), np.ones(n))
    add("space")
    seconds = laps["sketch"] + laps["space"]
    return {
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        **{f"{w}_seconds": laps[w][0] for w in ("check", "sketch", "space")},
        **{f"{w}_cpu_seconds": laps[w][1] for w in ("check", "sketch", "space")},
        "first_seconds": first,
        "memory_bytes": high_water() - before,
        "n_parameters": replies.layout.size,
    }


def probes(args: Args, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Run clients' models on the probes, one after the other."""
    replies = Replies(args.seed, n_parameters)
    inspector = Inspector(replies.model, replies.clean, seed=args.seed)
    asked = inspector.probes
    assert asked is not None
    asked.set_global(replies.arrays)
    ready()
    before, seconds = high_water(), np.zeros(2)
    for i in range(n):
        moved = replies.layout.shaped(replies.update(i))
        arrays = {name: a + moved[name] for name, a in replies.arrays.items()}
        clock = Clock()
        asked.shifts(arrays)
        seconds += clock.lap()
    return _timed(seconds, before)


def rule(name: str, args: Args, n: int, n_parameters: int, ready: Ready) -> Figures:
    """One step of a published rule with its own settings."""
    replies, aggregator = Replies(args.seed, n_parameters), AGGREGATORS[name]()
    updates = replies.updates(n)
    context = AggregationContext(
        server_round=1,
        global_arrays=replies.arrays,
        layout=replies.layout,
        client_ids=tuple(f"client {i}" for i in range(n)),
        rng=keyed(args.seed, 3),
        model=replies.model,
        clean=replies.clean,
    )
    ready()
    before, clock = high_water(), Clock()
    state: Mapping[str, NDArray[Any]] = {}
    if isinstance(aggregator, Preparing):
        _, state = aggregator.prepare(state, context)
    aggregator.step(updates, np.full(n, 100.0), state, context)
    return _timed(clock.lap(), before)


def flower_multi_krum(args: Args, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Flower's choice of replies, told that a fifth are malicious."""
    replies = Replies(args.seed, n_parameters)
    contents = [replies.content(i) for i in range(n)]
    ready()
    before, clock = high_water(), Clock()
    select_multikrum(contents, n // 5, n - n // 5)
    return _timed(clock.lap(), before)


def _timed(seconds: Floats, before: int) -> Figures:
    return {
        "seconds": float(seconds[0]),
        "cpu_seconds": float(seconds[1]),
        "memory_bytes": high_water() - before,
    }


MEASURES: Mapping[str, Callable[[Args, int, int, Ready], Figures]] = {
    "shield": shield,
    "probes": probes,
    "flower_multi_krum": flower_multi_krum,
    **{name: partial(rule, name) for name in AGGREGATORS},
}


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
        return MEASURES[name](args, n, n_parameters, ready)
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


def key_of(name: str, n: int, n_parameters: int) -> str:
    """Name of a cell."""
    return f"{name}/{n}/{n_parameters}"


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


def ratios(key: str, own: Figures, cells: Mapping[str, Figures]) -> Figures:
    """Seconds of a cell over those of reading and checking, and over those of the shield."""
    beside = cells.get("shield" + key[key.index("/") :], {})
    if "seconds" not in own or "seconds" not in beside:
        return {}
    return {
        "ratio_to_check": own["seconds"] / beside["check_seconds"],
        "ratio_to_shield": own["seconds"] / beside["seconds"],
    }


def exponents(cells: Mapping[str, Figures], clock: str, n_least: int = 0) -> Figures:
    """Powers of clients and of parameters that the shield's seconds grow with, by least squares.

    Examples
    --------
    >>> cells = {f"shield/{n}/{p}": {"s": 2e-9 * n * p} for n in (10, 100) for p in (10, 1000)}
    >>> {name: round(power, 6) for name, power in exponents(cells, "s").items()}
    {'clients': 1.0, 'parameters': 1.0}
    """
    found = [
        [*map(float, key.split("/")[1:]), own[clock]]
        for key, own in cells.items()
        if key.startswith("shield/") and clock in own and int(key.split("/")[1]) >= n_least
    ]
    logs = np.log(np.array(found).reshape(-1, 3))
    if min(len(set(column)) for column in logs.T) < 2:
        return {}
    design = np.column_stack([logs[:, :2], np.ones(len(logs))])
    powers = np.linalg.lstsq(design, logs[:, 2], rcond=None)[0]
    return {"clients": float(powers[0]), "parameters": float(powers[1])}


def growth(cells: Mapping[str, Figures]) -> Figures:
    """Exponents of processor seconds by part of the shield, over all rounds and the large ones."""
    parts = {"check": "check_", "sketches": "sketch_", "beside": "space_", "shield": ""}
    return {
        f"{part}{where}": exponents(cells, f"{clock}cpu_seconds", least)
        for part, clock in parts.items()
        for where, least in (("", 0), (" from 1,000 clients", 1000))
    }


def bars(cells: Mapping[str, Figures]) -> Figures:
    """What is promised of 1,000 clients and a million parameters, and what was seen."""
    own = cells.get(key_of("shield", *BAR), {})
    if "seconds" not in own:
        return {}
    both = own["seconds"] + own["check_seconds"]
    found: Figures = {
        "megabytes beside the replies, at most 256": own["memory_bytes"] / 2**20,
        "shield over reading and checking, at most 2": own["seconds"] / own["check_seconds"],
        "the same in processor seconds": own["cpu_seconds"] / own["check_cpu_seconds"],
    }
    for name in ANCHORS:
        seconds = cells.get(key_of(name, *BAR), {}).get("seconds")
        if seconds is not None:
            found[f"{name} over checking and the shield, at least 10"] = seconds / both
    return found


def verdicts(figures: Figures) -> Iterator[str]:
    """Lines below the table."""
    for name, value in figures["bars"].items():
        yield f"{name}: {value:.2f}"
    for part, powers in figures["exponents"].items():
        if powers:
            yield (
                f"{part}: clients^{powers['clients']:.2f} x parameters^{powers['parameters']:.2f}"
            )


def table(figures: Figures) -> Table:
    """Lay the seconds out, a measure a row, a cell of the grid a column."""
    args, cells = figures["args"], figures["cells"]
    grid = [(n, p) for p in args["parameters"] for n in args["clients"]]
    title = "seconds by clients and parameters; - = skipped, the file says why"
    out = Table("", title=title, box=SIMPLE, padding=(0, 0, 0, 1))
    for n, p in grid:
        out.add_column(f"{n:,}\n{p / 1e6:g}M", justify="right", no_wrap=True)
    rows = {"read and check": ("shield", "check_seconds"), "shield": ("shield", "seconds")}
    rows |= {"  sketches": ("shield", "sketch_seconds"), "  beside": ("shield", "space_seconds")}
    rows |= {"  MB": ("shield", "memory_bytes")}
    others = [name for name in args["measures"] or MEASURES if name != "shield"]
    rows |= {name: (name, "seconds") for name in others}
    for label, (name, clock) in rows.items():
        found = [cells.get(key_of(name, n, p), {}).get(clock) for n, p in grid]
        scale = 2**20 if clock == "memory_bytes" else 1
        shown = ["-" if value is None else f"{value / scale:.3g}" for value in found]
        out.add_row(label, *shown)
    return out


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
