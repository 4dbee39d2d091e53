"""What logits and the head's rows tell of an input: scalars that the layers do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fl_shield.columns import CLASS_STATISTICS, SLOTS
from fl_shield.live import constant, in_rows, library, norms_of
from fl_shield.signature import Signature
from fl_shield.types import Floats


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last linear layer beside what clean references ask of it, worked out once.

    Attributes
    ----------
    weight : (n_classes, d) float array, optional
        None where the head is not linear: then only logits are told.
    bounds : pair of (d,) float arrays, optional
        Range of the references' penultimate activations.
    axes : (n_classes, d) float array, optional
        Orthonormal basis of the rows; None where they can span everything.
    lengths : (n_classes,) float array, optional
        Norms of the rows.
    signature : Signature, optional
        How suspect each class is.

    Examples
    --------
    >>> head = Head.of(np.eye(2, 3))
    >>> rows = head.statistics(np.array([[3.0, 0.0]]), np.array([[3.0, 0.0, 4.0]]))
    >>> round(float(rows[0, SLOTS.index("head_cosine")]), 3)
    0.6
    """

    weight: Floats | None = None
    bounds: tuple[Floats, Floats] | None = None
    axes: Floats | None = None
    lengths: Floats | None = None
    signature: Signature | None = None

    @classmethod
    def of(
        cls,
        weight: Floats | None,
        bounds: tuple[Floats, Floats] | None = None,
        signature: Signature | None = None,
    ) -> Self:
        """Take the rows apart, which a singular value decomposition does."""
        if weight is None:
            return cls(signature=signature)
        n_classes, d = weight.shape
        axes = np.linalg.svd(weight, full_matrices=False)[2] if n_classes < d else None
        lengths = np.linalg.norm(weight, axis=1)
        return cls(weight=weight, bounds=bounds, axes=axes, lengths=lengths, signature=signature)

    @property
    def n_bytes(self) -> int:
        """Memory of what is kept beside the weight, which is the model's own."""
        table = None if self.signature is None else self.signature.classes
        kept = (self.axes, self.lengths, table, *(self.bounds or ()))
        return sum(a.nbytes for a in kept if a is not None)

    def statistics(self, logits: Floats, activation: Floats | None = None) -> Floats:
        """Scalars of each input by slot, (n, 23), NaN in the slots that cannot be told.

        Parameters
        ----------
        logits : (n, n_classes) float array
        activation : (n, d) float array, optional
            Penultimate activations.
        """
        told: Floats = self.told(logits, activation)
        return told

    def told(self, logits: Any, activation: Any = None, weight: Any = None) -> Any:
        """:meth:`statistics` of arrays, or of tensors that gradients flow through.

        The head itself is what it was when it was taken apart: gradients flow to it through the
        signature only, and where its ``weight`` is given as a tensor.

        Examples
        --------
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0]], requires_grad=True)
        >>> told = Head().told(logits)[0, SLOTS.index("margin")]
        >>> torch.autograd.grad(told, logits)[0].tolist()
        [[1.0, -1.0]]
        """
        xp = library(logits)
        out = xp.full((len(logits), len(SLOTS)), xp.nan, dtype=xp.float64)
        slots: Mapping[str, Any] = _from_logits(logits)
        if activation is not None:
            slots = {**slots, **self._from_rows(logits, activation)}
        for name, values in slots.items():
            out[:, SLOTS.index(name)] = values
        if self.signature is not None:
            classes = constant(self.signature.classes, out)
            if weight is not None and self.bounds is not None:
                classes = self.signature.following(weight, self.bounds).to(out.dtype)
            out[:, -len(CLASS_STATISTICS) :] = classes[logits.argmax(1)]
        return out

    def reference_statistics(self, logits: Floats, activation: Floats) -> Floats:
        """:meth:`statistics` of the references themselves, the signature without each, (m, 23)."""
        told = self.statistics(logits, activation)
        if self.signature is not None:
            told[:, -len(CLASS_STATISTICS) :] = self.signature.references
        return told

    def _from_rows(self, logits: Any, activation: Any) -> dict[str, Any]:
        if self.weight is None or self.lengths is None:
            return {}
        if activation.shape[1] != self.weight.shape[1]:
            return {}
        label = logits.argmax(1)
        weight, lengths = (constant(a, activation) for a in (self.weight, self.lengths))
        size = norms_of(activation)
        norms = size + 1e-9
        dot = (weight[label] * activation).sum(1)
        slots: dict[str, Any] = {
            "head_cosine": dot / (lengths[label] * norms + 1e-12),
            "row_space": self._inside(activation, size) / norms,
        }
        if self.bounds is not None:
            clipped = activation.clip(*(constant(b, activation) for b in self.bounds))
            change = norms_of((activation - clipped) @ weight.T)
            slots["clipped_change"] = library(change).log1p(change)
        return slots

    def _inside(self, activation: Any, size: Any) -> Any:
        """Norm of what lies in the space of the rows, (n,)."""
        if self.axes is None:
            return size
        return norms_of(activation @ constant(self.axes, activation).T)


def logit_statistics(
    logits: Floats,
    activation: Floats | None = None,
    head: Floats | None = None,
    bounds: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Scalars of each input that its logits and the head's rows tell, by slot.

    Parameters
    ----------
    logits : (n, n_classes) float array
    activation : (n, d) float array, optional
        Penultimate activations.
    head : (n_classes, d) float array, optional
        The head's weight.
    bounds : pair of (d,) float arrays, optional
        Range of the references' activations, for the change of the head's output when an
        activation is clipped to it.

    Returns
    -------
    (n, 23) float array
        NaN in the slots that cannot be told.

    Examples
    --------
    >>> logit_statistics(np.array([[2.0, 1.0]])).shape
    (1, 23)
    """
    return Head.of(head, bounds).statistics(logits, activation)


def _from_logits(logits: Any) -> dict[str, Any]:
    xp = library(logits)
    top = in_rows(logits)
    shifted = logits - top[:, -1:]
    total = xp.exp(shifted).sum(1)
    probabilities = xp.exp(shifted) / total[:, None]
    entropy = -(probabilities * xp.log(probabilities.clip(1e-12))).sum(1)
    largest = 1 / total
    return {
        "largest_logit": top[:, -1] - logits.mean(1),
        "confidence": xp.log(largest) - xp.log((1 - largest).clip(1e-7)),
        "margin": top[:, -1] - top[:, -2] if logits.shape[1] > 1 else top[:, -1],
        "energy": top[:, -1] + xp.log(total),
        "entropy": xp.log(entropy + 1e-4),
    }
