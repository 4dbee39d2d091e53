"""Several federations, one after another or side by side, into one results file.

A finished federation is on disk at once, and the next call with the same settings takes it from
there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from fl_shield.attacks import ATTACKS
from fl_shield.audit import AuditStore
from fl_shield.errors import AuditError, EngineError, ScenarioError
from fl_shield.simulations.engines import run
from fl_shield.simulations.outcome import RoundRow, summarise
from fl_shield.simulations.round_log import RoundFollower, start_log
from fl_shield.simulations.scenario import Scenario
from fl_shield.weights import PRETRAINED, WEIGHTS_FILE

RESULTS_FILE, AUDIT_FILE, ENTRY_FILE = "results.json", "audit.db", "entry.json"
VERSIONED = ("fl-shield", "flwr", "torch", "numpy", "scikit-learn", "ray")

Entry = dict[str, Any]
"""One federation in ``results.json``."""
OnEvent = Callable[[Scenario, RoundRow], None]


def plan(
    base: Mapping[str, Any],
    attacks: Sequence[str],
    defenses: Sequence[str],
    seeds: Sequence[int],
) -> list[Scenario]:
    """Every attack under every defence for every seed, and the attack-free FedAvg reference.

    Parameters
    ----------
    base : mapping
        Settings of :class:`Scenario` that all share. Its ``attack_options`` go to those attacks
        that know them; an option that none of them knows is an error.
    attacks, defenses, seeds : sequences
        The grid.

    Examples
    --------
    >>> [s.name for s in plan({}, ["lp"], ["none", "shield"], [0])]
    ['none-none-s0', 'lp-none-s0', 'lp-shield-s0']
    """
    _check_options(base, attacks)
    cells: list[tuple[str, str, int]] = []
    for seed in seeds:
        cells.append(("none", "none", seed))
        cells += [(attack, defense, seed) for attack in attacks for defense in defenses]
    return [
        Scenario(
            **{
                **base,
                "attack": attack,
                "attack_options": _known_options(base, attack),
                "defense": defense,
                "seed": seed,
            }
        )
        for attack, defense, seed in dict.fromkeys(cells)
    ]


def _known_options(base: Mapping[str, Any], attack: str) -> dict[str, float]:
    """Options of the base that an attack takes; an unknown attack is the scenario's to refuse."""
    taken = signature(ATTACKS[attack]).parameters if attack in ATTACKS else {}
    options: Mapping[str, float] = base.get("attack_options", {})
    return {name: value for name, value in options.items() if name in taken}


def _check_options(base: Mapping[str, Any], attacks: Sequence[str]) -> None:
    known = {name for attack in attacks for name in _known_options(base, attack)}
    unknown = sorted(set(base.get("attack_options", {})) - known)
    if unknown:
        takes = {n for a in attacks if a in ATTACKS for n in signature(ATTACKS[a]).parameters}
        raise ScenarioError(
            f"attack option {unknown[0]!r} is known to none of {', '.join(attacks)}; "
            f"they take {', '.join(sorted(takes)) or 'none'}"
        )


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Federations to run, and where they go.

    Attributes
    ----------
    scenarios : tuple of Scenario
        What to run, in the order of the results.
    out : Path
        Takes ``results.json``, the audit database and a folder for each federation.
    n_workers : int
        Federations at a time, each in a process of its own with its share of the cores; 1 = all
        in this process.
    force : bool
        Run again what is already there.
    """

    scenarios: tuple[Scenario, ...]
    out: Path
    n_workers: int = 1
    force: bool = False

    def __post_init__(self) -> None:
        if self.n_workers < 1:
            raise ScenarioError(f"workers must be at least 1, got {self.n_workers}; 1 is enough")

    def folder(self, scenario: Scenario) -> Path:
        """Return the folder of one federation: its name and a digest of its settings."""
        digest = hashlib.sha256(scenario.to_json().encode()).hexdigest()[:8]
        return self.out / "federations" / f"{scenario.name}-{digest}"

    @property
    def audit_url(self) -> str:
        """SQLAlchemy URL of the audit that all federations share."""
        return f"sqlite:///{(self.out / AUDIT_FILE).resolve()}"

    def conduct(self, on_event: OnEvent | None = None) -> list[Entry]:
        """Run what is missing, write ``results.json`` and return its entries.

        Parameters
        ----------
        on_event : callable, optional
            Told of each round of each federation as it ends.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        missing = [s for s in self.scenarios if self.force or not self.is_finished(s)]
        self._write_results()
        if self.n_workers == 1 or len(missing) < 2:
            for scenario in missing:
                self._run_here(scenario, on_event)
        elif missing:
            self._run_beside(missing, on_event)
        return self._write_results()

    def is_finished(self, scenario: Scenario) -> bool:
        """Whether a federation with these settings and weights is there, with its audit."""
        entry = self._entry(scenario)
        if entry is None or entry["weights"] != weights_digest(scenario):
            return False
        return not entry["audit"] or self._has_audit(entry["audit"]["run_id"])

    def _has_audit(self, run_id: str) -> bool:
        try:
            AuditStore(self.audit_url, create=False).run(run_id)
        except AuditError:
            return False
        return True

    def _entry(self, scenario: Scenario) -> Entry | None:
        path = self.folder(scenario) / ENTRY_FILE
        if not path.exists():
            return None
        entry: Entry = json.loads(path.read_text())
        return entry

    def _run_here(self, scenario: Scenario, on_event: OnEvent | None) -> None:
        def tell(row: RoundRow) -> None:
            if on_event is not None:
                on_event(scenario, row)

        folder = self.folder(scenario)
        _run_one(scenario.to_json(), folder, self.audit_url, tell)
        self._write_results()

    def _run_beside(self, scenarios: Sequence[Scenario], on_event: OnEvent | None) -> None:
        n_workers = min(self.n_workers, len(scenarios))
        n_threads = max(1, (os.cpu_count() or 1) // n_workers)
        followers = [self._follower(scenario, on_event) for scenario in scenarios]
        with ProcessPoolExecutor(
            n_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(n_threads,),
        ) as pool:
            jobs = [
                pool.submit(_run_one, s.to_json(), self.folder(s), self.audit_url, None)
                for s in scenarios
            ]
            try:
                self._wait(jobs, followers)
            except BrokenProcessPool as error:
                raise EngineError(
                    f"one of {n_workers} worker processes died, perhaps for want of memory; "
                    "finished federations are kept: run again with fewer workers"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _follower(self, scenario: Scenario, on_event: OnEvent | None) -> RoundFollower:
        folder = self.folder(scenario)
        folder.mkdir(parents=True, exist_ok=True)
        start_log(folder)
        if on_event is None:
            return RoundFollower(folder, None)
        return RoundFollower(folder, lambda row: on_event(scenario, row))

    def _wait(self, jobs: Sequence[Future[None]], followers: Sequence[RoundFollower]) -> None:
        pending = set(jobs)
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for follower in followers:
                follower.poll()
            for job in finished:
                job.result()
            if finished:
                self._write_results()

    def _write_results(self) -> list[Entry]:
        found = [entry for s in self.scenarios if (entry := self._entry(s)) is not None]
        write_json(self.out / RESULTS_FILE, {"federations": found})
        return found


def _run_one(
    scenario_json: str, folder: Path, audit_url: str, on_round: Callable[[RoundRow], None] | None
) -> None:
    """Run one federation and write its entry: what a worker process does."""
    scenario = Scenario.from_json(scenario_json)
    (folder / ENTRY_FILE).unlink(missing_ok=True)
    outcome = run(scenario, folder, audit_url, on_round)
    entry = {
        **summarise(scenario, outcome),
        "settings": scenario.to_dict(),
        "audit": {"database": AUDIT_FILE, **outcome.audit} if outcome.audit else {},
        "weights": weights_digest(scenario),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / ENTRY_FILE, entry)


def versions() -> dict[str, str]:
    """Versions of what a federation's figures depend on, by package."""
    return {name: version(name) for name in VERSIONED}


def weights_digest(scenario: Scenario) -> str:
    """Digest of the shipped weights that a federation depends on, else empty."""
    if scenario.defense != "shield":
        return ""
    shipped = files(PRETRAINED[scenario.weights]) / WEIGHTS_FILE
    return hashlib.sha256(shipped.read_bytes()).hexdigest()[:16]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(values, indent=1) + "\n")
    draft.replace(path)
