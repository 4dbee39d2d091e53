"""Detectors that a victim can fight: fitted to the attacker's own clean inputs, with a gradient.

What a detector takes from its references (their profiles, its adaptation, the head's axes) is
constant; the gradient flows through the points, and to the head through the signature of the class
that they are given, by the very formulas that score them in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fl_shield.activations import Activations, head_beside, views_beside
from fl_shield.detector import Adapted
from fl_shield.detectors import KNearest, Mahalanobis
from fl_shield.detectors.contract import OnePass, standardised
from fl_shield.detectors.knn import nearest_distances
from fl_shield.detectors.mahalanobis import shrunk_distances
from fl_shield.errors import ScenarioError
from fl_shield.profile import Profiler
from fl_shield.types import Floats
from fl_shield.weights import Weights

OURS = "metashield"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Activations of n inputs as tensors that gradients flow through.

    Attributes
    ----------
    layers : mapping of str to (n, d) tensor
        By layer and way of pooling, as in :class:`~fl_shield.activations.Activations`.
    logits : (n, n_classes) tensor
    head : (n_classes, d) tensor, optional
        Weight of the head, where it is linear.
    """

    layers: Mapping[str, Tensor]
    logits: Tensor
    head: Tensor | None = None

    @property
    def penultimate(self) -> Tensor:
        """Input of the head, (n, d)."""
        return self.layers[tuple(self.layers)[-1]]


Opponent = Callable[[Seen], Tensor]
"""A detector fitted to the victim as it is: suspicion (n,) of inputs, on the scale of log-odds."""

Fit = Callable[[Activations], Opponent]
"""What makes an opponent of the victim's activations on the attacker's clean inputs."""


class ShieldOpponent:
    """MetaShield adapted to clean activations of a victim, as a function with a gradient.

    Parameters
    ----------
    weights : Weights
        That read profiles.
    references : Activations
        Of the attacker's own clean inputs.
    """

    def __init__(self, weights: Weights, references: Activations) -> None:
        self._head = head_beside(references)
        self._profiler = Profiler(views_beside(references.take(slice(0, 1)), references))
        self._adapted = Adapted(weights, self._profiler.references)

    def __call__(self, points: Seen) -> Tensor:
        """Log-odds (n,) that points are triggered: those of ``MetaShield.score``."""
        rows = list(points.layers.values())
        told = self._head.told(points.logits, points.penultimate, points.head)
        profiles = self._profiler.live(rows, told.expand(len(rows), -1, -1))
        return self._adapted.live_log_odds(profiles)


class PeerOpponent:
    """A distance in penultimate space, in the spread of the references' own out-of-fit distances.

    Parameters
    ----------
    detector : OnePass
        Gives the out-of-fit scores of the references.
    rule : callable
        Points and references to distances, the formula of the detector.
    references : Activations
    """

    def __init__(
        self,
        detector: OnePass,
        rule: Callable[[Any, Floats], Any],
        references: Activations,
    ) -> None:
        self._rule, self._references = rule, references.penultimate
        self._among = detector.fit(references).reference_scores_

    def __call__(self, points: Seen) -> Tensor:
        """Standardised distances (n,)."""
        distances: Any = self._rule(points.penultimate, self._references)
        scores: Any = standardised(distances, self._among)
        out: Tensor = scores
        return out


PEERS: Mapping[str, Fit] = {
    "mahalanobis": lambda clean: PeerOpponent(Mahalanobis(), shrunk_distances, clean),
    "knn": lambda clean: PeerOpponent(KNearest(), partial(nearest_distances, k=1), clean),
}
"""Published detectors that can be fought, by their name in :data:`fl_shield.detectors.DETECTORS`.
"""

FOUGHT = (OURS, *PEERS)
"""Names of all detectors that can be fought."""


def fit_of(name: str, weights: Weights) -> Fit:
    """How the detector of a name is fitted to a victim.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from fl_shield.weights import blank_weights
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> fit = fit_of("knn", blank_weights())
    >>> opponent = fit(Activations(layers={"head": rows}, logits=rows))
    >>> far = torch.full((1, 4), 9.0, requires_grad=True)
    >>> bool(opponent(Seen(layers={"head": far}, logits=far))[0] > 3)
    True
    """
    if name not in FOUGHT:
        raise ScenarioError(f"a detector to fight must be one of {', '.join(FOUGHT)}, got {name!r}")
    if name != OURS:
        return PEERS[name]
    if weights.config.representation != "profile":
        raise ScenarioError(
            f"these weights read {weights.config.representation!r} and only profiles have a "
            "gradient; take weights that were meta-trained with --representation profile"
        )
    return partial(ShieldOpponent, weights)
