"""ResNet-18 in plain torch, for images of 32x32 and 224x224.

References
----------
K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1 (224x224), and
section 4.2 for the stem of small images; group normalisation after Y. Wu, K. He, "Group
Normalization", ECCV 2018. Names of layers are those of torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["batch", "group"]

N_GROUPS = 32
"""Groups of a group normalisation, as its authors took."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input passes by.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int
        Of the first convolution.
    norm : {"batch", "group"}

    Examples
    --------
    >>> BasicBlock(32, 64, 2, "group")(torch.zeros(1, 32, 8, 8)).shape
    torch.Size([1, 64, 4, 4])
    """

    def __init__(self, n_in: int, n_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = _norm(norm, n_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or n_in != n_out:
            shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(norm, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, height, width) to (n, n_out, height / stride, width / stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        around = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + around)


def resnet18(
    n_classes: int, n_channels: int = 3, *, norm: Norm = "batch", large: bool = False
) -> nn.Module:
    """ResNet-18 with the stem for 32x32 images, or for 224x224 ones.

    Parameters
    ----------
    n_classes, n_channels : int
    norm : {"batch", "group"}
        Group normalisation has no buffers, which federated averaging would mix.
    large : bool
        A 7x7 convolution of stride 2 and a pooling first, for 224x224.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18(10).parameters())
    11173962
    >>> sum(p.numel() for p in resnet18(1000, large=True).parameters())
    11689512
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if large:
        parts["conv1"] = nn.Conv2d(n_channels, 64, 7, 2, padding=3, bias=False)
    else:
        parts["conv1"] = nn.Conv2d(n_channels, 64, 3, padding=1, bias=False)
    parts |= {"bn1": _norm(norm, 64), "relu": nn.ReLU()}
    if large:
        parts["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    n_in = 64
    for i, (n_out, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
        blocks = (BasicBlock(n_in, n_out, stride, norm), BasicBlock(n_out, n_out, 1, norm))
        parts[f"layer{i}"], n_in = nn.Sequential(*blocks), n_out
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts["fc"] = nn.Linear(512, n_classes)
    return nn.Sequential(parts)


def _norm(norm: Norm, n_channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(N_GROUPS, n_channels)
    return nn.BatchNorm2d(n_channels)
