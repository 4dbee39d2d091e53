"""Stages of a network, ways of pooling, and activations as the common food of detectors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_shield.activations import (
    Activations,
    in_order,
    module_of,
    pooled_ways,
    read_activations,
    views_beside,
    watching,
)
from fl_shield.errors import GuardError
from fl_shield.simulations.victims.zoo import build_victim
from fl_shield.stages import find_stages


def _chain(n: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))


@pytest.mark.parametrize(
    ("n", "n_layers", "expected"),
    [
        (7, 3, ("2", "4", "6")),
        (7, 1, ("6",)),
        (7, 2, ("3", "6")),
        (3, 3, ("0", "1", "2")),
        (2, 5, ("0", "1")),
        (1, 3, ("0",)),
        (9, 5, ("1", "3", "4", "6", "8")),  # eight before the head: places 1.6, 3.2, 4.8, 6.4
    ],
)
def test_stages_are_spread_over_the_depth(n: int, n_layers: int, expected: tuple[str, ...]) -> None:
    assert find_stages(_chain(n), n_layers) == expected


def test_norms_embeddings_and_layers_without_parameters_are_no_stages() -> None:
    named: OrderedDict[str, nn.Module] = OrderedDict(
        embedding=nn.Embedding(5, 4),
        norm=nn.LayerNorm(4),
        fc1=nn.Linear(4, 4),
        act=nn.ReLU(),
        batch=nn.BatchNorm1d(4),
        drop=nn.Dropout(),
        head=nn.Linear(4, 2),
    )
    assert find_stages(nn.Sequential(named), 5) == ("fc1", "head")


class _Backbone(nn.Module):
    """A stem, a list of blocks and a head within a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(6))
        self.classifier = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.classifier(x)
        return out


def test_lists_are_opened_for_they_never_run_themselves() -> None:
    model = _Backbone()
    assert find_stages(model, 3) == ("blocks.1", "blocks.3", "classifier.1")
    assert find_stages(model, 1) == ("classifier.1",)
    found = read_activations(model, np.zeros((2, 4), np.float32), find_stages(model, 8))
    assert found.labels.shape == (2,)


def test_too_few_children_have_the_largest_taken_apart() -> None:
    inner = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    model = nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2))
    assert find_stages(model, 2) == ("1", "2")
    assert find_stages(model, 4) == ("0", "1.0", "1.1", "2")
    wrapped = nn.Sequential(nn.Sequential(_chain(4)))
    assert find_stages(wrapped, 3) == ("0.0.1", "0.0.2", "0.0.3")


def test_a_head_within_a_stage_does_not_hide_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(_chain(2)))
    stages = find_stages(model, 3)
    assert stages[-1] == "2.0.1"
    assert not any("2.0.1".startswith(f"{name}.") for name in stages[:-1])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cnn", (1, 8, 8)), ("resnet", (3, 16, 16)), ("vit", (1, 8, 8)), ("gru", (6,))],
)
def test_stages_of_the_zoo_can_be_watched(name: str, shape: tuple[int, ...]) -> None:
    model = build_victim(name, shape, 4, 20, seed=0)
    stages = find_stages(model, 4)
    assert stages[-1] == "head"
    assert len(stages) == (3 if name == "gru" else 4)
    x = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    if name == "gru":
        x = np.zeros((3, *shape), np.int64)
    found = read_activations(model, x, stages)
    assert list(dict.fromkeys(map(module_of, found.layers))) == list(stages)


def test_a_layer_that_runs_once_a_token_is_refused() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.step(self.step(x)))
            return out

    model = Loop()
    with (
        pytest.raises(GuardError, match="'step' runs several times"),
        watching(model, ("step", "head"), pooled_ways, once=True),
    ):
        model(torch.zeros(2, 3))


def test_ways_of_pooling_by_hand() -> None:
    image = torch.tensor([[[[1.0, 3], [5, 7]], [[0, 0], [0, 4]]]])
    assert {n: t.tolist() for n, t in pooled_ways(image).items()} == {
        ":mean": [[4.0, 1.0]],
        ":max": [[7.0, 4.0]],
    }
    video = image[:, :, None]
    assert {n: t.tolist() for n, t in pooled_ways(video).items()} == {
        ":mean": [[4.0, 1.0]],
        ":max": [[7.0, 4.0]],
    }
    sequence = torch.tensor([[[1.0, 9], [-6, 4], [2, 2]]])
    assert {n: t.tolist() for n, t in pooled_ways(sequence).items()} == {
        ":extreme": [[-6.0, 9.0]],
        ":peak": [[1.0, 9.0]],
        ":mean": [[-1.0, 5.0]],
    }
    assert {n: t.tolist() for n, t in pooled_ways(torch.tensor([[1.0, 2]])).items()} == {
        "": [[1.0, 2.0]]
    }
    assert pooled_ways(torch.tensor([1.0, 2]))[""].shape == (2, 1)


def test_gradients_flow_through_every_way_of_reading_a_sequence() -> None:
    sequence = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(pooled_ways(x).values()), (sequence,))


def test_a_step_that_is_no_number_shows_in_every_way() -> None:
    sequence = torch.ones(2, 5, 4)
    sequence[1, 2, 3] = torch.nan
    for rows in pooled_ways(sequence).values():
        assert rows[0].isfinite().all()
        assert rows[1].isnan().any()


def test_the_peak_is_the_step_of_the_largest_norm_whatever_its_place() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 7, 3))
    rows[np.arange(6), np.arange(6)] *= 50
    found = pooled_ways(torch.from_numpy(rows))[":peak"].numpy()
    np.testing.assert_array_equal(found, rows[np.arange(6), np.arange(6)])


def test_names_of_pooled_layers_and_their_order() -> None:
    assert [module_of(n) for n in ("conv2:max", "fc", "a.b.0:peak")] == ["conv2", "fc", "a.b.0"]
    rows = {name: torch.full((1, 1), float(i)) for i, name in enumerate(["b:max", "b:mean", "a"])}
    found = in_order(rows, ["a", "b"])
    assert list(found) == ["a", "b:max", "b:mean"]
    assert found["a"] is rows["a"]
    assert list(in_order(rows, ["b"])) == ["b:max", "b:mean"]
    assert in_order({"ab": rows["a"], "a": rows["a"]}, ["a"]) == {"a": rows["a"]}  # whole names


def _activations(n: int, **changes: Any) -> Activations:
    first = np.arange(2.0 * n).reshape(n, 2)
    settings: dict[str, Any] = {
        "layers": {"conv:max": first, "head": first * 10},
        "logits": np.stack([first[:, 0], 3 - first[:, 0]], axis=1),
        "head": np.eye(2),
    }
    return Activations(**{**settings, **changes})


def test_activations_know_their_head_and_labels() -> None:
    found = _activations(3)
    assert len(found) == 3
    np.testing.assert_array_equal(found.penultimate, found.layers["head"])
    assert found.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (np.array([2, 0]), [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        (slice(1, None), [1, 2]),
        (slice(0, 0), []),
    ],
)
def test_taking_inputs(index: Any, kept: list[int]) -> None:
    whole = _activations(3)
    found = whole.take(index)
    assert len(found) == len(kept)
    for name, rows in found.layers.items():
        np.testing.assert_array_equal(rows, whole.layers[name][kept])
    np.testing.assert_array_equal(found.logits, whole.logits[kept])
    assert found.head is whole.head


def test_joining_parts_undoes_taking_them() -> None:
    whole = _activations(5)
    joined = Activations.join([whole.take(slice(0, 2)), whole.take(slice(2, 5))])
    assert list(joined.layers) == list(whole.layers)
    for name, rows in whole.layers.items():
        np.testing.assert_array_equal(joined.layers[name], rows)
    np.testing.assert_array_equal(joined.logits, whole.logits)
    assert joined.head is whole.head


def test_activations_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer, got none"):
        _activations(3, layers={})
    with pytest.raises(ValueError, match=r"head must be \(n, d\).*got \(2, 2\) beside 3 rows"):
        _activations(3, layers={"head": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"conv must be \(n, d\).*\(3, 2, 4, 4\).*pool each"):
        _activations(3, layers={"conv": np.zeros((3, 2, 4, 4))})
    with pytest.raises(ValueError, match=r"logits must be \(n, d\).*got \(3,\)"):
        _activations(3, logits=np.zeros(3))


def test_views_of_other_layers_are_refused() -> None:
    points, references = _activations(2), _activations(5)
    assert [v.name for v in views_beside(points, references)] == ["layer:conv:max", "layer:head"]
    other = _activations(5, layers={"head": references.penultimate})
    with pytest.raises(ValueError, match="points have the layers conv:max, head and references"):
        views_beside(points, other)
