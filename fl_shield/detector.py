"""MetaShield: a two-layer MLP over profiles, meta-learned, adapted from a few clean references."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
from fl_shield.conditioning import Habits, beside_each_other
from fl_shield.errors import NotFittedError, ShieldError
from fl_shield.meta import MetaConfig, Params, adapt_each, contributions, log_odds
from fl_shield.pca import N_COORDINATES
from fl_shield.profile import COLUMNS, MIN_REFERENCES, Profiles
from fl_shield.representation import REPRESENTATIONS
from fl_shield.stages import find_stages
from fl_shield.types import Flags, Floats, View

FORMAT = "fl_shield.metashield/2"
Purpose = Literal["updates", "inputs"]
PRETRAINED: Mapping[Purpose, str] = {
    "updates": "fl_shield.pretrained",
    "inputs": "fl_shield.pretrained.inputs",
}
"""Packages of the shipped weights."""

WEIGHTS_FILE = "metashield.safetensors"

_ONE = slice(0, 1)

STANDARD_LIMIT = 6.0
"""Standardised columns are clipped to [-STANDARD_LIMIT, STANDARD_LIMIT]."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What meta-training leaves behind.

    Attributes
    ----------
    params : mapping of str to tensor
        See :func:`fl_shield.meta.initial_params`.
    mean, scale : (k,) float32 tensors, or (2 k,) of conditioned weights
        Standardisation of the first k columns over the meta-training tasks.
    nulls : mapping of str to (k,) float32 tensor
        Quantiles of standardised benign scores over held-out meta-training tasks, apart for
        ``inputs`` of a model, ``updates`` of clients, and ``first updates``: those of a round
        without accepted updates of earlier rounds among its references. ``inputs@20`` is for
        about 20 references.
    config : MetaConfig
    card : mapping of str to str
        Seed, command, data, families: what the model card says.
    """

    params: Params
    mean: Tensor
    scale: Tensor
    nulls: Mapping[str, Tensor]
    config: MetaConfig
    card: Mapping[str, str]

    def null_for(self, kind: str, n_references: int) -> Floats:
        """Null distribution of a kind of tasks at the number of references nearest to this one.

        The fewer references, the less sure their mean and spread, and the heavier the tail: a kind
        may have one distribution for each of several numbers, named ``inputs@20``.
        """
        sizes = [int(n.partition("@")[2]) for n in self.nulls if n.startswith(f"{kind}@")]
        if sizes:
            nearest = min(sizes, key=lambda size: abs(np.log(size / max(n_references, 1))))
            kind = f"{kind}@{nearest}"
        if kind not in self.nulls:
            raise ShieldError(
                f"these weights have no null distribution of {kind}, for they were meta-trained "
                f"without such tasks; they have {', '.join(self.nulls) or 'none'}: take others, or "
                "meta-train with more --domains"
            )
        null: Floats = self.nulls[kind].double().numpy()
        return null

    @property
    def n_columns(self) -> int:
        """How many columns of a profile they read: the first ones, for new ones come last."""
        return len(self.mean) // (2 if self.config.conditioned else 1)

    def represent(self, views: Sequence[View]) -> Profiles:
        """Profiles of views of the same points, or what else these weights read."""
        return REPRESENTATIONS[self.config.representation](views)

    def habits(self, references: Floats) -> Habits:
        """What references (m, V, 135) show in the columns that these weights read."""
        return Habits.of(references[..., : self.n_columns])

    def standard(self, columns: Floats | Tensor) -> Tensor:
        """Columns (n, V, k or 2 k) on the scale of meta-training; tensors keep their graph."""
        if not isinstance(columns, Tensor):
            columns = torch.from_numpy(np.asarray(columns, dtype=np.float32))
        return ((columns - self.mean) / self.scale).clamp(-STANDARD_LIMIT, STANDARD_LIMIT)

    def read_references(self, references: Floats) -> Tensor:
        """What the network reads of leave-one-out profiles of references (m, V, 135)."""
        columns = references[..., : self.n_columns]
        return self.standard(beside_each_other(columns) if self.config.conditioned else columns)

    def read_points(self, profiles: Floats | Tensor, habits: Habits) -> Tensor:
        """What the network reads of profiles of points (n, V, 135) beside references' habits."""
        columns = profiles[..., : self.n_columns]
        return self.standard(habits.live(columns) if self.config.conditioned else columns)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in a file."""
        named = {f"params.{name}": p.contiguous() for name, p in self.params.items()}
        named |= {f"null.{name}": null.contiguous() for name, null in self.nulls.items()}
        return named | {"mean": self.mean, "scale": self.scale}

    def metadata(self) -> dict[str, str]:
        """What a file says beside the tensors."""
        config = json.dumps(asdict(self.config), sort_keys=True)
        return {"format": FORMAT, "config": config, "card": json.dumps(dict(self.card))}

    def save(self, path: Path | str) -> None:
        """Write a safetensors file."""
        save_file(self.tensors(), str(path), metadata=self.metadata())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a safetensors file that :meth:`save` wrote."""
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ShieldError(
                f"{path} is not a readable detector ({error}); "
                "give a file that MetaShield.save or fl-shield meta-train wrote"
            ) from error
        return cls.of(tensors, metadata, str(path))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> Self:
        """Weights from what :meth:`tensors` and :meth:`metadata` gave; ``where`` for errors."""
        if metadata.get("format") != FORMAT:
            raise ShieldError(
                f"{where} has format {metadata.get('format')!r}, this version reads {FORMAT!r}; "
                "make it again with fl-shield meta-train"
            )
        return cls(
            params=below("params.", tensors),
            mean=tensors["mean"],
            scale=tensors["scale"],
            nulls=below("null.", tensors),
            config=MetaConfig(**json.loads(metadata["config"])),
            card=json.loads(metadata["card"]),
        )


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names start with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


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
        self.reference_log_odds = self._out_of_fit(adapted, rows, held)

    def score(self, profiles: Floats) -> Scores:
        """Score points given as (n, V, 135) profiles."""
        rows = self._weights.read_points(profiles, self._habits)
        with torch.no_grad():
            parts = contributions(self._params, rows, self._present)
        shares: Floats = parts.double().numpy()
        return Scores(log_odds=shares.sum(1), contributions=shares)

    def live_log_odds(self, profiles: Tensor) -> Tensor:
        """Log-odds (n,) of profiles (n, V, 135) that gradients flow through.

        The adaptation is what it was: no gradient flows to it, nor through it to the references.
        """
        rows = self._weights.read_points(profiles, self._habits)
        params = {name: p.to(rows.dtype) for name, p in self._params.items()}
        return log_odds(params, rows, self._present.to(rows.dtype))

    def p_values(self, log_odds: Floats, guarantee: Guarantee = "references") -> Floats:
        """p-values of log-odds under one of the two guarantees of :mod:`fl_shield.calibration`."""
        if guarantee == "references":
            return conformal_p_values(self.reference_log_odds, log_odds)
        standard = standardise(log_odds, self.reference_log_odds)
        return task_p_values(self._null, standard)

    def _out_of_fit(self, adapted: Params, rows: Tensor, held: Tensor) -> Floats:
        """Log-odds of each row after the adaptation that did not see it."""
        with torch.no_grad():
            odds = torch.func.vmap(log_odds, in_dims=(0, None, None))(adapted, rows, self._present)
        own: Floats = odds.mT[held.mT].double().numpy()
        return own


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
        purpose : {"updates", "inputs"}
            What it judges. Same method and format, meta-trained apart: the weights for updates
            have been tried in whole federations; those for inputs have seen all four domains and
            can judge updates as well.
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


def blank_weights(seed: int = 0, config: MetaConfig | None = None) -> Weights:
    """Weights before any meta-training: for tests, and as the start of meta-training.

    Examples
    --------
    >>> blank_weights().mean.shape
    torch.Size([135])
    """
    from fl_shield.meta import initial_params

    settings = config or MetaConfig()
    read = N_COORDINATES if settings.representation == "pca" else len(COLUMNS)
    width = read * (2 if settings.conditioned else 1)
    params = initial_params(width, settings, np.random.default_rng(seed))
    null = torch.linspace(-2, 2, 101)
    return Weights(
        params=params,
        mean=torch.zeros(width),
        scale=torch.ones(width),
        nulls={"inputs": null, "updates": null.clone(), "first updates": null.clone()},
        config=settings,
        card={"trained": "never"},
    )
