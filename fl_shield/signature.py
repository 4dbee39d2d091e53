"""Which class a model leans towards: signs of a backdoor's target that the head itself shows.

Training on triggered copies leaves a mark that no single input has to show. The weights of the
target's row are larger on average than those of other rows (its *Trojan signature*), what clean
activations allow carries its logit further, and inputs of other classes are nearer to it. So each
input is told how suspect the class is that the model gives it: where it goes, not what it looks
like. Everything is worked out once, from the head and the clean references; an input then costs one
look-up.

References
----------
G. Fields, M. Samragh, M. Javaheripi, F. Koushanfar, T. Javidi, "Trojan signatures in DNN weights",
ICCV 2021 workshops, section 3: the row means of the last layer. H. Wang, Z. Xiang, D. J. Miller,
G. Kesidis, "MM-BD: post-training detection of backdoor attacks with arbitrary backdoor pattern
types using a maximum margin statistic", IEEE S&P 2024, section 4: how far a class can be carried,
here in the one layer where that needs no search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from fl_shield.columns import CLASS_STATISTICS, LIMIT
from fl_shield.live import constant
from fl_shield.types import Floats

_FLAT = 1e-18
"""Least variance of a row's mean."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How suspect each class is, and the classes of the references without their own part in it.

    Attributes
    ----------
    classes : (n_classes, 7) float array
        Columns in the order of :data:`fl_shield.columns.CLASS_STATISTICS`.
    references : (m, 7) float array
        Of the class that each reference is given, with that reference left out.
    unit : float
        Spread of the references' logits, which those of a class are measured in.
    """

    classes: Floats
    references: Floats
    unit: float

    @classmethod
    def of(cls, logits: Floats, activation: Floats, weight: Floats | None) -> Self:
        """Take the signature of a head from what it made of clean references.

        Parameters
        ----------
        logits : (m, n_classes) float array
            m >= 2.
        activation : (m, d) float array
            What the head read.
        weight : (n_classes, d) float array, optional
            The head's weight; without it, or where it read something else, only logits are told.

        Examples
        --------
        >>> rows = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> weight = np.array([[1.0, 1.0], [1.0, -2.0], [-2.0, 1.0]])
        >>> found = Signature.of(rows @ weight.T, rows, weight)
        >>> found.classes[:, CLASS_STATISTICS.index("signature_rank")].tolist()
        [1.0, -0.5, -0.5]
        """
        told: Floats = logits - np.mean(logits, axis=1, keepdims=True, dtype=np.float64)
        unit = max(float(told.std()), 1e-9)
        means = np.concatenate([told.mean(0)[None], _means_without_each(told)]) / unit
        signature: Floats = np.zeros((1, told.shape[1]))
        reach: Floats = np.zeros_like(means)
        if weight is not None and weight.shape[1] == activation.shape[1]:
            rows = np.asarray(weight, dtype=np.float64)
            rows = rows - rows.mean(0)
            signature = row_means(rows)[None]
            reach = _reach(rows, np.asarray(activation, dtype=np.float64), told) / unit
        columns = _columns(signature, reach, means)
        own = np.arange(len(told)), told.argmax(1)
        return cls(classes=columns[0], references=columns[1:][own], unit=unit)

    def following(self, weight: Tensor, bounds: tuple[Floats, Floats]) -> Tensor:
        """Columns of the classes, with the gradient that an attacker has through the head.

        The values stay what they are; ranks and mean logits have no gradient here.

        Parameters
        ----------
        weight : (n_classes, d) tensor
            The head's weight that the signature was taken of.
        bounds : pair of (d,) float arrays
            Range of the references' activations.

        Returns
        -------
        (n_classes, 7) tensor

        Examples
        --------
        >>> rows, weight = np.eye(3), torch.eye(3, requires_grad=True)
        >>> found = Signature.of(rows, rows, rows).following(weight, (rows.min(0), rows.max(0)))
        >>> found[0, CLASS_STATISTICS.index("reach")].backward()
        >>> bool(weight.grad[0, 0] > 0)
        True
        """
        rows = weight - weight.mean(0)
        low, high = (constant(end, weight) for end in bounds)
        reach = (rows.clip(0) @ high - (-rows).clip(0) @ low) / (4 * self.unit)
        moving = {"signature": row_means(rows) / 2, "reach": reach}
        columns = list(torch.as_tensor(self.classes, dtype=weight.dtype).unbind(1))
        for name, values in moving.items():
            i = CLASS_STATISTICS.index(name)
            columns[i] = columns[i] + values - values.detach()
        return torch.stack(columns, dim=1)


def row_means(rows: Any) -> Any:
    """Mean of each row (n_classes, d) in units of its standard error: the Trojan signature.

    Of an array, or of a tensor that gradients flow through.

    Examples
    --------
    >>> row_means(np.array([[1.0, 3.0]])).round(3).tolist()
    [2.828]
    """
    mean = rows.mean(1)
    variance = ((rows - mean[:, None]) ** 2).mean(1)
    return mean / (variance / rows.shape[1]).clip(_FLAT) ** 0.5


def _reach(rows: Floats, activation: Floats, logits: Floats) -> Floats:
    """Largest logit of each class within the range of the references: all, then without each.

    Shape (1 + m, n_classes).
    """
    bias = (logits - activation @ rows.T).mean(0)
    high = np.concatenate([activation.max(0)[None], _largest_without_each(activation)])
    low = -np.concatenate([(-activation).max(0)[None], _largest_without_each(-activation)])
    out: Floats = high @ np.maximum(rows, 0).T + low @ np.minimum(rows, 0).T + bias
    return out


def _largest_without_each(rows: Floats) -> Floats:
    """Largest of the other rows in each column, (m, d), m >= 2."""
    first, second = np.sort(rows, axis=0)[[-1, -2]]
    alone = (rows == first).sum(0) == 1
    out: Floats = np.where((rows == first) & alone, second, first)
    return out


def _means_without_each(rows: Floats) -> Floats:
    out: Floats = (rows.sum(0) - rows) / (len(rows) - 1)
    return out


def _columns(signature: Floats, reach: Floats, means: Floats) -> Floats:
    """Columns (k, n_classes, 7) of scores (k or 1, n_classes), each beside its rank."""
    kinds = np.full_like(means, np.log(means.shape[1]) / 4)
    scores = signature / 2, reach / 4, means
    pairs = [part.clip(-LIMIT, LIMIT) for score in scores for part in (score, _ranks(score))]
    shaped = [np.broadcast_to(part, means.shape) for part in (*pairs, kinds)]
    out: Floats = np.stack(shaped, axis=-1)
    return out


def _ranks(scores: Floats) -> Floats:
    """Share of the other classes below each minus share above, in [-1, 1]; (k, n_classes)."""
    n_classes = scores.shape[1]
    out: Floats = (2 * rankdata(scores, axis=1) - n_classes - 1) / max(n_classes - 1, 1)
    return out
