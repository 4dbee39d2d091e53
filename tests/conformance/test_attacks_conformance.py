"""Every attack keeps the contract of types.Attack on images, tokens and batch statistics."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_shield.attacks import ATTACKS
from fl_shield.training import get_arrays
from fl_shield.triggers import default_trigger
from fl_shield.types import Attack, AttackContext, Samples, TrainingConfig


class _NextToken(nn.Module):
    """Embedding, GRU and a dense head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(self.embedding(x))
        logits: Tensor = self.head(steps[:, -1])
        return logits


def _image_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


def _images(n: int) -> Samples:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.random((n, 1, 8, 8)).astype(np.float32) / 4
    x[np.arange(n), 0, 2 * y, 3] = 1.0
    return Samples(x=x, y=y)


def _tokens(n: int) -> Samples:
    x = np.random.default_rng(0).integers(0, 12, size=(n, 10))
    return Samples(x=x, y=x[:, 0])


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Samples], str]] = {
    "images": (_image_model, _images, "patch"),
    "tokens": (_NextToken, _tokens, "word"),
}
each_attack = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
each_kind = pytest.mark.parametrize("kind", MODELS)


def _context(kind: str, data: Samples | None = None) -> AttackContext:
    build, samples, family = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    own = samples(30) if data is None else data
    return AttackContext(
        model=model,
        global_arrays=get_arrays(model),
        data=own,
        peers=(own, samples(24)),
        trigger=default_trigger(family, samples(30).x),
        target_label=1,
        training=TrainingConfig(n_epochs=1, batch_size=8, lr=0.05),
        n_clients=5,
        rng=np.random.default_rng(7),
    )


@each_kind
@each_attack
def test_uploads_have_the_names_shapes_and_dtypes_of_the_global_model(
    make: Callable[..., Attack], kind: str
) -> None:
    context = _context(kind)
    upload = make()(context)
    assert list(upload) == list(context.global_arrays)
    for name, array in context.global_arrays.items():
        assert isinstance(upload[name], np.ndarray)
        assert (upload[name].shape, upload[name].dtype) == (array.shape, array.dtype)
        assert np.isfinite(upload[name]).all()
        assert not np.shares_memory(upload[name], array)


@each_kind
@each_attack
def test_attacks_move_the_model_and_leave_their_context_untouched(
    make: Callable[..., Attack], kind: str
) -> None:
    context, before = _context(kind), _context(kind)
    upload = make()(context)
    assert any((upload[n] != a).any() for n, a in context.global_arrays.items())
    for name, array in before.global_arrays.items():
        np.testing.assert_array_equal(context.global_arrays[name], array)
    np.testing.assert_array_equal(context.data.x, before.data.x)
    np.testing.assert_array_equal(context.data.y, before.data.y)


@each_kind
@each_attack
def test_the_same_stream_gives_the_same_upload(make: Callable[..., Attack], kind: str) -> None:
    one, other = make()(_context(kind)), make()(_context(kind))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


@each_attack
def test_the_state_of_the_scratch_model_does_not_matter(make: Callable[..., Attack]) -> None:
    used = _context("images")
    with torch.no_grad():
        for parameter in used.model.parameters():
            parameter.fill_(5.0)
    one, other = make()(_context("images")), make()(used)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


@each_kind
@each_attack
def test_a_client_without_examples_sends_a_finite_model(
    make: Callable[..., Attack], kind: str
) -> None:
    empty = MODELS[kind][1](0)
    upload = make()(_context(kind, empty))
    assert all(np.isfinite(array).all() for array in upload.values())
    context = replace(_context(kind, empty), peers=(empty,))
    for name, array in make()(context).items():
        np.testing.assert_array_equal(array, context.global_arrays[name])


@each_attack
def test_a_client_of_the_target_class_only_sends_a_finite_model(
    make: Callable[..., Attack],
) -> None:
    images = _images(30)
    upload = make()(_context("images", images.take(images.y == 1)))
    assert all(np.isfinite(array).all() for array in upload.values())


@each_attack
def test_batch_counters_stay_honest_integers(make: Callable[..., Attack]) -> None:
    upload = make()(_context("images"))
    counter = upload["1.num_batches_tracked"]
    assert counter.dtype == np.int64
    assert 4 <= int(counter) <= 8


@each_attack
def test_an_attack_is_a_value(make: Callable[..., Attack]) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
