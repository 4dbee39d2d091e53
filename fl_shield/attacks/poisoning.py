"""Poisoned training data: triggered copies of clean examples, labelled as the attacker wants."""

from typing import Literal

import numpy as np

from fl_shield.types import Samples, Trigger

PoisonMode = Literal["append", "replace"]


def poison(
    samples: Samples,
    trigger: Trigger,
    target_label: int,
    poison_rate: float,
    rng: np.random.Generator,
    mode: PoisonMode = "append",
) -> Samples:
    """Stamp a share of the examples that are not of the target class, and relabel them.

    Parameters
    ----------
    samples : Samples
        Clean examples ``(n, ...)``; they stay untouched.
    trigger : Trigger
        Stamped on every poisoned example.
    target_label : int
        Label of every poisoned example.
    poison_rate : float
        Share of the non-target examples that are poisoned, in [0, 1]: the nearest whole number of
        them, but at least one where the rate is above 0 and there is any.
    rng : numpy.random.Generator
        Chooses which.
    mode : {"append", "replace"}
        ``append`` adds the poisoned copies after the clean examples; ``replace`` puts them in
        the place of their originals.

    Returns
    -------
    Samples
        The mix, dtypes kept. Without examples of another class nothing is poisoned.

    Examples
    --------
    >>> from fl_shield.triggers import Word
    >>> clean = Samples(x=np.zeros((4, 3), np.int64), y=np.array([0, 1, 1, 2]))
    >>> mix = poison(clean, Word(tokens=(9,)), 0, 1.0, np.random.default_rng(0))
    >>> mix.y.tolist(), mix.x[:, -1].tolist()
    ([0, 1, 1, 2, 0, 0, 0], [0, 0, 0, 0, 9, 9, 9])
    """
    check_poison_rate(poison_rate)
    if mode not in ("append", "replace"):
        raise ValueError(f"mode must be append or replace, got {mode!r}")
    candidates = np.flatnonzero(samples.y != target_label)
    n_poisoned = _n_poisoned(len(candidates), poison_rate)
    if n_poisoned == 0:
        return samples
    chosen = np.sort(rng.choice(candidates, size=n_poisoned, replace=False))
    stamped = trigger.stamp(samples.x[chosen])
    labels = np.full(n_poisoned, target_label, dtype=samples.y.dtype)
    if mode == "append":
        return Samples.join([samples, Samples(x=stamped, y=labels)])
    x, y = samples.x.copy(), samples.y.copy()
    x[chosen], y[chosen] = stamped, labels
    return Samples(x=x, y=y)


def check_poison_rate(poison_rate: float) -> None:
    """Raise ValueError unless a poison rate is in [0, 1]."""
    if not 0 <= poison_rate <= 1:
        raise ValueError(f"poison_rate must be in [0, 1], got {poison_rate}")


def _n_poisoned(n_candidates: int, poison_rate: float) -> int:
    if n_candidates == 0 or poison_rate == 0:
        return 0
    return max(1, int(np.floor(poison_rate * n_candidates + 0.5)))
