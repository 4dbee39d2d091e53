"""A judge as a file: the detector's weights, clean activations and settings; nothing is pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fl_shield.activations import Activations
from fl_shield.errors import GuardError, ShieldError
from fl_shield.judge import Judge, Promised
from fl_shield.tensor_file import UNREADABLE, read_tensors
from fl_shield.types import Floats
from fl_shield.weights import Weights, below

FORMAT = "fl_shield.guard/1"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file holds of a guard.

    Attributes
    ----------
    weights : Weights
    layers : tuple of str
    rows : tuple of (m, d) arrays
        Clean activations by layer.
    logits : (m, n_classes) array
    head : (n_classes, d) array, optional
        Only where no model holds it.
    fpr_budget, guarantee, n_inner_steps
        As they were asked for.
    fingerprint : str, optional
        Of the model; None where activations came from elsewhere.
    """

    weights: Weights
    layers: tuple[str, ...]
    rows: tuple[Floats, ...]
    logits: Floats
    head: Floats | None
    fpr_budget: float
    guarantee: Promised
    n_inner_steps: int | None
    fingerprint: str | None

    @property
    def origin(self) -> str:
        """How the guard was made, for errors."""
        return "from features" if self.fingerprint is None else "for a model"

    def judge(self, head: Floats | None = None) -> Judge:
        """Adapt again, which gives the same judge; ``head`` is the model's."""
        seen = Activations(
            layers=dict(zip(self.layers, self.rows, strict=True)),
            logits=self.logits,
            head=self.head if head is None else head,
        )
        return Judge(
            seen,
            self.weights,
            fpr_budget=self.fpr_budget,
            guarantee=self.guarantee,
            n_inner_steps=self.n_inner_steps,
        )


def write(path: Path | str, judge: Judge, fingerprint: str | None) -> None:
    """Write a safetensors file; the head is left out where a model holds it."""
    seen = judge.references
    arrays = {f"layer.{i}": rows for i, rows in enumerate(seen.layers.values())}
    arrays["logits"] = seen.logits
    if fingerprint is None and seen.head is not None:
        arrays["head"] = seen.head
    tensors = {f"detector.{name}": t.contiguous() for name, t in judge.weights.tensors().items()}
    tensors |= {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    settings = {
        "layers": list(seen.layers),
        "fpr_budget": judge.fpr_budget,
        "guarantee": judge.asked,
        "n_inner_steps": judge.n_inner_steps,
        "fingerprint": fingerprint,
        "promise": judge.promise_,
    }
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(settings),
        "detector": json.dumps(judge.weights.metadata()),
    }
    save_file(tensors, str(path), metadata=metadata)


def read(path: Path | str) -> Saved:
    """Read what :func:`write` wrote.

    Raises
    ------
    GuardError
        Where the file is missing, damaged or of another format.
    """
    try:
        tensors, metadata = read_tensors(path)
    except UNREADABLE as error:
        raise GuardError(
            f"{path} is not a readable guard ({error}); give a file that Guard.save wrote"
        ) from error
    if metadata.get("format") != FORMAT:
        raise GuardError(
            f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}; "
            "fit and save the guard again"
        )
    try:
        return _saved(tensors, metadata, str(path))
    except (ShieldError, KeyError, TypeError, ValueError) as error:
        raise GuardError(f"{path} is damaged ({error!r}); fit and save the guard again") from error


def _saved(tensors: dict[str, Tensor], metadata: dict[str, str], where: str) -> Saved:
    settings: dict[str, Any] = json.loads(metadata["settings"])
    detector = json.loads(metadata["detector"])
    return Saved(
        weights=Weights.of(below("detector.", tensors), detector, where),
        layers=tuple(settings["layers"]),
        rows=tuple(tensors[f"layer.{i}"].numpy() for i in range(len(settings["layers"]))),
        logits=tensors["logits"].numpy(),
        head=tensors["head"].numpy() if "head" in tensors else None,
        fpr_budget=settings["fpr_budget"],
        guarantee=settings["guarantee"],
        n_inner_steps=settings["n_inner_steps"],
        fingerprint=settings["fingerprint"],
    )
