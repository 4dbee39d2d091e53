"""The transformer layer that networks of images and of texts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class Attention(nn.Module):
    """A pre-norm transformer layer with ``n_heads`` heads and a hidden layer of twice the width."""

    def __init__(self, width: int, n_heads: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then features: (n, length, width) to the same shape."""
        n, length, width = x.shape
        parts = self.mix(self.norm1(x)).view(n, length, 3, self.n_heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, dim=-1)
        mixed = weights @ values
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return out
