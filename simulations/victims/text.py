"""Next-character models under attack: tokens (n, length) in, logits (n, n_tokens) out."""

from __future__ import annotations

import torch
from torch import nn


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
