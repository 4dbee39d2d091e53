"""Runs an arena table: records every attack once, asks every defence, then closes the loop.

Whatever is finished is on disk at once; the next call with the same settings goes on from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fl_shield.simulations.arena.recording import VERSION, Recording, attack_digest
from fl_shield.simulations.arena.replay import cell_of, replay
from fl_shield.simulations.arena.tables import ArenaTable
from fl_shield.simulations.campaign import Campaign, OnEvent, weights_digest, write_json
from fl_shield.simulations.outcome import RoundRow
from fl_shield.simulations.processes import HERE, Workers, as_done
from fl_shield.simulations.scenario import Scenario
from fl_shield.types import Floats, Ints

CELLS_FOLDER, CLOSED_FOLDER = "cells", "closed"
Entry = Mapping[str, Any]
"""One cell of the recorded grid: where, who against whom, and the figures."""
OnStep = Callable[[str, float, float], None]
"""Told of a step's name, what is done and what there is to do."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A table, its seeds and where it works.

    Attributes
    ----------
    table : ArenaTable
    seeds : tuple of int
    out : Path
        Takes cells, closed federations, tables and figures.
    cache : Path
        Takes recordings: large, and shared by all contests.
    workers : Workers
    """

    table: ArenaTable
    seeds: tuple[int, ...]
    out: Path
    cache: Path
    workers: Workers = HERE

    def recorded(self, report: OnStep | None = None) -> list[Entry]:
        """Record what is missing, ask every defence, and return all cells.

        Parameters
        ----------
        report : callable, optional
            Told as work gets done.
        """
        told = report or (lambda step, done, total: None)
        calm = [[self.table.recorded("none", seed)] for seed in self.seeds]
        self._work(partial(record_honest, self.cache), calm, "honest rounds", told)
        bouts = [
            self.table.contenders(attack, seed)
            for seed in self.seeds
            for attack in ("none", *self.table.attacks)
        ]
        folder = self.out / CELLS_FOLDER
        self._work(partial(judge_recorded, self.cache, folder), bouts, "attacks", told)
        paths = [cell_path(folder, judged) for bout in bouts for judged in bout]
        return [json.loads(path.read_text())["cell"] for path in paths]

    def scored(self) -> dict[tuple[str, str], tuple[Ints, Floats]]:
        """Labels and scores of every update that a defence scored, by attack and defence.

        Rounds without an attacker, and attacks that upload what honest clients do, are left out.
        """
        found: dict[tuple[str, str], list[tuple[bool, float]]] = {}
        for seed in self.seeds:
            for attack in self.table.attacks:
                for judged in self.table.contenders(attack, seed):
                    file = json.loads(cell_path(self.out / CELLS_FOLDER, judged).read_text())
                    clients = [c for row in file["rounds"] for c in row["clients"]]
                    found.setdefault((attack, judged.defense), []).extend(
                        (c["malicious"], c["score"])
                        for c in clients
                        if c["score"] is not None and not c["equals_honest"]
                    )
        return {
            key: (np.array([m for m, _ in rows], np.int64), np.array([s for _, s in rows]))
            for key, rows in found.items()
            if {m for m, _ in rows} == {False, True}
        }

    def closed(self, on_event: OnEvent | None = None) -> list[Entry]:
        """Train through FedAvg and the table's closed defences, and return the federations."""
        return list(self.campaign.conduct(on_event))

    @property
    def campaign(self) -> Campaign:
        """The federations that are trained through their defence."""
        return Campaign(
            scenarios=tuple(self.table.closed_loop(self.seeds)),
            out=self.out / CLOSED_FOLDER,
            n_workers=self.workers.n_processes,
        )

    def _work(
        self,
        work: Callable[[tuple[str, ...]], None],
        bouts: Sequence[Sequence[Scenario]],
        step: str,
        report: OnStep,
    ) -> None:
        report(step, 0, len(bouts))
        texts = [tuple(scenario.to_json() for scenario in bout) for bout in bouts]
        for i, _ in enumerate(as_done(work, texts, self.workers), start=1):
            report(step, i, len(bouts))


def record_honest(cache: Path, bout: tuple[str, ...]) -> None:
    """Record the honest rounds of a scenario: what a worker process does first."""
    recording = Recording(Scenario.from_json(bout[0]), cache)
    for server_round in range(1, recording.scenario.n_rounds + 1):
        recording.honest_round(server_round)


def judge_recorded(cache: Path, folder: Path, bout: tuple[str, ...]) -> None:
    """Record an attack where it is not, and write the cell of every defence that lacks one.

    Parameters
    ----------
    cache, folder : Path
        Of recordings, and of cells.
    bout : tuple of str
        Scenarios that differ in their defence only, as JSON.
    """
    scenarios = [Scenario.from_json(text) for text in bout]
    missing = [s for s in scenarios if not cell_path(folder, s).exists()]
    if not missing:
        return
    recording = Recording(missing[0], cache)
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in missing:
        with quiet_flower():
            rows = replay(recording, scenario.defense, scenario.defense_options)
        write_json(cell_path(folder, scenario), _cell(scenario, rows))


def cell_path(folder: Path, scenario: Scenario) -> Path:
    """File of one cell: its name, and a digest of all that it depends on."""
    facts = [
        attack_digest(scenario),
        dict(scenario.defense_options),
        scenario.n_rounds,
        scenario.fpr_budget if scenario.defense == "shield" else None,
        scenario.n_test,
        weights_digest(scenario),
        VERSION,
    ]
    digest = sha256(json.dumps(facts).encode()).hexdigest()[:8]
    return folder / f"{scenario.attack}-{scenario.defense}-s{scenario.seed}-{digest}.json"


def _cell(scenario: Scenario, rows: list[RoundRow]) -> dict[str, Any]:
    where = {
        "dataset": scenario.dataset,
        "attack": scenario.attack,
        "defense": scenario.defense,
        "seed": scenario.seed,
    }
    return {
        "cell": {**where, **asdict(cell_of(rows))},
        "rounds": [row.to_dict() for row in rows],
    }


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's account of every round off the terminal."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
