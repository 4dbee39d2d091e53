"""What the cells of an arena add up to: by defence, by attack, worst cases first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_shield.simulations.arena.tables import UNTARGETED

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One defence over all attacks: means over seeds, then over attacks, and the worst attack.

    Attributes
    ----------
    defense : str
    malicious_rejected, least_rejected : float, optional
        Mean over attacks, and the attack with the fewest rejected; None for rules that reject
        nobody.
    benign_rejected, most_benign_rejected : float
        Mean over attacks, and the attack with the most.
    false_alarms : float, optional
        Benign updates rejected where nobody attacks.
    auc, least_auc : float, optional
    worst_asr : float
        Largest success rate of any targeted attack after one aggregated round.
    worst_attack : str
        Which attack that is.
    worst_excess : float, optional
        Largest success rate of any targeted attack beyond the perfect defence's, which keeps what
        a trigger does by itself; None where the grid has no perfect defence.
    accuracy_lost : float
        Mean loss beside plain averaging of the attack-free round.
    seconds : float
        Of one aggregation.
    """

    defense: str
    malicious_rejected: float | None
    least_rejected: float | None
    benign_rejected: float
    most_benign_rejected: float
    false_alarms: float | None
    auc: float | None
    least_auc: float | None
    worst_asr: float
    worst_attack: str
    worst_excess: float | None
    accuracy_lost: float
    seconds: float


def standings(entries: Sequence[Entry]) -> list[Standing]:
    """Every defence of a recorded grid, the lowest worst-case success rate first.

    Success counts beyond the perfect defence's where the grid has that.
    """
    calm = by_seeds(e for e in entries if e["attack"] == "none")
    attacked = by_seeds(e for e in entries if e["attack"] != "none")
    reference = calm.get(("none", "none"), {}).get("accuracy", float("nan"))
    defenses = list(dict.fromkeys(defense for _, defense in attacked))
    found = [_standing(d, attacked, calm.get(("none", d), {}), reference) for d in defenses]
    return sorted(found, key=lambda s: s.worst_asr if s.worst_excess is None else s.worst_excess)


def by_seeds(entries: Iterable[Entry]) -> dict[tuple[str, str], dict[str, Any]]:
    """Means over seeds by attack and defence; None where no seed has a figure.

    Examples
    --------
    >>> cells = [{"attack": "lp", "defense": "flame", "seed": s, "asr": s / 2} for s in (0, 1)]
    >>> by_seeds(cells)["lp", "flame"]["asr"]
    0.25
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["attack"], entry["defense"]), []).append(entry)
    return {key: _means(group) for key, group in groups.items()}


def _means(group: Sequence[Entry]) -> dict[str, Any]:
    names = [n for n in group[0] if n not in ("attack", "defense", "seed", "dataset")]
    return {name: _mean([entry[name] for entry in group]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if counted else None


def _standing(
    defense: str,
    attacked: Mapping[tuple[str, str], Mapping[str, Any]],
    calm: Mapping[str, Any],
    reference: float,
) -> Standing:
    own = {attack: cell for (attack, d), cell in attacked.items() if d == defense}
    targeted = {a: c["worst_asr"] for a, c in own.items() if a not in UNTARGETED}
    worst = max(targeted, key=lambda a: targeted[a]) if targeted else ""
    perfect = {a: attacked.get((a, "perfect")) for a in targeted}
    excess = [targeted[a] - cell["worst_asr"] for a, cell in perfect.items() if cell is not None]
    rejects = any(cell["malicious_rejected"] for cell in own.values())
    rejected = [c["malicious_rejected"] for a, c in own.items() if rejects and a != "mimic"]
    benign = [c["benign_rejected"] for c in own.values() if c["benign_rejected"] is not None]
    aucs = [c["auc"] for a, c in own.items() if c["auc"] is not None and a != "mimic"]
    return Standing(
        defense=defense,
        malicious_rejected=_mean(rejected),
        least_rejected=min((r for r in rejected if r is not None), default=None),
        benign_rejected=float(np.mean(benign)) if benign else 0.0,
        most_benign_rejected=max(benign, default=0.0),
        false_alarms=calm.get("benign_rejected"),
        auc=_mean(aucs),
        least_auc=min(aucs, default=None),
        worst_asr=targeted.get(worst, 0.0),
        worst_attack=worst,
        worst_excess=max(max(excess), 0.0) if excess else None,
        accuracy_lost=reference - float(np.mean([c["accuracy"] for c in own.values()])),
        seconds=float(np.mean([c["seconds"] for c in own.values()])),
    )
