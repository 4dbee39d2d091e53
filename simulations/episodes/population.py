"""Which victims there are: every number of each, drawn from seeds, and what each is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any, Literal

import numpy as np

from fl_shield.attacks import PoisonScheme
from fl_shield.errors import ScenarioError
from fl_shield.rng import keyed
from fl_shield.simulations.victims.zoo import ARCHITECTURES
from fl_shield.triggers import (
    HELD_OUT_FAMILIES,
    STATE_TRIGGERS,
    TEXT_TRIGGERS,
    VISION_TRIGGERS,
)

Start = Literal["warm", "scratch"]


@dataclass(frozen=True, kw_only=True)
class PoolFacts:
    """What drawing a victim must know of a data set before anything is loaded.

    Attributes
    ----------
    domain, kind : str
    n_classes : int
    warm_share : float
        Share of the networks to learn from that start from a clean model.
    architectures : tuple of str
    share : float
        Of the training victims of all data sets, in parts.
    files : bool
        Whether it is read from files beside the package, or comes with the dependencies.
    n_backdoors : int
        Backdoors of each network to learn from, where training one takes long.
    unfit : tuple of str
        Families whose triggers change too little of its inputs.
    """

    domain: str
    kind: str
    n_classes: int
    warm_share: float
    architectures: tuple[str, ...]
    share: float = 1.0
    files: bool = False
    n_backdoors: int = 1
    unfit: tuple[str, ...] = ()


ALONE: Mapping[str, tuple[str, ...]] = {
    "image": ("rotation", "scaling", "shear", "ghost", "lens", "blur", "mosaic"),
    "text": (),
    "state": (),
}
"""Families that move or coarsen the whole image, by kind of input. They hardly work beside others,
so a network has one of them alone.
"""

_QUICK_TO_LEARN = ("cnn", "lenet", "resnet", "mlp")


def _pictures(n_classes: int) -> PoolFacts:
    return PoolFacts(
        domain="cv",
        kind="image",
        n_classes=n_classes,
        warm_share=0.2,
        architectures=_QUICK_TO_LEARN,
        share=7 / 3,
        files=True,
        n_backdoors=4,
    )


def _texts(n_classes: int, share: float, *, files: bool = True) -> PoolFacts:
    return PoolFacts(
        domain="nlp",
        kind="text",
        n_classes=n_classes,
        warm_share=0.0,
        architectures=ARCHITECTURES["text"],
        share=share,
        files=files,
        n_backdoors=3,
    )


def _control(n_classes: int) -> PoolFacts:
    return PoolFacts(
        domain="rl",
        kind="state",
        n_classes=n_classes,
        warm_share=0.0,
        architectures=ARCHITECTURES["state"],
        share=2.0,
        n_backdoors=2,
    )


def _embedded(facts: PoolFacts, share: float) -> PoolFacts:
    return replace(facts, architectures=ARCHITECTURES["image"], files=False, share=share)


POOLS: Mapping[str, PoolFacts] = {
    "digits": _embedded(_pictures(10), share=14 / 3),
    "glyphs": _embedded(_pictures(62), share=7 / 6),
    "femnist": _pictures(62),
    "cifar10": _pictures(10),
    "gtsrb": _pictures(43),
    "tiny-imagenet": _pictures(20),
    "ag-news": _texts(4, 4.0),
    "sst2": _texts(2, 4.0),
    "shakespeare": _texts(80, 1.0),
    "roles": _texts(80, 1.0, files=False),
    "cartpole": _control(2),
    "acrobot": _control(3),
    "mountaincar": _control(3),
    "pong": replace(
        _pictures(3), domain="rl", share=1.0, files=False, unfit=(*ALONE["image"], "warp")
    ),
}
"""Every data set that victims are trained on. The vision transformer learns from small images only:
with this much data it is far behind the convolutions on photographs. On Pong's screens, black but
for two paddles and a ball, little can be moved.
"""

DOMAINS = ("cv", "nlp", "rl", "fl")

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "image": VISION_TRIGGERS,
    "text": TEXT_TRIGGERS,
    "state": STATE_TRIGGERS,
}

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


def families_of(pool: str, *, held_out: bool) -> tuple[str, ...]:
    """Trigger families of a data set: those never trained on, or the others.

    Examples
    --------
    >>> families_of("cartpole", held_out=True)
    ('state_pair',)
    """
    facts = POOLS[pool]
    fit = (family for family in FAMILIES[facts.kind] if family not in facts.unfit)
    return tuple(family for family in fit if (family in HELD_OUT_FAMILIES) == held_out)


def draw_victim(pool: str, family: str, seed: int, *, evaluation: bool = False) -> VictimSetting:
    """Draw a victim of one data set and trigger family; the same seed gives the same one.

    Examples
    --------
    >>> draw_victim("digits", "patch", 3) == draw_victim("digits", "patch", 3)
    True
    """
    facts = _facts(pool)
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
    facts = _facts(pool)
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


def _facts(pool: str) -> PoolFacts:
    if pool not in POOLS:
        raise ScenarioError(f"data set must be one of {', '.join(POOLS)}, got {pool!r}")
    return POOLS[pool]


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
        alone = [f for f in families if f in ALONE[_facts(pool).kind]]
        still = [f for f in families if f not in alone]
        n_alone = int(ALONE_SHARE * n) if alone else 0
        k = _facts(pool).n_backdoors
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
