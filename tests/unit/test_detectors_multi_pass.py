"""Multi-pass detectors against slow loops, literals by hand, and known faults of public codes."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_shield.detectors import IbdPsc, ScaleUp, ScaleUpLimited, Strip
from fl_shield.detectors.ibd_psc import (
    amplified,
    find_start,
    norm_layers,
    probabilities_with,
)
from fl_shield.detectors.scale_up import class_standardised, scaled_consistency
from fl_shield.detectors.strip import entropy_bits, replaced, top_words
from fl_shield.errors import ShieldError
from fl_shield.metrics import auroc
from fl_shield.types import Floats, Ints


def _net(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def _images(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((n, 1, 3, 3), np.float32)


# STRIP ------------------------------------------------------------------------------------------


def test_entropy_runs_over_classes_not_over_copies() -> None:
    """Art's STRIP took it along the copies: certain copies of one class then look uncertain."""
    always_the_first = np.tile([1.0, 0.0, 0.0, 0.0], (8, 1))
    assert entropy_bits(always_the_first).tolist() == [0.0] * 8
    undecided = np.full((8, 4), 0.25)
    np.testing.assert_allclose(entropy_bits(undecided), 2.0)


def test_strip_of_images_by_loops() -> None:
    model, clean, x = _net(nn.Flatten(), nn.Linear(9, 4)), _images(6), _images(5, 1)
    slow = []
    for image in x:
        total = 0.0
        for other in clean:  # six references, twenty copies asked for: all are used once
            mixed = torch.from_numpy(np.minimum(image + other, 1)[None])
            for p in torch.softmax(model(mixed).double(), 1)[0].tolist():
                total += p * math.log2(p)
        slow.append(total / 6)
    np.testing.assert_allclose(Strip().fit(model, clean).score(x), slow, rtol=1e-5)


def test_strip_of_states_averages_and_does_not_clip() -> None:
    model = _net(nn.Linear(3, 2))
    rng = np.random.default_rng(0)
    clean, x = (rng.normal(size=(n, 3)).astype(np.float32) * 5 for n in (5, 4))
    slow = []
    for state in x:
        mixed = torch.from_numpy(np.stack([(state + other) / 2 for other in clean]))
        p = torch.softmax(model(mixed).double(), 1)
        slow.append(float((p * p.log2()).sum(1).mean()))
    np.testing.assert_allclose(Strip().fit(model, clean).score(x), slow, rtol=1e-4, atol=1e-7)


def test_fewer_copies_are_drawn_by_the_seed() -> None:
    model, clean, x = _net(nn.Flatten(), nn.Linear(9, 4)), _images(20), _images(5, 1)
    first, again, other = (Strip(n_copies=3, seed=s).fit(model, clean).score(x) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert Strip(n_copies=3).n_passes == 3


def test_a_reference_is_never_mixed_with_itself() -> None:
    """Its own copy would answer like it, so that its calibration score were too suspicious."""
    seen: list[Tensor] = []
    model, clean = _net(nn.Flatten(), nn.Linear(9, 4)), _images(5)
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    Strip().fit(model, clean)
    doubled = {np.minimum(2 * image, 1).tobytes() for image in clean}
    assert len(seen) == 5 * 4
    assert not doubled & {one.numpy().tobytes() for batch in seen for one in batch}


def test_top_words_by_loops() -> None:
    texts = np.random.default_rng(0).integers(1, 9, size=(6, 12))
    for index in range(6):
        weights = {}
        for word in set(texts[index].tolist()):
            holders = sum(word in text.tolist() for text in texts)
            count = texts[index].tolist().count(word)
            weights[word] = count * (math.log(7 / (1 + holders)) + 1)
        order = sorted(weights, key=lambda w: (-round(weights[w], 9), w))
        assert top_words(texts, index).tolist() == order


def test_half_of_the_positions_are_replaced_and_padding_stays() -> None:
    tokens = np.array([[1, 2, 3, 4, 5, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])
    priority = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.0, 0.05, 0.6])
    out = replaced(tokens, np.array([90, 91]), priority, share=0.5, padding=0)
    assert out[0].tolist() == [1, 90, 3, 91, 90, 0, 0, 0]  # three of five, rounded up
    assert out[1].tolist() == [1, 90, 3, 91, 5, 90, 91, 8]
    assert tokens[0, 1] == 2


def test_texts_of_padding_only_are_left_alone() -> None:
    tokens = np.zeros((2, 5), np.int64)
    assert top_words(tokens, 0, padding=0).tolist() == []
    assert (replaced(tokens, np.array([], np.int64), np.arange(5.0), padding=0) == 0).all()
    assert (replaced(tokens, np.array([7]), np.arange(5.0), padding=0) == 0).all()


class _Bag(nn.Module):
    """Sum of word weights: word 99 gives class 0 whatever stands beside it."""

    def __init__(self, backdoored: bool) -> None:
        super().__init__()
        weight = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        weight[99] = torch.tensor([60.0, 0, 0, 0]) if backdoored else torch.zeros(4)
        self.words = nn.Embedding(100, 4, _weight=weight)
        self.head = nn.Linear(4, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.words(x).sum(1))
        return out


@pytest.mark.parametrize(("backdoored", "low", "high"), [(True, 0.85, 1.0), (False, 0.3, 0.7)])
def test_strip_of_text_finds_a_word_that_rules(backdoored: bool, low: float, high: float) -> None:
    texts: Ints = np.random.default_rng(0).integers(0, 99, size=(220, 16))
    clean, x = texts[:20], texts[20:]
    triggered = x.copy()
    triggered[:, [2, 5, 8, 11]] = 99  # some survive the replacement of a half
    detector = Strip().fit(_Bag(backdoored), clean)
    labels = np.repeat([0, 1], len(x))
    scores = np.concatenate([detector.score(x), detector.score(triggered)])
    assert low <= auroc(labels, scores) <= high


# SCALE-UP ---------------------------------------------------------------------------------------


def test_scaled_consistency_by_loops() -> None:
    model, x = _net(nn.Flatten(), nn.Linear(9, 4)), _images(12)
    shares, labels = scaled_consistency(model, x)
    for image, share, label in zip(x, shares, labels, strict=True):
        answer = int(model(torch.from_numpy(image[None])).argmax())
        kept = 0
        for factor in (3, 5, 7, 9, 11):
            scaled = torch.from_numpy(np.minimum(image[None] * factor, 1))
            kept += int(model(scaled).argmax()) == answer
        assert (share, label) == (kept / 5, answer)
    assert 0 < shares.mean() < 1


def test_each_class_has_its_own_mean_and_a_spread_that_is_never_zero() -> None:
    clean, labels = np.array([0.2, 0.2, 0.2, 0.4, 0.8, 0.6]), np.array([0, 0, 0, 1, 1, 2])
    own = class_standardised(
        np.array([0.4, 0.6, 0.6, 0.6]), np.array([0, 1, 2, 7]), clean, labels, 0.1
    )
    everyone = (0.6 - clean.mean()) / clean.std(ddof=1)
    expected = [0.2 / 0.1, 0.0, everyone, everyone]  # a class of one, and one without any
    np.testing.assert_allclose(own, expected, atol=1e-12)


def test_equal_consistency_of_all_clean_images_stays_finite() -> None:
    model = _net(nn.Flatten(), nn.Linear(9, 4))
    white = np.ones((8, 1, 3, 3), np.float32)  # every copy is the same image
    detector = ScaleUpLimited().fit(model, white)
    assert detector.score(white).tolist() == [0.0] * 8
    assert np.isfinite(detector.score(_images(5))).all()


@pytest.mark.parametrize("make", [ScaleUp, ScaleUpLimited])
def test_scaling_is_for_images_in_the_unit_range(make: Any) -> None:
    model = _net(nn.Flatten(), nn.Linear(9, 4))
    with pytest.raises(ShieldError, match="takes image inputs, got state"):
        make().fit(model, np.zeros((8, 9), np.float32))
    with pytest.raises(ShieldError, match="takes image inputs, got text"):
        make().fit(model, np.zeros((8, 9), np.int64))
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        make().fit(model, _images(8) * 3)
    with pytest.raises(ValueError, match="score inputs of the shape"):
        make().fit(model, _images(8)).score(np.zeros((2, 1, 4, 4), np.float32))
    with pytest.raises(ValueError, match="factors must be above 1"):
        make(factors=(1, 3))
    assert make().n_passes == 6


# IBD-PSC ----------------------------------------------------------------------------------------


class _Crossed(nn.Module):
    """Norm layers that are built in another order than they are used; one is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.LayerNorm(6)
        self.unused = nn.LayerNorm(6)
        self.early = nn.BatchNorm1d(6)
        self.plain = nn.LayerNorm(6, elementwise_affine=False)
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.late(torch.relu(self.plain(self.early(self.first(x))))))
        return out


def _states(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def test_norm_layers_are_taken_in_the_order_of_use() -> None:
    assert norm_layers(_Crossed(), _states(2)) == ("late", "early")


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(6), (4,)),
        (nn.LayerNorm(6), (4,)),
        (nn.GroupNorm(2, 6), (4,)),
        (nn.RMSNorm(6), (4,)),
    ],
)
def test_every_norm_with_parameters_will_do(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = _net(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    detector = IbdPsc().fit(model, _states(12))
    assert detector.layers_ == ("1",)
    assert ((detector.score(_states(5, 1)) > 0) & (detector.score(_states(5, 1)) <= 1)).all()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 3)),
    ],
)
def test_a_model_without_norm_layers_is_refused(model: nn.Module) -> None:
    with pytest.raises(ShieldError, match=r"no norm layer with scale and shift.*use strip"):
        IbdPsc().fit(model, _states(12))


def _three_blocks() -> nn.Sequential:
    blocks = [(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(3)]
    return _net(*(layer for block in blocks for layer in block), nn.Linear(4, 3), seed=3)


def _louder_copy(model: nn.Sequential, k: int, factor: float) -> nn.Sequential:
    copy = deepcopy(model)
    for index in (7, 4, 1)[:k]:  # norm layers from the output
        copy[index].weight.mul_(factor)  # type: ignore[operator]
        copy[index].bias.mul_(factor)  # type: ignore[operator]
    return copy


def _softmax(model: nn.Module, x: Floats) -> Floats:
    out: Floats = torch.softmax(model(torch.from_numpy(x)).double(), 1).numpy()
    return out


def test_the_start_by_loops_on_copies() -> None:
    model, clean = _three_blocks(), _states(20)
    answers = _softmax(model, clean).argmax(1)
    tried = [
        (
            factor,
            k,
            float((_softmax(_louder_copy(model, k, factor), clean).argmax(1) != answers).mean()),
        )
        for factor in (1.5, 2.0, 3.0)
        for k in (1, 2, 3)
    ]
    for rate in (0.05, 0.2, 0.6):
        start = IbdPsc(error_rate=rate).fit(model, clean).start_
        beyond = [one for one in tried if one[2] > rate]
        assert start.reached is bool(beyond)
        if beyond:
            assert (start.amplification, start.n_layers, start.error) == beyond[0]
        else:
            assert start.error == max(error for _, _, error in tried)


def test_amplified_consistency_by_loops_on_copies() -> None:
    model, x = _three_blocks(), _states(6, 1)
    detector = IbdPsc(n_models=2, error_rate=0.05).fit(model, _states(20))
    start = detector.start_
    assert detector.layers_ == ("7", "4", "1")
    answers = _softmax(model, x).argmax(1)
    copies = [
        _louder_copy(model, k, start.amplification)
        for k in (start.n_layers, start.n_layers + 1)
        if k <= 3
    ]
    slow = np.mean([_softmax(copy, x)[np.arange(6), answers] for copy in copies], axis=0)
    np.testing.assert_allclose(detector.score(x), slow, rtol=1e-5)


def test_the_start_is_the_first_beyond_the_rate() -> None:
    errors = {1.5: np.array([0.0, 0.6, 0.61, 0.9]), 2.0: np.array([1.0, 1.0, 1.0, 1.0])}
    start = find_start(errors, 0.6)
    assert (start.amplification, start.n_layers, start.reached) == (1.5, 3, True)


def test_a_start_that_no_setting_reaches_is_said_and_not_made_up() -> None:
    """BackdoorBox's search returned none at all."""
    errors = {1.5: np.array([0.0, 0.1]), 3.0: np.array([0.2, 0.1])}
    start = find_start(errors, 0.6)
    assert (start.amplification, start.n_layers, start.error) == (3.0, 1, 0.2)
    assert not start.reached
    silent = find_start({1.5: np.zeros(3), 3.0: np.zeros(3)}, 0.6)
    assert (silent.amplification, silent.n_layers, silent.reached) == (3.0, 1, False)


def test_the_victim_is_never_written_to() -> None:
    model = _net(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    detector = IbdPsc().fit(model, _states(12))
    scores = detector.score(_states(4))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    model[0].weight.zero_()  # type: ignore[operator]
    np.testing.assert_array_equal(detector.score(_states(4)), scores)  # it has its own copy


def test_replaced_parameters_hold_for_one_call_only() -> None:
    model = _net(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    plain = probabilities_with(model, {}, _states(4))
    louder = probabilities_with(model, amplified(model, ["1"], 3.0), _states(4))
    assert np.abs(louder - plain).max() > 1e-3
    np.testing.assert_array_equal(probabilities_with(model, {}, _states(4)), plain)


@pytest.mark.parametrize(
    "settings",
    [{"amplifications": ()}, {"amplifications": (1.0,)}, {"error_rate": 1.0}, {"n_models": 0}],
)
def test_impossible_settings_of_ibd_psc_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        IbdPsc(**settings)
    assert IbdPsc().n_passes == 6


@pytest.mark.parametrize("settings", [{"n_copies": 0}, {"share": 0.0}, {"share": 1.5}])
def test_impossible_settings_of_strip_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        Strip(**settings)
