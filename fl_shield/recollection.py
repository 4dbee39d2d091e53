"""What an inspector remembers, as plain arrays: so that its memory survives a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.inspector import Inspector
from fl_shield.suspects import Suspects
from fl_shield.types import Arrays
from fl_shield.updates import Standing, joined

_POINTS, _STATISTICS, _DISTANCES = "points/", "statistics/", "distances"
_SUSPECTS = "suspects/"


@dataclass(frozen=True, kw_only=True)
class Recollection:
    """References of earlier rounds and suspects, without any code.

    Attributes
    ----------
    arrays : Arrays
        By name; empty where nothing is remembered.
    owners : tuple of str
        Who sent each reference.
    suspects : tuple of (str, float)
        Who is suspected and how much, the longest unseen first.
    """

    arrays: Arrays = field(default_factory=dict)
    owners: tuple[str, ...] = ()
    suspects: tuple[tuple[str, float], ...] = ()


def recollection_of(inspector: Inspector) -> Recollection:
    """Everything that an inspector has learned from earlier rounds."""
    arrays: dict[str, NDArray[Any]] = {}
    owners: tuple[str, ...] = ()
    if inspector.is_settled:
        memory = joined(inspector.memory)
        owners = memory.owners
        arrays[_DISTANCES] = memory.distances
        arrays |= {f"{_POINTS}{name}": rows for name, rows in memory.points.items()}
        arrays |= {f"{_STATISTICS}{name}": rows for name, rows in memory.statistics.items()}
    known = [] if inspector.suspects is None else list(inspector.suspects.known())
    for i, (_, _, directions) in enumerate(known):
        arrays |= {f"{_SUSPECTS}{i}/{view}": d for view, d in directions.items()}
    suspects = tuple((name, doubt) for name, doubt, _ in known)
    return Recollection(arrays=arrays, owners=owners, suspects=suspects)


def recall(inspector: Inspector, recollection: Recollection) -> None:
    """Give an inspector back what another one with the same seed and model had learned."""
    if _DISTANCES in recollection.arrays:
        memory = Standing(
            points=_under(_POINTS, recollection.arrays),
            statistics=_under(_STATISTICS, recollection.arrays),
            distances=recollection.arrays[_DISTANCES],
            owners=recollection.owners,
        )
        inspector.remember_all(memory)
    if inspector.suspects is not None:
        inspector.suspects = _suspects(recollection.suspects, recollection.arrays)


def _suspects(told: Sequence[tuple[str, float]], arrays: Arrays) -> Suspects:
    found = Suspects()
    for i, (name, doubt) in enumerate(told):
        found.restore(name, doubt, _under(f"{_SUSPECTS}{i}/", arrays))
    return found


def _under(prefix: str, arrays: Arrays) -> Mapping[str, NDArray[Any]]:
    return {
        n.removeprefix(prefix): np.asarray(a) for n, a in arrays.items() if n.startswith(prefix)
    }
