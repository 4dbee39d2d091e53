"""What one evaluation compares, on which victims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fl_shield.errors import ScenarioError
from fl_shield.profile import MIN_REFERENCES
from fl_shield.simulations.episodes.clean_models import Workplace
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.population import VictimSetting, evaluation_victims
from fl_shield.simulations.episodes.rounds import FederationSetting
from fl_shield.simulations.episodes.victims import N_REFERENCES
from fl_shield.simulations.evaluation.federations import judged_federations
from fl_shield.simulations.evaluation.judging import MAIN_SHOTS
from fl_shield.simulations.evaluation.learning import Training, check_ablations
from fl_shield.simulations.evaluation.splits import check_axes
from fl_shield.simulations.meta_training import RECIPE
from fl_shield.simulations.processes import Workers

Report = Callable[[str, float, float], None]
"""Name of a step, how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is compared on which victims.

    Attributes
    ----------
    axes : tuple of str
        Tables, see :data:`~fl_shield.simulations.evaluation.splits.AXES`.
    domains, pools : tuple of str
        What takes part; no pools = all data sets of the domains.
    n_victims, n_each : int
        Victims to learn from, and victims judged by data set and held-out family.
    n_digits, n_glyphs : int
        Federations to learn from, where the domain ``fl`` takes part.
    n_epochs, n_draws : int
        Passes of meta-training, and tasks of one victim.
    shots : tuple of int
        Numbers of clean inputs; 20 must be among them.
    ablate : bool
        Whether weights with one thing changed are trained and judged too.
    ablations : tuple of str
        Which of them; none named = all.
    seed : int
    place : Workplace
    n_workers : int
        Processes of this machine.
    ray_address : str, optional
        A Ray cluster that simulates victims and federations instead.
    """

    axes: tuple[str, ...]
    domains: tuple[str, ...]
    pools: tuple[str, ...]
    n_victims: int
    n_each: int
    n_digits: int
    n_glyphs: int
    n_epochs: int
    n_draws: int
    shots: tuple[int, ...]
    ablate: bool
    seed: int
    place: Workplace
    n_workers: int
    ablations: tuple[str, ...] = ()
    ray_address: str | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes)
        check_ablations(self.ablations, self.domains)
        if MAIN_SHOTS not in self.shots:
            raise ScenarioError(
                f"shots must hold {MAIN_SHOTS}, which the tables are made with, got {self.shots}"
            )
        if not MIN_REFERENCES < min(self.shots) <= max(self.shots) <= N_REFERENCES:
            raise ScenarioError(
                f"shots must be in {MIN_REFERENCES + 1}..{N_REFERENCES}, the clean inputs that are "
                f"recorded of a victim, got {self.shots}"
            )

    @property
    def curriculum(self) -> Curriculum:
        """What is learned from, before anything is left out."""
        return Curriculum(
            domains=self.domains,
            n_victims=self.n_victims,
            n_digits=self.n_digits,
            n_glyphs=self.n_glyphs,
            with_files=self.place.data_dir is not None,
            only=self.pools,
            seed=self.seed,
        )

    @property
    def training(self) -> Training:
        """How the weights of every split are trained."""
        config = replace(RECIPE, n_epochs=self.n_epochs)
        return Training(config=config, seed=self.seed, cache=self.place.cache / "weights")

    @property
    def workers(self) -> Workers:
        """Who simulates."""
        return Workers(n_processes=self.n_workers, ray_address=self.ray_address)

    @property
    def episodes(self) -> Path:
        """Folder of the rounds of federations."""
        return self.place.cache / "episodes"

    def judged_federations(self) -> list[FederationSetting]:
        """Federations that are judged: two for each victim of a cell, as they have few clients."""
        return judged_federations(2 * self.n_each, self.seed) if "fl" in self.domains else []

    def judged(self) -> list[VictimSetting]:
        """Victims that are judged."""
        return evaluation_victims(self.curriculum.pools(), self.n_each, self.seed)
