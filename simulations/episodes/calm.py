"""Attack-free federations with the shield in the loop: the null distribution of updates.

What the shield remembers is what it kept, so its references lack the strangest of the honest
clients, and benign log-odds stand higher beside them than beside a memory of everybody. Only
rounds in which the shield itself decides show by how much. Every kept update votes in full here and
is remembered: what doubt takes away is the deployed shield's margin, not the null's. Honest clients
that were doubted become suspects, and others resemble them: that is part of the null, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from fl_shield.detector import MetaShield
from fl_shield.policy import Policy, log_odds
from fl_shield.simulations.episodes.rounds import Federation, FederationSetting, draw_setting
from fl_shield.simulations.processes import map_in_processes
from fl_shield.types import Action, Floats
from fl_shield.weights import ODDS_NULL, Weights

CalmNull = Literal["updates", "log-odds of updates"]
"""Null distributions that calm federations give."""

N_PASSES: Mapping[CalmNull, int] = {"updates": 2, "log-odds of updates": 3}
"""A null that is too tight drops more, so that the memory lacks more and benign log-odds rise. Of
standardised log-odds, the first pass decides by the null of tasks that everybody was remembered in,
gives too loose a one, and the second decides by that and counts. Of plain ones, nobody is doubted
in the first pass, and the mean of three counts, the last for a half.
"""

_MOST_ODDS = 30.0

FIRST_SEED = 90_000
"""Seeds of calm federations start here, beyond those of the sources."""


def calm_settings(
    n_glyphs: int, n_digits: int, n_rounds: int, seed: int, n_photos: int = 0
) -> list[FederationSetting]:
    """Settings of attack-free federations, drawn like those of the sources.

    Examples
    --------
    >>> [s.dataset for s in calm_settings(1, 1, n_rounds=15, seed=0)]
    ['glyphs', 'digits']
    """
    first = seed * 100_000 + FIRST_SEED
    counts = {"glyphs": n_glyphs, "digits": n_digits, "tiny-imagenet": n_photos}
    named = [name for name, n in counts.items() for _ in range(n)]
    return [
        replace(draw_setting(name, first + i, n_rounds), warm_rounds=0)
        for i, name in enumerate(named)
    ]


def calm_scores(setting: FederationSetting, weights: Weights, kind: CalmNull = "updates") -> Floats:
    """What benign updates score in settled rounds that the shield decides on.

    Parameters
    ----------
    setting : FederationSetting
    weights : Weights
        With null distributions to start from.
    kind : str
        Null distribution that the scores are for: standardised log-odds, or plain ones.

    Returns
    -------
    (n,) float array
    """
    torch.set_num_threads(1)
    federation = Federation(setting, MetaShield(weights), suspects=kind == ODDS_NULL)
    policy, inspector = Policy(), federation.inspector
    found: list[Floats] = [np.zeros(0)]
    for server_round in range(setting.n_rounds):
        clients = federation.participants(server_round)
        updates = federation.honest_updates(clients, server_round)
        if federation.diverged:
            break
        names = [str(client) for client in clients]  # suspects are told apart by name
        seen = inspector.inspect(federation.arrays, updates, np.ones(len(updates)), None, names)
        if inspector.is_settled:
            odds = log_odds(seen.scores, limit=_MOST_ODDS)
            found.append(odds if kind == ODDS_NULL else seen.standard_scores)
        decided = policy.decide(names, list(seen.scores), list(seen.p_values))
        kept = np.array([d.action is Action.KEEP for d in decided])
        inspector.remember(kept, np.array([d.doubt for d in decided]))
        if kept.any():
            federation.aggregate([updates[i] for i in np.flatnonzero(kept)], clients[kept])
    return np.concatenate(found)


def calm_null(
    settings: Sequence[FederationSetting],
    weights: Weights,
    n_workers: int = 1,
    kind: CalmNull = "updates",
) -> Iterator[Floats]:
    """Run attack-free federations, in processes, and yield the scores of each in order."""
    return map_in_processes(partial(calm_scores, weights=weights, kind=kind), settings, n_workers)
