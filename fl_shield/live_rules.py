"""How suspicious an upload is to a published rule, as a function with a gradient.

The counterpart of :mod:`fl_shield.live_suspicion` for the rules of :mod:`fl_shield.aggregators`:
who compares a detector with a rule under attackers that know their server's defence has to give the
attackers of both the same means. Each function here gives every update of a round the number that
its rule decides by; an attacker lowers its own towards that of the middle of the round. What the
upload changes of the others' numbers counts as constant in each step.

References
----------
V. Shejwalkar and A. Houmansadr, "Manipulating the Byzantine", NDSS 2021, section 4: attacks that
are tailored to the rule. They search along one direction; gradients search along all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fl_shield.aggregators.alignins import AlignIns
from fl_shield.aggregators.contract import Layout
from fl_shield.aggregators.krum import MultiKrum, count_byzantine
from fl_shield.aggregators.trimmed_mean import TrimmedMean
from fl_shield.types import Arrays

Numbers = Callable[[Tensor, Tensor], Tensor]
"""From updates (n, P) and the global model (P,) to one number (n,) an update, higher = worse."""

_TINY = 1e-12


def krum_numbers(updates: Tensor, start: Tensor) -> Tensor:
    """Krum scores (n,) of updates (n, P): squared distances to the n - f - 2 nearest, summed.

    Examples
    --------
    >>> krum_numbers(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), torch.zeros(1)).tolist()
    [10.0, 5.0, 13.0, 100.0]
    """
    n = len(updates)
    f = count_byzantine(MultiKrum().byzantine_share, n, (n - 3) // 2)
    squares = updates.square().sum(1)
    squared = (squares[:, None] + squares[None] - 2 * updates @ updates.T).clamp_min(0)
    others = squared + torch.diag(torch.full((n,), torch.inf, dtype=updates.dtype))
    n_nearest = min(max(1, n - f - 2), n - 1)
    return others.sort(dim=1).values[:, :n_nearest].sum(1)


def alignment_numbers(updates: Tensor, start: Tensor) -> Tensor:
    """AlignIns' larger standard score (n,): of the cosine with the model, and of principal signs.

    Signs have no slope; theirs is taken to be that of ``tanh(u / mean |u|)``.
    """
    toward = torch.nn.functional.cosine_similarity(updates, start[None], dim=1, eps=_TINY)
    return torch.maximum(_standard(toward), _standard(_sign_agreement(updates)))


def trimmed_numbers(updates: Tensor, start: Tensor) -> Tensor:
    """Squared length (n,) of what trimmed mean cuts off each update of (n, P).

    Values beyond the range that the rule averages count by their distance from it.

    Examples
    --------
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])
    >>> trimmed_numbers(rows, torch.zeros(1)).tolist()
    [1.0, 0.0, 0.0, 0.0, 36.0]
    """
    n = len(updates)
    n_trimmed = count_byzantine(TrimmedMean().trim_share, n, (n - 1) // 2)
    ordered = updates.detach().sort(dim=0).values
    low, high = ordered[n_trimmed], ordered[n - 1 - n_trimmed]
    return (updates - updates.clamp(low, high)).square().sum(1)


def cosine_numbers(updates: Tensor, start: Tensor) -> Tensor:
    """Mean cosine distance (n,) of each update's model to the others', which FLAME clusters by."""
    models = torch.nn.functional.normalize(updates + start, dim=1, eps=_TINY)
    n = len(updates)
    return 1 - ((models @ models.T).sum(1) - 1) / max(n - 1, 1)


LIVE_RULES: Mapping[str, Numbers] = {
    "krum": krum_numbers,
    "multi_krum": krum_numbers,
    "multikrum": krum_numbers,
    "alignins": alignment_numbers,
    "flame": cosine_numbers,
    "median": trimmed_numbers,
    "trimmed_mean": trimmed_numbers,
}
"""By defence; the median is the trimmed mean that keeps least, and has its attacker."""


class RuleSuspicion:
    """Standard score of one upload among fixed others by what a rule decides by.

    Parameters
    ----------
    rule : str
        Key of :data:`LIVE_RULES`.
    global_arrays : Arrays
        The model that the server sent.
    others : sequence of Arrays
        The round's other uploads, known or guessed, at least two.
    middle : float
        Suspicion of an upload that stands where the median of the others stands: an attacker who
        gets there is one among many.

    Examples
    --------
    >>> import numpy as np
    >>> start = {"fc.weight": np.zeros((1, 2), np.float32)}
    >>> others = [{"fc.weight": np.array([[x, 1.0]], np.float32)} for x in (0.0, 0.1, 0.2, 0.3)]
    >>> suspicion = RuleSuspicion("multi_krum", start, others)
    >>> own = torch.tensor([[5.0, -5.0]], requires_grad=True)
    >>> suspicion({"fc.weight": own}).backward()
    >>> own.grad.sign().tolist()
    [[1.0, -1.0]]
    """

    def __init__(
        self, rule: str, global_arrays: Arrays, others: Sequence[Arrays], *, middle: float = 0.0
    ) -> None:
        if rule not in LIVE_RULES:
            raise ValueError(
                f"no gradient is known of rule {rule!r}; choose one of {', '.join(LIVE_RULES)}"
            )
        if len(others) < 2:
            raise ValueError(f"a rule compares at least three updates, got {len(others)} others")
        self._numbers, self._middle = LIVE_RULES[rule], middle
        self._layout = Layout.of(global_arrays)
        self._start = torch.from_numpy(self._layout.flat(global_arrays))
        flats = [torch.from_numpy(self._layout.flat(other)) - self._start for other in others]
        self._others = torch.stack(flats)

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Suspicion () of an upload, from its trainable tensors by name."""
        parts = [tensors[layer.name].reshape(-1) for layer in self._layout.layers]
        own = torch.cat(parts).to(self._start.dtype) - self._start
        numbers = self._numbers(torch.cat([own[None], self._others]), self._start)
        rest = numbers[1:].detach()
        return (numbers[0] - rest.median()) / (rest.std() + _TINY) + self._middle


def _standard(values: Tensor) -> Tensor:
    spread = values.std(correction=0)
    return (values - values.quantile(0.5)).abs() / (spread + _TINY)


def _sign_agreement(updates: Tensor) -> Tensor:
    """Share of each update's largest coordinates that have the majority's sign, (n,)."""
    signs = updates.detach().sign()
    majority = signs.sum(0).sign()
    n_largest = max(int(updates.shape[1] * AlignIns().sparsity), 1)
    largest = updates.detach().abs().topk(n_largest, dim=1).indices
    own = updates.gather(1, largest)
    soft = torch.tanh(own / (own.detach().abs().mean(1, keepdim=True) + _TINY)) / 2
    hard = (own.detach().sign() == majority[largest]).to(updates.dtype)
    toward = soft * majority[largest]
    return (hard + toward - toward.detach()).mean(1)
