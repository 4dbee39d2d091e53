"""What happened in one federation: rows by round, and the figures that sum them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from sklearn.metrics import roc_auc_score

from fl_shield.simulations.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One client in one round, with the ground truth that only the harness knows.

    Attributes
    ----------
    partition : int
        Which client of the scenario.
    malicious : bool
        Whether it attacked in this round.
    equals_honest : bool
        Whether an attacker's upload was byte-equal to its own honest one.
    rejected : bool
        Whether the defence flagged the update (in monitor mode: would have dropped it).
    action : str
        What the defence did, such as ``keep`` or ``drop``.
    vote : float
        Part of its vote that the update kept, in [0, 1].
    score, p_value : float, optional
        The defence's suspicion, and the shield's p-value; None where there is none.
    """

    partition: int
    malicious: bool
    equals_honest: bool = False
    rejected: bool = False
    action: str = "keep"
    vote: float = 1.0
    score: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One round of a federation.

    Attributes
    ----------
    server_round : int
        From 1; the untrained model is round 0, without clients.
    accuracy, asr : float
        Main-task accuracy and attack success rate of the model after the round.
    round_seconds, shield_seconds : float
        From configuring clients to the aggregate, and the shield's part of it.
    clients : tuple of ClientRow
        Who took part, by partition.
    """

    server_round: int
    accuracy: float
    asr: float
    round_seconds: float = 0.0
    shield_seconds: float = 0.0
    clients: tuple[ClientRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the row that :meth:`to_dict` described."""
        clients = tuple(ClientRow(**row) for row in values["clients"])
        return cls(**{**values, "clients": clients})


OnRound = Callable[[RoundRow], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished federation.

    Attributes
    ----------
    rounds : tuple of RoundRow
        Round 0 to the last.
    audit : mapping of str to str
        Where the shield's decisions stand: ``run_id`` and ``head``; empty without a shield.
    """

    rounds: tuple[RoundRow, ...]
    audit: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"rounds": [row.to_dict() for row in self.rounds], "audit": dict(self.audit)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the outcome that :meth:`to_dict` described."""
        rounds = tuple(RoundRow.from_dict(row) for row in values["rounds"])
        return cls(rounds=rounds, audit=values["audit"])


def summarise(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    """One entry of ``results.json`` without its settings.

    Rates are None where there was nothing to count: ``tpr`` without malicious updates,
    ``score_auc`` without scores of both kinds. ``fpr`` counts updates that were rejected;
    ``benign_vote`` is the mean part of their vote that benign updates kept, doubts included.

    Examples
    --------
    >>> rows = [RoundRow(server_round=r, accuracy=r / 4, asr=0.0) for r in range(5)]
    >>> entry = summarise(Scenario(n_rounds=4), Outcome(rounds=tuple(rows)))
    >>> entry["main_accuracy"], entry["tpr"]
    (1.0, None)
    """
    rows = [row for row in outcome.rounds if row.server_round > 0]
    last = rows[-max(1, len(rows) // 10) :]
    attacked = [row for row in rows if row.server_round >= scenario.attack_from]
    return {
        "attack": scenario.attack,
        "defense": scenario.defense,
        "seed": scenario.seed,
        "main_accuracy": float(np.mean([row.accuracy for row in last])),
        "final_accuracy": rows[-1].accuracy,
        "asr": float(np.mean([row.asr for row in last])),
        "asr_peak": max(row.asr for row in attacked),
        **rejection_rates([client for row in rows for client in row.clients]),
        "score_auc": _score_auc([client for row in attacked for client in row.clients]),
        "fpr_budget": scenario.fpr_budget,
        "shield_seconds": sum(row.shield_seconds for row in rows),
        "round_seconds": sum(row.round_seconds for row in rows),
        "rounds": [_series(row) for row in outcome.rounds],
    }


def rejection_rates(clients: Sequence[ClientRow]) -> dict[str, Any]:
    """Shares of updates that were rejected, and of their votes that were kept, by kind.

    None where there is nothing to count; attackers' uploads that equal their honest ones are
    counted apart.
    """
    benign = [c.rejected for c in clients if not c.malicious]
    malicious = [c.rejected for c in clients if c.malicious and not c.equals_honest]
    equal = [c.rejected for c in clients if c.malicious and c.equals_honest]
    return {
        "tpr": float(np.mean(malicious)) if malicious else None,
        "fpr": float(np.mean(benign)) if benign else None,
        "benign_vote": _mean_vote([c for c in clients if not c.malicious]),
        "malicious_vote": _mean_vote([c for c in clients if c.malicious and not c.equals_honest]),
        "n_malicious_updates": len(malicious),
        "n_benign_updates": len(benign),
        "n_malicious_equal_to_honest": len(equal),
        "n_malicious_equal_to_honest_rejected": sum(equal),
    }


def _mean_vote(clients: Sequence[ClientRow]) -> float | None:
    return float(np.mean([c.vote for c in clients])) if clients else None


def _score_auc(clients: Sequence[ClientRow]) -> float | None:
    scored = [c for c in clients if c.score is not None and not c.equals_honest]
    labels = [c.malicious for c in scored]
    if len(set(labels)) < 2:
        return None
    return float(roc_auc_score(labels, [c.score for c in scored]))


def _series(row: RoundRow) -> dict[str, Any]:
    return {
        "server_round": row.server_round,
        "accuracy": row.accuracy,
        "asr": row.asr,
        "round_seconds": row.round_seconds,
        "shield_seconds": row.shield_seconds,
        "participants": [c.partition for c in row.clients],
        "malicious": [c.partition for c in row.clients if c.malicious],
        "equal_to_honest": [c.partition for c in row.clients if c.equals_honest],
        "rejected": [c.partition for c in row.clients if c.rejected],
        "scores": [c.score for c in row.clients],
        "p_values": [c.p_value for c in row.clients],
        "votes": [c.vote for c in row.clients],
    }
