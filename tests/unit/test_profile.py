"""Profiles against slow, independent computations and hostile spaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_shield.columns import (
    COLUMNS,
    KINDS,
    LIMIT,
    N_COLUMNS,
    ROTATION_INVARIANT,
    SLOTS,
    STATISTICS,
)
from fl_shield.profile import MIN_REFERENCES, Profiles, profile, profiles
from fl_shield.types import Floats, View

N_GEOMETRY = COLUMNS.index(f"z_{STATISTICS[0]}")
KEYS = {
    "z_mahalanobis_0.1": "mahalanobis_0.1",
    "z_mahalanobis_0.5": "mahalanobis_0.5",
    "z_mahalanobis_0.9": "mahalanobis_0.9",
    "z_centre_distance": "centre_distance",
    "z_residual": "residual",
    "z_nearest": "near_0",
    "z_cosine_max": "angle_1",
    "z_norm_ratio": "norm_ratio",
    "z_l1_l2": "l1_l2",
    "z_unit_rms": "unit_rms",
    "z_unit_max": "unit_1",
    "z_range_excess": "range_excess",
}


def _view(n: int = 5, m: int = 9, d: int = 7, seed: int = 0, **settings: Any) -> View:
    rng = np.random.default_rng(seed)
    numbers = {
        "points": rng.normal(size=(n, d)) * 2 + 0.5,
        "references": rng.normal(size=(m, d)) + 0.5,
        "statistics": rng.normal(size=(n, len(SLOTS))),
        "reference_statistics": rng.normal(size=(m, len(SLOTS))),
    }
    return View(name="test", **{**numbers, **settings})


def _column(rows: Floats, name: str) -> Floats:
    out: Floats = rows[:, COLUMNS.index(name)]
    return out


def _alike(a: Floats, b: Floats, names: Any = COLUMNS) -> None:
    """Equal up to round-off, which alone is left of a residual where m > d."""
    for name in names:
        atol = 0.02 if name == "z_residual" else 1e-3
        np.testing.assert_allclose(_column(a, name), _column(b, name), atol=atol, err_msg=name)


def _same(a: Profiles, b: Profiles, names: Any = COLUMNS) -> None:
    _alike(a.points, b.points, names)
    _alike(a.references, b.references, names)


def _lower_median(values: Floats) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def test_there_are_135_distinct_columns() -> None:
    assert N_COLUMNS == len(COLUMNS) == len(set(COLUMNS)) == 135
    assert set(COLUMNS) >= ROTATION_INVARIANT
    assert "near_zero" not in ROTATION_INVARIANT


def test_shapes_and_dtypes() -> None:
    both = profile(_view(n=4, m=6))
    assert both.points.shape == (4, 135)
    assert both.references.shape == (6, 135)
    assert both.points.dtype == both.references.dtype == np.float32


def test_no_points_give_no_rows() -> None:
    empty = _view(points=np.zeros((0, 7)), statistics=np.zeros((0, len(SLOTS))))
    assert profile(empty).points.shape == (0, 135)


def test_order_of_units_does_not_matter() -> None:
    view = _view()
    order = np.random.default_rng(1).permutation(7)
    permuted = _view(points=view.points[:, order], references=view.references[:, order])
    _same(profile(view), profile(permuted))


@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_scale_does_not_matter(scale: float) -> None:
    view = _view()
    scaled = _view(points=view.points * scale, references=view.references * scale)
    _same(profile(view), profile(scaled))


@pytest.mark.parametrize(("m", "d"), [(9, 7), (6, 30)])
def test_rotation_does_not_matter_where_promised(m: int, d: int) -> None:
    view = _view(m=m, d=d)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(d, d)))[0]
    rotated = _view(m=m, d=d, points=view.points @ rotation, references=view.references @ rotation)
    before, after = profile(view), profile(rotated)
    _same(before, after, sorted(ROTATION_INVARIANT))
    units = [COLUMNS.index(name) for name in ("unit_1", "signed_0", "near_zero", "l1_l2")]
    assert np.abs(before.points[:, units] - after.points[:, units]).max() > 0.01


def test_order_of_points_and_references_does_not_matter() -> None:
    view = _view()
    assert view.statistics is not None
    assert view.reference_statistics is not None
    rows, beside = np.array([3, 0, 4, 1, 2]), np.random.default_rng(5).permutation(9)
    shuffled = _view(
        points=view.points[rows],
        statistics=view.statistics[rows],
        references=view.references[beside],
        reference_statistics=view.reference_statistics[beside],
    )
    before, after = profile(view), profile(shuffled)
    _alike(after.points, before.points[rows])
    _alike(after.references, before.references[beside])


@pytest.mark.parametrize("at_a_time", [1, 3, 5])
def test_points_are_described_a_few_at_a_time(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [_view(d=7), _view(d=7, seed=1), _view(d=12, seed=2)]
    whole = profiles(views)
    monkeypatch.setattr("fl_shield.profile._POINTS", at_a_time)
    parts = profiles(views)
    assert parts.points.shape == whole.points.shape
    for i in range(len(views)):
        _alike(parts.points[:, i], whole.points[:, i])
    np.testing.assert_array_equal(parts.references, whole.references)


def test_points_do_not_see_each_other() -> None:
    view = _view()
    assert view.statistics is not None
    alone = _view(points=view.points[2:3], statistics=view.statistics[2:3])
    _alike(profile(alone).points, profile(view).points[2:3])


def test_views_together_are_as_each_by_itself() -> None:
    views = [
        _view(m=24, d=64, seed=1),
        _view(m=24, d=5, seed=2, statistics=None),
        _view(m=24, d=64, seed=3, kind="probe", depth=0.5),
        _view(m=24, d=5, seed=4, statistics=np.full((5, len(SLOTS)), np.nan)),
        _view(m=24, d=30, seed=5),
    ]
    together = profiles(views)
    assert together.points.shape == (5, 5, 135)
    assert together.references.shape == (24, 5, 135)
    for i, view in enumerate(views):
        alone = profile(view)
        _same(Profiles(points=together.points[:, i], references=together.references[:, i]), alone)


@pytest.mark.parametrize("views", [[], [_view(n=4), _view(n=5)], [_view(m=8), _view(m=9)]])
def test_views_of_other_points_or_references_are_refused(views: list[View]) -> None:
    with pytest.raises(ValueError, match="same points beside the same references"):
        profiles(views)


@pytest.mark.parametrize(("m", "d"), [(3, 4), (8, 5), (7, 25)])
def test_references_equal_a_slow_leave_one_out_loop(m: int, d: int) -> None:
    view = _view(m=m, d=d)
    assert view.reference_statistics is not None
    fast = profile(view).references
    if m == MIN_REFERENCES:  # the others are too few for a profile of their own
        assert np.isfinite(fast).all()
        return
    names = [*COLUMNS[:N_GEOMETRY], *(f"{p}_{s}" for p in ("z", "rank") for s in STATISTICS)]
    index = [COLUMNS.index(name) for name in names]
    for i in range(m):
        others = np.arange(m) != i
        slow = profile(
            _view(
                points=view.references[i : i + 1],
                references=view.references[others],
                statistics=view.reference_statistics[i : i + 1],
                reference_statistics=view.reference_statistics[others],
            )
        ).points[0]
        np.testing.assert_allclose(fast[i, index], slow[index], atol=1e-4)


def test_key_columns_are_standardised_by_the_references_own_leave_one_out_values() -> None:
    both = profile(_view(n=3, m=8, d=5))
    for z_name, name in KEYS.items():
        own, clean = _column(both.points, name), _column(both.references, name).astype(np.float64)
        floor = 1e-3 * max(np.abs(clean).mean(), 1e-3)
        spread = max(clean.std(ddof=1), floor)
        z = np.arcsinh((own - clean.mean()) / spread)
        np.testing.assert_allclose(_column(both.points, z_name), z, atol=2e-3)
        for i in range(8):
            others = np.delete(clean, i)
            z_i = np.arcsinh((clean[i] - others.mean()) / max(others.std(ddof=1), floor))
            assert _column(both.references, z_name)[i] == pytest.approx(z_i, abs=2e-3)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("m", "d"), [(12, 4), (5, 11), (6, 1)])
def test_mahalanobis_equals_an_explicit_inverse(shrinkage: float, m: int, d: int) -> None:
    view = _view(n=4, m=m, d=d)
    unit = _lower_median(np.linalg.norm(view.references, axis=1))
    points, references = view.points / unit, view.references / unit
    offset = points - references.mean(0)
    covariance = np.cov(references.T, ddof=0).reshape(d, d)
    ridge = np.trace(covariance) / d * np.eye(d)
    inverse = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * ridge)
    squared = np.array([row @ inverse @ row for row in offset]) / d
    column = _column(profile(view).points, f"mahalanobis_{shrinkage:g}")
    np.testing.assert_allclose(column, 0.5 * np.log(squared), atol=1e-4)


def test_residual_lies_outside_the_span_of_the_references() -> None:
    references = np.array([[1.0, 0, 0], [-1, 0, 0], [2, 0, 0], [-2, 0, 0]])
    points = np.array([[3.0, 0, 0], [0, 3.0, 0], [3.0, 0, 3.0]])
    rows = profile(View(name="line", points=points, references=references)).points
    np.testing.assert_allclose(_column(rows, "residual_share"), [0, 1, 0.5], atol=1e-6)
    inside = 0.5 * np.log(9 / 2.5)  # squared distance over the variance along the line
    assert _column(rows, "in_span")[0] == pytest.approx(inside, abs=1e-5)
    assert _column(rows, "residual")[1] == pytest.approx(inside, abs=1e-5)
    assert _column(rows, "effective_rank")[0] == pytest.approx(1 / 4, abs=1e-5)


def test_nearest_distances_by_hand() -> None:
    # On a line; distances among references are 1, 2, 3, each twice: the lower median is 2.
    view = View(
        name="line", points=np.array([[4.0], [9.0]]), references=np.array([[1.0], [2.0], [4.0]])
    )
    rows = profile(view).points
    assert _column(rows, "near_1").tolist() == pytest.approx([np.log(3 / 2), np.log(8 / 2)])
    assert _column(rows, "near_0.5").tolist() == pytest.approx([np.log(2 / 2), np.log(7 / 2)])
    assert _column(rows, "near_0")[0] == -LIMIT  # the point is a reference: log 0 is cut
    assert _column(rows, "near_0")[1] == pytest.approx(np.log(5 / 2))


def test_cosines_by_hand() -> None:
    references = np.array([[1.0, 0], [0, 2.0], [-3.0, 0], [0, -4.0]])
    rows = profile(View(name="cross", points=np.array([[5.0, 5.0]]), references=references)).points
    root = 0.5**0.5
    assert _column(rows, "cosine_max")[0] == pytest.approx(root)
    assert _column(rows, "cosine_min")[0] == pytest.approx(-root)
    assert _column(rows, "cosine_mean")[0] == pytest.approx(0, abs=1e-6)
    assert _column(rows, "cosine_std")[0] == pytest.approx((4 * 0.5 / 3) ** 0.5)


def test_silent_units_and_range_by_hand() -> None:
    references = np.array([[1.0, 0, 2], [2, 0, 1], [3, 0, 1]])
    points = np.array([[2.0, 0, 1], [0, 5.0, 0], [4.0, 3.0, 1.5]])
    rows = profile(View(name="silent", points=points, references=references)).points
    np.testing.assert_allclose(_column(rows, "silent_energy"), [0, 1, 9 / 27.25], atol=1e-6)
    np.testing.assert_allclose(_column(rows, "silent_units"), [1 / 3] * 3, atol=1e-6)
    np.testing.assert_allclose(_column(rows, "out_of_range"), [0, 1, 2 / 3], atol=1e-6)


def test_statistics_by_hand() -> None:
    clean = np.zeros((4, len(SLOTS)))
    clean[:, STATISTICS.index("margin")] = [1, 2, 3, 4]
    own = np.zeros((1, len(SLOTS)))
    own[0, STATISTICS.index("margin")] = 3
    both = profile(_view(n=1, m=4, statistics=own, reference_statistics=clean))
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert _column(both.points, "z_margin")[0] == pytest.approx(np.arcsinh(0.5 / spread))
    assert _column(both.points, "rank_margin")[0] == pytest.approx(0.25)  # two below, one above
    np.testing.assert_allclose(_column(both.references, "rank_margin"), [-1, -1 / 3, 1 / 3, 1])


def test_missing_slots_are_masked_with_zeros() -> None:
    view = _view()
    assert view.statistics is not None
    assert view.reference_statistics is not None
    gone, gone_beside = STATISTICS.index("energy"), STATISTICS.index("norm")
    own, clean = view.statistics.copy(), view.reference_statistics.copy()
    own[:, gone], clean[:, gone_beside] = np.nan, np.nan
    both, whole = profile(_view(statistics=own, reference_statistics=clean)), profile(view)
    for slot in ("energy", "norm"):
        for rows in (both.points, both.references):
            assert not _column(rows, f"z_{slot}").any()
            assert not _column(rows, f"rank_{slot}").any()
    rest = [
        c for c in COLUMNS if c.removeprefix("z_").removeprefix("rank_") not in {"energy", "norm"}
    ]
    _same(both, whole, rest)


def test_a_view_without_statistics_says_so() -> None:
    both = profile(_view(statistics=None, reference_statistics=None))
    assert not _column(both.points, "has_statistics").any()
    assert not any(
        _column(both.points, f"{p}_{s}").any() for p in ("z", "rank") for s in STATISTICS
    )
    assert _column(profile(_view()).points, "has_statistics").all()


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_one_hot(kind: str) -> None:
    rows = profile(_view(kind=kind, depth=0.25)).points
    assert {k: float(_column(rows, f"kind_{k}")[0]) for k in KINDS} == {
        k: float(k == kind) for k in KINDS
    }
    assert _column(rows, "depth")[0] == 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["points", "references"])
def test_non_finite_points_are_refused(part: str, value: float) -> None:
    rows = np.array(getattr(_view(), part))
    rows[1, 2] = value
    changes: dict[str, Any] = {part: rows}
    with pytest.raises(ValueError, match="NaN or Inf"):
        profile(replace(_view(), **changes))


def test_wrong_views_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        profile(_view(m=2))
    with pytest.raises(ValueError, match="kind must be one of"):
        profile(_view(kind="guess"))
    with pytest.raises(ValueError, match="needs points"):
        profile(_view(points=np.zeros((5, 6))))
    with pytest.raises(ValueError, match="needs points"):
        profile(_view(points=np.zeros(7)))
    with pytest.raises(ValueError, match="needs statistics"):
        profile(_view(statistics=np.zeros((5, 3))))


def _degenerate() -> dict[str, View]:
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(4, 200))
    huge = rng.normal(size=(6, 5)) * 1e38
    few = rng.normal(size=(3, 6))
    return {
        "one unit": _view(d=1),
        "constant references": _view(references=np.ones((9, 7))),
        "zero references": _view(references=np.zeros((9, 7))),
        "all zero": _view(points=np.zeros((5, 7)), references=np.zeros((9, 7))),
        "one unit, constant": _view(points=np.full((5, 1), 2.0), references=np.ones((9, 1))),
        "three references": View(name="few", points=few + 1, references=few),
        "more units than references": View(name="wide", points=wide, references=wide[:3]),
        "huge": View(name="huge", points=huge * 3, references=huge),
        "huge beside small": View(name="huge", points=huge, references=huge / 1e38),
        "tiny": View(name="tiny", points=huge / 1e68, references=huge / 1e68),
        "huge statistics": _view(statistics=np.full((5, len(SLOTS)), 1e300)),
        "constant statistics": _view(reference_statistics=np.ones((9, len(SLOTS)))),
    }


@pytest.mark.parametrize("name", list(_degenerate()))
def test_degenerate_spaces_stay_finite_and_clipped(name: str) -> None:
    view = _degenerate()[name]
    both = profile(view)
    for rows in (both.points, both.references):
        assert np.isfinite(rows).all()
        assert np.abs(rows).max() <= LIMIT
    assert len(both.points) == len(view.points)


def test_profiles_leave_their_view_untouched() -> None:
    view = _view()
    before = view.points.copy(), view.references.copy()
    profile(view)
    np.testing.assert_array_equal(view.points, before[0])
    np.testing.assert_array_equal(view.references, before[1])


def test_a_far_point_stands_out_in_every_distance() -> None:
    far = profile(_view(points=np.full((1, 7), 50.0), statistics=np.zeros((1, len(SLOTS)))))
    for name in ("near_0", "mahalanobis_0.5", "centre_distance", "unit_rms", "z_nearest"):
        assert _column(far.points, name)[0] > _column(far.references, name).max() + 1
