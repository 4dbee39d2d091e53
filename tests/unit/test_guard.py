"""A model with a watchman: its outputs untouched, its verdicts those of MetaShield."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_shield.activations import Activations, read_activations
from fl_shield.detector import MetaShield
from fl_shield.errors import GuardError, ShieldError
from fl_shield.fingerprint import fingerprint
from fl_shield.guard import Guard
from fl_shield.judge import Judge
from fl_shield.meta import MetaConfig
from fl_shield.simulations.victims.resnet import resnet18
from fl_shield.stages import find_layers
from fl_shield.types import Floats
from fl_shield.weights import Weights


class _Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 12, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        x = torch.relu_(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x)).mean((2, 3))
        out: Tensor = self.head(self.drop(x)) + shift
        return out


def _varied(model: nn.Module, clean: Tensor, head: str = "head") -> nn.Module:
    """Set the head's bias so that predictions on clean inputs vary."""
    model.eval()
    with torch.no_grad():
        model.get_parameter(f"{head}.bias").sub_(model(clean).mean(0))
    return model


def _images(n: int, seed: int = 0, side: int = 6, channels: int = 1) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, channels, side, side)).astype(np.float32))


CLEAN = _images(20)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _varied(_Cnn(), CLEAN)


@pytest.fixture
def detector(toy_weights: Weights) -> MetaShield:
    return MetaShield(toy_weights)


@pytest.fixture
def guard(model: nn.Module, detector: MetaShield) -> Guard:
    return Guard.fit(model, CLEAN, detector=detector)


def _features(n: int, seed: int = 0, head: bool = True) -> Activations:
    rng = np.random.default_rng(seed)
    weight = np.random.default_rng(99).normal(size=(3, 6)).astype(np.float32)
    last = rng.normal(size=(n, 6)).astype(np.float32)
    layers = {"early": rng.normal(size=(n, 8)).astype(np.float32), "late": last}
    return Activations(layers=layers, logits=last @ weight.T, head=weight if head else None)


def _n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# What a caller gets ------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", ["references", "tasks"])
def test_verdicts_are_those_of_metashield(
    model: nn.Module, toy_weights: Weights, guarantee: Any
) -> None:
    shield = MetaShield(toy_weights, guarantee=guarantee).fit(model, CLEAN.numpy())
    guard = Guard.fit(model, CLEAN, detector=MetaShield(toy_weights), guarantee=guarantee)
    x = _images(40, seed=1) * 2
    found = guard(x)
    np.testing.assert_allclose(found.scores, shield.score(x.numpy()), atol=1e-4)
    np.testing.assert_allclose(found.p_values, shield.p_values(x.numpy()), atol=1e-4)
    np.testing.assert_array_equal(found.flags, found.p_values <= 0.05)
    parts = np.stack(list(shield.explain(x.numpy()).values()), axis=1)
    np.testing.assert_allclose(found.contributions, parts, atol=1e-4)
    assert found.valid.all()
    assert len(found) == 40


def test_outputs_are_the_models_own(model: nn.Module, guard: Guard) -> None:
    x = _images(5, seed=1)
    returned: list[Tensor] = []
    handle = model.register_forward_hook(lambda *parts: returned.append(parts[2]))
    found = guard(x)
    handle.remove()
    assert found.outputs is returned[0]
    assert found.outputs.requires_grad
    found.outputs.sum().backward()  # type: ignore[no-untyped-call]
    assert model.get_parameter("conv1.weight").grad is not None
    with torch.inference_mode():
        assert guard(x).outputs.is_inference()
    with torch.no_grad():
        assert torch.equal(guard(x).outputs, model(x))


def test_named_arguments_go_to_the_model(model: nn.Module, guard: Guard) -> None:
    with torch.no_grad():
        assert torch.equal(guard(_images(3), shift=1.0).outputs, model(_images(3), shift=1.0))


def test_one_forward_pass_and_no_trace_in_the_model(model: nn.Module, detector: MetaShield) -> None:
    model.train()
    model.get_submodule("norm").eval()  # a frozen BatchNorm, as in fine-tuning
    state = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    chance = torch.random.get_rng_state()
    guard = Guard.fit(model, CLEAN, detector=detector)
    assert [m.training for m in model.modules()] == modes
    model.eval()
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    guard(_images(4))
    handle.remove()
    assert calls == [1]
    assert _n_hooks(model) == 0
    assert torch.equal(torch.random.get_rng_state(), chance)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], t) for name, t in state.items())


def test_verdicts_do_not_depend_on_the_batch(guard: Guard) -> None:
    x = _images(11, seed=2)
    whole = guard(x)
    for size in (1, 4):
        parts = [guard(batch) for batch in torch.split(x, size)]
        log_odds = np.concatenate([p.log_odds for p in parts])
        np.testing.assert_allclose(log_odds, whole.log_odds, atol=1e-4)
        np.testing.assert_array_equal(np.concatenate([p.flags for p in parts]), whole.flags)
    assert len(guard(x[:0])) == 0


def test_chance_of_other_inputs_in_a_batch_cannot_move_a_verdict(guard: Guard) -> None:
    x = _images(3, seed=2)
    hostile = x.clone()
    hostile[1], hostile[2] = torch.nan, 1e20
    np.testing.assert_allclose(guard(hostile).log_odds[0], guard(x).log_odds[0], atol=1e-4)


def test_far_inputs_are_flagged_and_clean_ones_mostly_not(guard: Guard) -> None:
    assert guard(CLEAN).flags.mean() <= 0.25
    assert guard(_images(20, seed=3) * 30).scores.mean() > guard(CLEAN).scores.mean()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("guarantee", ["references", "tasks"])
def test_broken_inputs_are_flagged_and_nothing_is_raised(
    model: nn.Module, detector: MetaShield, value: float, guarantee: Any
) -> None:
    guard = Guard.fit(model, CLEAN, detector=detector, guarantee=guarantee)
    x = _images(4, seed=1)
    x[2, 0, 3, 3] = value
    found = guard(x)
    assert found.valid.tolist() == [True, True, False, True]
    assert found.flags[2]
    assert found.scores[2] == 1
    assert found.p_values[2] == guard(torch.full_like(x, torch.nan)).p_values.min()
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.p_values).all()
    if guarantee == "references":
        assert found.p_values[2] == pytest.approx(1 / 21)


def test_half_precision_and_autocast(guard: Guard) -> None:
    x = _images(6, seed=4)
    plain = guard(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = guard(x)
    assert found.outputs.dtype == torch.bfloat16
    assert np.isfinite(found.log_odds).all()
    assert plain.outputs.dtype == torch.float32


def test_threads_do_not_see_each_others_inputs(guard: Guard) -> None:
    inputs = [_images(4, seed=s) * s for s in (1, 2, 3, 4)]
    expected = [guard(x).log_odds for x in inputs]
    found: dict[int, list[Floats]] = {i: [] for i in range(4)}
    together = threading.Barrier(4)

    def run(i: int) -> None:
        together.wait()
        found[i] = [guard(inputs[i]).log_odds for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, rows in found.items():
        assert len(rows) == 5
        for row in rows:
            np.testing.assert_allclose(row, expected[i], atol=1e-4)


def test_model_can_be_copied_and_written_while_guarded(guard: Guard, tmp_path: Path) -> None:
    assert guard.model is not None
    twin = copy.deepcopy(guard.model)
    assert _n_hooks(twin) == 0
    torch.save(guard.model, io.BytesIO())
    other = copy.deepcopy(guard)
    x = _images(3, seed=5)
    np.testing.assert_allclose(other(x).log_odds, guard(x).log_odds, atol=1e-6)


def test_a_closed_guard_refuses(model: nn.Module, guard: Guard) -> None:
    with guard as open_guard:
        open_guard(_images(2))
    assert _n_hooks(model) == 0
    with pytest.raises(GuardError, match="closed"):
        guard(_images(2))


# What it promises --------------------------------------------------------------------------------


def test_auto_takes_references_where_they_can_promise(
    model: nn.Module, detector: MetaShield
) -> None:
    enough = Guard.fit(model, CLEAN, detector=detector)
    assert enough.guarantee == "references"
    assert enough.promise_ == "FPR 0.05 if clean points are exchangeable with the 20 references"
    small = Guard.fit(model, CLEAN, detector=detector, fpr_budget=0.01)
    assert small.guarantee == "tasks"
    assert small.promise_.startswith("20 references cannot promise FPR 0.01")
    assert small.promise_.endswith("exchangeable with the meta-training tasks")


def test_a_budget_of_exactly_what_references_can_promise(
    model: nn.Module, detector: MetaShield
) -> None:
    guard = Guard.fit(model, CLEAN[:19], detector=detector, fpr_budget=0.05)
    assert guard.guarantee == "references"


def test_a_promise_that_cannot_be_kept_is_said(model: nn.Module, detector: MetaShield) -> None:
    with pytest.warns(UserWarning, match="cannot promise FPR 0.01"):
        guard = Guard.fit(model, CLEAN, detector=detector, fpr_budget=0.01, guarantee="references")
    assert not guard(_images(30, seed=1) * 50).flags.any()


def test_few_references_warn(model: nn.Module, detector: MetaShield) -> None:
    with pytest.warns(UserWarning, match="9 clean inputs are few"):
        Guard.fit(model, CLEAN[:9], detector=detector, fpr_budget=0.2)


# What it refuses ---------------------------------------------------------------------------------


def test_train_mode_is_refused(model: nn.Module, guard: Guard) -> None:
    model.train()
    with pytest.raises(ShieldError, match=r"call model.eval\(\)"):
        guard(_images(2))
    model.eval()
    model.get_submodule("drop").train()
    with pytest.raises(ShieldError, match="train mode"):
        guard(_images(2))


def test_too_few_and_wrong_settings_are_refused(model: nn.Module, detector: MetaShield) -> None:
    def refused(match: str, x: Any = CLEAN, **settings: Any) -> None:
        with pytest.raises(GuardError, match=match):
            Guard.fit(model, x, detector=detector, **settings)

    refused("at least 4 clean inputs", CLEAN[:3])
    refused("at least 4 clean inputs", torch.tensor(1.0))
    refused("fpr_budget must be in", fpr_budget=1.0)
    refused("guarantee must be auto, references or tasks", guarantee="both")
    refused("no layer named 'fc9'", layers=["conv1", "fc9"])
    refused("layers must be 'auto'", layers="conv1")
    refused("distinct names", layers=["head", "head"])
    refused("distinct names", layers=[])
    broken = CLEAN.clone()
    broken[[3, 5]] = torch.nan
    refused("2 of 20 clean inputs", broken)


def test_references_of_one_class_are_refused(model: nn.Module, detector: MetaShield) -> None:
    with torch.no_grad():
        model.get_parameter("head.bias").copy_(torch.tensor([0.0, 0.0, 100.0]))
    with pytest.raises(GuardError, match="all 20 clean inputs are predicted as class 2"):
        Guard.fit(model, CLEAN, detector=detector)


def test_a_detector_of_coordinates_is_refused(toy_weights: Weights) -> None:
    config = MetaConfig(n_hidden=16, representation="pca")
    weights = Weights(**{**vars(toy_weights), "config": config})
    with pytest.raises(GuardError, match="--representation profile"):
        Judge(_features(20), weights)


class _Odd(nn.Module):
    """A network whose answer is made by a function."""

    def __init__(self, answer: Callable[[_Odd, Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.first = nn.Linear(6, 6)
        self.extra = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.answer(self, x)


def _plain(net: _Odd, x: Tensor) -> Tensor:
    out: Tensor = net.head(net.extra(net.first(x)))
    return out


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda net, x: net.head(net.first(x)), "'extra' never ran"),
        (lambda net, x: net.head(net.extra(net.extra(net.first(x)))), "'extra' runs several"),
        (lambda net, x: (_plain(net, x), 0), "tensor of logits .* got <class 'tuple'>"),
        (lambda net, x: _plain(net, x)[:, None], "got shape"),
        (lambda net, x: _plain(net, x)[:, :1], "two classes at least"),
        (lambda net, x: _plain(net, x)[: len(x) // 2], "rows for"),
    ],
)
def test_models_that_cannot_be_watched_are_refused(
    answer: Callable[[_Odd, Tensor], Any], match: str, detector: MetaShield
) -> None:
    clean = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    net = _Odd(answer)
    with pytest.raises(GuardError, match=match):
        Guard.fit(net, clean, detector=detector)
    assert _n_hooks(net) == 0


def test_models_without_hooks_are_refused(model: nn.Module, detector: MetaShield) -> None:
    with pytest.raises(GuardError, match="name the layers yourself"):
        Guard.fit(nn.ReLU(), CLEAN, detector=detector)
    scripted = torch.jit.trace(model, CLEAN)  # type: ignore[no-untyped-call]
    with pytest.raises(GuardError, match="TorchScript"):
        Guard.fit(scripted, CLEAN, detector=detector)


def test_layers_that_give_no_tensor_are_refused(detector: MetaShield) -> None:
    class _Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": self.inner(x)}

    def answer(net: _Odd, x: Tensor) -> Tensor:
        out: Tensor = net.head(net.extra(x)["x"])
        return out

    net = _Odd(answer)
    net.extra = _Dict()  # type: ignore[assignment]
    clean = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    with pytest.raises(GuardError, match="'extra' gives dict"):
        Guard.fit(net, clean, detector=detector, layers=["extra", "head"])


# Models that change, files -----------------------------------------------------------------------


def test_a_model_that_changed_is_noticed_in_the_next_call(model: nn.Module, guard: Guard) -> None:
    with torch.no_grad():
        model.get_parameter("conv1.bias").add_(1)
    with pytest.raises(GuardError, match="the model has changed"):
        guard(_images(2))
    with pytest.raises(GuardError, match="the model has changed"):
        guard.check_model()


def test_writing_the_same_values_is_no_change(model: nn.Module, guard: Guard) -> None:
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()})
    guard(_images(2))
    guard.check_model()


def test_a_change_behind_torchs_back_is_found_by_the_full_check(
    model: nn.Module, guard: Guard
) -> None:
    model.get_parameter("conv1.bias").data.numpy()[0] += 1
    with pytest.raises(GuardError, match=r"Guard.fit\(model, clean_inputs\)"):
        guard.check_model()


def test_fingerprints_tell_names_shapes_types_and_values() -> None:
    nets = [
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.Identity(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(1, 2)),
        nn.Sequential(nn.Linear(2, 2)).half(),
        nn.Sequential(nn.Linear(2, 2)),
    ]
    for net in nets:
        for p in net.parameters():
            nn.init.zeros_(p)
    nn.init.ones_(nets[-1].get_parameter("0.bias"))
    assert len({fingerprint(net) for net in nets}) == len(nets)
    assert fingerprint(nets[0]) == fingerprint(copy.deepcopy(nets[0]))


@pytest.mark.parametrize("budget", [0.05, 0.01])
def test_a_saved_guard_judges_as_before(
    model: nn.Module, detector: MetaShield, budget: float, tmp_path: Path
) -> None:
    detector.n_inner_steps = 2
    guard = Guard.fit(model, CLEAN, detector=detector, fpr_budget=budget)
    guard.save(tmp_path / "guard.safetensors")
    loaded = Guard.load(tmp_path / "guard.safetensors", copy.deepcopy(model))
    x = _images(10, seed=6) * 2
    np.testing.assert_array_equal(loaded(x).log_odds, guard(x).log_odds)
    np.testing.assert_array_equal(loaded(x).p_values, guard(x).p_values)
    assert (loaded.promise_, loaded.guarantee) == (guard.promise_, guard.guarantee)
    assert (loaded.fpr_budget, loaded.layers) == (budget, guard.layers)
    with pytest.raises(GuardError, match=r"Guard.load\(path, model\)"):
        Guard.load(tmp_path / "guard.safetensors")


def test_a_guard_of_another_model_is_refused(
    model: nn.Module, guard: Guard, tmp_path: Path
) -> None:
    guard.save(tmp_path / "guard.safetensors")
    with torch.no_grad():
        model.get_parameter("conv1.bias").add_(1e-3)
    with pytest.raises(GuardError, match="belongs to a model with the fingerprint"):
        Guard.load(tmp_path / "guard.safetensors", model)


def test_files_that_are_no_guard_are_refused(
    model: nn.Module, guard: Guard, detector: MetaShield, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(GuardError, match="not a readable guard"):
        Guard.load(path, model)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(GuardError, match="not a readable guard"):
        Guard.load(path, model)
    detector.save(path)
    with pytest.raises(GuardError, match=r"has format 'fl_shield\.metashield"):
        Guard.load(path, model)
    guard.save(path)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for damage in ({"settings": "{}"}, {"settings": "no"}, {"detector": "{}"}):
        save_file(tensors, str(path), metadata={**metadata, **damage})
        with pytest.raises(GuardError, match="is damaged"):
            Guard.load(path, model)


# Activations from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize("head", [True, False])
def test_features_are_judged_as_metashield_does(
    detector: MetaShield, head: bool, tmp_path: Path
) -> None:
    clean, points = _features(20, 1, head), _features(30, 2, head)
    guard = Guard.from_features(clean, detector=detector)
    found = guard.judge(points)
    np.testing.assert_allclose(found.scores, detector.fit(clean).score(points), atol=1e-4)
    assert found.outputs is points.logits
    guard.save(tmp_path / "guard.safetensors")
    loaded = Guard.load(tmp_path / "guard.safetensors")
    np.testing.assert_array_equal(loaded.judge(points).log_odds, found.log_odds)
    guard.check_model()
    with pytest.raises(GuardError, match=r"use judge\(activations\)"):
        guard(CLEAN)
    with pytest.raises(GuardError, match=r"call Guard.load\(path\)"):
        Guard.load(tmp_path / "guard.safetensors", nn.Linear(1, 1))


def test_features_of_a_model_equal_the_model(model: nn.Module, detector: MetaShield) -> None:
    x = _images(8, seed=3)
    clean, points = (read_activations(model, a.numpy()) for a in (CLEAN, x))
    apart = Guard.from_features(clean, detector=detector).judge(points)
    np.testing.assert_allclose(
        apart.log_odds, Guard.fit(model, CLEAN, detector=detector)(x).log_odds, atol=1e-4
    )


def test_features_of_other_layers_are_refused(detector: MetaShield) -> None:
    guard = Guard.from_features(_features(20), detector=detector)
    points = _features(2)
    layers = dict(points.layers)
    wide = {**layers, "late": np.zeros((2, 7))}
    for changed in (wide, dict(reversed(layers.items())), {"late": layers["late"]}):
        with pytest.raises(GuardError, match="watch the same layers"):
            guard.judge(Activations(layers=changed, logits=points.logits))
    with pytest.raises(GuardError, match="watch the same layers"):
        guard.judge(Activations(layers=layers, logits=np.zeros((2, 4))))


def test_huge_double_features_are_flagged(detector: MetaShield) -> None:
    guard = Guard.from_features(_features(20), detector=detector)
    points = _features(3)
    rows = points.layers["early"].astype(np.float64)
    rows[1, 2] = 1e200
    found = guard.judge(Activations(layers={**points.layers, "early": rows}, logits=points.logits))
    assert found.valid.tolist() == [True, False, True]
    assert found.flags[1]


# ResNet-18 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "large"), [("batch", False), ("group", True)])
def test_a_residual_network_is_guarded_in_less_than_a_megabyte(norm: Any, large: bool) -> None:
    clean = _images(20, side=32, channels=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _varied(resnet18(10, norm=norm, large=large), clean, "fc")
    assert find_layers(net) == ("layer4.1.conv1", "layer4.1.conv2", "fc")
    guard = Guard.fit(net, clean)
    assert guard.n_bytes <= 1_000_000
    with torch.inference_mode():
        assert guard(clean[:3]).scores.shape == (3,)


@pytest.mark.gpu
def test_on_an_accelerator(model: nn.Module, guard: Guard, detector: MetaShield) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x = _images(16, seed=7)
    expected = guard(x)
    there = Guard.fit(model.to("cuda"), CLEAN, detector=detector)
    found = there(x.to("cuda"))
    assert found.outputs.is_cuda
    np.testing.assert_allclose(found.log_odds, expected.log_odds, atol=1e-2)
    guard.check_model()  # where a model lies makes no difference
