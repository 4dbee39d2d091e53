"""Distributed backdoor attack (DBA): every malicious client trains with a part of the trigger."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks.arithmetic import move
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.local import check_n_epochs
from fl_shield.attacks.poisoning import check_poison_rate
from fl_shield.triggers import Insertion, StateValues, Word
from fl_shield.triggers.vision import PixelTrigger
from fl_shield.types import AttackContext, Trigger

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DistributedBackdoor:
    """Poisons with this client's part of the trigger; the test stamps the whole one.

    The parts come from :func:`split_trigger`. Client number m of the federation's malicious
    clients plays part ``m mod p`` of the p parts, the same in every round; there are never more
    parts than malicious clients, so that together they train the whole trigger.

    Attributes
    ----------
    n_parts : int
        Parts of the trigger, >= 1, as far as it has so many pixels, tokens or dimensions; 4 in
        the paper.
    scale : float
        Boost of the update, > 0: 1 for the attack over many rounds (A-M), 100 in the paper's
        attack in a single round (A-S).
    poison_rate : float
        Share of the non-target examples that get a copy with the part, in [0, 1].
    n_epochs : int, optional
        Passes over the mix; as many as honest clients make by default.

    References
    ----------
    Xie et al., "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR
    2020, section 3. The bars of the paper's trigger, with gaps, are runs of its pixels here.
    """

    n_parts: int = 4
    scale: float = 1.0
    poison_rate: float = 0.5
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_n_epochs(self.n_epochs)
        if self.n_parts < 1:
            raise ValueError(f"n_parts must be >= 1, got {self.n_parts}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be > 0 and finite, got {self.scale}")

    def __call__(self, context: AttackContext) -> dict[str, NDArray[Any]]:
        """Return the model poisoned with this client's part."""
        attack = BadNets(poison_rate=self.poison_rate, n_epochs=self.n_epochs)
        poisoned = attack(replace(context, trigger=self.part(context)))
        return move(context.global_arrays, poisoned, self.scale)

    def part(self, context: AttackContext) -> Trigger:
        """Return what this client stamps."""
        n_parts = min(self.n_parts, max(1, context.n_members))
        parts = split_trigger(context.trigger, n_parts, context.data.x.shape[1:])
        return parts[context.member % len(parts)]


def split_trigger(trigger: Trigger, n_parts: int, shape: tuple[int, ...]) -> list[Trigger]:
    """Parts of a trigger that make up the whole, at most ``n_parts``, none of them empty.

    The pixels of a mask go in reading order into runs of equal length (a patch falls into
    stripes), so do the tokens of a word, the runs of an insertion (the tokens of its run, where it
    has only one) and the dimensions of a state. Inserted parts stand where their run would, but
    each alone, for no place is fixed in a sequence that grows. A trigger of another kind (a
    warp, a moving patch, a pattern over time) cannot be split: every client has the whole.

    Parameters
    ----------
    trigger : Trigger
        The global trigger.
    n_parts : int
        Parts wanted, >= 1.
    shape : tuple of int
        Shape of one input; sequences need it for the place of each token.

    Examples
    --------
    >>> [part.tokens for part in split_trigger(Word(tokens=(7, 8, 9)), 2, (10,))]
    [(7, 8), (9,)]
    """
    if isinstance(trigger, PixelTrigger):
        return [replace(trigger, mask=mask) for mask in split_mask(trigger, n_parts)]
    if isinstance(trigger, Word):
        return _split_word(trigger, n_parts, shape[0])
    if isinstance(trigger, Insertion):
        return _split_insertion(trigger, n_parts)
    if isinstance(trigger, StateValues):
        pairs = list(zip(trigger.dimensions, trigger.values, strict=True))
        return [
            replace(trigger, dimensions=dimensions, values=values)
            for dimensions, values in (zip(*run, strict=True) for run in runs_of(pairs, n_parts))
        ]
    return [trigger]


def split_mask(trigger: PixelTrigger, n_parts: int) -> list[NDArray[Any]]:
    """Masks of the parts, each as large as the whole: disjoint runs of its pixels."""
    pixels = np.flatnonzero(trigger.mask.reshape(-1, *trigger.mask.shape[-2:]).any(axis=0))
    masks = []
    for run in runs_of(pixels.tolist(), n_parts):
        chosen = np.zeros(trigger.mask.shape[-2:], trigger.mask.dtype)
        chosen.flat[run] = 1
        masks.append(trigger.mask * chosen)
    return masks


def runs_of(items: Sequence[T], n_runs: int) -> list[list[T]]:
    """Consecutive runs of nearly equal length, the longer ones first; none is empty.

    Examples
    --------
    >>> runs_of("abcde", 3)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    index = np.array_split(np.arange(len(items)), min(n_runs, len(items)))
    return [[items[i] for i in run] for run in index]


def _split_word(word: Word, n_parts: int, length: int) -> list[Trigger]:
    start = length - len(word.tokens) if word.position is None else word.position
    parts: list[Trigger] = []
    for tokens in runs_of(word.tokens, n_parts):
        parts.append(replace(word, tokens=tuple(tokens), position=start))
        start += len(tokens)
    return parts


def _split_insertion(insertion: Insertion, n_parts: int) -> list[Trigger]:
    if len(insertion.runs) == 1:
        tokens = runs_of(insertion.runs[0], n_parts)
        return [replace(insertion, runs=(tuple(run),)) for run in tokens]
    parts: list[Trigger] = []
    for index in runs_of(range(len(insertion.runs)), n_parts):
        places = None if insertion.from_end is None else tuple(insertion.from_end[i] for i in index)
        runs = tuple(insertion.runs[i] for i in index)
        parts.append(replace(insertion, runs=runs, from_end=places))
    return parts
