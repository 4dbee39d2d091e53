"""The small network that judges: from the profiles of a point's views to its log-odds.

References
----------
.. [1] M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3: weights
   before and after fine-tuning, averaged, hold where data shift. Here the outputs are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
"""Parameters by name, see :func:`contributions`."""

_ABSENT = 100.0  # beyond any standardised column, so that padding is never the largest


def contributions(params: Params, profiles: Tensor, present: Tensor) -> Tensor:
    """Log-odds that each view adds to its point's score, shape (n, V).

    A two-layer MLP reads a view's profile beside the mean and the maximum of the point's
    profiles over all its views (a strange head means more where all else is ordinary), and gives
    the view its evidence; attention over the views that are present weighs it, so that a point's
    log-odds are the plain sum of its row.

    Parameters
    ----------
    params : mapping
        ``w1`` (n_columns, h), ``w_mean`` and ``w_max`` likewise, ``b1, w2, attention`` (h,),
        ``b2`` ().
    profiles : (n, V, n_columns) tensor
    present : (V,) tensor
        1 where the view exists, 0 where it pads.
    """
    mask = present[None, :, None]
    mean = (profiles * mask).sum(1) / present.sum().clamp_min(1)
    largest = (profiles * mask - _ABSENT * (1 - mask)).amax(1)
    context = mean @ params["w_mean"] + largest @ params["w_max"] + params["b1"]
    own = (profiles.flatten(0, 1) @ params["w1"]).view(*profiles.shape[:2], len(params["b1"]))
    hidden = torch.nn.functional.gelu(own + context[:, None]).flatten(0, 1)
    evidence = torch.mv(hidden, params["w2"]).view(profiles.shape[:2]) + params["b2"]
    attention = torch.mv(hidden, params["attention"]).view(profiles.shape[:2])
    attention = attention + torch.log(present + 1e-12)
    return torch.softmax(attention, dim=1) * evidence


def log_odds(params: Params, profiles: Tensor, present: Tensor) -> Tensor:
    """Log-odds that each point is backdoored, shape (n,)."""
    return contributions(params, profiles, present).sum(1)


def verdicts(adapted: Params, initial: Params | None, profiles: Tensor, present: Tensor) -> Tensor:
    """Contributions (n, V) of adapted parameters, or their mean with those of initial ones.

    A few clean inputs tell what is usual in a model, and a step that follows them too far forgets
    what was meta-learned. The mean of both verdicts is seldom worse than the better one [1]_.

    Parameters
    ----------
    adapted : mapping
        See :func:`contributions`.
    initial : mapping, optional
        The parameters before adaptation; None takes the adapted ones alone.
    profiles : (n, V, n_columns) tensor
    present : (V,) tensor

    Examples
    --------
    >>> params = {name: torch.ones(4, 2) for name in ("w1", "w_mean", "w_max")}
    >>> params |= {name: torch.ones(2) for name in ("b1", "w2", "attention")}
    >>> params["b2"] = torch.zeros(())
    >>> points, both = torch.ones(3, 2, 4), torch.ones(2)
    >>> alone = verdicts(params, None, points, both)
    >>> bool(torch.equal(verdicts(params, params, points, both), alone))
    True
    """
    parts = contributions(adapted, profiles, present)
    if initial is None:
        return parts
    return (parts + contributions(initial, profiles, present)) / 2
