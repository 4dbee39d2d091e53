"""What an update does to inputs that the server holds: clean ones and stamped ones.

A backdoor bends the answer to inputs that look a little wrong. The server cannot know the
trigger, but an update that was trained to obey one tends to answer strange stamps more firmly
with the attacker's target than the global model does. Probes measure that shift with one forward
pass of each client's model, as it is and as a contrast: what the update does to clean inputs
subtracted, so that a client who simply owns many examples of one class does not look like a
backdoor of that class.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from fl_shield.activations import activations_of
from fl_shield.rng import keyed
from fl_shield.stages import find_layers
from fl_shield.training import logits_of, set_arrays
from fl_shield.triggers import draw_trigger
from fl_shield.types import Arrays, Floats

N_CLEAN = 6
"""Clean inputs that are probed and stamped."""

FEWEST_BLOCKS, MOST_BLOCKS = 4, 5
"""Images are stamped on a grid of so many blocks a side, each inverted once."""

CELLS = (1, 2, 4, 7, 14, 28)
"""Cells a side of the checkers that are blended over whole images; one darkens or lightens all."""

OPACITY = 0.2
"""Opacity of the checkers."""

N_WORDS = 24
"""Random word triggers for tokens."""

FINALISTS = {"local": 2, "wide": 2, "word": 2}
"""Stamps of each group that are measured on every clean input, by each of two criteria."""

FAINTEST = -5.0
"""Log-probabilities below count the same: a class that nobody believes in is no evidence."""

MAJORITY = 0.5
"""Share of the clean inputs that one stamp may turn to one class without effect."""

FLIP_SLOPE = 10.0
"""Log-odds for each further input turned, as a share of all."""

MOST_FLIPPED = 4.0
"""Log-odds that flipped inputs add at most."""

CONTRAST = "-contrast"
"""Ends the names of views that show a stamp's shift beyond the clean inputs' own."""

BATCH = 32
"""Probes in one forward pass: few enough that activations stay in the cache."""


class Probes:
    """Server-held inputs and the answers of the global model to them.

    Each update is asked about every stamp on the first clean input only; the few stamps that move
    it most are then measured on all clean inputs. The largest shift is what tells a backdoor, and
    this race finds it with a third of the forward passes.

    Parameters
    ----------
    model : nn.Module
        Scratch network of the global architecture.
    clean : array (m, ...)
        Clean inputs; the first :data:`N_CLEAN` of them are probed.
    seed : int
        Draws word triggers; keep it secret from clients.
    """

    def __init__(self, model: nn.Module, clean: NDArray[Any], *, seed: int = 0) -> None:
        self._model = model
        self._layer = find_layers(model, 1)
        self._clean = clean[:N_CLEAN]
        groups = stamps(self._clean, clean, keyed(seed, 77))
        bounds = itertools.pairwise(np.cumsum([0, *map(len, groups.values())]))
        self._groups = {name: np.arange(*pair) for name, pair in zip(groups, bounds, strict=True)}
        self._stamped = np.stack([copy for group in groups.values() for copy in group])
        prefer_channels_last(model, self._clean[:1])

    def set_global(self, arrays: Arrays) -> None:
        """Remember the global model's answers; every shift is measured from them."""
        set_arrays(self._model, arrays)
        self._base = self._first_answers()
        everything = np.arange(len(self._stamped))
        self._base_stamped = self._on_every_input(everything, self._base.stamped)

    def shifts(self, arrays: Arrays) -> dict[str, Floats]:
        """Shifts that one update causes, by view name, each (d,).

        For each group of stamps, by class, the largest over its finalists of: the shift of the
        probability, mean over the clean inputs; the same minus the shift without any stamp, so
        that a client who simply answers one class more often does not look like a backdoor of
        that class; and the shift of the log-probability, held above :data:`FAINTEST`.
        """
        set_arrays(self._model, arrays)
        first, base = self._first_answers(), self._base
        found: dict[str, Floats] = {
            "probe:activation": first.activation - base.activation,
            "probe:logits": first.logits - base.logits,
        }
        finalists = [
            _finalists(first.stamped[members], base.stamped[members], FINALISTS[name]) + members[0]
            for name, members in self._groups.items()
        ]
        every = np.concatenate(finalists)
        chance, evidence = _shift(
            self._on_every_input(every, first.stamped[every]), self._base_stamped[every]
        )
        drift, _ = _shift(first.clean, base.clean)
        splits = np.cumsum([len(f) for f in finalists])[:-1]
        parts = zip(np.split(chance, splits), np.split(evidence, splits), strict=True)
        for name, (own_chance, own_evidence) in zip(self._groups, parts, strict=True):
            shift = own_chance.mean(1)
            found[f"stamp:{name}"] = shift.max(0)
            found[f"stamp:{name}{CONTRAST}"] = (shift - drift.mean(0)).max(0)
            found[f"stamp:{name}-evidence"] = own_evidence.mean(1).max(0)
        return found

    def _first_answers(self) -> _Answers:
        """Answers to the clean inputs, and to the first of them under every stamp."""
        inputs = np.concatenate([self._clean, self._stamped[:, 0]])
        rows, logits = activations_of(self._model, inputs, self._layer, BATCH)
        n, logits = len(self._clean), logits.astype(np.float64)
        chances = log_softmax(logits, axis=1)
        return _Answers(
            activation=rows[self._layer[0]][:n].mean(0).astype(np.float64),
            logits=(logits[:n] - logits[:n].mean(1, keepdims=True)).mean(0),
            clean=chances[:n],
            stamped=chances[n:],
        )

    def _on_every_input(self, which: NDArray[np.intp], first: Floats) -> Floats:
        """Log-probabilities (k, n, classes) under k stamps, given those on the first input."""
        inputs = self._stamped[which, 1:].reshape(-1, *self._clean.shape[1:])
        logits = logits_of(self._model, inputs, BATCH).double().numpy()
        rest = log_softmax(logits, axis=1).reshape(len(which), -1, logits.shape[1])
        both: Floats = np.concatenate([first[:, None], rest], axis=1)
        return both


def flip_evidence(shifts: Sequence[Mapping[str, Floats]]) -> Floats:
    """Log-odds that stamps which flip clean inputs add to each update's, never negative.

    An update under which one stamp turns the majority of clean inputs to one class obeys that
    stamp: that is what a backdoor is, whatever other updates do. So this counts as it stands, not
    beside references: probability moved to the class by the stamp, mean over the clean inputs,
    beyond what the update moves without it (the ``-contrast`` views). Below the majority nothing
    is added, and no stamp that fails to flip clears anybody.

    Parameters
    ----------
    shifts : sequence of mappings of view name to (d,) float array
        What each of n updates did to the probes, see :meth:`Probes.shifts`; other views are not
        read.

    Returns
    -------
    (n,) float array
        In [0, :data:`MOST_FLIPPED`].

    Examples
    --------
    >>> calm, bent = np.array([0.3, -0.2]), np.array([0.05, 0.8])
    >>> found = flip_evidence([{"stamp:wide-contrast": calm}, {"stamp:wide-contrast": bent}])
    >>> found.round(2).tolist()
    [0.0, 3.0]
    """
    flipped = [
        max((float(own.max()) for name, own in s.items() if name.endswith(CONTRAST)), default=0.0)
        for s in shifts
    ]
    evidence: Floats = FLIP_SLOPE * (np.asarray(flipped, dtype=np.float64) - MAJORITY)
    return evidence.clip(0, MOST_FLIPPED)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    activation: Floats  # (units,), mean over the clean inputs
    logits: Floats  # (classes,), centred, mean over the clean inputs
    clean: Floats  # (n, classes) log-probabilities
    stamped: Floats  # (stamps, classes) log-probabilities on the first clean input


def _shift(after: Floats, before: Floats) -> tuple[Floats, Floats]:
    """Shift of probabilities, and of log-probabilities held above :data:`FAINTEST`."""
    evidence = np.maximum(after, FAINTEST) - np.maximum(before, FAINTEST)
    return np.exp(after) - np.exp(before), evidence


def _finalists(after: Floats, before: Floats, k: int) -> NDArray[np.intp]:
    """Stamps with the k largest shifts of any class, by probability and by log-probability."""
    best = [np.argsort(-shift.max(1), kind="stable")[:k] for shift in _shift(after, before)]
    return np.unique(np.concatenate(best))


def stamps(
    x: NDArray[Any], like: NDArray[Any], rng: np.random.Generator
) -> dict[str, list[NDArray[Any]]]:
    """Stamped copies of clean inputs by group, each copy of the shape of ``x``.

    Parameters
    ----------
    x : array (n, ...)
        Images (n, channels, height, width) in [0, 1] get ``local`` and ``wide`` stamps, tokens
        (n, length) ``word`` stamps.
    like : array (m, ...)
        Clean inputs that tell the vocabulary.
    rng : numpy.random.Generator
        Draws the words.
    """
    if x.ndim == 4:
        return {"local": inverted_blocks(x), "wide": faint_checkers(x)}
    if x.ndim == 2 and np.issubdtype(x.dtype, np.integer):
        return {"word": [draw_trigger("word", like, rng).stamp(x) for _ in range(N_WORDS)]}
    raise ValueError(
        f"no stamp fits inputs of shape {x.shape} and dtype {x.dtype}; "
        "images are (n, channels, height, width), tokens (n, length); "
        "or switch probes off: probes=False"
    )


def prefer_channels_last(model: nn.Module, x: NDArray[Any]) -> bool:
    """Store convolutions' weights with channels last, where the model runs so: it halves the time.

    A network that flattens by ``view`` refuses that layout; it stays as it was.

    Parameters
    ----------
    model : nn.Module
        Changed in place; the numbers stay the same.
    x : array (n, ...)
        One input to try.

    Returns
    -------
    bool
        Whether the layout was changed.
    """
    kernels = [p for p in model.parameters() if p.dim() == 4]
    before = [p.data for p in kernels]
    for p in kernels:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    try:
        logits_of(model, x)
    except RuntimeError:
        for p, data in zip(kernels, before, strict=True):
            p.data = data
        return False
    return bool(kernels)


def inverted_blocks(x: NDArray[Any]) -> list[NDArray[Any]]:
    """Images (n, c, h, w) in [0, 1] with one block of a grid inverted, one copy a block.

    Wherever a local trigger sits, one of the blocks covers a part of it.

    Examples
    --------
    >>> len(inverted_blocks(np.zeros((2, 1, 28, 28), np.float32)))
    25
    """
    rows, columns = (_edges(side) for side in x.shape[2:])
    copies = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            copy = x.copy()
            copy[:, :, top:bottom, left:right] = 1 - x[:, :, top:bottom, left:right]
            copies.append(copy)
    return copies


def _edges(side: int) -> NDArray[np.intp]:
    blocks = min(max(side // 5, FEWEST_BLOCKS), MOST_BLOCKS)
    return np.linspace(0, side, blocks + 1).round().astype(np.intp)


def faint_checkers(x: NDArray[Any]) -> list[NDArray[Any]]:
    """Images (n, c, h, w) in [0, 1] under faint checkers from coarse to fine, and their negatives.

    Examples
    --------
    >>> len(faint_checkers(np.zeros((2, 1, 28, 28), np.float32)))
    12
    """
    height, width = x.shape[2:]
    copies = []
    for cells in dict.fromkeys(min(cells, height, width) for cells in CELLS):
        rows, columns = (np.arange(side) * cells // side for side in (height, width))
        checker = ((rows[:, None] + columns[None]) % 2).astype(x.dtype)
        for pattern in (checker, 1 - checker):
            copies.append((1 - OPACITY) * x + OPACITY * pattern)
    return copies
