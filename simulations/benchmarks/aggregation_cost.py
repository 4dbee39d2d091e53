"""What the shield costs: one ``aggregate_train`` over 100 replies of a 1.2-million-parameter model.

FedAvg, Flower's MultiKrum and FedAvg inside the shield, without probes and with them, aggregate
the same replies in turn, so that a busy machine slows all of them alike. The shield monitors:
it does all its work and FedAvg then still averages every reply. Its first round (cold) stands
apart from the later ones (warm), in which it also reads what it remembers of earlier rounds.

Peak memory is the growth of the process's high-water mark over two rounds, each strategy in a
fresh process that has already built the replies; ``tracemalloc`` would not see torch.

Run ``python -m fl_shield.simulations.benchmarks.aggregation_cost --out results.json``.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, MultiKrum, Strategy
from rich.console import Console
from rich.table import Table

from fl_shield.inspector import Inspector
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import FederatedData, load
from fl_shield.simulations.engines import flower_log, run
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.simulations.scenario import Scenario
from fl_shield.simulations.victims import build_model
from fl_shield.strategies import ShieldedStrategy
from fl_shield.strategies.records import to_record
from fl_shield.training import get_arrays
from fl_shield.types import Arrays, Floats

VERSIONED = ("fl-shield", "flwr", "torch", "numpy")
Timing = dict[str, float]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure.

    Attributes
    ----------
    clients, malicious, repeats
        Replies, how many of them MultiKrum is told are malicious, and warm rounds of each.
    model : str
        A network for 28x28 images in :data:`fl_shield.simulations.victims.MODELS`.
    memory : bool
        Whether to measure peak memory too, in a process for each strategy.
    rounds : int
        Real rounds of 10 clients for the shield's share of a round; 0 = none.
    dataset, data_dir
        What those are trained on: ``glyphs`` has the shape of FEMNIST, ``femnist`` is real.
    out : Path, optional
        Where to write the figures as JSON.
    seed : int
        Draws data, models and replies.
    """

    clients: int = 100
    malicious: int = 20
    repeats: int = 5
    model: str = "fed-cnn"
    memory: bool = True
    rounds: int = 5
    dataset: str = "glyphs"
    data_dir: str | None = None
    out: Path | None = None
    seed: int = 0


def main(args: Args) -> Figures:
    """Measure, print one table and return every figure, all times in seconds."""
    console = Console()
    with console.status("measuring peak memory") as status:
        memory = {name: measured_apart(args, name) for name in STRATEGIES} if args.memory else {}
        status.update("timing aggregate_train")
        replies = Replies(args)
        timings = timed(args, replies)
        status.update("timing real rounds")
        share = share_of_round(args) if args.rounds else {}
    figures: Figures = {
        **about(args, replies),
        "strategies": {
            name: {**summary(timings, name), "peak_memory_share": memory.get(name)}
            for name in STRATEGIES
        },
        "round": share,
    }
    console.print(table(figures))
    if share:
        console.print(
            f"Shield in a round of 10 clients on {args.dataset}: {share['shield_seconds']:.3f} s "
            f"of {share['round_seconds']:.2f} s, {share['share']:.1%} (first round "
            f"{share['first_share']:.1%})"
        )
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


class Replies:
    """A global model and what its clients reply: updates with much in common, and noise."""

    def __init__(self, args: Args) -> None:
        self.data: FederatedData = load("glyphs", n_clients=2, n_clean=20, seed=args.seed)
        self.model = build_model(args.model, self.data, args.seed)
        self.arrays = get_arrays(self.model)
        directions = [self._direction(keyed(args.seed, 1, k)) for k in range(4)]
        self.contents = [
            self._reply(directions, keyed(args.seed, 2, i)) for i in range(args.clients)
        ]
        self.n_bytes = args.clients * sum(a.nbytes for a in self.arrays.values())
        configs = node_configs(args.clients, args.seed)
        self.grid = InProcessGrid(self._answer, configs)

    def to(self, strategy: Strategy, server_round: int) -> list[Message]:
        """Replies to what a strategy sends in one round; only the arrays' bytes are shared."""
        record, config = to_record(self.arrays), ConfigRecord()
        sent = strategy.configure_train(server_round, record, config, self.grid)
        return list(self.grid.send_and_receive(sent))

    def _direction(self, rng: np.random.Generator) -> dict[str, Floats]:
        return {
            name: (rng.standard_normal(a.shape) * (a.std() + 1e-2)).astype(np.float32)
            for name, a in self.arrays.items()
        }

    def _reply(self, directions: list[dict[str, Floats]], rng: np.random.Generator) -> RecordDict:
        noise = self._direction(rng)
        along = np.array([1.0, *rng.normal(0, 0.5, len(directions) - 1)], dtype=np.float32)
        arrays: Arrays = {
            name: a + 0.02 * (noise[name] + sum(c * d[name] for c, d in zip(along, directions)))  # noqa: B905
            for name, a in self.arrays.items()
        }
        metrics = MetricRecord({"num-examples": int(rng.integers(100, 300)), "train_loss": 0.5})
        return RecordDict({"arrays": to_record(arrays), "metrics": metrics})

    def _answer(self, message: Message, context: Context) -> Message:
        return Message(
            self.contents[int(str(context.node_config["partition-id"]))], reply_to=message
        )


def fedavg(args: Args, replies: Replies) -> Strategy:
    """Flower's FedAvg over everybody."""
    return FedAvg(min_train_nodes=1, min_available_nodes=1)


def multikrum(args: Args, replies: Replies) -> Strategy:
    """Flower's MultiKrum, told how many are malicious."""
    return MultiKrum(
        min_train_nodes=1,
        min_available_nodes=1,
        num_malicious_nodes=args.malicious,
        num_nodes_to_select=args.clients - args.malicious,
    )


def shield(args: Args, replies: Replies, *, probes: bool = True) -> Strategy:
    """FedAvg inside the shield, which reads every update and changes nothing."""
    model, clean = build_model(args.model, replies.data, args.seed), replies.data.clean
    return ShieldedStrategy(
        fedavg(args, replies),
        model=model,
        clean_data=clean,
        mode="monitor",
        inspector=Inspector(model, clean, seed=args.seed, probes=probes),
    )


def shield_without_probes(args: Args, replies: Replies) -> Strategy:
    """The shield from the updates' numbers alone: no client's model runs."""
    return shield(args, replies, probes=False)


STRATEGIES: Mapping[str, Callable[[Args, Replies], Strategy]] = {
    "FedAvg": fedavg,
    "MultiKrum": multikrum,
    "shield without probes": shield_without_probes,
    "shield": shield,
}


def timed(args: Args, replies: Replies) -> dict[str, list[Timing]]:
    """Wall and processor seconds of each strategy's rounds, the strategies in turn."""
    strategies = {name: make(args, replies) for name, make in STRATEGIES.items()}
    timings: dict[str, list[Timing]] = {name: [] for name in strategies}
    with quiet():
        for server_round in range(1, args.repeats + 2):
            for name, strategy in strategies.items():
                received = replies.to(strategy, server_round)
                wall, cpu = perf_counter(), process_time()
                strategy.aggregate_train(server_round, received)
                timings[name].append(
                    {"seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}
                )
    return timings


def summary(timings: Mapping[str, list[Timing]], name: str) -> Figures:
    """First round apart; medians over the later ones, ratios to FedAvg within the same round."""
    cold, *warm = timings[name]
    plain = timings["FedAvg"][1:]
    return {
        "cold_seconds": cold["seconds"],
        "seconds": float(np.median([t["seconds"] for t in warm])),
        "cpu_seconds": float(np.median([t["cpu_seconds"] for t in warm])),
        "ratio_to_fedavg": _paired(warm, plain, "seconds"),
        "cpu_ratio_to_fedavg": _paired(warm, plain, "cpu_seconds"),
        "rounds": timings[name],
    }


def _paired(own: list[Timing], plain: list[Timing], clock: str) -> float:
    return float(np.median([a[clock] / b[clock] for a, b in zip(own, plain, strict=True)]))


def measured_apart(args: Args, name: str) -> float:
    """Peak memory of one strategy beside the replies, as a share of their size."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(peak_memory_share, args, name).result()


def peak_memory_share(args: Args, name: str) -> float:
    """Grow this process by a first and a second round, over the size of the replies."""
    replies = Replies(args)
    strategy = STRATEGIES[name](args, replies)
    before = high_water()
    with quiet():
        for server_round in (1, 2):
            strategy.aggregate_train(server_round, replies.to(strategy, server_round))
    return (high_water() - before) / replies.n_bytes


def high_water() -> int:
    """Most memory that this process ever held, in bytes.

    Linux keeps it by address space in ``/proc``; ``getrusage`` also remembers the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def share_of_round(args: Args) -> Figures:
    """Shield's part of real rounds: 10 clients train small-cnn, the server inspects them."""
    scenario = Scenario(
        dataset=args.dataset,
        data_dir=args.data_dir,
        n_clients=20,
        clients_per_round=10,
        n_rounds=args.rounds,
        n_test=100,
        defense="shield",
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/audit.db"
        rounds = run(scenario, Path(folder), url).rounds[1:]
    shares = [r.shield_seconds / r.round_seconds for r in rounds]
    later = rounds[1:] or rounds
    return {
        "share": float(np.median(shares[1:] or shares)),
        "first_share": shares[0],
        "shield_seconds": float(np.median([r.shield_seconds for r in later])),
        "round_seconds": float(np.median([r.round_seconds for r in later])),
    }


def quiet() -> Any:
    """Keep Flower's log off the terminal."""
    return flower_log(Path(os.devnull))


def about(args: Args, replies: Replies) -> Figures:
    """Everything that a reader needs to judge or repeat the figures; no names of machines."""
    return {
        "args": {name: _plain(value) for name, value in asdict(args).items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in VERSIONED},
        "n_parameters": sum(a.size for a in replies.arrays.values()),
        "replies_bytes": replies.n_bytes,
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def table(figures: Figures) -> Table:
    """Lay the figures out, a strategy a row."""
    title = f"{figures['args']['clients']} replies, {figures['n_parameters']:,} parameters"
    out = Table("strategy", title=title)
    for heading in ("seconds", "x FedAvg", "CPU s", "CPU x FedAvg", "first round s", "memory"):
        out.add_column(heading, justify="right")
    for name, row in figures["strategies"].items():
        share = row["peak_memory_share"]
        out.add_row(
            name,
            f"{row['seconds']:.3f}",
            f"{row['ratio_to_fedavg']:.2f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['cpu_ratio_to_fedavg']:.2f}",
            f"{row['cold_seconds']:.3f}",
            "-" if share is None else f"{share:.0%}",
        )
    return out


def command(
    clients: Annotated[int, typer.Option(min=5, help="Replies in a round.")] = 100,
    malicious: Annotated[int, typer.Option(help="What MultiKrum is told.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Warm rounds.")] = 5,
    model: Annotated[str, typer.Option(help="Network for 28x28 images.")] = "fed-cnn",
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    rounds: Annotated[int, typer.Option(min=0, help="Real rounds of 10 clients.")] = 5,
    dataset: Annotated[str, typer.Option(help="glyphs, or femnist.")] = "glyphs",
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Time one aggregate_train for FedAvg, MultiKrum and the shield."""
    main(
        Args(
            clients=clients,
            malicious=malicious,
            repeats=repeats,
            model=model,
            memory=memory,
            rounds=rounds,
            dataset=dataset,
            data_dir=data_dir,
            out=out,
            seed=seed,
        )
    )


if __name__ == "__main__":
    typer.run(command)
