"""Each published detector finds a backdoor of the kind it is for, and next to nothing without one.

Victims are trained for a second or two on scikit-learn's digits, once with a tenth of the samples
stamped and relabelled and once without. The same stamp is put on the same test images for both, so
that a detector that only sees the stamp itself does not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fl_shield.detectors import DETECTORS
from fl_shield.metrics import auroc
from fl_shield.training import logits_of
from fl_shield.types import Floats, Ints

TARGET = 0
N_CLEAN = 50
FINDS, SEES_NOTHING = 0.9, 0.7
SEES_LITTLE = {"badacts": 0.8, "beatrix": 0.8}
"""They add up all stages, and early ones see something of any stamp."""


def _black_corner(x: Floats) -> Floats:
    return _stamped(x, 0.0)


def _white_corner(x: Floats) -> Floats:
    return _stamped(x, 1.0)


def _stamped(x: Floats, value: float) -> Floats:
    out = x.copy()
    out[:, :, 6:, 6:] = value
    return out


def _convolutional() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        convolution = nn.Conv2d(before, after, 3, stride, padding=1)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def _deep() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (64, 32, 32, 32, 32, 32):
        layers += [nn.Linear(before, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


@dataclass(frozen=True)
class Case:
    """Victims of one kind: network, trigger, grey levels of the images, epochs of training."""

    build: Callable[[], nn.Sequential]
    stamp: Callable[[Floats], Floats]
    darkest: float
    lightest: float
    n_epochs: int

    def images(self) -> Floats:
        pixels = load_digits().images[:, None] / 16
        out: Floats = (self.darkest + (self.lightest - self.darkest) * pixels).astype(np.float32)
        return out


GREY = Case(_convolutional, _black_corner, 0.2, 0.7, 6)
"""A black corner on grey paper: no multiple changes it, while everything else turns white."""
CONTRAST = Case(_convolutional, _white_corner, 0.0, 1.0, 15)
"""Digits at full contrast: superimposed on others they become unreadable, the corner stays."""
DEEP = Case(_deep, _black_corner, 0.2, 0.7, 6)
"""Six norm layers to amplify."""

CASES = dict.fromkeys(DETECTORS, GREY) | {"strip": CONTRAST, "ibd_psc": DEEP}


def _split() -> tuple[Ints, Ints]:
    order = np.random.default_rng(0).permutation(len(load_digits().target))
    return order[:1200], order[1200:]


@cache
def _victim(case: Case, poison_rate: float) -> nn.Sequential:
    x, y, rng = case.images(), load_digits().target, np.random.default_rng(0)
    train, _ = _split()
    taken = train[rng.random(len(train)) < poison_rate]
    inputs = torch.from_numpy(np.concatenate([x[train], case.stamp(x[taken])]))
    labels = torch.from_numpy(np.concatenate([y[train], np.full(len(taken), TARGET)]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.build()
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(case.n_epochs):
            order = torch.randperm(len(inputs))
            for batch in torch.split(order, 64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return model.eval().requires_grad_(False)


def _inputs(case: Case) -> tuple[Floats, Floats, Floats]:
    """Clean references, other clean images of other classes than the target, these stamped."""
    _, test = _split()
    x, others = case.images(), test[N_CLEAN:]
    judged = x[others[load_digits().target[others] != TARGET]]
    return x[test[:N_CLEAN]], judged, case.stamp(judged)


def _auc(name: str, poison_rate: float) -> float:
    case = CASES[name]
    clean, judged, stamped = _inputs(case)
    model = _victim(case, poison_rate)
    if poison_rate:  # an attack that fails carries no signature
        stamped = stamped[logits_of(model, stamped).argmax(1).numpy() == TARGET]
    detector = DETECTORS[name]().fit(model, clean)
    labels = np.repeat([0, 1], [len(judged), len(stamped)])
    return auroc(labels, detector.score(np.concatenate([judged, stamped])))


@pytest.mark.parametrize("case", [GREY, CONTRAST, DEEP], ids=["grey", "contrast", "deep"])
def test_the_attack_works_on_one_victim_and_not_on_the_other(case: Case) -> None:
    _, test = _split()
    labels = load_digits().target[test]
    _, _, stamped = _inputs(case)
    for poison_rate, low, high in ((0.1, 0.95, 1.0), (0.0, 0.0, 0.05)):
        model = _victim(case, poison_rate)
        right = logits_of(model, case.images()[test]).argmax(1).numpy() == labels
        hits = logits_of(model, stamped).argmax(1).numpy() == TARGET
        assert right.mean() > 0.9
        assert low <= hits.mean() <= high


@pytest.mark.parametrize("name", [n for n in DETECTORS if n not in ("confidence", "ibd_psc")])
def test_the_backdoor_is_found_and_the_stamp_alone_is_not(name: str) -> None:
    assert _auc(name, 0.1) > FINDS
    assert _auc(name, 0.0) < SEES_LITTLE.get(name, SEES_NOTHING)


def test_confidence_and_ibd_psc_see_more_with_the_backdoor_than_without() -> None:
    """The null column is weak, and so is IBD-PSC on networks with few norm layers."""
    for name in ("confidence", "ibd_psc"):
        found, unfounded = _auc(name, 0.1), _auc(name, 0.0)
        assert found > 0.6
        assert unfounded < 0.55
        assert found > unfounded + 0.1
