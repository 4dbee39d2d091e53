"""One run in figures: what happened in each round and to each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fl_shield.audit.records import REFUSED, AuditedRound, AuditedRun, AuditedVerdict
from fl_shield.types import Action

if TYPE_CHECKING:
    from fl_shield.audit.store import AuditStore


@dataclass(frozen=True, kw_only=True)
class ClientSummary:
    """All rounds of one client.

    Attributes
    ----------
    client_id : str
        The client.
    actions : mapping of Action to int
        How often each action was decided.
    mean_score : float, optional
        Mean suspicion over the rounds with a score.
    reputation : float
        Trust after its last round, in [0, 1].
    refusals : tuple of AuditedVerdict
        Verdicts that were not keep, in order.
    """

    client_id: str
    actions: Mapping[Action, int]
    mean_score: float | None
    reputation: float
    refusals: tuple[AuditedVerdict, ...]

    @property
    def n_rounds(self) -> int:
        """Rounds in which the client was judged."""
        return sum(self.actions.values())

    @property
    def n_refused(self) -> int:
        """Rounds in which it lost its vote: drop or reject."""
        return sum(self.actions.get(action, 0) for action in REFUSED)

    @property
    def n_suspected(self) -> int:
        """Rounds in which its vote was lost or made smaller."""
        return self.n_refused + self.actions.get(Action.DOWNWEIGHT, 0)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run with its rounds and clients.

    Attributes
    ----------
    run : AuditedRun
        The run.
    rounds : tuple of AuditedRound
        In the order they were written.
    verdicts : tuple of AuditedVerdict
        In the order they were written.
    actions : mapping of (server_round, Action) to int
        How often each action was decided in each round.
    clients : tuple of ClientSummary
        The most suspicious first.
    """

    run: AuditedRun
    rounds: tuple[AuditedRound, ...]
    verdicts: tuple[AuditedVerdict, ...]
    clients: tuple[ClientSummary, ...]
    actions: Mapping[tuple[int, Action], int] = field(default_factory=dict)

    @property
    def n_not_applied(self) -> int:
        """Decisions against a client that changed no aggregate, as in monitor mode."""
        decided = (*REFUSED, Action.DOWNWEIGHT)
        verdicts = [entry.verdict for entry in self.verdicts]
        return sum(not verdict.applied and verdict.action in decided for verdict in verdicts)

    @property
    def shield_seconds(self) -> float:
        """Seconds inside the shield, all rounds together."""
        return sum(entry.shield_seconds for entry in self.rounds)

    @property
    def shield_share(self) -> float | None:
        """Part of the rounds' time that was spent inside the shield; None without times."""
        total = sum(entry.round_seconds for entry in self.rounds)
        return self.shield_seconds / total if total > 0 else None


def run_name(run: AuditedRun) -> str:
    """Return what tells a run from others: its name, or data set, attack, defense and mode.

    Examples
    --------
    >>> run_name(AuditedRun(run_id="r", started_at="", settings={"mode": "filter", "attack": "lp"}))
    'lp · filter'
    """
    named = run.settings.get("name") or run.settings.get("scenario")
    if isinstance(named, str):
        return named
    keys = ("dataset", "attack", "defense", "strategy", "mode")
    parts = [run.settings.get(key) for key in keys]
    return " · ".join(part for part in parts if isinstance(part, str)) or run.run_id


def summarise_run(store: AuditStore, run_id: str) -> RunSummary:
    """Read one run and sum it up."""
    run = store.run(run_id)
    verdicts = tuple(store.verdicts(run.run_id))
    return RunSummary(
        run=run,
        rounds=tuple(store.rounds(run.run_id)),
        verdicts=verdicts,
        clients=tuple(summarise_clients(verdicts)),
        actions=Counter((entry.server_round, entry.verdict.action) for entry in verdicts),
    )


def summarise_clients(verdicts: Iterable[AuditedVerdict]) -> Sequence[ClientSummary]:
    """Sum up each client's rounds, the most suspicious client first.

    Clients are ordered by the share of rounds in which they lost their vote or part of it, then
    by mean score, then by id.
    """
    by_client: dict[str, list[AuditedVerdict]] = {}
    for entry in verdicts:
        by_client.setdefault(entry.verdict.client_id, []).append(entry)
    return sorted((_client(*item) for item in by_client.items()), key=_suspicion)


def _client(client_id: str, entries: Sequence[AuditedVerdict]) -> ClientSummary:
    scores = [entry.verdict.score for entry in entries if entry.verdict.score is not None]
    return ClientSummary(
        client_id=client_id,
        actions=Counter(entry.verdict.action for entry in entries),
        mean_score=sum(scores) / len(scores) if scores else None,
        reputation=entries[-1].verdict.reputation,
        refusals=tuple(entry for entry in entries if entry.verdict.action is not Action.KEEP),
    )


def _suspicion(client: ClientSummary) -> tuple[float, float, str]:
    return (-client.n_suspected / client.n_rounds, -(client.mean_score or 0.0), client.client_id)
