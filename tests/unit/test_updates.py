"""Sketches, medians and cores of rounds against slow loops and hand values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.columns import STATISTICS
from fl_shield.types import Arrays, Floats
from fl_shield.updates import (
    MOST_CORE,
    N_DIRECTIONS,
    Sketch,
    Sketcher,
    Standing,
    core_of,
    find_update_layers,
    joined,
    standing,
    update_views,
    view_depths,
)


def _model() -> dict[str, NDArray[Any]]:
    return {
        "conv.weight": np.zeros((4, 1, 3, 3), np.float32),
        "norm.weight": np.ones(4, np.float32),
        "norm.running_mean": np.zeros(4, np.float32),
        "norm.running_var": np.ones(4, np.float32),
        "norm.num_batches_tracked": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "scale": np.array(1.0, np.float32),
        "head.weight": np.zeros((3, 50), np.float32),
        "head.bias": np.zeros(3, np.float32),
    }


def _moved(model: Arrays, seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        name: a + (scale * rng.normal(size=a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a
        for name, a in model.items()
    }


def _one(vectors: Mapping[str, Floats]) -> Sketch:
    norms = {name: float(np.linalg.norm(v)) for name, v in vectors.items()}
    ones = dict.fromkeys(vectors, 1.0)
    total = float(np.sqrt(sum(norm**2 for norm in norms.values())))
    return Sketch(vectors=vectors, norms=norms, peaks=ones, row_peaks=ones, total=total)


def _round(rows: Floats) -> Standing:
    return standing([_one({"update:w": row}) for row in rows])


def _slot(group: Standing, name: str, view: str = "update:w") -> Floats:
    out: Floats = group.statistics[view][:, STATISTICS.index(name)]
    return out


def test_buffers_integers_and_empty_tensors_are_left_out() -> None:
    layers = find_update_layers(_model())
    assert [layer.name for layer in layers] == [
        "conv.weight",
        "norm.weight",
        "scale",
        "head.weight",
        "head.bias",
    ]
    assert [layer.is_head for layer in layers] == [False, False, False, True, True]
    assert [layer.depth for layer in layers] == [0, 0.25, 0.5, 0.75, 1]
    assert [layer.size for layer in layers] == [36, 4, 1, 150, 3]


def test_a_model_without_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="no floating-point tensors"):
        find_update_layers({"counts": np.zeros(3, np.int64)})


def test_small_tensors_are_kept_whole() -> None:
    model = _model()
    update = _moved(model, 1)
    sketch = Sketcher(model, seed=7).sketch(model, update)
    for name in ("conv.weight", "norm.weight", "scale"):
        delta = (update[name] - model[name]).ravel()
        np.testing.assert_array_equal(sketch.vectors[f"update:{name}"], delta)


def test_scalars_of_a_sketch_by_hand() -> None:
    model = {"fc.weight": np.zeros((2, 3), np.float32)}
    update = {"fc.weight": np.array([[1, -2, 0], [0, 0, 2]], np.float32)}
    sketch = Sketcher(model).sketch(model, update)
    name = "head:fc.weight"
    assert sketch.norms[name] == pytest.approx(3)
    assert sketch.peaks[name] == pytest.approx(2 / np.sqrt(9 / 6))
    assert sketch.row_peaks[name] == pytest.approx(5 / 9)
    assert sketch.total == pytest.approx(3)


def test_the_heads_bias_counts_in_the_whole_norm_and_has_no_view() -> None:
    model = {"fc.weight": np.zeros((2, 2), np.float32), "fc.bias": np.zeros(2, np.float32)}
    update = {
        "fc.weight": np.full((2, 2), 1.5, np.float32),
        "fc.bias": np.array([4, 0], np.float32),
    }
    sketch = Sketcher(model).sketch(model, update)
    assert set(sketch.vectors) == {"head:fc.weight"}
    assert sketch.norms["head:fc.weight"] == pytest.approx(3)
    assert sketch.total == pytest.approx(5)


def test_a_model_of_vectors_has_no_head() -> None:
    layers = find_update_layers({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})
    assert [layer.view_name for layer in layers] == ["update:a", "update:b"]


def test_an_update_that_changes_nothing_has_a_sketch() -> None:
    model = _model()
    sketch = Sketcher(model).sketch(model, model)
    assert all(np.isfinite(v).all() and not v.any() for v in sketch.vectors.values())
    assert set(sketch.norms.values()) == {0.0}
    assert np.isfinite([*sketch.peaks.values(), *sketch.row_peaks.values()]).all()


@pytest.mark.parametrize("size", [N_DIRECTIONS + 1, 150, 3 * N_DIRECTIONS])
def test_a_large_tensor_folds_each_number_once_with_a_sign(size: int) -> None:
    model = {"w": np.zeros(size, np.float32)}
    sketcher = Sketcher(model, seed=3)
    units = np.eye(size, dtype=np.float32)
    folded = np.stack([sketcher.sketch(model, {"w": u}).vectors["update:w"] for u in units])
    for i in range(size):
        assert abs(folded[i, i % N_DIRECTIONS]) == 1
        assert np.count_nonzero(folded[i]) == 1
    assert 0.25 < (folded.sum(1) > 0).mean() < 0.75
    delta = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole = sketcher.sketch(model, {"w": delta}).vectors["update:w"]
    np.testing.assert_allclose(whole, delta @ folded, atol=1e-5)  # linear


def test_count_sketch_keeps_inner_products_in_expectation() -> None:
    size, rng = 300, np.random.default_rng(0)
    a = rng.normal(size=size).astype(np.float32)
    b = (0.5 * a + rng.normal(size=size)).astype(np.float32)
    model = {"w": np.zeros(size, np.float32)}
    found = []
    for seed in range(400):
        sketcher = Sketcher(model, seed)
        first, second = (sketcher.sketch(model, {"w": v}).vectors["update:w"] for v in (a, b))
        found.append(first @ second)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - a @ b) < 4 * error
    assert error < 0.05 * abs(a @ b)  # the interval can fail


def test_same_seed_same_projection() -> None:
    model, update = _model(), _moved(_model(), 1)
    one, same, other = (
        Sketcher(model, s).sketch(model, update).vectors["head:head.weight"] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_standing_is_centred_by_the_median_and_scaled_by_the_median_distance() -> None:
    group = _round(np.array([[1.0, 0], [2, 0], [3, 0], [2, 4], [100, 0]]))
    # median (2, 0); distances 1, 0, 1, 4, 98: their median is 1
    np.testing.assert_allclose(group.points["update:w"], [[-1, 0], [0, 0], [1, 0], [0, 4], [98, 0]])
    assert group.distances.argmin() == 1
    assert group.distances.argmax() == 4
    np.testing.assert_allclose(group.distances[3], np.log(4), atol=1e-5)


def test_norms_are_relative_to_the_rounds_median() -> None:
    group = _round(np.array([[1.0, 0], [0, 2], [4, 0]]))
    np.testing.assert_allclose(_slot(group, "norm"), np.log([0.5, 1, 2]), atol=1e-9)
    np.testing.assert_allclose(_slot(group, "norm_share"), 0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_standing_is_free_of_the_scale_of_the_round(scale: float) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5))
    one, other = _round(rows), _round(rows * scale)
    np.testing.assert_allclose(one.points["update:w"], other.points["update:w"], atol=1e-9)
    np.testing.assert_allclose(one.statistics["update:w"], other.statistics["update:w"], atol=1e-5)


def test_nearest_distance_and_cosine_equal_slow_loops() -> None:
    rows = np.random.default_rng(1).normal(size=(8, 6))
    group = _round(rows)
    points = group.points["update:w"]
    centre = np.median(rows, axis=0)
    for i in range(8):
        others = [j for j in range(8) if j != i]
        squared = min(((points[i] - points[j]) ** 2).sum() for j in others)
        cosine = max(
            points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])
            for j in others
        )
        toward = rows[i] @ centre / np.linalg.norm(rows[i]) / np.linalg.norm(centre)
        assert _slot(group, "nearest_distance")[i] == pytest.approx(0.5 * np.log(squared + 1e-6))
        assert _slot(group, "nearest_cosine")[i] == pytest.approx(cosine)
        assert _slot(group, "peer_cosine")[i] == pytest.approx(toward)


@pytest.mark.parametrize("n", [1, 2])
def test_tiny_rounds_have_a_finite_standing(n: int) -> None:
    group = _round(np.random.default_rng(0).normal(size=(n, 4)))
    assert group.points["update:w"].shape == (n, 4)
    assert np.isfinite(group.points["update:w"]).all()
    told = group.statistics["update:w"]
    assert np.isfinite(told[:, ~np.isnan(told).all(0)]).all()
    assert len(core_of(group)) >= 1


def test_equal_updates_have_a_finite_standing() -> None:
    group = _round(np.ones((5, 4)))
    assert not group.points["update:w"].any()
    assert np.isfinite(group.distances).all()


@pytest.mark.parametrize("n", [5, 10, 20, 21])
@pytest.mark.parametrize("how", ["together", "apart", "huge"])
def test_core_keeps_the_benign_majority(n: int, how: str) -> None:
    """Up to 40 % gross outliers: none of them is among the half nearest the centre."""
    rng = np.random.default_rng(n)
    n_malicious = int(0.4 * n)
    rows = rng.normal(size=(n, 12)) * 0.3 + 1
    where = {
        "together": np.full((n_malicious, 12), -9.0),
        "apart": rng.normal(size=(n_malicious, 12)) * 50,
        "huge": rows[:n_malicious] * 1e6,
    }
    malicious = rng.choice(n, size=n_malicious, replace=False)
    rows[malicious] = where[how]
    core = core_of(_round(rows))
    assert len(core) == n // 2 + 1
    assert not set(core) & set(malicious)
    assert list(core) == sorted(core)


def test_neighbours_are_found_a_few_updates_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(4).normal(size=(23, 6))
    whole = _round(rows)
    monkeypatch.setattr("fl_shield.updates._PAIRS", 5 * 23)  # five at a time, three in the end
    parts = _round(rows)
    distances = np.linalg.norm(whole.points["update:w"][:, None] - whole.points["update:w"], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = 0.5 * np.log(distances.min(1) ** 2 + 1e-6)
    np.testing.assert_allclose(_slot(parts, "nearest_distance"), nearest)
    for name in ("nearest_distance", "nearest_cosine", "peer_cosine"):
        np.testing.assert_allclose(_slot(parts, name), _slot(whole, name), rtol=1e-12)


@pytest.mark.parametrize("n", [256, 2 * MOST_CORE - 1])
def test_the_whole_core_of_a_smaller_round_counts(n: int) -> None:
    group = _round(np.random.default_rng(n).normal(size=(n, 3)))
    nearest = sorted(range(n), key=lambda i: group.distances[i])[: n // 2 + 1]
    assert list(core_of(group)) == sorted(nearest)


@pytest.mark.parametrize("n", [2 * MOST_CORE, 2 * MOST_CORE + 77, 5000])
def test_the_core_of_a_large_round_is_bounded_and_even(n: int) -> None:
    rows = np.random.default_rng(n).normal(size=(n, 3))
    group = _round(rows)
    rank = {i: r for r, i in enumerate(sorted(range(n), key=lambda i: group.distances[i]))}
    core = core_of(group)
    assert len(set(core)) == MOST_CORE
    assert list(core) == sorted(core)
    ranks = np.sort([rank[i] for i in core])
    assert (ranks[0], ranks[-1]) == (0, n // 2)  # from the nearest to the farthest of the half
    gap = (n // 2) / (MOST_CORE - 1)
    assert set(np.diff(ranks)) <= {int(np.floor(gap)), int(np.ceil(gap))}
    order = np.random.default_rng(1).permutation(n)
    assert set(order[core_of(group.take(order))]) == set(core)  # whatever order they came in


def test_take_and_joined_keep_rows_together() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4))
    group = _round(rows)
    parts = [group.take(np.array([i])) for i in (4, 0)]
    again = joined(parts)
    np.testing.assert_array_equal(again.points["update:w"], group.points["update:w"][[4, 0]])
    np.testing.assert_array_equal(
        again.statistics["update:w"], group.statistics["update:w"][[4, 0]]
    )
    np.testing.assert_array_equal(again.distances, group.distances[[4, 0]])


def test_joined_keeps_common_views_only() -> None:
    def group(names: Sequence[str]) -> Standing:
        return standing([_one({n: np.array([1.0, i]) for n in names}) for i in range(3)])

    both = joined([group(["update:a", "update:b"]), group(["update:b"])])
    assert list(both.points) == ["update:b"]
    assert both.points["update:b"].shape == (6, 2)


def test_update_views_carry_kind_depth_and_references() -> None:
    model = _model()
    sketcher = Sketcher(model)
    clients = standing([sketcher.sketch(model, _moved(model, s)) for s in range(5)])
    references = standing([sketcher.sketch(model, _moved(model, s)) for s in range(10, 14)])
    views = {v.name: v for v in update_views(clients, references, view_depths(sketcher.layers))}
    assert set(views) == {
        *(f"update:{layer.name}" for layer in sketcher.layers if not layer.is_head),
        "head:head.weight",
    }
    head = views["head:head.weight"]
    assert (head.kind, head.depth) == ("head", 0.75)
    assert head.points.shape == (5, N_DIRECTIONS)
    assert head.references.shape == (4, N_DIRECTIONS)
    assert views["update:conv.weight"].depth == 0
