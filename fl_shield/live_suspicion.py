"""How suspicious an upload is to the shield, as a function with a gradient: for who trains against.

An attacker who holds the shipped weights knows the detector, but neither the other updates of its
round nor the server's seed, examples and memory. :func:`guessed_suspicion` takes honest training
of the malicious clients and of samples of their examples for the others, and draws a seed of its
own; :func:`known_suspicion` is the worst case, in which all that is secret has leaked.

The value is the log-odds of the score that :class:`~fl_shield.inspector.Inspector` gives the
upload in the round. The gradient is exact but for one thing: what the upload itself changes of the
references (it moves the round's medians, may join or leave the core, and the detector adapts to
all of it) is read anew every few calls and is constant in between. Activation reports and likeness
to suspects are not followed.

References
----------
A. Athalye, N. Carlini, D. Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
section 5: a defence counts against attackers who differentiate through it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_shield.attacks.local import train_local
from fl_shield.detector import Adapted, MetaShield
from fl_shield.inspector import FAINTEST_PEAK, LARGEST_SHIFT, Inspector, most_by_view
from fl_shield.live_updates import Company, LiveProbes, LiveSketch, LiveSketcher, Tensors
from fl_shield.probes import CONTRAST, FLIP_SLOPE, MAJORITY, MOST_FLIPPED
from fl_shield.profile import Profiler
from fl_shield.types import Arrays, AttackContext, Samples, View
from fl_shield.updates import core_of, standing, update_views

N_CLEAN_GUESSED = 20
"""Examples of its own that an attacker takes for the server's, at most."""


class LiveSuspicion:
    """Log-odds that one upload is malicious among fixed others, as a differentiable function.

    Parameters
    ----------
    inspector : Inspector
        The shield as the attacker knows it or guesses it; its scratch model is overwritten, what
        it remembers stays. It must read profiles.
    global_arrays : Arrays
        The model that the server sent.
    others : sequence of Arrays
        The round's other uploads, known or guessed, at least one.
    refresh : int
        Calls after which the references are read again for the upload as it then is, >= 1.
    capped : bool
        Whether the head's view adds no more than its cap, as in scores. Without the cap these are
        the log-odds that p-values are read from, and the gradient is not lost beyond the cap: an
        attacker who lowers these lowers both.

    Examples
    --------
    >>> from fl_shield.training import get_arrays
    >>> from fl_shield.weights import blank_weights
    >>> rng = np.random.default_rng(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 2))
    >>> clean = Samples(x=rng.normal(size=(10, 5)).astype(np.float32), y=np.arange(10) % 2)
    >>> start = get_arrays(model)
    >>> others = [
    ...     {n: a + np.float32(0.1) * rng.normal(size=a.shape).astype(np.float32)
    ...      for n, a in start.items()} for _ in range(4)]
    >>> inspector = Inspector(model, clean, MetaShield(blank_weights()), probes=False)
    >>> suspicion = LiveSuspicion(inspector, start, others)
    >>> own = {n: torch.from_numpy(a).requires_grad_() for n, a in others[0].items()}
    >>> suspicion(own).backward()
    >>> bool(own["0.weight"].grad.isfinite().all())
    True
    """

    def __init__(
        self,
        inspector: Inspector,
        global_arrays: Arrays,
        others: Sequence[Arrays],
        *,
        refresh: int = 1,
        capped: bool = True,
    ) -> None:
        if refresh < 1:
            raise ValueError(f"refresh counts calls from 1, got {refresh}; 1 is exact, 5 is usual")
        representation = inspector.detector.weights.config.representation
        if representation != "profile":
            raise ValueError(
                f"these weights read {representation!r} and only profiles have a gradient; take "
                "weights that were meta-trained with --representation profile"
            )
        self._inspector, self._global = inspector, global_arrays
        self._refresh, self._capped = refresh, capped
        self._others = inspector.sketches(global_arrays, others)
        self._company = Company(self._others)
        self._sketcher = LiveSketcher(global_arrays, inspector.seed)
        self._probes: LiveProbes | None = None
        if inspector.probes is not None:
            self._probes = LiveProbes(
                inspector.model, inspector.clean.x, global_arrays, seed=inspector.seed
            )
        self._beside: _Beside | None = None
        self._calls = 0

    def __call__(self, tensors: Tensors) -> Tensor:
        """Log-odds () that an upload is malicious; higher = more suspicious.

        Parameters
        ----------
        tensors : mapping of str to tensor
            The upload's trainable tensors by name, in the precision of the global model. Others,
            such as batch statistics, are those of the global model unless they are given too.
            Where a gradient is no number (the upload *is* the global model) there is none.
        """
        own = self._sketch({name: _guarded(t) for name, t in tensors.items()})
        if self._beside is None or self._calls % self._refresh == 0:
            self._beside = self._read(own)
        self._calls += 1
        return self._beside.log_odds(own, self._company, capped=self._capped)

    def score(self, arrays: Arrays) -> float:
        """Score in [0, 1] of an upload, as the server would give it."""
        own = self._sketch({name: torch.from_numpy(a) for name, a in arrays.items()})
        return float(self._read(own).log_odds(own, self._company, capped=True).sigmoid())

    def _sketch(self, tensors: Tensors) -> LiveSketch:
        sketch = self._sketcher.sketch(tensors)
        if self._probes is None:
            return sketch
        shifts = self._probes.shifts(tensors)
        kept = {
            name: shift.nan_to_num(nan=LARGEST_SHIFT).clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
            for name, shift in shifts.items()
        }
        return sketch.with_shifts(kept, FAINTEST_PEAK)

    @torch.enable_grad()
    def _read(self, own: LiveSketch) -> _Beside:
        """References of the round with an upload as it is, and the detector adapted to them."""
        group = standing([own.detached(), *self._others])
        core = core_of(group)
        among = self._inspector.references(self._global, group.take(core))
        views = update_views(group.take(np.zeros(1, np.intp)), among, self._inspector.depths)
        whole = Profiler(views)
        detector, null = self._inspector.detector, self._inspector.null
        adapted = Adapted(detector.weights, whole.references, detector.n_inner_steps, null=null)
        return _Beside(
            names=tuple(view.name for view in views),
            profiler=whole.without_first(views) if core[0] == 0 else whole,
            adapted=adapted,
            rounding=self._rounding(own, views),
        )

    def _rounding(self, own: LiveSketch, views: Sequence[View]) -> Tensor:
        """What the numbers (V, 23) of an upload lack to be bit by bit those of its references.

        The nearest neighbour of an update often has it for its own nearest one: then the two are at
        one distance exactly, and count as such in ranks.
        """
        with torch.no_grad():
            _, told = self._company.beside(own)
        rows = [view.statistics[0] - told[view.name].numpy() for view in views]  # type: ignore[index]
        return torch.from_numpy(np.stack(rows))


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """References as they were when they were last read, and rounding (V, 23).

    An upload in the round's core is itself the first of them and described beside the others.
    """

    names: tuple[str, ...]
    profiler: Profiler
    adapted: Adapted
    rounding: Tensor

    def log_odds(self, own: LiveSketch, company: Company, *, capped: bool) -> Tensor:
        """Log-odds of one upload among the others."""
        points, told = company.beside(own)
        rows = [_guarded(points[name])[None] for name in self.names]
        statistics = _guarded(torch.stack([told[name] for name in self.names])) + self.rounding
        profiles = self.profiler.live(rows, statistics[:, None])
        parts = self.adapted.live_contributions(profiles)[0]
        if capped:
            parts = torch.minimum(parts, torch.from_numpy(most_by_view(self.names)))
        return parts.sum() + _flips(own)


def known_suspicion(
    inspector: Inspector,
    global_arrays: Arrays,
    others: Sequence[Arrays],
    *,
    refresh: int = 1,
    capped: bool = True,
) -> LiveSuspicion:
    """Suspicion to an attacker who knows the server's seed, examples and memory, and the round.

    Parameters
    ----------
    inspector : Inspector
        The server's; it is copied and left as it is.
    global_arrays : Arrays
        The model that the server sent.
    others : sequence of Arrays
        What the other clients upload in this round.
    refresh, capped
        See :class:`LiveSuspicion`.
    """
    twin = copy.deepcopy(
        inspector, {id(global_arrays): global_arrays}
    )  # knows the model by identity
    return LiveSuspicion(twin, global_arrays, others, refresh=refresh, capped=capped)


def guessed_suspicion(
    context: AttackContext,
    detector: MetaShield,
    rng: np.random.Generator,
    *,
    probes: bool = True,
    refresh: int = 1,
    capped: bool = True,
) -> LiveSuspicion:
    """Suspicion to an attacker who knows the detector's weights, and guesses all else.

    The round is taken to consist of the honest models of its malicious clients and, up to the
    number of clients, of models that are trained as honest clients train on bootstrap samples of
    the malicious clients' examples. Some of these examples stand for the server's.

    Parameters
    ----------
    context : AttackContext
        What the attacker knows in this round; its scratch model is overwritten.
    detector : MetaShield
    rng : numpy.random.Generator
        Draws the seed, the examples and the samples, and orders the training.
    probes : bool
        Whether the server is taken to run uploads on probes; only images and tokens have some.
    refresh, capped
        See :class:`LiveSuspicion`.

    Raises
    ------
    ValueError
        Where the malicious clients of the round have fewer than three examples together.
    """
    pooled = Samples.join(context.peers or (context.data,))
    clean = pooled.take(rng.permutation(len(pooled))[:N_CLEAN_GUESSED])
    inspector = Inspector(
        copy.deepcopy(context.model),
        clean,
        detector,
        seed=int(rng.integers(2**31)),
        probes=probes,
    )
    others = guessed_uploads(context, rng)
    return LiveSuspicion(inspector, context.global_arrays, others, refresh=refresh, capped=capped)


def guessed_uploads(
    context: AttackContext, rng: np.random.Generator
) -> list[dict[str, NDArray[Any]]]:
    """What an attacker takes for the other uploads of its round, all honest.

    Models that are trained as honest clients train on the examples of each malicious client of the
    round and, up to the number of clients, on bootstrap samples of all these examples.
    """
    own = replace(context, rng=rng)
    pooled = Samples.join(own.peers or (own.data,))
    parts = [peer for peer in own.peers or (own.data,) if len(peer)]
    size = len(pooled) // len(parts)
    while len(parts) < own.n_clients - 1:
        parts.append(pooled.take(own.rng.integers(0, len(pooled), size=size)))
    return [train_local(own, part) for part in parts]


def _guarded(t: Tensor) -> Tensor:
    """View of a tensor whose gradient is zero wherever it would be no number."""
    view = t.view_as(t)
    if view.requires_grad:
        view.register_hook(_finite)  # type: ignore[no-untyped-call]
    return view


def _finite(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _flips(own: LiveSketch) -> Tensor:
    """Log-odds of stamps that flip clean inputs, see :func:`fl_shield.probes.flip_evidence`."""
    shifts = [shift.amax() for name, shift in own.vectors.items() if name.endswith(CONTRAST)]
    if not shifts:
        return own.total.new_zeros(())
    flipped = torch.stack(shifts).amax().clamp_min(0)
    return (FLIP_SLOPE * (flipped - MAJORITY)).clamp(0, MOST_FLIPPED)
