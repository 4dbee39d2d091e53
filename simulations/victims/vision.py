"""Image classifiers under attack; all take (n, channels, height, width) and give logits."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fl_shield.simulations.victims.resnet import resnet18


def digits_mlp(n_classes: int) -> nn.Module:
    """Multi-layer perceptron for 8x8 images: 64-64-32-classes.

    Examples
    --------
    >>> sum(p.numel() for p in digits_mlp(10).parameters())
    6570
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 64),
            relu1=nn.ReLU(),
            fc2=nn.Linear(64, 32),
            relu2=nn.ReLU(),
            head=nn.Linear(32, n_classes),
        )
    )


def digits_cnn(n_classes: int) -> nn.Module:
    """Convolutional network for 8x8 images: two 3x3 convolutions (16, 32), 64 units.

    Examples
    --------
    >>> sum(p.numel() for p in digits_cnn(10).parameters())
    13706
    """
    return _two_convolutions((16, 32), 3, 8, 64, n_classes)


def small_cnn(n_classes: int) -> nn.Module:
    """Convolutional network for 28x28 images that trains fast on a CPU.

    Two 3x3 convolutions (16, 32), each pooled, and 128 units; no normalisation layers, so no
    buffers that a client could skew.

    Examples
    --------
    >>> sum(p.numel() for p in small_cnn(62).parameters())
    213630
    """
    return _two_convolutions((16, 32), 3, 28, 128, n_classes)


def leaf_cnn(n_classes: int) -> nn.Module:
    """LEAF's network for FEMNIST: two 5x5 convolutions (32, 64), each pooled, and 2,048 units.

    References
    ----------
    S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097;
    ``models/femnist/cnn.py`` of its repository.

    Examples
    --------
    >>> sum(p.numel() for p in leaf_cnn(62).parameters())
    6603710
    """
    return _two_convolutions((32, 64), 5, 28, 2048, n_classes)


def fed_cnn(n_classes: int) -> nn.Module:
    """The CNN with dropout of adaptive federated optimisation, as FedML benchmarks FEMNIST.

    Its dropout masks come from torch's global generator, which the harness seeds.

    References
    ----------
    S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, appendix A, table 4.

    Examples
    --------
    >>> sum(p.numel() for p in fed_cnn(62).parameters())
    1206590
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            dropout1=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * 12 * 12, 128),
            relu3=nn.ReLU(),
            dropout2=nn.Dropout(0.5),
            head=nn.Linear(128, n_classes),
        )
    )


def cifar_cnn(n_classes: int) -> nn.Module:
    """Convolutional network for 32x32 photographs that trains fast on a CPU.

    Three 3x3 convolutions (16, 32, 64), each pooled, and 128 units; no normalisation layers, so no
    buffers that a client could skew.

    Examples
    --------
    >>> sum(p.numel() for p in cifar_cnn(10).parameters())
    156074
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    n_in = 3
    for i, n_out in enumerate((16, 32, 64), start=1):
        layers[f"conv{i}"] = nn.Conv2d(n_in, n_out, 3, padding=1)
        layers |= {f"relu{i}": nn.ReLU(), f"pool{i}": nn.MaxPool2d(2)}
        n_in = n_out
    layers |= {"flatten": nn.Flatten(), "fc1": nn.Linear(64 * 4 * 4, 128), "relu4": nn.ReLU()}
    layers["head"] = nn.Linear(128, n_classes)
    return nn.Sequential(layers)


def resnet18_gn(n_classes: int) -> nn.Module:
    """ResNet-18 with group normalisation for 32x32 photographs: a network for larger machines.

    References
    ----------
    S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, section 5: ResNet-18 with group
    instead of batch normalisation; see :mod:`fl_shield.simulations.victims.resnet`.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18_gn(10).parameters())
    11173962
    """
    return resnet18(n_classes, norm="group")


def _two_convolutions(
    channels: tuple[int, int], kernel: int, side: int, n_units: int, n_classes: int
) -> nn.Module:
    """Two convolutions on side x side images, each pooled, and one hidden layer."""
    first, second = channels
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, kernel, padding=kernel // 2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, kernel, padding=kernel // 2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * (side // 4) ** 2, n_units),
            relu3=nn.ReLU(),
            head=nn.Linear(n_units, n_classes),
        )
    )
