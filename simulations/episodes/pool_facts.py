"""Which data sets victims are trained on, and what drawing a victim must know of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fl_shield.errors import ScenarioError
from fl_shield.simulations.victims.zoo import ARCHITECTURES
from fl_shield.triggers import (
    HELD_OUT_FAMILIES,
    STATE_TRIGGERS,
    TEXT_TRIGGERS,
    VISION_TRIGGERS,
)


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
        Backdoors of each network to learn from.
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


def facts_of(pool: str) -> PoolFacts:
    """Facts of a data set by its name."""
    if pool not in POOLS:
        raise ScenarioError(f"data set must be one of {', '.join(POOLS)}, got {pool!r}")
    return POOLS[pool]


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
