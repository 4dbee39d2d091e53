"""Rounds of unseen federations, judged by the very weights that judge inputs.

A client update is seen through other views than an input, one for each tensor and probe, and read
by the same network. Every round is attacked in the ways that weights learn from and in one that
none ever does: a perturbation of the layers that carry the backdoor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_shield.detector import Adapted
from fl_shield.meta import Episode
from fl_shield.metrics import auroc
from fl_shield.simulations.episodes.cache import load_episodes
from fl_shield.simulations.episodes.federations import path_of
from fl_shield.simulations.episodes.rounds import (
    ATTACK_NAMES,
    HELD_OUT_ATTACK,
    FederationSetting,
    draw_setting,
)
from fl_shield.simulations.evaluation.splits import MAIN_SPLIT, WITHOUT_FEDERATIONS
from fl_shield.simulations.evaluation.study import Contender
from fl_shield.simulations.evaluation.tables import PEERS, grouped
from fl_shield.simulations.null_distributions import kind_of
from fl_shield.simulations.processes import map_in_processes
from fl_shield.weights import PRETRAINED, WEIGHTS_FILE, Weights

SPECIALIST = "metashield-updates"
"""The shipped weights for updates, which learned from federations and digits victims."""

BUDGET = 0.05

_FIRST_SEED, _N_ROUNDS = 50_000, 3


@dataclass(frozen=True, kw_only=True)
class FederatedRow:
    """What one detector made of one federation under one attack.

    Attributes
    ----------
    detector, split : str
    dataset, attack : str
    seed : int
    n_rounds : int
        Attacked rounds.
    auc : float
        Malicious against benign updates of a round, mean over rounds.
    rejected, rejected_benign : float or None
        Shares with p <= 5 %, mean over rounds; None for weights that have no null distribution of
        updates, which those that never saw a federation lack.
    """

    detector: str
    split: str
    dataset: str
    attack: str
    seed: int
    n_rounds: int
    auc: float
    rejected: float | None
    rejected_benign: float | None


def judged_federations(n_each: int, seed: int) -> list[FederationSetting]:
    """Federations that no weights learn from, ``n_each`` of each data set.

    Examples
    --------
    >>> [f.dataset for f in judged_federations(1, 0)]
    ['digits', 'glyphs']
    """
    first = seed * 100_000 + _FIRST_SEED
    attacks = (*ATTACK_NAMES, HELD_OUT_ATTACK)
    return [
        replace(draw_setting(dataset, first + i, _N_ROUNDS), attacks=attacks)
        for dataset in ("digits", "glyphs")
        for i in range(n_each)
    ]


def judges_federations(contender: Contender) -> bool:
    """Whether weights take part: those of held-out triggers, and those that saw no federation."""
    return (
        contender.split.name in (MAIN_SPLIT, WITHOUT_FEDERATIONS.name) and contender.n_views is None
    )


def judge_federations(
    settings: Sequence[FederationSetting],
    contenders: Sequence[Contender],
    cache: Path,
    n_workers: int = 1,
) -> Iterator[list[FederatedRow]]:
    """Judge simulated federations, in order, by all contenders that take part."""
    chosen = tuple(filter(judges_federations, contenders))
    each = partial(_judge_file, contenders=chosen, cache=cache)
    return map_in_processes(each, settings, n_workers)


def _judge_file(
    setting: FederationSetting, contenders: Sequence[Contender], cache: Path
) -> list[FederatedRow]:
    episodes = load_episodes(path_of(setting, cache))
    with resources.as_file(resources.files(PRETRAINED["updates"]) / WEIGHTS_FILE) as path:
        rows = rows_of(setting, episodes, Weights.load(path), None, (SPECIALIST, PEERS))
    for contender in contenders:
        weights, names = Weights.load(contender.path), (contender.name, contender.split.name)
        rows += rows_of(setting, episodes, weights, contender.n_inner_steps, names)
    return rows


def rows_of(
    setting: FederationSetting,
    episodes: Sequence[Episode],
    weights: Weights,
    n_inner_steps: int | None,
    names: tuple[str, str],
) -> list[FederatedRow]:
    """One row for each attack on a federation, by one detector; attack-free rounds have none.

    Parameters
    ----------
    setting : FederationSetting
    episodes : sequence of Episode
        Its rounds.
    weights : Weights
    n_inner_steps : int, optional
        Steps of the inner loop; the meta-trained number by default.
    names : (str, str)
        What the rows call the detector and its split.
    """
    attacked = grouped([e for e in episodes if e.labels.any()], lambda e: e.family)
    rows = []
    for attack, rounds in attacked.items():
        told = np.array([_judged(episode, weights, n_inner_steps) for episode in rounds])
        auc, rejected, benign = told.mean(0).tolist()
        known = rejected == rejected  # not NaN
        rows.append(
            FederatedRow(
                detector=names[0],
                split=names[1],
                dataset=setting.dataset,
                attack=str(attack),
                seed=setting.seed,
                n_rounds=len(rounds),
                auc=auc,
                rejected=rejected if known else None,
                rejected_benign=benign if known else None,
            )
        )
    return rows


def _judged(
    episode: Episode, weights: Weights, n_inner_steps: int | None
) -> tuple[float, float, float]:
    """AUC, and rejected shares of malicious and benign updates of one round."""
    kind = kind_of(episode)
    known = kind in weights.nulls
    if not known:  # judged as inputs are; nothing is promised, only the order of scores counts
        kind = "inputs"
        weights = replace(weights, nulls={kind: torch.zeros(1)})
    adapted = Adapted(weights, episode.support, n_inner_steps, null=kind)
    odds, malicious = adapted.score(episode.query).log_odds, episode.labels == 1
    auc = auroc(episode.labels, odds)
    if not known:
        return auc, float("nan"), float("nan")
    flags = adapted.p_values(odds, "tasks") <= BUDGET
    return auc, float(flags[malicious].mean()), float(flags[~malicious].mean())


def federated_tables(rows: Sequence[FederatedRow]) -> dict[str, dict[str, Any]]:
    """By split and detector: one line for each attack, over federations, and one for each cell.

    Returns
    -------
    dict
        ``"{split}/{detector}"`` to ``attacks`` (``auc``, ``rejected``, ``rejected_benign`` and
        ``n_federations`` by attack) and ``cells`` (AUC by ``"{data set} {attack}"``).
    """
    return {
        f"{split}/{detector}": {
            "attacks": {a: _line(own) for a, own in grouped(group, lambda r: r.attack).items()},
            "cells": {
                f"{dataset} {attack}": float(np.mean([row.auc for row in own]))
                for (dataset, attack), own in grouped(
                    group, lambda r: (r.dataset, r.attack)
                ).items()
            },
        }
        for (split, detector), group in grouped(rows, lambda r: (r.split, r.detector)).items()
    }


def _line(rows: Sequence[FederatedRow]) -> dict[str, Any]:
    facts = [asdict(row) for row in rows]
    means: dict[str, Any] = {"n_federations": len(rows)}
    for name in ("auc", "rejected", "rejected_benign"):
        known = [f[name] for f in facts if f[name] is not None]
        means[name] = float(np.mean(known)) if known else None
    return means
