"""Everything that one detector learns from: how many victims and federations of which kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.calm import CalmNull, calm_settings
from fl_shield.simulations.episodes.pool_facts import DOMAINS, POOLS
from fl_shield.simulations.episodes.population import VictimSetting, training_victims
from fl_shield.simulations.episodes.rounds import (
    FederationSetting,
    among_all_attacks,
    draw_setting,
)
from fl_shield.types import Representation
from fl_shield.weights import ODDS_NULL

N_CALM_ROUNDS = 24
"""Rounds of an attack-free federation."""

READ_FROM_FILES = ("tiny-imagenet",)
"""Data sets of federations to learn from that are files beside the package."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How much is simulated of each kind.

    Attributes
    ----------
    domains : tuple of str
        Some of ``cv``, ``nlp``, ``rl`` and ``fl``.
    n_victims : int
        Single models, over the data sets of the domains in their shares.
    n_digits, n_glyphs : int
        Federations of each data set.
    n_rounds : int
        Attacked rounds of each federation; every one is attacked in five ways and none.
    n_zoo : int
        Federations of each data set more whose rounds are attacked in ways drawn from the whole
        arena, up to half of the clients malicious.
    n_photos : int
        Federations on photographs (Tiny-ImageNet) that are attacked like those.
    with_files : bool
        Whether data sets that are files beside the package take part, or the embedded ones only.
    only : tuple of str
        Data sets that victims are trained on; empty = all that the above allow.
    data_dir : str, optional
        Folder that holds the photographs.
    seed : int
    representation : {"profile", "pca"}
        What the detector reads of a view.
    """

    domains: tuple[str, ...] = DOMAINS
    n_victims: int = 1500
    n_digits: int = 16
    n_glyphs: int = 44
    n_rounds: int = 3
    n_zoo: int = 0
    n_photos: int = 0
    with_files: bool = False
    only: tuple[str, ...] = ()
    data_dir: str | None = None
    seed: int = 0
    representation: Representation = "profile"

    def __post_init__(self) -> None:
        unknown = [domain for domain in self.domains if domain not in DOMAINS]
        if unknown or not self.domains:
            raise ScenarioError(
                f"domains must be some of {', '.join(DOMAINS)}, got {', '.join(self.domains)!r}"
            )
        absent = [name for name in self.only if name not in POOLS]
        if absent:
            raise ScenarioError(f"data set must be one of {', '.join(POOLS)}, got {absent[0]!r}")
        lacking = [name for name in self.only if POOLS[name].files and not self.with_files]
        if lacking:
            raise ScenarioError(
                f"{', '.join(lacking)} is read from files: point --data-dir at the folder that "
                f"holds {lacking[0]}/, or leave it out"
            )
        for name in ("n_victims", "n_digits", "n_glyphs", "n_zoo", "n_photos", "seed"):
            if getattr(self, name) < 0:
                raise ScenarioError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.n_photos and "fl" in self.domains and self.data_dir is None:
            raise ScenarioError(
                "federations on photographs are read from files: point --data-dir at the folder "
                "that holds tiny_imagenet/, or leave --photos out"
            )
        n_sources = len(self.victims()) + len(self.federations())
        if self.n_rounds < 1 or n_sources < 2:
            raise ScenarioError(
                f"meta-training needs at least 2 sources and 1 round of each, got {n_sources} and "
                f"{self.n_rounds}; ask for more victims or federations"
            )

    def pools(self) -> list[str]:
        """Names of the data sets that victims are trained on."""
        return [
            name
            for name, facts in POOLS.items()
            if facts.domain in self.domains
            and (self.with_files or not facts.files)
            and (not self.only or name in self.only)
        ]

    def victims(self) -> list[VictimSetting]:
        """Victims to learn from, each data set in its share."""
        pools = self.pools()
        total = sum(POOLS[name].share for name in pools)
        counts = {name: round(self.n_victims * POOLS[name].share / total) for name in pools}
        return training_victims(counts, self.seed)

    def federations(self) -> list[FederationSetting]:
        """Federations to learn from, the slow ones first."""
        if "fl" not in self.domains:
            return []
        first = self.seed * 100_000
        named = [("glyphs", i) for i in range(self.n_glyphs)]
        named += [("digits", i) for i in range(self.n_digits)]
        drawn = [draw_setting(name, first + i, self.n_rounds) for name, i in named]
        zoo = {"tiny-imagenet": self.n_photos, "glyphs": self.n_zoo, "digits": self.n_zoo}
        for name, n in zoo.items():
            own = (draw_setting(name, first + i, self.n_rounds) for i in range(n))
            drawn += map(among_all_attacks, own)
        return [self._here(setting) for setting in drawn]

    @property
    def calm_null(self) -> CalmNull:
        """Null distribution that attack-free federations give: that by which p-values are read."""
        return ODDS_NULL if self.n_zoo or self.n_photos else "updates"

    def calm_settings(self) -> list[FederationSetting]:
        """Attack-free federations that the null distribution of updates is taken from.

        Plain log-odds differ more between federations than standardised ones: they take more.
        """
        if "fl" not in self.domains:
            return []
        one_in = 4 if self.calm_null == ODDS_NULL else 8
        n_glyphs, n_digits = -(-self.n_glyphs // one_in), -(-self.n_digits // one_in)
        n_photos = -(-self.n_photos // 5)
        calm = calm_settings(n_glyphs, n_digits, N_CALM_ROUNDS, self.seed, n_photos=n_photos)
        return [self._here(setting) for setting in calm]

    def _here(self, setting: FederationSetting) -> FederationSetting:
        data_dir = self.data_dir if setting.dataset in READ_FROM_FILES else None
        return replace(setting, representation=self.representation, data_dir=data_dir)
