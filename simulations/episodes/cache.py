"""Profiles on disk, never models: one file a task source, resumable, and a manifest of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fl_shield.columns import COLUMNS
from fl_shield.errors import DatasetError
from fl_shield.meta import Episode

VERSION = 2
"""Raise it when profiles or episodes change their meaning: old cache files are then ignored."""


def key_of(source: Mapping[str, Any], columns: Sequence[str] = COLUMNS) -> str:
    """Name of a source's cache file: a hash of its settings, the columns and the version.

    What is no profile, such as recorded activations, has no ``columns``.

    Examples
    --------
    >>> key_of({"seed": 1}) == key_of({"seed": 1}) != key_of({"seed": 2})
    True
    """
    described = json.dumps([VERSION, tuple(columns), dict(source)], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:20]


def save_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write episodes as float16 profiles; the file appears whole or not at all."""
    arrays: dict[str, Any] = {}
    for i, episode in enumerate(episodes):
        arrays[f"support_{i}"] = episode.support.astype(np.float16)
        arrays[f"query_{i}"] = episode.query.astype(np.float16)
        arrays[f"labels_{i}"] = episode.labels.astype(np.int8)
    arrays["family"] = np.array([e.family for e in episodes])
    arrays["settled"] = np.array([e.settled for e in episodes], dtype=np.bool_)
    arrays["domain"] = np.array([e.domain for e in episodes])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def load_episodes(path: Path) -> list[Episode]:
    """Read episodes that :func:`save_episodes` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [
                Episode(
                    support=file[f"support_{i}"].astype(np.float32),
                    query=file[f"query_{i}"].astype(np.float32),
                    labels=file[f"labels_{i}"].astype(np.int64),
                    family=str(family),
                    domain=str(domain),
                    settled=bool(settled),
                )
                for i, (family, domain, settled) in enumerate(
                    zip(file["family"], file["domain"], file["settled"], strict=True)
                )
            ]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DatasetError(
            f"{path} is not a readable episode file ({error}); delete it to have it made again"
        ) from error


def write_manifest(path: Path, sources: Iterable[Mapping[str, Any]]) -> None:
    """Write what every task was made of, one line of JSON a source."""
    lines = (json.dumps(dict(source), sort_keys=True, default=str) for source in sources)
    path.write_text("\n".join(lines) + "\n")
