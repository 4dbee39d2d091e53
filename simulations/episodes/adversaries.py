"""Victims that fight a detector: which there are, their training, and their recordings on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from fl_shield.attacks import PoisonScheme
from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.cache import key_of
from fl_shield.simulations.episodes.clean_models import (
    WEIGHT_DECAY,
    Workplace,
    pool_of,
    recipe_of,
)
from fl_shield.simulations.episodes.planting import plant
from fl_shield.simulations.episodes.pool_facts import FAMILIES, POOLS
from fl_shield.simulations.episodes.population import VictimSetting, draw_victim
from fl_shield.simulations.episodes.recording import Recording, save_recording
from fl_shield.simulations.episodes.victims import record
from fl_shield.simulations.victims.adaptive import Fight, train_fighting
from fl_shield.simulations.victims.opponents import OURS, fit_of
from fl_shield.stages import N_STAGES, find_stages
from fl_shield.weights import Weights

VERSION = 2
"""Raise it when training changes its meaning: victims on disk are then ignored."""

NOBODY = "nobody"
"""What a victim without a penalty fights."""

N_SHOTS = 20
"""Clean inputs of the defender, and as many other ones of the attacker."""

POISON_RATE = 0.3


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data set, trigger family and network of victims.

    Examples
    --------
    >>> Case(pool="digits", family="circle", architecture="cnn").pool
    'digits'
    """

    pool: str
    family: str
    architecture: str

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ScenarioError(f"data set must be one of {', '.join(POOLS)}, got {self.pool!r}")
        facts = POOLS[self.pool]
        for name, known in (
            ("family", FAMILIES[facts.kind]),
            ("architecture", facts.architectures),
        ):
            if getattr(self, name) not in known:
                raise ScenarioError(
                    f"{name} of {self.pool} must be one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )


CASES = (
    Case(pool="digits", family="circle", architecture="cnn"),
    Case(pool="gtsrb", family="circle", architecture="cnn"),
    Case(pool="ag-news", family="rare_token", architecture="text-cnn"),
    Case(pool="cartpole", family="state_pair", architecture="policy-mlp"),
)
"""One of each kind of input and photographs, with triggers that no shipped weights have seen."""


def cases_of(pools: Sequence[str], *, with_files: bool) -> tuple[Case, ...]:
    """Cases of some data sets, of all where none is named; files only where there is a folder.

    Examples
    --------
    >>> [case.pool for case in cases_of((), with_files=False)]
    ['digits', 'cartpole']
    """
    known = [case.pool for case in CASES]
    unknown = [pool for pool in pools if pool not in known]
    if unknown:
        raise ScenarioError(
            f"data sets of adaptive victims are {', '.join(known)}, got {unknown[0]!r}"
        )
    found = tuple(
        case
        for case in CASES
        if (not pools or case.pool in pools) and (with_files or not POOLS[case.pool].files)
    )
    if not found:
        raise ScenarioError(
            f"these data sets are read from files: {', '.join(pools)}; point --data-dir at the "
            "folder that holds them"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """One victim, what it fights and how hard.

    Attributes
    ----------
    case : Case
    seed : int
    fought : str
        One of :data:`~fl_shield.simulations.victims.adaptive.FOUGHT`, or ``nobody``.
    penalty : float
        0 with ``nobody``, else above.
    """

    case: Case
    seed: int
    fought: str
    penalty: float

    @property
    def setting(self) -> VictimSetting:
        """What the victim would be without a fight: the same for every penalty."""
        case = self.case
        drawn = draw_victim(case.pool, case.family, self.seed, evaluation=True)
        return replace(
            drawn,
            architecture=case.architecture,
            poison_rate=POISON_RATE,
            scheme=PoisonScheme(),
        )


def adversary_path(adversary: Adversary, weights: Weights, place: Workplace) -> Path:
    """Where the recording of a victim is kept: by all that its training follows from."""
    setting = adversary.setting
    told = {
        **setting.manifest(),
        **asdict(recipe_of(setting.pool, setting.architecture)),
        "fought": adversary.fought,
        "penalty": adversary.penalty,
        "weights": digest_of(weights) if adversary.fought == OURS else "",
        "layers": N_STAGES,
        "version": VERSION,
    }
    return place.cache / "adaptive" / f"{key_of(told, ())}.npz"


def digest_of(weights: Weights) -> str:
    """Hash of everything that scores follow from."""
    digest = sha256(repr(weights.config).encode())
    for name, tensor in sorted(weights.tensors().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def simulate_adversary(adversary: Adversary, weights: Weights, place: Workplace) -> Recording:
    """Train one victim against what it fights, and record what it says of the defender's inputs.

    The attacker's clean inputs are the first of its training examples, which are left out of the
    training; the defender's come from data that neither has seen.
    """
    setting = adversary.setting
    pool = pool_of(setting.pool, place)
    recipe = recipe_of(setting.pool, setting.architecture)
    (victim,) = plant([setting], pool, place)
    n_clean = min(len(pool.train), recipe.n_train)
    triggered = np.arange(len(victim.training)) >= n_clean
    name = OURS if adversary.fought == NOBODY else adversary.fought
    fight = Fight(
        fit=fit_of(name, weights),
        clean=victim.training.x[:N_SHOTS],
        layers=find_stages(victim.model),
        penalty=adversary.penalty,
    )
    started = time.perf_counter()
    train_fighting(
        victim.model,
        victim.training.take(slice(N_SHOTS, None)),
        triggered[N_SHOTS:],
        fight,
        victim.rng,
        n_steps=recipe.n_steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        weight_decay=WEIGHT_DECAY,
    )
    seconds = time.perf_counter() - started
    apart = replace(victim, setting=replace(setting, evaluation=False))  # one-pass peers only
    found = record(apart, pool, seconds)
    facts = {"fought": adversary.fought, "penalty": adversary.penalty, "evaluation": True}
    return replace(found, facts={**found.facts, **facts})


def simulate_one(adversary: Adversary, weights: Weights, place: Workplace) -> None:
    """Simulate and save one victim, unless it is on disk."""
    path = adversary_path(adversary, weights, place)
    if not path.exists():
        torch.set_num_threads(1)
        save_recording(path, simulate_adversary(adversary, weights, place))
