"""Which victims there are: every number of each, drawn from seeds, and what each is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any, Literal

import numpy as np

from fl_shield.attacks import PoisonScheme
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.pool_facts import ALONE, POOLS, PoolFacts, facts_of, families_of

Start = Literal["warm", "scratch"]


ALONE_SHARE = 0.25
"""Share of the training victims of a kind that has such families."""

_RATES, _SHARED_RATES = (0.05, 0.5), (0.05, 0.25)
"""Poison rates of a backdoor alone in its network, and of one among several."""

CLEAN_SHARE = 0.12
"""Share of victims without a backdoor; they see their trigger at test time only."""


@dataclass(frozen=True, kw_only=True)
class VictimSetting:
    """One victim; everything in it follows from these numbers.

    Attributes
    ----------
    seed : int
    pool, architecture, family : str
        Data set, network and trigger; a clean victim sees the trigger at test time only.
    target_label : int
    poison_rate : float
        Share of the attackable examples with a triggered copy; 0 = a clean victim.
    scheme : PoisonScheme
    start : {"warm", "scratch"}
        From a clean model of the same data and network, or from a draw of its own.
    evaluation : bool
        Kept for evaluation: no weights ever learn from it.
    beside : tuple of str
        Families of the other backdoors in the same network, drawn with the same seed.
    """

    seed: int
    pool: str
    architecture: str
    family: str
    target_label: int
    poison_rate: float
    scheme: PoisonScheme
    start: Start
    evaluation: bool = False
    beside: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        """``cv``, ``nlp`` or ``rl``."""
        return POOLS[self.pool].domain

    @property
    def backdoored(self) -> bool:
        """Whether it was trained with a trigger."""
        return self.poison_rate > 0

    def manifest(self) -> dict[str, Any]:
        """Plain numbers for the manifest and the cache key."""
        facts = asdict(self)
        if not self.beside:  # alone, as all were once: recordings keep their names
            del facts["beside"]
        return {"source": "victim", **facts}

    def network(self) -> tuple[VictimSetting, ...]:
        """Draw all backdoors of its network, itself included, in the order of planting."""
        if not self.beside:
            return (self,)
        return draw_network(self.pool, (self.family, *self.beside), self.seed)


def draw_victim(pool: str, family: str, seed: int, *, evaluation: bool = False) -> VictimSetting:
    """Draw a victim of one data set and trigger family; the same seed gives the same one.

    Examples
    --------
    >>> draw_victim("digits", "patch", 3) == draw_victim("digits", "patch", 3)
    True
    """
    facts = facts_of(pool)
    rng = keyed(seed, 41, *f"{pool} {family}".encode())
    clean = rng.random() < CLEAN_SHARE and not evaluation
    warm = rng.random() < facts.warm_share
    label = int(rng.integers(facts.n_classes))
    return VictimSetting(
        seed=seed,
        pool=pool,
        architecture=str(rng.choice(facts.architectures)),
        family=family,
        target_label=label,
        poison_rate=0.0 if clean else float(rng.uniform(*_RATES)),
        scheme=_draw_scheme(facts, label, evaluation, rng),
        start="warm" if warm and not evaluation else "scratch",
        evaluation=evaluation,
    )


def draw_network(pool: str, families: Sequence[str], seed: int) -> tuple[VictimSetting, ...]:
    """Draw one network with a backdoor of each of several families, at lower poison rates.

    One training gives several backdoors to learn from. Clean networks have none of them.

    Examples
    --------
    >>> [v.beside for v in draw_network("digits", ["patch", "colour"], 3)]
    [('patch',), ('colour',)]
    """
    facts = facts_of(pool)
    rng = keyed(seed, 40, *pool.encode())
    clean, warm = rng.random() < CLEAN_SHARE, rng.random() < facts.warm_share
    architecture = str(rng.choice(facts.architectures))
    planted = sorted(families)
    return tuple(
        replace(
            drawn,
            architecture=architecture,
            start="warm" if warm else "scratch",
            poison_rate=0.0 if clean else float(rng.uniform(*_SHARED_RATES)),
            beside=tuple(family for family in planted if family != drawn.family),
        )
        for drawn in (draw_victim(pool, family, seed) for family in planted)
    )


def _draw_scheme(
    facts: PoolFacts, target: int, evaluation: bool, rng: np.random.Generator
) -> PoisonScheme:
    """All to one for most, and for all of evaluation's; the rest of the variants in turn."""
    kind = rng.random()
    if evaluation or kind < 0.7:
        return PoisonScheme()
    if kind < 0.78:
        return PoisonScheme(labels="all_to_all")
    if kind < 0.86 and facts.n_classes > 2:
        others = [label for label in range(facts.n_classes) if label != target]
        return PoisonScheme(labels="source_specific", source_label=int(rng.choice(others)))
    return PoisonScheme(cover_rate=float(rng.uniform(0.02, 0.15)))


def training_victims(counts: Mapping[str, int], seed: int) -> list[VictimSetting]:
    """Victims to learn from: families in turn, none of the held-out ones.

    Those of :data:`ALONE` come last.

    Parameters
    ----------
    counts : mapping of str to int
        Victims of each data set.
    seed : int
    """
    drawn: list[VictimSetting] = []
    for pool, n in counts.items():
        families = families_of(pool, held_out=False)
        alone = [f for f in families if f in ALONE[facts_of(pool).kind]]
        still = [f for f in families if f not in alone]
        n_alone = int(ALONE_SHARE * n) if alone else 0
        k = facts_of(pool).n_backdoors
        drawn += islice(_training_stream(pool, still, k, seed * 100_000), n - n_alone)
        drawn += islice(_training_stream(pool, alone, 1, seed * 100_000 + 30_000), n_alone)
    return drawn


def _training_stream(
    pool: str, families: Sequence[str], k: int, first: int
) -> Iterator[VictimSetting]:
    """Victims of one data set without end, those of one network, k of them, next to each other."""
    for i in count():
        chosen = [families[(i * k + j) % len(families)] for j in range(k)]
        if k == 1:
            yield draw_victim(pool, chosen[0], first + i)
        else:
            yield from draw_network(pool, chosen, first + i)


def evaluation_victims(pools: Sequence[str], n_each: int, seed: int) -> list[VictimSetting]:
    """Draw victims that no weights learn from, all of them backdoored.

    ``n_each`` of every held-out family of each data set, and as many over its other families.
    """
    first = seed * 100_000 + 50_000
    drawn = []
    for pool in pools:
        for held_out in (True, False):
            families = families_of(pool, held_out=held_out)
            n = n_each * len(families) if held_out else n_each
            for i in range(n):
                family = families[i % len(families)]
                drawn.append(draw_victim(pool, family, first + i, evaluation=True))
    return drawn
