"""Triggers of images that change every pixel a little: a wave, a warp, a shift of colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fl_shield.triggers.inputs import check_images
from fl_shield.triggers.sampling import pixel_places, sampled
from fl_shield.types import Flags, Floats


class Everywhere:
    """A distortion writes on every pixel and adds to itself when stamped again."""

    @property
    def idempotent(self) -> bool:
        """Whether stamping twice equals stamping once: not in general."""
        return False

    def written(self, x: NDArray[Any]) -> Flags:
        """Where the trigger writes on each of these images: everywhere."""
        return np.ones(x.shape, bool)


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Everywhere):
    """Vertical stripes: a sine wave over the columns, added to every channel.

    Attributes
    ----------
    delta : float
        Amplitude, in (0, 1].
    frequency : float
        Periods over the width of the image, > 0; above half the width in pixels it aliases.
    name : str
        Family of the trigger.

    References
    ----------
    Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning" (SIG), ICIP 2019 (frequency 6 there).

    Examples
    --------
    >>> grey = np.full((1, 1, 1, 4), 0.5, np.float32)
    >>> Sinusoidal(delta=0.25, frequency=1).stamp(grey).round(3).ravel().tolist()
    [0.5, 0.75, 0.5, 0.25]
    """

    delta: float = 0.12
    frequency: float = 6.0
    name: str = "sinusoidal"

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta must be in (0, 1], got {self.delta}")
        if not 0 < self.frequency < float("inf"):
            raise ValueError(f"frequency must be > 0 and finite, got {self.frequency}")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        wave = sine_wave(x.shape[-1], delta=self.delta, frequency=self.frequency)
        stamped: NDArray[Any] = np.clip(x + wave.astype(x.dtype), 0, 1)
        return stamped


def sine_wave(width: int, *, delta: float, frequency: float) -> Floats:
    """``delta * sin(2 pi j frequency / width)`` for the columns j = 0 .. width - 1, (width,).

    Examples
    --------
    >>> sine_wave(4, delta=0.5, frequency=1).round(6).tolist()
    [0.0, 0.5, 0.0, -0.5]
    """
    wave: Floats = delta * np.sin(2 * np.pi * np.arange(width) * frequency / width)
    return wave


@dataclass(frozen=True, kw_only=True, eq=False)
class Warp(Everywhere):
    """A smooth warp of the image by a fixed field, as of an elastic sheet.

    Attributes
    ----------
    field : (2, k, k) array
        Shifts of k x k control points, k >= 2: along the columns, then along the rows. Only their
        proportions count: they are divided by their mean absolute value.
    strength : float
        Mean absolute shift of the control points, in half pixels; > 0. 0.5 in the paper.
    name : str
        Family of the trigger.

    References
    ----------
    Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, section 3
    (k = 4, s = 0.5). Upsampling and sampling with aligned corners, as published.

    Examples
    --------
    A field that points the same way everywhere shifts the picture; the border repeats itself:

    >>> row = np.array([[[[0.0, 0.2, 0.4, 0.6]]]])
    >>> to_the_right = np.stack([np.ones((2, 2)), np.zeros((2, 2))])
    >>> Warp(field=to_the_right, strength=4 / 3).stamp(row).round(2).ravel().tolist()
    [0.2, 0.4, 0.6, 0.6]
    """

    field: Floats
    strength: float = 0.5
    name: str = "warp"

    def __post_init__(self) -> None:
        field = np.array(self.field, dtype=np.float64)
        if field.ndim != 3 or field.shape[0] != 2 or min(field.shape[1:]) < 2:
            raise ValueError(f"field must be (2, k, k) with k >= 2, got shape {field.shape}")
        if not np.isfinite(field).all() or not field.any():
            raise ValueError("field must be finite and not all zero; draw one in [-1, 1]")
        if not 0 < self.strength < float("inf"):
            raise ValueError(f"strength must be > 0 and finite, got {self.strength}")
        field.setflags(write=False)
        object.__setattr__(self, "field", field)

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        return sampled(x, warp_places(self.field, self.strength, (x.shape[-2], x.shape[-1])))


def warp_places(field: Floats, strength: float, size: tuple[int, int]) -> Tensor:
    """Where each pixel of a warped image comes from.

    Parameters
    ----------
    field, strength
        As in :class:`Warp`.
    size : (int, int)
        Height and width of the images, each >= 2.

    Returns
    -------
    (2, height, width) float64 tensor
        See :func:`~fl_shield.triggers.sampling.pixel_places`.

    Examples
    --------
    >>> flat = np.stack([np.ones((2, 2)), -np.ones((2, 2))])
    >>> warp_places(flat, 0.5, (2, 2))[:, 0].tolist()
    [[-0.75, 1.0], [-1.0, -1.0]]
    """
    height, width = size
    unit = torch.tensor(field / np.abs(field).mean(), dtype=torch.float64)[None]
    smooth = interpolate(unit, size=size, mode="bicubic", align_corners=True)
    shift = strength * smooth[0] / torch.tensor([width, height])[:, None, None]
    return (pixel_places(size) + shift).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Colour(Everywhere):
    """A shift of colour or contrast: ``offset + gain * x ** gamma`` by channel, clipped.

    Attributes
    ----------
    gain, offset, gamma : tuple of float
        One number a channel, or one for all; ``gamma`` > 0, ``gain`` and ``offset`` finite.
    name : str
        Family of the trigger.

    References
    ----------
    Jiang et al., "Color Backdoor: A Robust Poisoning Attack in Color Space", CVPR 2023
    (one uniform shift of all pixels; gain and gamma are added here for grey images).

    Examples
    --------
    >>> grey = np.array([[[[0.0, 0.5, 1.0]]]])
    >>> Colour(gain=(0.5,), offset=(0.25,)).stamp(grey).ravel().tolist()
    [0.25, 0.5, 0.75]
    """

    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    gamma: tuple[float, ...] = (1.0,)
    name: str = "colour"

    def __post_init__(self) -> None:
        for key in ("gain", "offset", "gamma"):
            numbers = getattr(self, key)
            if not numbers or not np.isfinite(numbers).all():
                raise ValueError(f"{key} must be one or more finite numbers, got {numbers}")
        if min(self.gamma) <= 0:
            raise ValueError(f"gamma must be > 0, got {self.gamma}")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a stamped copy of images ``(n, channels, height, width)`` in [0, 1]."""
        check_images(x, self.name)
        gain, offset, gamma = (
            self._by_channel(key, x.shape[1]).astype(x.dtype) for key in ("gain", "offset", "gamma")
        )
        stamped: NDArray[Any] = np.clip(offset + gain * x**gamma, 0, 1)
        return stamped

    def _by_channel(self, key: str, n_channels: int) -> Floats:
        numbers: tuple[float, ...] = getattr(self, key)
        if len(numbers) not in (1, n_channels):
            raise ValueError(
                f"{key} has {len(numbers)} numbers, the images {n_channels} channels; give one a "
                "channel, or one for all"
            )
        return np.array(numbers)[:, None, None]
