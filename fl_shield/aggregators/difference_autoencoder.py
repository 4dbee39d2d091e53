"""The variational autoencoder by which Snowball learns how elected updates differ."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_BATCH, _N_DRAWS = 8, 10


class DifferenceAutoencoder(nn.Module):
    """Two hidden layers each way around a normal latent; inputs and outputs in (0, 1).

    Differences, which lie around 0, are squeezed by a sigmoid first. All draws come from the
    given generator, those of the first weights included.

    Parameters
    ----------
    n_inputs, n_hidden, n_latent : int
        Widths.
    generator : torch.Generator
        Draws the first weights.

    References
    ----------
    Qin et al., AAAI 2024, section "Top-down election".

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> autoencoder = DifferenceAutoencoder(3, 8, 2, generator=generator)
    >>> autoencoder.errors(torch.zeros(5, 3), generator).shape
    torch.Size([5])
    """

    def __init__(
        self, n_inputs: int, n_hidden: int, n_latent: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        widths = {
            "seen": (n_inputs, n_hidden),
            "read": (n_hidden, n_hidden),
            "mean": (n_hidden, n_latent),
            "spread": (n_hidden, n_latent),
            "drawn": (n_latent, n_hidden),
            "written": (n_hidden, n_hidden),
            "shown": (n_hidden, n_inputs),
        }
        self.layers = nn.ModuleDict(
            {name: _linear(n_in, n_out, generator) for name, (n_in, n_out) in widths.items()}
        )

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, ``(n, n_latent)`` each; the latter is >= 0."""
        hidden = self.layers["read"](self.layers["seen"](x).relu()).relu()
        return self.layers["mean"](hidden), nn.functional.softplus(self.layers["spread"](hidden))

    def decoded(self, z: Tensor) -> Tensor:
        """Inputs that a latent stands for, ``(n, n_inputs)``."""
        hidden = self.layers["written"](self.layers["drawn"](z).relu()).relu()
        return torch.sigmoid(self.layers["shown"](hidden))

    def train_on(self, rows: Tensor, n_epochs: int, generator: torch.Generator) -> None:
        """Lower the loss by Adam.

        Parameters
        ----------
        rows : (n, n_inputs) float tensor
            Differences, not yet squeezed; with none, nothing is learned.
        n_epochs : int
        generator : torch.Generator
            Orders the batches and draws the latents.
        """
        optimiser = torch.optim.Adam(self.parameters())
        for batch in _batches(torch.sigmoid(rows), n_epochs, generator):
            optimiser.zero_grad()
            self.loss(batch, generator).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error plus divergence from a standard normal, summed over ``(n, n_inputs)``."""
        mean, log_variance = self.encoded(x)
        error = (self.decoded(_drawn(mean, log_variance, generator)) - x).square().sum()
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return error + divergence

    @torch.no_grad()
    def errors(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of each difference ``(n, n_inputs)``, mean of ten draws: ``(n,)``."""
        x = torch.sigmoid(rows)
        mean, log_variance = self.encoded(x)
        draws = [
            (self.decoded(_drawn(mean, log_variance, generator)) - x).square().sum(1)
            for _ in range(_N_DRAWS)
        ]
        return torch.stack(draws).mean(0)


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator)
    return mean + noise * torch.exp(0.5 * log_variance)


def _batches(rows: Tensor, n_epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(n_epochs):
        order = torch.randperm(len(rows), generator=generator)
        yield from (rows[batch] for batch in torch.split(order, _BATCH))
