"""Networks of tokens under attack: next characters out of characters, topics out of words."""

from __future__ import annotations

import torch
from torch import nn

from fl_shield.simulations.datasets.words import N_WORDS, PADDING, RESERVED


class NewsAverager(nn.Module):
    """Deep averaging network: mean embedding of a text's words, a layer of 64, topics.

    For ids of :mod:`fl_shield.simulations.datasets.words`: padding, the unknown word and 5,000
    frequent ones. Averages of clients' networks stay good at it where those of convolutions over
    words do not: with AG News among 20 clients (Dirichlet 0.5) it reaches 80 % in 20 rounds and
    TextCNN 75 %.

    Parameters
    ----------
    n_classes : int
        Topics.

    References
    ----------
    M. Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification",
    ACL 2015, section 3 (one hidden layer, without word dropout).

    Examples
    --------
    >>> sum(p.numel() for p in NewsAverager(4).parameters())
    162436
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(RESERVED) + N_WORDS, 32)
        nn.init.uniform_(self.embedding.weight, -0.5, 0.5)
        self.fc1 = nn.Linear(32, 64)
        self.head = nn.Linear(64, n_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the topics, (n, n_classes)."""
        real = (tokens != PADDING).unsqueeze(2)
        total = (self.embedding(tokens) * real).sum(1)
        mean = total / real.sum(1).clamp_min(1)
        logits: torch.Tensor = self.head(torch.relu(self.fc1(mean)))
        return logits


class LeafLSTM(nn.Module):
    """LEAF's network for Shakespeare: embedding of 8, two LSTM layers of 256, last step.

    820,522 parameters at 80 tokens: torch keeps two bias vectors a gate where TensorFlow keeps
    one (818,474 there, by the same count).

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary, in and out.

    References
    ----------
    S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097;
    ``models/shakespeare/stacked_lstm.py`` of its repository.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, n_tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, (n, n_tokens)."""
        states, _ = self.lstm(self.embedding(tokens))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


class SmallLSTM(nn.Module):
    """Recurrent network that trains fast on a CPU: embedding of 16, one LSTM layer of 128.

    On small batches torch's LSTM takes a third of the time of its GRU on a CPU.

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary, in and out.

    Examples
    --------
    >>> sum(p.numel() for p in SmallLSTM(80).parameters())
    86352
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 16)
        self.lstm = nn.LSTM(16, 128, batch_first=True)
        self.head = nn.Linear(128, n_tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, (n, n_tokens)."""
        states, _ = self.lstm(self.embedding(tokens))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits
