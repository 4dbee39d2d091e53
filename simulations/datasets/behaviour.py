"""Control tasks as data sets: what a teacher would do in states that it met.

Behaviour cloning makes a classifier of a control task: the input is what was just seen, the label
the teacher's action.

References
----------
D. Pomerleau, "Efficient Training of Artificial Neural Networks for Autonomous Navigation", Neural
Computation 3, 1991 (behaviour cloning); M. Towers et al., "Gymnasium", arXiv:2407.17032; M.
Bellemare et al., "The Arcade Learning Environment", JAIR 47, 2013.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.simulations.datasets.cache import ArrayTable, cached
from fl_shield.simulations.datasets.episodes import CONTROLS, record_parts
from fl_shield.simulations.datasets.parts import Parts, PartsRequest
from fl_shield.types import Floats, Samples

VERSION = 1
"""Raise it when recorded episodes change their meaning: old cache files are then ignored."""


@dataclass(frozen=True, kw_only=True)
class Standards:
    """How raw frames become inputs: ``(frames - mean) / std``.

    Attributes
    ----------
    mean, std : (d,) float array, or () for pictures
        Of all frames of the whole train part; 0 and 255 for pictures.
    """

    mean: Floats
    std: Floats

    def apply(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """Standardise frames (..., d), or map pictures to [0, 1]."""
        scaled: NDArray[np.float32] = ((frames - self.mean) / self.std).astype(np.float32)
        return scaled


def standards_of(frames: NDArray[Any]) -> Standards:
    """Mean and standard deviation of each number of a state, or 0 and 255 for pictures.

    Parameters
    ----------
    frames : (n, n_frames, d) float array, or uint8 pictures (n, n_frames, h, w)
        The train part as it was recorded.

    Examples
    --------
    >>> standards = standards_of(np.array([[[1.0, 5.0], [3.0, 5.0]]]))
    >>> standards.mean.tolist(), standards.std.tolist()
    ([2.0, 5.0], [1.0, 1e-06])
    """
    if frames.dtype == np.uint8:
        return Standards(mean=np.array(0.0), std=np.array(255.0))
    rows = frames.reshape(-1, frames.shape[-1]).astype(np.float64)
    return Standards(mean=rows.mean(0), std=np.maximum(rows.std(0), 1e-6))


def control_parts(name: str, request: PartsRequest) -> Parts:
    """States or screens of a control task, labelled with its teacher's actions.

    Parameters
    ----------
    name : str
        ``cartpole``, ``acrobot``, ``mountaincar`` (float32 (n, 4, d), standardised by the whole
        train part) or ``pong`` (float32 (n, 2, 40, 40) in [0, 1]).
    request : PartsRequest
        The seed plays the episodes; ``data_dir`` is not read.
    """
    raw_train, raw_test = recorded(name, request.seed, request.cache)
    standards = standards_of(raw_train.x)
    train, test = (
        Samples(x=standards.apply(drawn.x), y=drawn.y)
        for drawn in (
            raw.take(request.draw(part, raw.y))
            for part, raw in (("train", raw_train), ("test", raw_test))
        )
    )
    return Parts(train=train, test=test, n_classes=len(CONTROLS[name].buttons))


def recorded(name: str, seed: int, cache: Path | None) -> tuple[Samples, Samples]:
    """Train and test part as the environment showed them, from ``cache`` where they are there."""
    control = CONTROLS[name]

    def make() -> ArrayTable:
        train, test = record_parts(name, seed, control.n_train, control.n_test)
        return {"x": train.x, "y": train.y, "x_test": test.x, "y_test": test.y}

    arrays = cached(cache, f"{name}-{seed}-v{VERSION}", make)
    train = Samples(x=arrays["x"], y=arrays["y"])
    return train, Samples(x=arrays["x_test"], y=arrays["y_test"])
