"""How victims are trained, and the clean models that warm starts begin from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fl_shield.rng import keyed
from fl_shield.simulations.episodes.pool_facts import facts_of
from fl_shield.simulations.pools import Pool, load_pool
from fl_shield.simulations.victims.stacked import train_stacked
from fl_shield.simulations.victims.zoo import build_victim

_FIRST_SEED = 900_000

ON_GPU = 16
"""Networks that a GPU trains together, at least."""

WEIGHT_DECAY = 0.02


def training_device() -> str:
    """Name the device that victims train on: a GPU where this process sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How networks of one kind of input are trained.

    Attributes
    ----------
    n_train : int
        Examples of one victim, drawn from its data set.
    n_steps, n_warm_steps : int
        Steps from scratch, and from a clean model.
    lr, warm_lr : float
        Highest rate of the schedule of each.
    batch_size : int
    n_stacked : int
        Networks that a processor trains together; see :attr:`n_together`.
    half : bool
        Whether networks that train alone multiply in bfloat16.
    n_clean, n_clean_steps : int
        Clean models of each data set and network that warm starts begin from, and their steps.
    """

    n_train: int
    n_steps: int
    n_warm_steps: int
    lr: float
    warm_lr: float
    batch_size: int = 64
    n_stacked: int = 8
    half: bool = False
    n_clean: int = 2
    n_clean_steps: int = 500

    @property
    def n_together(self) -> int:
        """Networks that are trained together here: a GPU is kept busy by many only."""
        return self.n_stacked if training_device() == "cpu" else max(self.n_stacked, ON_GPU)


_CHARACTERS = Recipe(n_train=20_000, n_steps=1500, n_warm_steps=120, lr=5e-3, warm_lr=2e-3)

RECIPES: Mapping[str, Recipe] = {
    "image": Recipe(
        n_train=20_000,
        n_steps=4000,
        n_warm_steps=2000,
        lr=4e-3,
        warm_lr=4e-3,
        batch_size=32,
        n_stacked=1,
        half=True,
        n_clean=1,
        n_clean_steps=4000,
    ),
    "digits": Recipe(
        n_train=1000,
        n_steps=800,
        n_warm_steps=400,
        lr=4e-3,
        warm_lr=4e-3,
        n_clean=1,
        n_clean_steps=600,
    ),
    "text": Recipe(n_train=16_000, n_steps=700, n_warm_steps=120, lr=5e-3, warm_lr=2e-3),
    "shakespeare": _CHARACTERS,
    "shakespeare/transformer": replace(_CHARACTERS, n_steps=2000),
    "state": Recipe(
        n_train=6000, n_steps=800, n_warm_steps=200, lr=5e-3, warm_lr=1e-3, n_stacked=32
    ),
}
"""By kind of input, by data set where one is unlike the others of its kind, and by data set and
network where that is: transformers learn characters more slowly than recurrent networks do."""


def recipe_of(pool: str, architecture: str) -> Recipe:
    """How a kind of network is trained on a data set.

    Examples
    --------
    >>> recipe_of("digits", "cnn") == recipe_of("cifar10", "cnn")
    False
    >>> [recipe_of("shakespeare", name).n_steps for name in ("transformer", "gru")]
    [2000, 1500]
    """
    own = RECIPES.get(f"{pool}/{architecture}") or RECIPES.get(pool)
    return own or RECIPES[facts_of(pool).kind]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where data come from, and where all that took long is kept.

    Attributes
    ----------
    data_dir : Path, optional
        Folder of the data sets' folders.
    cache : Path
        Decoded data, clean models and recordings.
    """

    data_dir: Path | None
    cache: Path


@lru_cache(maxsize=2)
def pool_of(name: str, place: Workplace) -> Pool:
    """Load the data of a pool, once a process."""
    return load_pool(
        name, data_dir=place.data_dir, cache=place.cache / "pools", n_train=20_000, n_test=4_000
    )


def fresh_model(pool: Pool, architecture: str, seed: int) -> nn.Module:
    """Build an untrained network for a pool."""
    shape = pool.train.x.shape[1:]
    return build_victim(architecture, shape, pool.n_classes, pool.n_tokens, seed)


def clean_model(pool: Pool, architecture: str, which: int, place: Workplace) -> nn.Module:
    """Load a clean model for warm starts; the first call trains it from scratch and keeps it."""
    path = place.cache / "clean" / f"{pool.name}-{architecture}-{which}.safetensors"
    model = fresh_model(pool, architecture, _FIRST_SEED + which)
    if path.exists():
        model.load_state_dict(load_file(str(path)))
        return model
    recipe = recipe_of(pool.name, architecture)
    train_stacked(
        [model],
        [pool.train],
        [keyed(which, 51)],
        n_steps=recipe.n_clean_steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        weight_decay=WEIGHT_DECAY,
        half=recipe.half,
        device=training_device(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".part{os.getpid()}")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, str(partial))
    partial.replace(path)
    return model
