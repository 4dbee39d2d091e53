"""What several test modules share: a detector meta-trained for a moment on toy tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_shield.meta import Episode, MetaConfig, meta_train
from fl_shield.profile import profile
from fl_shield.types import View
from fl_shield.weights import Weights, blank_weights

TOY_CONFIG = MetaConfig(n_hidden=16, n_inner_steps=1, n_epochs=6, outer_lr=1e-2, n_support=12)


def _toy_episode(seed: int) -> Episode:
    """Gaussian references in three spaces; triggered points stand a few deviations away."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 12)
    both = []
    for depth in (0.3, 0.6, 1.0):
        d = int(rng.integers(4, 33))
        spread = rng.uniform(0.5, 2, size=d)
        away = rng.normal(size=d) * rng.uniform(3, 9) * labels[:, None]
        points = (rng.normal(size=(24, d)) + away) * spread
        references = rng.normal(size=(12, d)) * spread
        kind = "activation" if seed % 2 else "update"
        view = View(name="toy", points=points, references=references, kind=kind, depth=depth)
        both.append(profile(view))
    return Episode(
        support=np.stack([p.references for p in both], axis=1),
        query=np.stack([p.points for p in both], axis=1),
        labels=labels,
        family="shift",
        domain="toy",
    )


@pytest.fixture(scope="session")
def toy_weights() -> Weights:
    """Weights meta-trained for a second or two on Gaussian toy tasks."""
    episodes = [_toy_episode(seed) for seed in range(32)]
    blank = blank_weights(0, TOY_CONFIG)
    rng = np.random.default_rng(0)
    *_, (params, _) = meta_train(dict(blank.params), episodes, [], TOY_CONFIG, rng)
    return replace(blank, params=params, card={"trained": "for a moment, on toy tasks"})
