"""Where a federation runs: in this process (fast, default) or on Flower's runtime (Ray)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from fl_shield.simulations.federation import SCENARIO_FILE, client_app, serve
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.simulations.outcome import OnRound, Outcome
from fl_shield.simulations.ray_engine import LOG_FILE, run_ray
from fl_shield.simulations.scenario import Scenario

RunEngine = Callable[[Scenario, Path, str, OnRound | None], Outcome]


def run(
    scenario: Scenario, folder: Path, audit_url: str, on_round: OnRound | None = None
) -> Outcome:
    """Run one federation on the engine that it names.

    Parameters
    ----------
    scenario : Scenario
        What to run.
    folder : Path
        Working folder of this federation; made if need be. Takes the scenario, Flower's log, the
        rounds, the final model and the outcome.
    audit_url : str
        SQLAlchemy URL for the shield's decisions.
    on_round : callable, optional
        Told of each round as it ends.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCENARIO_FILE).write_text(scenario.to_json())
    return ENGINES[scenario.engine](scenario, folder, audit_url, on_round)


def run_in_process(
    scenario: Scenario, folder: Path, audit_url: str, on_round: OnRound | None = None
) -> Outcome:
    """Run one federation, whose ``scenario.json`` stands in ``folder``, in this process."""
    torch.manual_seed(scenario.seed)
    with flower_log(folder / LOG_FILE):
        grid = InProcessGrid(
            client_app,
            node_configs(scenario.n_clients, scenario.seed),
            run_config={"folder": str(folder), "audit": audit_url},
        )
        return serve(grid, folder, audit_url, on_round)


ENGINES: Mapping[str, RunEngine] = {"in-process": run_in_process, "ray": run_ray}


@contextmanager
def flower_log(path: Path) -> Iterator[None]:
    """Send Flower's log to a file instead of the terminal for the length of the block."""
    logger = logging.getLogger("flwr")
    before, propagate = list(logger.handlers), logger.propagate
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
        handler.close()
