"""What meta-training leaves behind: a small network, its scales and its null distributions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fl_shield.columns import COLUMNS
from fl_shield.conditioning import Habits, beside_each_other
from fl_shield.errors import ShieldError
from fl_shield.meta import MetaConfig, initial_params
from fl_shield.network import Params
from fl_shield.pca import N_COORDINATES
from fl_shield.profile import Profiles
from fl_shield.representation import REPRESENTATIONS
from fl_shield.tensor_file import UNREADABLE, read_tensors
from fl_shield.types import Floats, View

FORMAT = "fl_shield.metashield/2"
Purpose = Literal["updates", "inputs", "arena"]
PRETRAINED: Mapping[Purpose, str] = {
    "updates": "fl_shield.pretrained",
    "inputs": "fl_shield.pretrained.inputs",
    "arena": "fl_shield.pretrained.arena",
}
"""Packages of the shipped weights."""

WEIGHTS_FILE = "metashield.safetensors"

ODDS_NULL: Final = "log-odds of updates"
"""Null distribution of plain log-odds in settled rounds, likeness to suspects included; p-values
are read from it where it is.
"""

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
    def knows_inputs(self) -> bool:
        """Whether they learned from inputs of models, and can judge activations."""
        return any(name.partition("@")[0] == "inputs" for name in self.nulls)

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

    def standardised(self, columns: Floats) -> Floats:
        """The same as :meth:`standard`, as an array."""
        return self.standard(columns).numpy()

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
            tensors, metadata = read_tensors(path)
        except UNREADABLE as error:
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


def blank_weights(seed: int = 0, config: MetaConfig | None = None) -> Weights:
    """Weights before any meta-training: for tests, and as the start of meta-training.

    Examples
    --------
    >>> blank_weights().mean.shape
    torch.Size([135])
    """
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
