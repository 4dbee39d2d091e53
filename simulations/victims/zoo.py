"""Small networks of many kinds for single victims: images, token sequences, control states.

Without dropout, batch statistics or anything in place, so that many of one kind train stacked (see
:mod:`fl_shield.simulations.victims.stacked`). The head is always called ``head``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from fl_shield.errors import ScenarioError


def image_cnn(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Three 3x3 convolutions (32, 64, 64), two of stride 2, one hidden layer of 128.

    Parameters
    ----------
    shape : tuple of int
        (channels, height, width) of one image; images below 16 pixels keep their size at first.
    n_classes : int

    Examples
    --------
    >>> image_cnn((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels, height, width = shape
    first = 1 if min(height, width) < 16 else 2
    n_rows, n_columns = ((side + 2 * first - 1) // (2 * first) for side in (height, width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, stride=first, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 64, 3, padding=1),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * n_rows * n_columns, 128),
            relu4=nn.ReLU(),
            head=nn.Linear(128, n_classes),
        )
    )


def image_lenet(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two 5x5 convolutions (6, 16) with maxima of 2x2 behind them, two hidden layers (120, 84).

    References
    ----------
    Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998,
    section II.B: LeNet-5, with rectifiers and maxima. Images below 16 pixels keep their borders.

    Examples
    --------
    >>> image_lenet((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels, height, width = shape
    border = 2 if min(height, width) < 16 else 0
    n_rows, n_columns = (
        ((side + 2 * border - 4) // 2 + 2 * border - 4) // 2 for side in (height, width)
    )
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=border),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5, padding=border),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * n_rows * n_columns, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            head=nn.Linear(84, n_classes),
        )
    )


def image_mlp(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two hidden layers of 256 and 128 units over the flattened input.

    Examples
    --------
    >>> image_mlp((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(int(torch.Size(shape).numel()), 256),
            relu1=nn.ReLU(),
            fc2=nn.Linear(256, 128),
            relu2=nn.ReLU(),
            head=nn.Linear(128, n_classes),
        )
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions with group normalisation beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, n_out)
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ImageResNet(nn.Module):
    """Three residual blocks (16, 32, 64 channels) with group normalisation, then a global mean.

    References
    ----------
    K. He et al., "Deep Residual Learning", CVPR 2016, section 4.2 (thinner, and group norm).

    Examples
    --------
    >>> ImageResNet((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        stride = 1 if min(shape[1:]) < 16 else 2
        self.stem = nn.Conv2d(shape[0], 16, 3, stride=stride, padding=1)
        self.block1 = _Residual(16, 16, 1)
        self.block2 = _Residual(16, 32, 2)
        self.block3 = _Residual(32, 64, 2)
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.block3(self.block2(self.block1(relu(self.stem(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Attention(nn.Module):
    """A pre-norm transformer layer with ``n_heads`` heads and a hidden layer of twice the width."""

    def __init__(self, width: int, n_heads: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.mix(self.norm1(x)).view(n, length, 3, self.n_heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, dim=-1)
        mixed = weights @ values
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return out


class ImageViT(nn.Module):
    """A vision transformer of three layers, width 48, over patches of a quarter of the side.

    References
    ----------
    A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (much smaller; mean over
    patches instead of a class token).

    Examples
    --------
    >>> ImageViT((1, 28, 28), 62)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 62])
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        side = shape[1] // 4
        self.patches = nn.Conv2d(shape[0], 48, side, stride=side)
        self.place = nn.Parameter(torch.zeros((shape[1] // side) * (shape[2] // side), 48))
        self.layer1, self.layer2, self.layer3 = (_Attention(48) for _ in range(3))
        self.mix = nn.Linear(48, 64)
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.patches(x).flatten(2).mT + self.place
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.head(gelu(self.mix(x.mean(1))))
        return logits


class TextCNN(nn.Module):
    """Embedding of 32, convolutions of 3, 4 and 5 tokens (32 each), maxima over time.

    References
    ----------
    Y. Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.

    Examples
    --------
    >>> TextCNN(100, 4)(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_tokens: int, n_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 32)
        self.conv3, self.conv4, self.conv5 = (nn.Linear(32 * k, 32) for k in (3, 4, 5))
        self.fc = nn.Linear(3 * 32, 64)
        self.head = nn.Linear(64, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        words = self.embedding(tokens)
        found = [
            relu(layer(_windows(words, k))).amax(1)
            for k, layer in ((3, self.conv3), (4, self.conv4), (5, self.conv5))
        ]
        logits: Tensor = self.head(relu(self.fc(torch.cat(found, dim=1))))
        return logits


def _windows(words: Tensor, k: int) -> Tensor:
    """Runs of k tokens: (n, length, d) to (n, length - k + 1, k * d)."""
    last = words.shape[1] - k + 1
    return torch.cat([words[:, i : i + last] for i in range(k)], dim=2)


class TextGRU(nn.Module):
    """Embedding of 32 and one layer of 64 gated recurrent units, last state.

    Written out, because torch's own cannot be stacked over networks.

    References
    ----------
    K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014,
    with the reset gate after the recurrent product, as torch has it.

    Examples
    --------
    >>> TextGRU(100, 4)(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_tokens: int, n_classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 32)
        self.inputs = nn.Linear(32, 3 * width)
        self.states = _Recurrence(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        states = self.states(self.inputs(self.embedding(tokens)))
        logits: Tensor = self.head(states[:, -1])
        return logits


class _Recurrence(nn.Module):
    """Gated recurrent units over what the inputs say, (n, length, 3 width): all their states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(3 * width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(3 * width).uniform_(-bound, bound))

    def forward(self, told: Tensor) -> Tensor:
        width = told.shape[2] // 3
        state = told[:, 0, :width] * 0
        states = []
        for step in range(told.shape[1]):
            now, before = told[:, step], linear(state, self.weight, self.bias)
            gates = torch.sigmoid(now[:, : 2 * width] + before[:, : 2 * width])
            reset, update = gates[:, :width], gates[:, width:]
            fresh = torch.tanh(now[:, 2 * width :] + reset * before[:, 2 * width :])
            state = update * state + (1 - update) * fresh
            states.append(state)
        return torch.stack(states, dim=1)


class TextTransformer(nn.Module):
    """Embedding of 32 with learned places, two transformer layers, mean over tokens.

    References
    ----------
    A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (encoder, pre-norm).

    Examples
    --------
    >>> TextTransformer(100, 4)(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_tokens: int, n_classes: int, longest: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 32)
        self.place = nn.Parameter(torch.zeros(longest, 32))
        self.layer1, self.layer2 = _Attention(32), _Attention(32)
        self.mix = nn.Linear(32, 64)
        self.head = nn.Linear(64, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        x = self.layer2(self.layer1(x))
        logits: Tensor = self.head(gelu(self.mix(x.mean(1))))
        return logits


def policy_mlp(shape: tuple[int, ...], n_actions: int) -> nn.Module:
    """Two hidden layers of 64 units over the stacked frames.

    Examples
    --------
    >>> policy_mlp((4, 4), 2)(torch.zeros(3, 4, 4)).shape
    torch.Size([3, 2])
    """
    return _policy(shape, n_actions, 64, nn.ReLU)


def policy_tanh(shape: tuple[int, ...], n_actions: int) -> nn.Module:
    """Two hidden layers of 128 units with hyperbolic tangents, as PPO's default networks have.

    Examples
    --------
    >>> policy_tanh((4, 6), 3)(torch.zeros(3, 4, 6)).shape
    torch.Size([3, 3])
    """
    return _policy(shape, n_actions, 128, nn.Tanh)


def _policy(
    shape: tuple[int, ...], n_actions: int, width: int, activation: Callable[[], nn.Module]
) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(int(torch.Size(shape).numel()), width),
            act1=activation(),
            fc2=nn.Linear(width, width),
            act2=activation(),
            head=nn.Linear(width, n_actions),
        )
    )


IMAGE_MODELS: Mapping[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "cnn": image_cnn,
    "lenet": image_lenet,
    "mlp": image_mlp,
    "resnet": ImageResNet,
    "vit": ImageViT,
}
TEXT_MODELS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "text-cnn": TextCNN,
    "gru": TextGRU,
    "transformer": TextTransformer,
}
STATE_MODELS: Mapping[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "policy-mlp": policy_mlp,
    "policy-tanh": policy_tanh,
}
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "image": tuple(IMAGE_MODELS),
    "text": tuple(TEXT_MODELS),
    "state": tuple(STATE_MODELS),
}
"""Names of the networks that take each kind of input."""


def build_victim(
    name: str, shape: tuple[int, ...], n_classes: int, n_tokens: int, seed: int
) -> nn.Module:
    """Build a freshly initialised network; torch's global generator stays as it was.

    Parameters
    ----------
    name : str
        One of :data:`ARCHITECTURES`.
    shape : tuple of int
        Of one input; unused by networks of text.
    n_classes, n_tokens, seed : int

    Examples
    --------
    >>> type(build_victim("gru", (16,), 4, 100, seed=0)).__name__
    'TextGRU'
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TEXT_MODELS:
            return TEXT_MODELS[name](n_tokens, n_classes)
        builders = {**IMAGE_MODELS, **STATE_MODELS}
        if name not in builders:
            known = ", ".join([*builders, *TEXT_MODELS])
            raise ScenarioError(f"victim must be one of {known}, got {name!r}")
        return builders[name](shape, n_classes)
