"""Networks that classify images: convolutions, residual blocks, layers, patches."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from fl_shield.simulations.victims.attention import Attention


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
        self.layer1, self.layer2, self.layer3 = (Attention(48) for _ in range(3))
        self.mix = nn.Linear(48, 64)
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.patches(x).flatten(2).mT + self.place
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.head(gelu(self.mix(x.mean(1))))
        return logits
