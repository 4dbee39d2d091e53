"""Whether false-positive budgets hold on victims that no weights have seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

from fl_shield.metrics import bootstrap_interval
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.shots import Shots
from fl_shield.simulations.evaluation.judging import BUDGETS
from fl_shield.triggers import HELD_OUT_FAMILIES
from fl_shield.types import Floats

HELD_OUT, ALL, DATA_SETS = "held-out triggers", "all", "left-out data sets"
"""Groups of victims that the weights have not seen: kept for evaluation with a held-out trigger,
all that are kept for evaluation, and every victim of a data set that is left out whole."""

HARMLESS = "stamped, left-out data sets"
"""Stamped inputs of clean victims of a data set that is left out whole: they do no harm, and are
not clean either, so no budget was promised for them."""

EACH_ONCE = "left-out data sets, each counted once"
"""The same victims as :data:`DATA_SETS`, as one number a data set: data sets are what null
distributions are taken across and what is drawn anew, and some have twice as many victims."""

GROUPS = (HELD_OUT, ALL, DATA_SETS, HARMLESS)

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """Harmless inputs of one unseen victim that were flagged.

    Attributes
    ----------
    groups : tuple of str
        Which of :data:`GROUPS` it belongs to.
    pool : str
        Its data set.
    n_shots, n_clean : int
        References, and inputs that were judged: clean ones, or stamped ones of :data:`HARMLESS`.
    shares : tuple of float
        Flagged share of these inputs at each of
        :data:`~fl_shield.simulations.evaluation.judging.BUDGETS`.
    """

    groups: tuple[str, ...]
    pool: str
    n_shots: int
    n_clean: int
    shares: tuple[float, ...]


def groups_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Groups of a victim that is kept for evaluation."""
    return (HELD_OUT, ALL) if facts["family"] in HELD_OUT_FAMILIES else (ALL,)


def false_alarms(
    shots: Shots, p_values: Floats, groups: tuple[str, ...], pool: str
) -> list[FalseAlarms]:
    """Count the false alarms among the points of shots by their p-values (n_points,).

    Those of clean inputs, and apart from them those of stamped inputs that are harmless.
    """

    def counted(p_values: Floats, groups: tuple[str, ...]) -> FalseAlarms:
        return FalseAlarms(
            groups=groups,
            pool=pool,
            n_shots=len(shots.references),
            n_clean=len(p_values),
            shares=tuple(float((p_values <= budget).mean()) for budget in BUDGETS),
        )

    harmless = p_values[shots.n_clean :][shots.labels[shots.n_clean :] == 0]
    found = [counted(p_values[: shots.n_clean], groups)]
    if len(harmless) and DATA_SETS in groups:
        found.append(counted(harmless, (HARMLESS,)))
    return found


def calibration(alarms: Sequence[FalseAlarms]) -> list[dict[str, Any]]:
    """One line for each group of victims, number of shots and budget.

    Parameters
    ----------
    alarms : sequence of FalseAlarms
        Of victims that taught the weights nothing, also of those whose attack failed: the budget
        is a promise about clean inputs.

    Returns
    -------
    list of dict
        See :func:`kept`, with ``victims`` (which), ``n_shots`` and ``budget``.
    """
    groups = {name: [a for a in alarms if name in a.groups] for name in GROUPS}
    groups[EACH_ONCE] = _each_once(groups[DATA_SETS])
    lines = []
    for name, group in groups.items():
        for n_shots in sorted({a.n_shots for a in group}):
            at = [a for a in group if a.n_shots == n_shots]
            n_clean = np.array([a.n_clean for a in at])
            for i, budget in enumerate(BUDGETS):
                told = kept(np.array([a.shares[i] for a in at]), n_clean, budget)
                lines.append({"victims": name, "n_shots": n_shots, "budget": budget, **told})
    return lines


def _each_once(alarms: Sequence[FalseAlarms]) -> list[FalseAlarms]:
    """Alarms of whole data sets: the mean share of the victims of each, at each number of shots."""
    found: dict[tuple[str, int], list[FalseAlarms]] = defaultdict(list)
    for alarm in alarms:
        found[alarm.pool, alarm.n_shots].append(alarm)
    return [
        FalseAlarms(
            groups=(EACH_ONCE,),
            pool=pool,
            n_shots=n_shots,
            n_clean=sum(a.n_clean for a in own),
            shares=tuple(np.mean([a.shares for a in own], axis=0).tolist()),
        )
        for (pool, n_shots), own in found.items()
    ]


def kept(shares: Floats, n_clean: Floats, budget: float) -> dict[str, Any]:
    """Realised false-positive rate over victims beside the budget that was promised.

    The promise: if a victim is exchangeable with the meta-training tasks, the chance that a clean
    input of it is flagged is the budget, over victims and inputs. It is no promise about each
    victim: one may give many false alarms and most none. So the victims, not their inputs, are
    the independent draws, and the interval must show the spread between them.

    Parameters
    ----------
    shares : (n_victims,) float array
        Flagged share of each victim's clean inputs.
    n_clean : (n_victims,) int array
        Clean inputs of each victim.
    budget : float

    Returns
    -------
    dict
        ``fpr``
            Mean of the shares: each victim counts once.
        ``band``
            95 % percentile bootstrap interval of that mean, drawing victims.
        ``inside``
            Whether the budget is at or above the lower end of the band: the rate may be lower
            than was promised, and the data do not refute that it is at most the budget.
        ``binomial``
            The naive band: 95 % of realised rates were between these if all inputs, also those of
            one victim, were flagged independently with the budget's chance. Too narrow by far, as
            inputs of one victim are judged by the same few references.
        ``above``
            Share of victims whose own rate exceeds the budget.

    Examples
    --------
    >>> told = kept(np.array([0.0, 0.0, 0.02, 0.06]), np.array([100, 100, 100, 100]), 0.01)
    >>> told["fpr"], told["inside"], told["above"]
    (0.02, True, 0.5)
    """
    low, high = bootstrap_interval(shares, keyed(0, 84))
    total = int(n_clean.sum())
    binomial = binom.ppf([0.025, 0.975], total, budget) / total
    return {
        "n_victims": len(shares),
        "n_clean": total,
        "fpr": float(shares.mean()),
        "band": [low, high],
        "inside": budget >= low - ROUNDING,
        "binomial": [float(end) for end in binomial],
        "above": float((shares > budget).mean()),
    }
