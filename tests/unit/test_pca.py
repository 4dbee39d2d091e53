"""The literal representation: raw principal coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from fl_shield.pca import principal_coordinates
from fl_shield.types import View


@pytest.mark.parametrize(("m", "d"), [(20, 6), (10, 40), (200, 150)])
def test_coordinates_agree_with_scikit_learn_up_to_sign(m: int, d: int) -> None:
    rng = np.random.default_rng(m)
    references, points = rng.normal(size=(m, d)) * np.arange(1, d + 1), rng.normal(size=(5, d))
    both = principal_coordinates(View(name="v", points=points, references=references))
    k = min(m - 1, d, 128)
    slow = PCA(n_components=k).fit(references)
    assert both.points.shape == (5, 128)
    np.testing.assert_allclose(
        np.abs(both.points[:, :k]), np.abs(slow.transform(points)), rtol=1e-3
    )
    np.testing.assert_array_equal(both.points[:, k:], 0)
    np.testing.assert_allclose(
        np.abs(both.references[:, :k]), np.abs(slow.transform(references)), rtol=1e-2, atol=1e-3
    )


def test_signs_do_not_depend_on_the_order_of_references() -> None:
    rng = np.random.default_rng(0)
    references, points = rng.normal(size=(12, 5)) * np.arange(1, 6), rng.normal(size=(3, 5))
    one = principal_coordinates(View(name="v", points=points, references=references))
    other = principal_coordinates(View(name="v", points=points, references=references[::-1]))
    np.testing.assert_allclose(one.points, other.points, atol=1e-5)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        principal_coordinates(
            View(name="v", points=np.full((1, 2), np.nan), references=np.eye(4)[:, :2])
        )
