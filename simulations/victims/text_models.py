"""Networks that classify sequences of tokens: convolutions, recurrence, attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from fl_shield.simulations.victims.attention import Attention


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

    With as many classes as tokens it predicts the next token, and reads the last place instead: the
    mean over 80 characters hardly tells which one follows.

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
        self.layer1, self.layer2 = Attention(32), Attention(32)
        self.mix = nn.Linear(32, 64)
        self.head = nn.Linear(64, n_classes)
        self.reads_last = n_tokens == n_classes

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        x = self.layer2(self.layer1(x))
        read = x[:, -1] if self.reads_last else x.mean(1)
        logits: Tensor = self.head(gelu(self.mix(read)))
        return logits
