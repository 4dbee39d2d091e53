"""What one victim said of clean and triggered inputs, on disk: never the model itself."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fl_shield.activations import Activations
from fl_shield.errors import DatasetError
from fl_shield.types import Flags, Floats

_LARGEST_HALF = 6e4

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Activations of one victim, and the facts that say whether it counts.

    Attributes
    ----------
    references : Activations
        Clean inputs that a defender may hold: every task draws its N from them.
    clean : Activations
        Other clean inputs.
    triggered : Activations
        Stamped inputs that the backdoor is meant for.
    reached : (n_triggered,) bool array
        Which of them get the label that the attacker wants; all True for a clean victim, which
        wants none.
    facts : mapping
        The setting's manifest with ``accuracy``, ``asr``, ``visibility`` and ``seconds``.
    peer_scores : mapping of str to (2, n_clean + n_triggered) float array
        Scores and p-values, by ``detector@shots``, of detectors that need the model itself: made
        while it lived.
    """

    references: Activations
    clean: Activations
    triggered: Activations
    reached: Flags
    facts: Mapping[str, Any]
    peer_scores: Mapping[str, Floats]

    @property
    def domain(self) -> str:
        """``cv``, ``nlp`` or ``rl``."""
        return str(self.facts["domain"])

    @property
    def backdoored(self) -> bool:
        """Whether it was trained with a trigger."""
        return bool(self.facts["poison_rate"] > 0)


def save_recording(path: Path, recording: Recording) -> None:
    """Write activations in half precision; the file appears whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"reached": recording.reached}
    for part in ("references", "clean", "triggered"):
        activations: Activations = getattr(recording, part)
        arrays[f"{part}:logits"] = activations.logits.astype(np.float32)
        for name, rows in activations.layers.items():
            half = rows.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
            arrays[f"{part}:layer:{name}"] = half
    if recording.references.head is not None:
        arrays["head"] = recording.references.head.astype(np.float32)
    for name, scores in recording.peer_scores.items():
        arrays[f"peer:{name}"] = scores.astype(np.float32)
    arrays["facts"] = np.array(json.dumps(dict(recording.facts), sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(path)


def load_recording(path: Path) -> Recording:
    """Read what :func:`save_recording` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Recording(
            references=_part(arrays, "references"),
            clean=_part(arrays, "clean"),
            triggered=_part(arrays, "triggered"),
            reached=arrays["reached"],
            facts=json.loads(str(arrays["facts"])),
            peer_scores={
                n.removeprefix("peer:"): a for n, a in arrays.items() if n.startswith("peer:")
            },
        )
    except _UNREADABLE as error:
        raise DatasetError(
            f"{path} is not a readable recording ({error}); delete it to have it made again"
        ) from error


def _part(arrays: Mapping[str, NDArray[Any]], part: str) -> Activations:
    prefix = f"{part}:layer:"
    layers = {
        name.removeprefix(prefix): rows.astype(np.float32)
        for name, rows in arrays.items()
        if name.startswith(prefix)
    }
    return Activations(layers=layers, logits=arrays[f"{part}:logits"], head=arrays.get("head"))
