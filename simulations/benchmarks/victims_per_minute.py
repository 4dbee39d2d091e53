"""How many victims a minute: trained together and warm, beside one by one from scratch.

Both ways train the same victims of one data set and network (same triggers, same poisoned data) in
one run on one thread, and both reach for the same accuracy and attack success. Run::

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

from fl_shield.simulations.episodes.clean_models import Workplace, clean_model, pool_of, recipe_of
from fl_shield.simulations.episodes.population import POOLS, VictimSetting, draw_victim, families_of
from fl_shield.simulations.episodes.victims import Victim, record, train_victims


@dataclass(frozen=True, kw_only=True)
class Args:
    """What is measured.

    Attributes
    ----------
    cells : tuple of str
        ``data set/network`` pairs.
    n_victims : int
        Victims of each cell, all backdoored.
    data_dir : Path, optional
    cache : Path
    out : Path
    """

    cells: tuple[str, ...]
    n_victims: int
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
    together: Way
    one_by_one: Way
    clean_seconds: float
    ratio: float


def main(args: Args) -> list[Measured]:
    """Measure every cell, print the table and write the file."""
    torch.set_num_threads(1)
    place = Workplace(data_dir=args.data_dir, cache=args.cache)
    found = [measured(cell, args.n_victims, place) for cell in args.cells]
    show(found)
    described = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "cells": [asdict(m) for m in found],
    }
    args.out.write_text(json.dumps(described, indent=2) + "\n")
    return found


def measured(cell: str, n_victims: int, place: Workplace) -> Measured:
    """Train the victims of one cell both ways."""
    name, _, architecture = cell.partition("/")
    pool = pool_of(name, place)
    started = time.perf_counter()
    for which in range(recipe_of(pool.name, pool.kind).n_clean):
        clean_model(pool, architecture, which, place)
    clean_seconds = time.perf_counter() - started
    warm = drawn(name, architecture, n_victims)
    cold = [replace(setting, start="scratch") for setting in warm]
    if not POOLS[name].warm_share:
        warm = cold
    together = way([warm], place)
    alone = way([[setting] for setting in cold], place)
    return Measured(
        cell=cell,
        n_victims=n_victims,
        together=together,
        one_by_one=alone,
        clean_seconds=clean_seconds,
        ratio=alone.seconds / together.seconds,
    )


def drawn(pool: str, architecture: str, n: int) -> list[VictimSetting]:
    """Backdoored victims of one data set and network, families in turn."""
    families = families_of(pool, held_out=False)
    return [
        replace(
            draw_victim(pool, families[i % len(families)], 700_000 + i),
            architecture=architecture,
            poison_rate=0.3,
            start="warm",
        )
        for i in range(n)
    ]


def way(groups: Sequence[Sequence[VictimSetting]], place: Workplace) -> Way:
    """Train groups one after the other; accuracy and attack success are means over victims."""
    victims: list[Victim] = []
    started = time.perf_counter()
    for group in groups:
        victims += train_victims(group, place)
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
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/meta"))
    parser.add_argument("--out", type=Path, default=Path("victims_per_minute.json"))
    given = parser.parse_args()
    return Args(
        cells=tuple(given.cells),
        n_victims=given.victims,
        data_dir=given.data_dir,
        cache=given.cache,
        out=given.out,
    )


if __name__ == "__main__":
    main(parsed())
