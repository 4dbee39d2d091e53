"""A file with one line a round, written as rounds end and followed from another process."""

from __future__ import annotations

import json
from pathlib import Path

from fl_shield.simulations.outcome import OnRound, RoundRow

ROUNDS_FILE = "rounds.jsonl"


def start_log(folder: Path) -> None:
    """Forget the rounds of an earlier attempt."""
    (folder / ROUNDS_FILE).write_text("")


def append_round(folder: Path, row: RoundRow) -> None:
    """Write one round."""
    with (folder / ROUNDS_FILE).open("a") as lines:
        lines.write(json.dumps(row.to_dict()) + "\n")


class RoundFollower:
    """Tells of each round that another process writes, once.

    Parameters
    ----------
    folder : Path
        Where the log is or will be.
    on_round : callable, optional
        Told of each new round.
    """

    def __init__(self, folder: Path, on_round: OnRound | None) -> None:
        self._path = folder / ROUNDS_FILE
        self._on_round = on_round
        self._n_told = 0

    def poll(self) -> None:
        """Tell of the rounds written since the last call; a line half written waits."""
        if self._on_round is None or not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        for line in lines[self._n_told :]:
            if not line.endswith("\n"):
                return
            self._on_round(RoundRow.from_dict(json.loads(line)))
            self._n_told += 1
