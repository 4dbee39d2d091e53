"""One integer becomes named, independent streams of random numbers."""

from collections.abc import Sequence

import numpy as np
import torch

_GRID = 0x6B6579  # keeps the cells of keyed() apart from the children of streams()


def streams(seed: int, names: Sequence[str]) -> dict[str, np.random.Generator]:
    """Independent generators, one a name, all derived from one seed.

    Parameters
    ----------
    seed : int
        Any non-negative integer.
    names : sequence of str
        The streams; their order matters, so append new names at the end.

    Examples
    --------
    >>> a, b = streams(0, ["clients", "attack"]).values()
    >>> bool(a.random() != b.random())
    True
    """
    if len(set(names)) != len(names):
        raise ValueError(f"stream names must be unique, got {list(names)}")
    children = np.random.SeedSequence(seed).spawn(len(names))
    return dict(zip(names, map(np.random.default_rng, children), strict=True))


def keyed(seed: int, *key: int) -> np.random.Generator:
    """Independent generator for one cell of a grid, such as (round, client).

    Examples
    --------
    >>> bool(keyed(0, 3, 1).random() == keyed(0, 3, 1).random())
    True
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_GRID, *key)))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """Torch generator (CPU) seeded from the next 63 bits of a numpy one."""
    generator = torch.Generator()
    generator.manual_seed(int(rng.integers(0, 2**63 - 1)))
    return generator
