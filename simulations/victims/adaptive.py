"""Victims that know their detector: trained to be backdoored and to look clean to it.

The attacker holds the detector's weights and clean inputs of its own. The loss of a victim is
cross-entropy over clean examples and triggered copies plus a penalty on what the detector, fitted
to the victim as it is, says of the batch's triggered inputs. The gradient is exact but for one
thing: what the detector takes from its references (their profiles, its adaptation, the axes of the
head, the ranks of its classes) is read anew every few steps and is constant in between.

References
----------
A. Athalye, N. Carlini, D. Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
section 5: a defence counts against attackers who differentiate through it. T. J. L. Tan, R. Shokri,
"Bypassing backdoor detection algorithms in deep learning", EuroS&P 2020, section IV: a backdoor
trained with a penalty on what a detector sees in latent space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from fl_shield.activations import in_order, pooled_ways, read_activations, watching
from fl_shield.errors import ScenarioError
from fl_shield.rng import torch_generator
from fl_shield.simulations.victims.opponents import Fit, Opponent, Seen
from fl_shield.simulations.victims.single import batches
from fl_shield.types import Flags, Samples

MOST = 20
"""Triggered inputs of one batch that the penalty is taken from, at most."""

RAMP = 0.5
"""Share of the steps over which the penalty grows to its whole weight: the trigger comes first."""

STEEPEST = 3.0
"""Gradient of one input's suspicion, beside that of the batch's median input, at most: distances
close to zero have steep ones."""

LONGEST = 3.0
"""Length of the penalty's gradient beside that of the cross-entropy, at most. Without it a penalty
of 10 destroys the victim, and the detector seems to withstand what was only a bad optimiser."""


@dataclass(frozen=True, kw_only=True)
class Fight:
    """What a victim fights, and how hard.

    Attributes
    ----------
    fit : callable
        Makes the opponent, see :func:`~fl_shield.simulations.victims.opponents.fit_of`.
    clean : (m, ...) array
        The attacker's own clean inputs, m >= 4: the opponent's references.
    layers : tuple of str
        Watched modules, the head last.
    penalty : float
        Weight of the mean of softplus(suspicion) over triggered inputs, >= 0; 0 = no fight.
    refresh : int
        Steps after which the opponent is fitted to the victim again, >= 1.
    """

    fit: Fit
    clean: NDArray[Any]
    layers: tuple[str, ...]
    penalty: float
    refresh: int = 20

    def __post_init__(self) -> None:
        check_penalty(self.penalty)
        if self.refresh < 1:
            raise ScenarioError(f"refresh counts steps from 1, got {self.refresh}; 20 is usual")


def check_penalty(penalty: float) -> None:
    """Refuse weights that no loss can have.

    Examples
    --------
    >>> check_penalty(0.1)
    """
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise ScenarioError(
            f"a penalty must be a number >= 0, got {penalty}; 0 fights nothing, 1 is a good start"
        )


def suspicion_of(opponent: Opponent, seen: Seen) -> Tensor:
    """Penalty on points (n, ...): the mean of softplus(suspicion), with a tame gradient.

    Where a distance is exactly zero its gradient is no number; such a row then gets none, and no
    row gets more than :data:`STEEPEST` times that of the median row.

    Examples
    --------
    >>> rows = torch.zeros(2, 3, requires_grad=True)
    >>> lost = suspicion_of(lambda seen: seen.logits.norm(dim=1), Seen(layers={}, logits=rows))
    >>> lost.backward()
    >>> round(lost.item(), 4), rows.grad.abs().sum().item()
    (0.6931, 0.0)
    """
    for rows in (*seen.layers.values(), seen.logits):
        if rows.requires_grad:
            rows.register_hook(_tame)  # type: ignore[no-untyped-call]
    lost: Tensor = softplus(opponent(seen)).mean()
    return lost


def _tame(gradient: Tensor) -> Tensor:
    finite = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    sizes = finite.norm(dim=1, keepdim=True)
    most = STEEPEST * sizes.median()
    tamed: Tensor = finite * (most / sizes.clamp_min(1e-30)).clamp_max(1.0)
    return tamed


def train_fighting(
    model: nn.Module,
    samples: Samples,
    triggered: Flags,
    fight: Fight,
    rng: np.random.Generator,
    *,
    n_steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
) -> None:
    """Train a victim in place, by AdamW with a cosine schedule as all victims are.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits; without dropout and batch statistics.
    samples : Samples
        Clean examples and triggered copies.
    triggered : (n_samples,) bool array
        Which of them are triggered copies: the penalty falls on those of each batch.
    fight : Fight
    rng : numpy.random.Generator
        Orders the examples.
    n_steps, batch_size : int
    lr, weight_decay : float
        Highest rate of the schedule, and AdamW's decay.
    """
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    stamped = torch.from_numpy(triggered)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=n_steps)
    feed = batches(len(y), batch_size, torch_generator(rng))
    model.train()
    last = dict(model.named_modules()).get(fight.layers[-1])
    head = last.weight if isinstance(last, nn.Linear) else None
    opponent: Opponent | None = None
    for step in range(n_steps):
        if fight.penalty and step % fight.refresh == 0:
            opponent = fight.fit(read_activations(model, fight.clean, fight.layers))
        batch = next(feed)
        with watching(model, fight.layers, pooled_ways, live=True) as rows:
            logits = model(x[batch])
        gradient = torch.autograd.grad(
            cross_entropy(logits, y[batch]), parameters, retain_graph=opponent is not None
        )
        chosen = stamped[batch].nonzero()[:MOST, 0]
        if opponent is not None and len(chosen):
            layers = {n: r[chosen] for n, r in in_order(rows, fight.layers).items()}
            seen = Seen(layers=layers, logits=logits[chosen], head=head)
            lost = suspicion_of(opponent, seen)
            weight = fight.penalty * min(1.0, step / (RAMP * n_steps))
            gradient = _joined(
                gradient,
                torch.autograd.grad(
                    weight * lost, parameters, allow_unused=True, materialize_grads=True
                ),
            )
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = part
        optimiser.step()
        schedule.step()


def _joined(gradient: Sequence[Tensor], penalty: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sum of two gradients, the second shortened where it would drown the first."""
    own, other = (torch.cat([part.flatten() for part in g]).norm() for g in (gradient, penalty))
    share = float((LONGEST * own / other.clamp_min(1e-30)).clamp_max(1.0))
    return tuple(g + share * p for g, p in zip(gradient, penalty, strict=True))
