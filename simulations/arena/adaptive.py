"""Attackers that know their server's rule and train against it: what they reach, what it shows.

For each defence the same attack, :class:`~fl_shield.attacks.evasive.Evasive`, is given a
differentiable form of what that defence decides by, and a penalty that says how much it cares. From
no penalty to a large one, attack success falls or stays and the rule's suspicion falls: that is the
trade-off. Attackers either guess the other uploads of their round or, in the worst case, know them
and all that the server keeps secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_shield.aggregators.contract import Layout
from fl_shield.attacks.evasive import Evasive, Suspicion
from fl_shield.detector import MetaShield
from fl_shield.errors import ScenarioError
from fl_shield.live_rules import LIVE_RULES, RuleSuspicion
from fl_shield.live_suspicion import guessed_suspicion, guessed_uploads, known_suspicion
from fl_shield.rng import keyed
from fl_shield.simulations.arena.recording import RecordedRound, Recording
from fl_shield.simulations.arena.replay import Stage
from fl_shield.simulations.campaign import weights_digest, write_json
from fl_shield.simulations.clients import REFRESH, attack_context, torch_seed
from fl_shield.simulations.defenses import MAKE_DEFENSE, Defense, Shielded
from fl_shield.simulations.outcome import ClientRow, RoundRow
from fl_shield.simulations.scenario import Scenario, attackers, stream
from fl_shield.types import Arrays, AttackContext, Floats

KNOWLEDGE = ("guessed", "known")
"""How much attackers know of their round and of the server's secrets."""

PENALTIES = (0.0, 0.03, 0.3, 3.0)
"""From an attacker who does not care what the rule thinks to one who cares for little else."""

N_STEPS = 80
"""Batches of the training against the rule."""

_GUESSES = 0xADA7


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One defence, and how attackers meet it.

    Attributes
    ----------
    defense : str
        ``shield`` or a key of :data:`fl_shield.live_rules.LIVE_RULES`.
    knowledge : {"guessed", "known"}
        Whether attackers guess the round and the server's secrets, or know them.
    penalty : float
        Weight of the suspicion in what they minimise, >= 0.
    seed : int
    """

    defense: str
    knowledge: str
    penalty: float
    seed: int

    def __post_init__(self) -> None:
        if self.defense != "shield" and self.defense not in LIVE_RULES:
            raise ScenarioError(
                f"attackers know no gradient of defence {self.defense!r}; choose among shield, "
                f"{', '.join(LIVE_RULES)}"
            )
        if self.knowledge not in KNOWLEDGE:
            raise ScenarioError(
                f"knowledge must be one of {', '.join(KNOWLEDGE)}, got {self.knowledge!r}"
            )

    @property
    def name(self) -> str:
        """Short name, for files."""
        return f"{self.defense}-{self.knowledge}-{self.penalty:g}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What attackers reach in the rounds of a trial; means over rounds and attackers.

    Attributes
    ----------
    upload_asr : float
        Success rate of the models that they upload, by themselves.
    upload_accuracy : float
        Accuracy of these models.
    evaded : float
        Share of the round's benign updates that the rule finds at least as suspicious: 0 = the
        attackers stand out, 0.5 = they look like everybody else.
    vote : float
        What the defence leaves of their say; 1 for rules that judge coordinates.
    asr, accuracy : float
        Of the global model after the round.
    """

    upload_asr: float
    upload_accuracy: float
    evaded: float
    vote: float
    asr: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """A federation, the rounds in which it is attacked, and where results are kept."""

    scenario: Scenario
    rounds: tuple[int, ...]
    out: Path
    cache: Path
    n_steps: int = N_STEPS

    def conduct(self, trial: Trial) -> Mapping[str, Any]:
        """Run one trial, or read it where it is finished; returns its settings and figures."""
        scenario = self.scenario.with_(attack="evasive", attack_options={}, seed=trial.seed)
        facts = {**asdict(trial), "rounds": list(self.rounds), "n_steps": self.n_steps}
        path = self._trial_path(scenario.with_(defense=trial.defense), trial.name, facts)
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        recording = Recording(scenario, self.cache)
        reached = [_attacked(recording, trial, r, self.n_steps) for r in self.rounds]
        entry = {**facts, **_mean(reached)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, entry)
        return entry

    def _trial_path(self, scenario: Scenario, name: str, facts: Mapping[str, Any]) -> Path:
        """File of one trial: its name, and a digest of all that it depends on."""
        depends = [scenario.to_json(), weights_digest(scenario), facts]
        digest = sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
        return self.out / "trials" / f"{name}-{digest}.json"


def trials(
    defenses: Sequence[str],
    seeds: Sequence[int],
    knowledge: Sequence[str] = KNOWLEDGE,
    penalties: Sequence[float] = PENALTIES,
) -> list[Trial]:
    """Every combination.

    Examples
    --------
    >>> [trial.name for trial in trials(["flame"], [0], ["known"], [0.3])]
    ['flame-known-0.3-s0']
    """
    return [
        Trial(defense=d, knowledge=k, penalty=p, seed=s)
        for s in seeds
        for d in defenses
        for k in knowledge
        for p in penalties
    ]


def _attacked(recording: Recording, trial: Trial, server_round: int, n_steps: int) -> Reached:
    """Attack one round of a recorded federation, whose rounds before were honest."""
    scenario = recording.scenario.with_(defense=trial.defense)
    stage = Stage(replace(recording.task, scenario=scenario))
    defense = MAKE_DEFENSE[trial.defense](stage.task, None, stage.names.__getitem__)
    for earlier in range(1, server_round):
        stage.play(defense, _honest(recording, earlier))
    calm = _honest(recording, server_round)
    uploads = dict(calm.uploads)
    attacking = attackers(scenario, server_round)
    for partition in attacking:  # the second knows what the first one uploads
        others = [upload for p, upload in uploads.items() if p != partition]
        uploads[partition] = _upload(stage, defense, trial, calm, partition, others, n_steps)
    row = stage.play(defense, replace(calm, uploads=uploads, malicious=attacking))
    return _reached(stage, row, trial, calm.global_arrays, uploads, attacking)


def _honest(recording: Recording, server_round: int) -> RecordedRound:
    arrays, uploads = recording.honest_round(server_round)
    return RecordedRound(
        server_round=server_round,
        global_arrays=arrays,
        uploads=uploads,
        malicious=(),
        equal_to_honest=(),
    )


def _upload(
    stage: Stage,
    defense: Defense,
    trial: Trial,
    calm: RecordedRound,
    partition: int,
    others: Sequence[Arrays],
    n_steps: int,
) -> Arrays:
    """What an attacker uploads who knows the rule."""
    task, server_round = stage.task, calm.server_round
    context = attack_context(
        task,
        task.new_model(),
        calm.global_arrays,
        server_round=server_round,
        partition=partition,
    )
    with torch_seed(stream(task.scenario, "client", server_round, partition)):
        if trial.penalty > 0:
            suspicion = _suspicion(defense, trial, context, others, task.scenario)
            context = replace(context, suspicion=suspicion)
        else:  # without a suspicion the attack would clip: 0 is plain poisoning
            context = replace(context, suspicion=lambda tensors: torch.zeros(()))
        return Evasive(penalty=trial.penalty, n_steps=n_steps)(context)


def _suspicion(
    defense: Defense,
    trial: Trial,
    context: AttackContext,
    others: Sequence[Arrays],
    scenario: Scenario,
) -> Suspicion:
    knows = trial.knowledge == "known"
    rng = keyed(trial.seed, _GUESSES, context.server_round, context.member)
    if isinstance(defense, Shielded):
        if knows:
            return known_suspicion(
                defense.inspector, context.global_arrays, others, refresh=REFRESH, capped=False
            )
        detector = MetaShield.from_pretrained(scenario.weights)
        return guessed_suspicion(
            context, detector, rng, probes=scenario.probes, refresh=REFRESH, capped=False
        )
    beside = others if knows else guessed_uploads(context, rng)
    return RuleSuspicion(trial.defense, context.global_arrays, beside, middle=Evasive().margin)


def _reached(
    stage: Stage,
    row: RoundRow,
    trial: Trial,
    global_arrays: Arrays,
    uploads: Mapping[int, Arrays],
    attacking: Sequence[int],
) -> Reached:
    judged = [stage.judge(uploads[p]) for p in attacking]
    clients = {client.partition: client for client in row.clients}
    suspicions = _suspicions(trial.defense, global_arrays, uploads, clients)
    benign = np.array([suspicions[p] for p in uploads if p not in attacking])
    return Reached(
        upload_accuracy=float(np.mean([accuracy for accuracy, _ in judged])),
        upload_asr=float(np.mean([asr for _, asr in judged])),
        evaded=float(np.mean([(benign >= suspicions[p]).mean() for p in attacking])),
        vote=float(np.mean([clients[p].vote for p in attacking])),
        asr=row.asr,
        accuracy=row.accuracy,
    )


def _suspicions(
    defense: str,
    global_arrays: Arrays,
    uploads: Mapping[int, Arrays],
    clients: Mapping[int, ClientRow],
) -> dict[int, float]:
    """What the defence decides by, of each participant; higher = more suspicious."""
    if defense not in LIVE_RULES:
        return {p: -float(clients[p].p_value or 0.0) for p in uploads}
    layout = Layout.of(global_arrays)
    start = layout.flat(global_arrays)
    rows: Floats = np.stack([layout.flat(upload) - start for upload in uploads.values()])
    numbers = LIVE_RULES[defense](torch.from_numpy(rows), torch.from_numpy(start))
    return dict(zip(uploads, numbers.tolist(), strict=True))


def _mean(reached: Sequence[Reached]) -> dict[str, float]:
    rows = [asdict(one) for one in reached]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
