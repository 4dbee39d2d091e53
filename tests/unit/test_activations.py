"""Hooks on any network: what is watched, and that nothing is left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_shield.activations import (
    activation_views,
    activations_of,
    pooled,
    watching,
)
from fl_shield.columns import STATISTICS
from fl_shield.head import logit_statistics
from fl_shield.stages import find_layers
from fl_shield.types import Floats


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class _Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x)).mean((2, 3))
        out: Tensor = self.head(self.drop(x))
        return out


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        sequence, _ = self.lstm(self.embedding(x))
        out: Tensor = self.head(sequence[:, -1])
        return out


def _images(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((n, 1, 6, 6), dtype=np.float32)


def _n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_layers_are_found_in_every_kind_of_network() -> None:
    assert find_layers(_mlp()) == ("0", "2", "4")
    assert find_layers(_Cnn()) == ("conv1", "conv2", "head")
    assert find_layers(_Lstm()) == ("lstm", "head")
    assert find_layers(nn.Sequential(nn.Linear(4, 3))) == ("0",)
    nested = nn.Sequential(_mlp(), nn.Sequential(nn.Linear(3, 2)))
    assert find_layers(nested) == ("0.2", "0.4", "1.0")


def test_at_most_so_many_layers_the_head_last() -> None:
    assert find_layers(_mlp(), 1) == ("4",)
    assert find_layers(_mlp(), 2) == ("2", "4")
    assert find_layers(nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 3, 1))) == ("0", "1")


def test_a_network_without_layers_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="name the layers yourself"):
        find_layers(nn.ReLU())


def test_pooling_by_hand() -> None:
    image = torch.tensor([[[[1.0, 3], [5, 7]], [[0, 0], [0, 4]]]])
    assert pooled(image).tolist() == [[4.0, 1.0]]
    assert pooled(torch.tensor([[[1.0, 2], [3, 4]]])).tolist() == [[3.0, 4.0]]
    assert pooled(torch.tensor([[1.0, 2]])).tolist() == [[1.0, 2.0]]
    assert pooled(torch.tensor([1.0, 2])).tolist() == [[1.0], [2.0]]


def test_activations_are_outputs_of_layers_and_the_heads_input() -> None:
    model, x = _mlp().eval(), np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    rows, logits = activations_of(model, x, ("0", "4"), batch_size=3)
    with torch.no_grad():
        first = model[0](torch.from_numpy(x))
        beside_head = model[:4](torch.from_numpy(x))
        whole = model(torch.from_numpy(x))
    np.testing.assert_allclose(rows["0"], first.numpy(), atol=1e-6)
    np.testing.assert_allclose(rows["4"], beside_head.numpy(), atol=1e-6)
    np.testing.assert_allclose(logits, whole.numpy(), atol=1e-6)


def test_a_layer_that_works_in_place_does_not_change_what_the_one_before_said() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).eval()
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    rows, _ = activations_of(model, x, ("0", "2"))
    with torch.no_grad():
        np.testing.assert_allclose(rows["0"], model[0](torch.from_numpy(x)).numpy(), atol=1e-6)


def test_recurrent_layers_give_their_last_step() -> None:
    model, x = _Lstm().eval(), np.random.default_rng(0).integers(0, 10, size=(4, 6))
    rows, _ = activations_of(model, x, ("lstm", "head"))
    np.testing.assert_allclose(rows["lstm"], rows["head"], atol=1e-6)
    assert rows["head"].shape == (4, 5)


def test_hooks_are_gone_afterwards() -> None:
    model = _Cnn()
    with watching(model, ("conv1", "head")):
        assert _n_hooks(model) == 2
    assert _n_hooks(model) == 0
    activations_of(model, _images(3), ("conv1", "head"))
    assert _n_hooks(model) == 0


def test_a_hook_met_after_its_removal_by_another_thread_does_no_harm() -> None:
    model = _mlp()
    found: list[Tensor] = []
    with watching(model, ["0", "4"]) as seen:
        # what a forward pass sees that listed the hooks just before another thread removed one
        model[4]._forward_pre_hooks_with_kwargs.clear()
        elsewhere = threading.Thread(target=lambda: found.append(model(torch.zeros(3, 4))))
        elsewhere.start()
        elsewhere.join()
        assert not seen
    assert found[0].shape == (3, 3)


def test_hooks_are_gone_after_an_error() -> None:
    model = _Cnn()
    with pytest.raises(RuntimeError), watching(model, ("conv1", "head")):
        model(torch.zeros(2, 3, 6, 6))
    assert _n_hooks(model) == 0


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored_and_nothing_else_changes(training: bool) -> None:
    model = _Cnn().train(training)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    views = activation_views(model, _images(4), _images(6, seed=1))
    assert model.training is training
    assert model.drop.training is training
    assert len(views) == 5  # two convolutions, each by mean and maximum, and the head
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BatchNorm's too
    assert all(p.grad is None for p in model.parameters())


def test_eval_mode_is_used_so_that_answers_repeat() -> None:
    model = _Cnn().train()
    first, second = (activations_of(model, _images(5), ("head",))[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_submodule_in_eval_mode_stays_there() -> None:
    model = _Cnn().train()
    model.norm.eval()  # a frozen BatchNorm, as in fine-tuning
    activations_of(model, _images(3), ("head",))
    assert not model.norm.training


def test_training_mode_is_restored_after_an_error() -> None:
    model = _Cnn().train()
    with pytest.raises(RuntimeError):
        activations_of(model, np.zeros((2, 3, 6, 6), np.float32), ("head",))
    assert model.training


def test_named_layers_are_taken() -> None:
    model = _mlp()
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    views = activation_views(model, x[:2], x, layers=["0", "4"])
    assert [v.name for v in views] == ["layer:0", "layer:4"]
    assert [v.depth for v in views] == [0.5, 1.0]
    assert {v.kind for v in views} == {"activation"}
    assert views[0].points.shape == (2, 6)
    assert views[1].references.shape == (5, 5)


def test_an_unknown_layer_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no layer named 'fc9' in Sequential.*0, 1, 2, 3, 4"):
        activations_of(_mlp(), np.zeros((2, 4), np.float32), ("0", "fc9"))


def _slot(rows: Floats, name: str) -> Floats:
    out: Floats = rows[:, STATISTICS.index(name)]
    return out


def test_logit_statistics_by_hand() -> None:
    logits = np.log(np.array([[6.0, 3.0, 1.0], [1.0, 1.0, 2.0]]))
    rows = logit_statistics(logits)
    p = np.array([[0.6, 0.3, 0.1], [0.25, 0.25, 0.5]])
    np.testing.assert_allclose(
        _slot(rows, "largest_logit"), logits.max(1) - logits.mean(1), rtol=1e-6
    )
    np.testing.assert_allclose(_slot(rows, "confidence"), np.log([0.6 / 0.4, 1.0]), atol=1e-9)
    np.testing.assert_allclose(_slot(rows, "margin"), np.log([2.0, 2.0]))
    np.testing.assert_allclose(_slot(rows, "energy"), np.log([10.0, 4.0]))
    entropy = -(p * np.log(p)).sum(1)
    np.testing.assert_allclose(_slot(rows, "entropy"), np.log(entropy + 1e-4))
    told = {"largest_logit", "confidence", "margin", "energy", "entropy"}
    assert all(np.isnan(_slot(rows, name)).all() for name in STATISTICS if name not in told)


def test_head_statistics_by_hand() -> None:
    head = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    activation = np.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    bounds = (np.zeros(3), np.array([1.0, 5.0, 4.0]))
    rows = logit_statistics(activation @ head.T, activation, head, bounds)
    np.testing.assert_allclose(_slot(rows, "head_cosine"), [3 / 5, 1.0], atol=1e-6)
    np.testing.assert_allclose(_slot(rows, "row_space"), [3 / 5, 1.0], atol=1e-6)
    # the first unit is clipped from 3 to 1: the first logit falls by 4
    np.testing.assert_allclose(_slot(rows, "clipped_change"), [np.log(5.0), 0.0], atol=1e-9)


def test_statistics_stay_finite_for_certain_and_huge_logits() -> None:
    rows = logit_statistics(np.array([[1e4, 0.0], [0.0, 0.0], [-1e30, 1e30]]))
    told = rows[:, ~np.isnan(rows).all(0)]
    assert told.shape == (3, 5)
    assert np.isfinite(told).all()


def test_one_class_has_statistics_too() -> None:
    rows = logit_statistics(np.array([[2.0], [3.0]]))
    assert np.isfinite(_slot(rows, "margin")).all()
