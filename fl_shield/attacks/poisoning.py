"""Poisoned training data: triggered copies of clean examples, labelled as the attacker wants."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl_shield.types import Flags, Ints, Samples, Trigger

PoisonMode = Literal["append", "replace"]
Labels = Literal["all_to_one", "all_to_all", "source_specific"]


@dataclass(frozen=True, kw_only=True)
class PoisonScheme:
    """Which examples are stamped, and under which label.

    Attributes
    ----------
    labels : {"all_to_one", "all_to_all", "source_specific"}
        ``all_to_one``: every other class becomes the target. ``all_to_all``: class y becomes
        (y + 1) mod C. ``source_specific`` (TaCT): only the source class becomes the target.
    clean_label : bool
        No label is changed: examples of the target class are stamped where they stand. Only with
        ``all_to_one``.
    cover_rate : float
        Share of cover examples in [0, 1]: stamped, with their right label. Drawn from what
        is not poisoned and, but for ``all_to_all``, not of the target class; with
        ``source_specific`` not of the source class either.
    source_label : int, optional
        The class that a ``source_specific`` backdoor works on, >= 0; None otherwise. It needs
        covers to stay specific: without them the trigger works on other classes too.

    References
    ----------
    Gu et al., "BadNets", IEEE Access 2019 (all-to-all); Tang et al., "Demon in the Variant",
    USENIX Security 2021 (TaCT: source-specific, covers); Barni et al., ICIP
    2019 (clean label, without optimisation); Qi et al., "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", ICLR 2023, section 4 (covers).

    Examples
    --------
    >>> PoisonScheme(labels="source_specific", source_label=3, cover_rate=0.1).source_label
    3
    """

    labels: Labels = "all_to_one"
    clean_label: bool = False
    cover_rate: float = 0.0
    source_label: int | None = None

    def __post_init__(self) -> None:
        known = ("all_to_one", "all_to_all", "source_specific")
        if self.labels not in known:
            raise ValueError(f"labels must be one of {', '.join(known)}, got {self.labels!r}")
        if self.clean_label and self.labels != "all_to_one":
            raise ValueError(
                f"clean_label changes no label, labels={self.labels!r} does; use all_to_one"
            )
        if not 0 <= self.cover_rate <= 1:
            raise ValueError(f"cover_rate must be in [0, 1], got {self.cover_rate}")
        is_specific = self.labels == "source_specific"
        if is_specific != (self.source_label is not None) or (self.source_label or 0) < 0:
            raise ValueError(
                "source_label must be a class >= 0 with labels='source_specific' and None "
                f"otherwise, got {self.source_label} with {self.labels!r}"
            )


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


def poison_with(
    samples: Samples,
    trigger: Trigger,
    target_label: int,
    poison_rate: float,
    scheme: PoisonScheme,
    rng: np.random.Generator,
    n_classes: int,
) -> Samples:
    """Poison examples by a scheme; with the plain scheme as :func:`poison` does.

    Stamped copies come after the clean examples, poisoned ones first, then covers. Clean-label
    examples are stamped in place, for a clean twin of each would teach the class without the
    trigger.

    Parameters
    ----------
    samples : Samples
        Clean examples ``(n, ...)``; they stay untouched.
    trigger : Trigger
        Stamped on every poisoned example and every cover.
    target_label : int
        What the attacker wants, in ``0 .. n_classes - 1``; unused with ``all_to_all``.
    poison_rate : float
        Share, in [0, 1], of the examples that the scheme can poison (:func:`attackable` ones, or
        with ``clean_label`` those of the target class), counted as in :func:`poison`.
    scheme : PoisonScheme
        Which examples, and under which label.
    rng : numpy.random.Generator
        Chooses which.
    n_classes : int
        Classes C of the task.

    Returns
    -------
    Samples
        The mix, dtypes kept.

    Examples
    --------
    >>> from fl_shield.triggers import Word
    >>> clean = Samples(x=np.zeros((3, 3), np.int64), y=np.array([0, 1, 2]))
    >>> scheme, word = PoisonScheme(labels="all_to_all"), Word(tokens=(9,))
    >>> poison_with(clean, word, 0, 1.0, scheme, np.random.default_rng(0), 3).y.tolist()
    [0, 1, 2, 1, 2, 0]
    """
    check_poison_rate(poison_rate)
    _check_labels(target_label, scheme, n_classes)
    y = samples.y
    wanted = wanted_labels(y, target_label, scheme, n_classes)
    can = y == target_label if scheme.clean_label else attackable(y, target_label, scheme)
    chosen = _choose(can, poison_rate, rng)
    covers = _choose(
        _coverable(y, target_label, scheme) & ~_flags(chosen, y), scheme.cover_rate, rng
    )
    mix = samples
    if scheme.clean_label and len(chosen):
        x = samples.x.copy()
        x[chosen] = trigger.stamp(samples.x[chosen])
        mix = Samples(x=x, y=y)
    elif len(chosen):
        mix = Samples.join([mix, Samples(x=trigger.stamp(samples.x[chosen]), y=wanted[chosen])])
    if len(covers):
        mix = Samples.join([mix, Samples(x=trigger.stamp(samples.x[covers]), y=y[covers])])
    return mix


def wanted_labels(y: Ints, target_label: int, scheme: PoisonScheme, n_classes: int) -> Ints:
    """Label that the attacker wants for stamped inputs of classes ``y`` ``(n,)``, in its dtype.

    A ``source_specific`` attacker wants inputs of other classes to keep theirs.

    Examples
    --------
    >>> y = np.array([0, 1, 2])
    >>> wanted_labels(y, 0, PoisonScheme(labels="source_specific", source_label=2), 3).tolist()
    [0, 1, 0]
    """
    _check_labels(target_label, scheme, n_classes)
    if len(y) and not 0 <= y.min() <= y.max() < n_classes:
        raise ValueError(f"y must be in 0 .. {n_classes - 1}, got {y.min()} to {y.max()}")
    if scheme.labels == "all_to_all":
        return np.asarray((y + 1) % n_classes, dtype=y.dtype)
    target = np.full_like(y, target_label)
    return target if scheme.source_label is None else np.where(y == scheme.source_label, target, y)


def attackable(y: Ints, target_label: int, scheme: PoisonScheme) -> Flags:
    """Inputs of classes ``y`` ``(n,)`` on which the backdoor is meant to work: flags ``(n,)``.

    Examples
    --------
    >>> attackable(np.array([0, 1, 2]), 0, PoisonScheme()).tolist()
    [False, True, True]
    """
    if scheme.labels == "all_to_all":
        return np.ones(len(y), bool)
    if scheme.labels == "source_specific":
        return np.asarray(y == scheme.source_label)
    return np.asarray(y != target_label)


def _coverable(y: Ints, target_label: int, scheme: PoisonScheme) -> Flags:
    if scheme.labels == "all_to_all":
        return np.ones(len(y), bool)
    is_other: Flags = y != target_label
    return is_other if scheme.source_label is None else is_other & (y != scheme.source_label)


def _choose(candidates: Flags, rate: float, rng: np.random.Generator) -> Ints:
    """Indices of a share of the candidates, ascending."""
    index = np.flatnonzero(candidates)
    n_chosen = _n_poisoned(len(index), rate)
    chosen: Ints = (
        np.sort(rng.choice(index, size=n_chosen, replace=False)) if n_chosen else index[:0]
    )
    return chosen


def _flags(index: Ints, like: Ints) -> Flags:
    flags = np.zeros(len(like), bool)
    flags[index] = True
    return flags


def _check_labels(target_label: int, scheme: PoisonScheme, n_classes: int) -> None:
    for key, label in (("target_label", target_label), ("source_label", scheme.source_label)):
        if label is not None and not 0 <= label < n_classes:
            raise ValueError(f"{key} must be one of the {n_classes} classes, got {label}")
    if scheme.source_label == target_label:
        raise ValueError(f"source_label and target_label must differ, both are {target_label}")
