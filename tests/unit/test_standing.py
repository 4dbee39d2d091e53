"""Profiles of points beside references that were worked out once."""

from __future__ import annotations

import numpy as np
import torch

from fl_shield.columns import SLOTS
from fl_shield.profile import Profiler, profiles
from fl_shield.standing import Ranks, Scale, z_of_each
from fl_shield.types import Floats, View


def _views(n: int, seed: int) -> list[View]:
    rng, clean = np.random.default_rng(seed), np.random.default_rng(0)
    return [
        View(
            name=str(d),
            points=rng.normal(size=(n, d)),
            references=clean.normal(size=(12, d)),
            statistics=rng.normal(size=(n, len(SLOTS))),
            reference_statistics=clean.normal(size=(12, len(SLOTS))),
        )
        for d in (40, 5, 40)
    ]


def _points(fitted: Profiler, views: list[View]) -> Floats:
    rows = [torch.from_numpy(np.asarray(v.points)) for v in views]
    told = [torch.from_numpy(np.asarray(v.statistics)) for v in views]
    return fitted.points(rows, torch.stack(told))


def test_points_beside_fitted_references_equal_profiles_of_both_together() -> None:
    fitted = Profiler(_views(1, 1))
    for n, seed in ((1, 2), (9, 3), (40, 4)):
        views = _views(n, seed)
        both = profiles(views)
        np.testing.assert_allclose(_points(fitted, views), both.points, atol=1e-6)
        np.testing.assert_array_equal(fitted.references, both.references)
    assert _points(fitted, _views(0, 5)).shape == (0, 3, 135)


def test_points_in_single_precision_are_taken() -> None:
    fitted, views = Profiler(_views(1, 1)), _views(4, 2)
    rows = [torch.from_numpy(np.asarray(v.points, dtype=np.float32)) for v in views]
    told = torch.stack([torch.from_numpy(np.asarray(v.statistics)) for v in views])
    np.testing.assert_allclose(fitted.points(rows, told), profiles(views).points, atol=1e-4)


def test_memory_counts_every_tensor_of_the_references() -> None:
    small, large = Profiler(_views(1, 1)), Profiler(_views(1, 1) * 2)
    assert 85 * 12 * 8 < small.n_bytes < large.n_bytes <= 2 * small.n_bytes


def test_scales_and_ranks_by_hand() -> None:
    clean = torch.tensor([[[1.0], [2.0], [3.0], [6.0]]], dtype=torch.float64)
    point = torch.tensor([[[4.0]]], dtype=torch.float64)
    spread = np.std([1, 2, 3, 6], ddof=1)
    np.testing.assert_allclose(float(Scale.of(clean).z(point)), np.arcsinh(1 / spread))
    assert float(Ranks.of(clean).rank(point)) == 0.5  # three below, one above
    assert float(Ranks.of(clean).rank(clean)[0, 1]) == -0.25  # one below, two above
    last = np.arcsinh(4 / np.std([1, 2, 3], ddof=1))
    np.testing.assert_allclose(float(z_of_each(clean)[0, 3]), last)


def test_a_constant_statistic_does_not_explode() -> None:
    same = torch.full((1, 5, 1), 2.0, dtype=torch.float64)
    np.testing.assert_allclose(Scale.of(same).z(same + 0.002)[0, 0, 0], np.arcsinh(1.0))
    assert not z_of_each(same).any()
