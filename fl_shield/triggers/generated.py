"""A trigger that a small network draws on every image anew: faint, following the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from fl_shield.triggers.distortion import Everywhere
from fl_shield.triggers.inputs import check_images
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated(Everywhere):
    """Adds ``epsilon * g(x)`` to each image, g a small convolutional network into [-1, 1].

    Attributes
    ----------
    kernels : tuple of (n_out, n_in, k, k) arrays
        Of each convolution, k odd; the first takes the image's channels, the last gives as many.
    biases : tuple of (n_out,) arrays
        One each.
    epsilon : float
        Largest change of a pixel, in (0, 1].
    name : str
        Family of the trigger.

    References
    ----------
    Nguyen et al., "IBA: Towards Irreversible Backdoor Attacks in Federated Learning", NeurIPS
    2023, section 4.1; a U-Net or an autoencoder there.

    Examples
    --------
    >>> kernel, bias = np.zeros((1, 1, 1, 1), np.float32), np.full(1, 100.0, np.float32)
    >>> white = Generated(kernels=(kernel,), biases=(bias,), epsilon=0.25)
    >>> float(white.stamp(np.zeros((1, 1, 2, 2), np.float32)).mean())
    0.25
    """

    kernels: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    epsilon: float
    name: str = "generated"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {self.epsilon}")
        if not self.kernels or len(self.kernels) != len(self.biases):
            raise ValueError(
                f"kernels and biases must be one or more pairs, got {len(self.kernels)} and "
                f"{len(self.biases)}"
            )
        for key in ("kernels", "biases"):
            arrays = tuple(np.array(a, np.float32) for a in getattr(self, key))
            for array in arrays:
                array.setflags(write=False)
            object.__setattr__(self, key, arrays)

    def parameters(self) -> list[Tensor]:
        """Copies of kernels and biases, in turn: what :func:`generated_images` takes."""
        pairs = zip(self.kernels, self.biases, strict=True)
        return [torch.tensor(array) for pair in pairs for array in pair]

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        if x.shape[1] != self.kernels[0].shape[1]:
            raise ValueError(
                f"this generator was made for images of {self.kernels[0].shape[1]} channels, got "
                f"{x.shape[1]}; train one on these images"
            )
        images = torch.tensor(x, dtype=torch.float32)
        with torch.no_grad():
            stamped = generated_images(self.parameters(), images, self.epsilon)
        return np.asarray(stamped.numpy(), dtype=x.dtype)


def generated_images(parameters: Sequence[Tensor], x: Tensor, epsilon: float) -> Tensor:
    """``clip(x + epsilon * g(x), 0, 1)`` of images ``(n, channels, height, width)``.

    Parameters
    ----------
    parameters : sequence of tensors
        Kernel and bias of each convolution, in turn: ReLU between them, tanh at the end.
    x : (n, channels, height, width) tensor
    epsilon : float
    """
    noise = x
    for index in range(0, len(parameters), 2):
        kernel, bias = parameters[index], parameters[index + 1]
        noise = conv2d(noise.relu() if index else noise, kernel, bias, padding="same")
    return (x + epsilon * noise.tanh()).clamp(0, 1)
