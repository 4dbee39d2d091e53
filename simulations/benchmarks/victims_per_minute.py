"""How many victims a minute: as meta-training makes them, beside one by one from scratch.

Meta-training stacks networks, and plants several backdoors in one where a network takes long. The
other way trains a network for each of the same backdoors (family, target, poison rate), one after
the other. Both run on one thread in one run, from scratch, for as many steps, and accuracy and
attack success of both stand in the table. ``--longer`` gives the first way more steps. Run::

    python -m fl_shield.simulations.benchmarks.victims_per_minute --data-dir DATA --out speed.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fl_shield.simulations.episodes.clean_models import Workplace, pool_of
from fl_shield.simulations.episodes.planting import Victim
from fl_shield.simulations.episodes.pool_facts import POOLS
from fl_shield.simulations.episodes.population import VictimSetting, training_victims
from fl_shield.simulations.episodes.victims import record, train_victims


@dataclass(frozen=True, kw_only=True)
class Args:
    """What is measured.

    Attributes
    ----------
    cells : tuple of str
        ``data set/network`` pairs.
    n_victims : int
        Victims of each cell, all backdoored.
    longer : float
        Factor of the steps as meta-training makes them; one by one takes the recipe's.
    data_dir : Path, optional
    cache : Path
    out : Path
    """

    cells: tuple[str, ...]
    n_victims: int
    longer: float
    data_dir: Path | None
    cache: Path
    out: Path


CELLS = ("cartpole/policy-mlp", "ag-news/text-cnn", "ag-news/gru", "digits/cnn", "gtsrb/cnn")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of training, over the victims of one cell."""

    seconds: float
    accuracy: float
    asr: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell: both ways, and the ratio of victims a minute."""

    cell: str
    n_victims: int
    n_networks: int
    together: Way
    one_by_one: Way
    ratio: float


def main(args: Args) -> list[Measured]:
    """Measure every cell, print the table and write the file."""
    torch.set_num_threads(1)
    place = Workplace(data_dir=args.data_dir, cache=args.cache)
    found = [measured(cell, args.n_victims, place, args.longer) for cell in args.cells]
    show(found)
    described = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "longer": args.longer,
        "cells": [asdict(m) for m in found],
    }
    args.out.write_text(json.dumps(described, indent=2) + "\n")
    return found


def measured(cell: str, n_victims: int, place: Workplace, longer: float = 1.0) -> Measured:
    """Train the victims of one cell both ways; ``longer`` is a factor of the first way's steps."""
    name, _, architecture = cell.partition("/")
    pool_of(name, place)  # loading is not measured
    settings = drawn(name, architecture, n_victims)
    together = way([settings], place, longer)
    alone = way([[replace(setting, beside=())] for setting in settings], place)
    return Measured(
        cell=cell,
        n_victims=len(settings),
        n_networks=len({setting.network() for setting in settings}),
        together=together,
        one_by_one=alone,
        ratio=alone.seconds / together.seconds,
    )


def drawn(pool: str, architecture: str, n: int) -> list[VictimSetting]:
    """First backdoored victims from scratch of one data set and network, whole networks of them."""
    found: list[VictimSetting] = []
    stream = training_victims({pool: 400 * POOLS[pool].n_backdoors}, seed=7)
    for network in dict.fromkeys(victim.network() for victim in stream):
        first = network[0]
        wanted = first.architecture == architecture and first.start == "scratch"
        if wanted and first.backdoored and len(found) < n:
            found += network
    return found


def way(groups: Sequence[Sequence[VictimSetting]], place: Workplace, longer: float = 1.0) -> Way:
    """Train groups one after the other; accuracy and attack success are means over victims."""
    victims: list[Victim] = []
    started = time.perf_counter()
    for group in groups:
        victims += train_victims(group, place, longer)
    seconds = time.perf_counter() - started
    pool = pool_of(victims[0].setting.pool, place)
    facts = [record(victim, pool, 0.0).facts for victim in victims]
    return Way(
        seconds=seconds,
        accuracy=float(np.mean([f["accuracy"] for f in facts])),
        asr=float(np.mean([f["asr"] for f in facts])),
    )


def show(found: Sequence[Measured]) -> None:
    """Print a row for each cell."""
    table = Table("cell", "victims / min", "one by one", "ratio", "accuracy", "ASR")
    for m in found:
        per_minute = [f"{60 * m.n_victims / w.seconds:.1f}" for w in (m.together, m.one_by_one)]
        table.add_row(
            m.cell,
            *per_minute,
            f"{m.ratio:.1f}",
            f"{m.together.accuracy:.3f} / {m.one_by_one.accuracy:.3f}",
            f"{m.together.asr:.3f} / {m.one_by_one.asr:.3f}",
        )
    Console().print(table)


def parsed() -> Args:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--longer", type=float, default=1.0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/meta"))
    parser.add_argument("--out", type=Path, default=Path("victims_per_minute.json"))
    given = parser.parse_args()
    return Args(
        cells=tuple(given.cells),
        n_victims=given.victims,
        longer=given.longer,
        data_dir=given.data_dir,
        cache=given.cache,
        out=given.out,
    )


if __name__ == "__main__":
    main(parsed())
