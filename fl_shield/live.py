"""The same formula for plain arrays and for tensors that gradients flow through.

An attacker who knows the detector trains against it, so what the detector makes of activations has
to be differentiable. Instead of every formula twice, those that work on numpy arrays ask here for
the library that their argument belongs to; on arrays the numbers stay what they are.

References
----------
A. Athalye, N. Carlini, D. Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
section 4: why a defence has to be attacked through its own gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def library(x: Any) -> Any:
    """Torch for a tensor, numpy for anything else: for functions that both name alike.

    Examples
    --------
    >>> library(torch.zeros(1)).__name__, library(np.zeros(1)).__name__
    ('torch', 'numpy')
    """
    return torch if isinstance(x, Tensor) else np


def constant(values: Any, like: Any) -> Any:
    """Values (any shape) that no gradient flows to: as they are, or a tensor beside a tensor.

    Examples
    --------
    >>> constant(np.zeros(2), torch.zeros(1)).dtype
    torch.float32
    """
    return torch.as_tensor(values, dtype=like.dtype) if isinstance(like, Tensor) else values


def doubled(x: Any) -> Any:
    """Double precision, of a tensor without leaving its graph.

    Examples
    --------
    >>> doubled(np.zeros(2, np.float32)).dtype, doubled(torch.zeros(2)).dtype
    (dtype('float64'), torch.float64)
    """
    return x.double() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


def in_rows(x: Any) -> Any:
    """Sort each row (..., k) upwards.

    Examples
    --------
    >>> in_rows(torch.tensor([[2.0, 1.0]])).tolist(), in_rows(np.array([[2, 1]])).tolist()
    ([[1.0, 2.0]], [[1, 2]])
    """
    return x.sort(-1).values if isinstance(x, Tensor) else np.sort(x, axis=-1)


def norms_of(rows: Any) -> Any:
    """Euclidean norm of each row (n, d), shape (n,); no gradient comes from a row of zeros.

    Examples
    --------
    >>> norms_of(np.array([[3.0, 4.0]])).tolist(), norms_of(torch.zeros(1, 2)).tolist()
    ([5.0], [0.0])
    """
    return rows.norm(dim=1) if isinstance(rows, Tensor) else np.linalg.norm(rows, axis=1)
