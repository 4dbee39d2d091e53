"""MetaShield: a two-layer MLP over profiles, meta-learned, adapted from a few clean references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fl_shield.activations import (
    Activations,
    Layers,
    read_activations,
    views_beside,
)
from fl_shield.calibration import (
    Guarantee,
    conformal_p_values,
    promise,
    standardise,
    task_p_values,
)
from fl_shield.errors import NotFittedError
from fl_shield.meta import adapt_each
from fl_shield.network import Params, verdicts
from fl_shield.profile import MIN_REFERENCES
from fl_shield.stages import find_stages
from fl_shield.types import Flags, Floats, View
from fl_shield.weights import PRETRAINED, WEIGHTS_FILE, Purpose, Weights

_ONE = slice(0, 1)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the adapted detector says of n points seen through V views.

    Attributes
    ----------
    log_odds : (n,) float array
    contributions : (n, V) float array
        Rows add up to ``log_odds``.
    """

    log_odds: Floats
    contributions: Floats

    @property
    def scores(self) -> Floats:
        """Suspicion in [0, 1], shape (n,)."""
        out: Floats = 1 / (1 + np.exp(-self.log_odds.clip(-50, 50)))
        return out

    def raised(self, evidence: Floats) -> Scores:
        """Scores with one more view that adds ``evidence`` (n,) to the log-odds."""
        joined = np.concatenate([self.contributions, evidence[:, None]], axis=1)
        return Scores(log_odds=self.log_odds + evidence, contributions=joined)

    def capped(self, most: Floats) -> Scores:
        """Scores with no view adding more than ``most`` (V,) to the log-odds."""
        kept = np.minimum(self.contributions, most)
        return Scores(log_odds=kept.sum(1), contributions=kept)


class Adapted:
    """The detector after its few-shot adaptation to one set of references.

    Parameters
    ----------
    weights : Weights
        The meta-learned initialisation.
    references : (m, V, 135) float array
        Leave-one-out profiles of clean references.
    n_inner_steps : int, optional
        Steps of the inner loop; the meta-trained number by default, 0 for no adaptation.
    n_folds : int
        The references' own log-odds are out-of-fit: each fold is scored by a detector adapted
        to the other folds.
    null : {"inputs", "updates", "first updates"}
        Which null distribution the ``tasks`` guarantee takes.
    """

    def __init__(
        self,
        weights: Weights,
        references: Floats,
        n_inner_steps: int | None = None,
        n_folds: int = 5,
        null: str = "inputs",
    ) -> None:
        self._weights = weights
        self._null = weights.null_for(null, len(references))
        self._steps = weights.config.n_inner_steps if n_inner_steps is None else n_inner_steps
        self._present = torch.ones(references.shape[1])
        self._habits = weights.habits(references)
        rows = weights.read_references(references)
        fold = torch.arange(len(rows)) % n_folds
        held = fold == torch.arange(-1, min(n_folds, len(rows)))[:, None]  # first nothing is held
        seen = (~held).to(rows.dtype)
        adapted = adapt_each(weights.params, rows, self._present, seen, self._steps)
        self._params = {name: p[0] for name, p in adapted.items()}
        both = weights.config.ensemble and null == "inputs" and self._steps > 0
        self._initial = weights.params if both else None
        self.reference_log_odds = self._out_of_fit(adapted, rows, held)

    def score(self, profiles: Floats) -> Scores:
        """Score points given as (n, V, 135) profiles."""
        rows = self._weights.read_points(profiles, self._habits)
        with torch.no_grad():
            parts = verdicts(self._params, self._initial, rows, self._present)
        shares: Floats = parts.double().numpy()
        return Scores(log_odds=shares.sum(1), contributions=shares)

    def live_log_odds(self, profiles: Tensor) -> Tensor:
        """Log-odds (n,) of profiles (n, V, 135) that gradients flow through.

        The adaptation is what it was: no gradient flows to it, nor through it to the references.
        """
        return self.live_contributions(profiles).sum(1)

    def live_contributions(self, profiles: Tensor) -> Tensor:
        """Log-odds (n, V) that each view adds to :meth:`live_log_odds`."""
        rows = self._weights.read_points(profiles, self._habits)
        initial = None if self._initial is None else _like(rows, self._initial)
        present = self._present.to(rows.dtype)
        return verdicts(_like(rows, self._params), initial, rows, present)

    def p_values(self, log_odds: Floats, guarantee: Guarantee = "references") -> Floats:
        """p-values of log-odds under one of the two guarantees of :mod:`fl_shield.calibration`."""
        if guarantee == "references":
            return conformal_p_values(self.reference_log_odds, log_odds)
        standard = standardise(log_odds, self.reference_log_odds)
        return task_p_values(self._null, standard)

    def _out_of_fit(self, adapted: Params, rows: Tensor, held: Tensor) -> Floats:
        """Log-odds of each row after the adaptation that did not see it."""

        def log_odds(params: Params) -> Tensor:
            return verdicts(params, self._initial, rows, self._present).sum(1)

        with torch.no_grad():
            odds = torch.func.vmap(log_odds)(adapted)
        own: Floats = odds.mT[held.mT].double().numpy()
        return own


def _like(rows: Tensor, params: Params) -> Params:
    """Parameters in the precision of rows."""
    return {name: p.to(rows.dtype) for name, p in params.items()}


class MetaShield:
    """A backdoor detector that adapts to any model from 10-20 clean inputs, by one forward pass.

    Parameters
    ----------
    weights : Weights
        Meta-learned initialisation; :meth:`from_pretrained` loads the shipped one.
    fpr_budget : float
        Share of clean inputs that may be flagged, in (0, 1); sets ``threshold_``.
    layers : sequence of str, or "auto"
        Watched modules, the head last.
    n_inner_steps : int, optional
        Steps of the few-shot adaptation; None takes the meta-trained number.
    guarantee : {"references", "tasks"}
        What p-values rest on, see :mod:`fl_shield.calibration`.

    Examples
    --------
    >>> from torch import nn
    >>> rng = np.random.default_rng(0)
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> clean = rng.normal(size=(20, 4)).astype(np.float32)
    >>> shield = MetaShield.from_pretrained("inputs").fit(net, clean)
    >>> shield.score(clean[:2]).shape
    (2,)
    """

    def __init__(
        self,
        weights: Weights,
        *,
        fpr_budget: float = 0.05,
        layers: Layers = "auto",
        n_inner_steps: int | None = None,
        guarantee: Guarantee = "references",
    ) -> None:
        self.weights = weights
        self.fpr_budget = fpr_budget
        self.layers = layers
        self.n_inner_steps = n_inner_steps
        self.guarantee = guarantee

    @classmethod
    def from_pretrained(cls, purpose: Purpose = "updates", **settings: Any) -> Self:
        """Load a detector that ships with the package.

        Parameters
        ----------
        purpose : {"updates", "inputs", "arena"}
            What it judges. Same method and format, meta-trained apart: the weights for updates
            have been tried in whole federations; those for inputs have seen all four domains and
            can judge updates as well; those of the arena judge updates and have learned from
            sixteen kinds of attack.
        **settings
            As for the class.
        """
        if purpose not in PRETRAINED:
            raise ValueError(f"purpose must be one of {', '.join(PRETRAINED)}, got {purpose!r}")
        with resources.as_file(resources.files(PRETRAINED[purpose]) / WEIGHTS_FILE) as path:
            return cls(Weights.load(path), **settings)

    @classmethod
    def load(cls, path: Path | str, **settings: Any) -> Self:
        """Load meta-learned weights from a safetensors file."""
        return cls(Weights.load(path), **settings)

    def save(self, path: Path | str) -> None:
        """Save the meta-learned weights; the adaptation is cheap and is made again by ``fit``."""
        self.weights.save(path)

    def fit(
        self, model_or_view: nn.Module | Activations | View | Sequence[View], clean: Any = None
    ) -> Self:
        """Adapt to clean inputs of a model, or to the references of views; forgets earlier fits.

        Parameters
        ----------
        model_or_view : nn.Module, Activations, View or sequence of View
            A model to watch, its activations on clean inputs, or views whose references are clean.
        clean : (m, ...) array, optional
            Clean inputs of the model, m >= 4; unused without a model.
        """
        self._model: nn.Module | None = None
        self._references: Activations | None = None
        if isinstance(model_or_view, nn.Module):
            _check_number(0 if clean is None else len(clean))
            self._model = model_or_view
            auto = isinstance(self.layers, str)
            self._layers = find_stages(model_or_view) if auto else tuple(self.layers)
            self._references = read_activations(model_or_view, np.asarray(clean), self._layers)
        elif isinstance(model_or_view, Activations):
            _check_number(len(model_or_view))
            self._references = model_or_view
        seen = self._references
        views = self._views(model_or_view) if seen is None else views_beside(seen.take(_ONE), seen)
        self.view_names_ = tuple(view.name for view in views)
        references = self.weights.represent(views).references
        self.adapted_ = Adapted(self.weights, references, self.n_inner_steps)
        self.threshold_ = self._threshold()
        self.guarantee_ = promise(len(references), self.fpr_budget, self.guarantee)
        return self

    def score(self, points: Any) -> Floats:
        """Suspicion in [0, 1] of inputs (n, ...), activations or views' points; higher is worse."""
        return self._scores(points).scores

    def p_values(self, points: Any) -> Floats:
        """p-value of each point, shape (n,), in (0, 1]."""
        return self._fitted().p_values(self._scores(points).log_odds, self.guarantee)

    def predict(self, points: Any) -> Flags:
        """True where the score is above ``threshold_``."""
        flags: Flags = self.score(points) > self.threshold_
        return flags

    def explain(self, points: Any) -> dict[str, Floats]:
        """Log-odds that each view adds to each point's score, by view name, each (n,)."""
        parts = self._scores(points).contributions
        return dict(zip(self.view_names_, parts.T, strict=True))

    def _fitted(self) -> Adapted:
        if not hasattr(self, "adapted_"):
            raise NotFittedError("call MetaShield.fit(model, clean) before score")
        return self.adapted_

    def _threshold(self) -> float:
        """Largest score whose p-value is above the budget; flag beyond it, ``inf`` = never."""
        adapted = self._fitted()
        grid = np.linspace(-12, 12, 4801)
        above = adapted.p_values(grid, self.guarantee) > self.fpr_budget
        if above[-1]:
            return float("inf")  # so few references that no score can be within the budget
        largest = grid[above].max() if above.any() else grid[0]
        return float(1 / (1 + np.exp(-largest)))

    def _views(self, points: Any) -> list[View]:
        if self._references is None:
            return [points] if isinstance(points, View) else list(points)
        if self._model is not None and not isinstance(points, Activations):
            points = read_activations(self._model, np.asarray(points), self._layers)
        return views_beside(points, self._references)

    def _scores(self, points: Any) -> Scores:
        adapted = self._fitted()
        return adapted.score(self.weights.represent(self._views(points)).points)


def _check_number(n: int) -> None:
    if n <= MIN_REFERENCES:
        raise ValueError(
            f"fit needs more than {MIN_REFERENCES} clean inputs, got {n}; 20 are a good number"
        )
