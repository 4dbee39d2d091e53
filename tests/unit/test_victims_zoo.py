"""The zoo of small victims: shapes, seeds, and parts written out by hand against torch's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from fl_shield.errors import ScenarioError
from fl_shield.simulations.victims.attention import Attention
from fl_shield.simulations.victims.image_models import ImageResNet, ImageViT
from fl_shield.simulations.victims.text_models import TextCNN, TextGRU, TextTransformer, _windows
from fl_shield.simulations.victims.zoo import ARCHITECTURES, build_victim

N_CLASSES, N_TOKENS = 5, 30
SHAPES: dict[str, Sequence[tuple[int, ...]]] = {
    "image": [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 40, 40)],
    "text": [(8,), (80,)],
    "state": [(4, 4), (4, 2)],
}
CASES = [(n, kind, s) for kind, names in ARCHITECTURES.items() for n in names for s in SHAPES[kind]]


def _inputs(kind: str, shape: tuple[int, ...], n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "text":
        return torch.randint(0, N_TOKENS, (n, *shape), generator=generator)
    return torch.rand(n, *shape, generator=generator)


def _build(name: str, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    return build_victim(name, shape, N_CLASSES, N_TOKENS, seed)


@pytest.mark.parametrize(("name", "kind", "shape"), CASES)
@torch.no_grad()
def test_logits_of_every_input_alone(name: str, kind: str, shape: tuple[int, ...]) -> None:
    model, x = _build(name, shape), _inputs(kind, shape)
    logits = model(x)
    assert logits.shape == (3, N_CLASSES)
    torch.testing.assert_close(logits[:1], model(x[:1]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits[0], logits[1])  # the input matters


@pytest.mark.parametrize(("name", "kind"), [(n, k) for k, ns in ARCHITECTURES.items() for n in ns])
def test_networks_can_be_stacked_and_the_head_is_called_so(name: str, kind: str) -> None:
    model = _build(name, SHAPES[kind][0])
    assert isinstance(model.head, nn.Linear)
    assert list(model.buffers()) == []
    refused = (nn.Dropout, nn.BatchNorm2d, nn.RNNBase)
    assert not any(isinstance(module, refused) for module in model.modules())
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("name", ["cnn", "vit", "gru", "policy-tanh"])
def test_the_seed_gives_the_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    shape = (4, 4) if name == "policy-tanh" else (1, 8, 8)
    before = torch.get_rng_state()
    first, again, other = (_build(name, shape, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_an_unknown_network_names_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"cnn, lenet, mlp, .*text-cnn.*got 'alexnet'"):
        _build("alexnet", (1, 8, 8))


def test_small_images_keep_their_size_at_first() -> None:
    assert _build("cnn", (1, 8, 8)).fc.in_features == 64 * 4 * 4  # type: ignore[union-attr]
    assert _build("cnn", (1, 16, 16)).fc.in_features == 64 * 4 * 4  # type: ignore[union-attr]
    assert _build("cnn", (3, 30, 30)).fc.in_features == 64 * 8 * 8  # type: ignore[union-attr]
    assert [ImageResNet((1, side, side), 2).stem.stride[0] for side in (15, 16)] == [1, 2]


@torch.no_grad()
def test_gated_units_against_torchs_own() -> None:
    torch.manual_seed(0)
    net, slow = TextGRU(N_TOKENS, N_CLASSES, width=6), nn.GRU(32, 6, batch_first=True)
    parts = {"ih": net.inputs, "hh": net.states}
    weights = {f"weight_{name}_l0": layer.weight for name, layer in parts.items()}
    biases = {f"bias_{name}_l0": layer.bias for name, layer in parts.items()}
    slow.load_state_dict({**weights, **biases})
    tokens = _inputs("text", (11,))
    _, last = slow(net.embedding(tokens))
    torch.testing.assert_close(net(tokens), net.head(last[0]))


@pytest.mark.parametrize("k", [3, 4, 5])
@torch.no_grad()
def test_windows_of_words_against_a_convolution(k: int) -> None:
    torch.manual_seed(k)
    net, slow = TextCNN(N_TOKENS, N_CLASSES), nn.Conv1d(32, 32, k)
    layer = {3: net.conv3, 4: net.conv4, 5: net.conv5}[k]
    slow.weight.copy_(layer.weight.view(32, k, 32).transpose(1, 2))
    assert slow.bias is not None
    slow.bias.copy_(layer.bias)
    words = net.embedding(_inputs("text", (9,)))
    expected = slow(words.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(layer(_windows(words, k)), expected, atol=1e-5, rtol=1e-4)


def test_windows_by_hand() -> None:
    words = torch.tensor([[[1.0], [2], [3], [4]]])
    assert _windows(words, 3).tolist() == [[[1, 2, 3], [2, 3, 4]]]
    assert _windows(words, 4).tolist() == [[[1, 2, 3, 4]]]


@torch.no_grad()
def test_attention_against_torchs_own() -> None:
    torch.manual_seed(0)
    layer, x = Attention(16, n_heads=4), torch.randn(3, 7, 16)
    queries, keys, values = (
        part.view(3, 7, 4, 4).transpose(1, 2) for part in layer.mix(layer.norm1(x)).chunk(3, -1)
    )
    mixed = scaled_dot_product_attention(queries, keys, values)
    inner = x + layer.out(mixed.transpose(1, 2).reshape(3, 7, 16))
    expected = inner + layer.down(gelu(layer.up(layer.norm2(inner))))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("n_classes", "last_only"), [(N_TOKENS, True), (N_CLASSES, False)])
@torch.no_grad()
def test_next_tokens_are_read_from_the_last_place_and_classes_from_all(
    n_classes: int, last_only: bool
) -> None:
    model = TextTransformer(N_TOKENS, n_classes)
    for name in ("layer1", "layer2"):
        setattr(model, name, nn.Identity())
    tokens = _inputs("text", (8,))
    earlier, later = tokens.clone(), tokens.clone()
    earlier[:, :-1] = (tokens[:, :-1] + 1) % N_TOKENS
    later[:, -1] = (tokens[:, -1] + 1) % N_TOKENS
    assert torch.equal(model(earlier), model(tokens)) == last_only
    assert not torch.equal(model(later), model(tokens))


@torch.no_grad()
def test_patches_and_places_tell_where_things_are() -> None:
    net, text = ImageViT((1, 8, 8), N_CLASSES), TextTransformer(N_TOKENS, N_CLASSES)
    assert net.place.shape == (16, 48)
    image = torch.zeros(1, 1, 8, 8)
    image[..., :2, :2] = 1
    moved = image.roll(4, -1)
    torch.testing.assert_close(net(image), net(moved), atol=1e-5, rtol=1e-4)  # places start at 0
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(text(tokens), text(tokens.flip(1)), atol=1e-5, rtol=1e-4)
    for network in (net, text):
        network.place.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(net(image), net(moved), atol=1e-4)
    assert not torch.allclose(text(tokens), text(tokens.flip(1)), atol=1e-4)
