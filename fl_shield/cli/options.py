"""Options that several commands share, and how their lists are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pools = Annotated[str, typer.Option(help="Data sets of victims, such as cifar10,sst2; none = all.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of cifar10/, gtsrb/, ...; without it, embedded data sets only."),
]
Seed = Annotated[int, typer.Option(min=0, help="Root of every random stream.")]
Cache = Annotated[
    Path, typer.Option(help="What was simulated; an interrupted run goes on from here.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster that simulates instead of processes: local, auto or host:port. Its "
        "machines must see data and cache under the same paths."
    ),
]
CACHE = Path(".cache/meta")


def words(text: str) -> tuple[str, ...]:
    """Split a list with commas, without blanks and empty parts.

    Examples
    --------
    >>> words("cv, rl,")
    ('cv', 'rl')
    """
    return tuple(word.strip() for word in text.split(",") if word.strip())
