"""What the shield's evidence is worth beyond one update: layers, reports, restarts, forgiveness.

Four questions, asked of recorded federations of an arena table:

- which layers does the audit name where LP poisoned some of them;
- what do reports of activations add where attackers are honest in them, omit them, or forge them;
- what is lost where the server restarts in the middle, with and without its checkpoint;
- when is a client heard again who attacked and then stopped.

Run::

    python -m fl_shield.simulations.benchmarks.evidence --scenario femnist --data-dir DATA \
        --out evidence.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fl_shield.activations import activations_of
from fl_shield.attacks.lp import LayerPoisoning
from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.metrics import auroc
from fl_shield.policy import Policy
from fl_shield.rng import keyed
from fl_shield.simulations.arena.contest import quiet_flower
from fl_shield.simulations.arena.recording import RecordedRound, Recording
from fl_shield.simulations.arena.replay import Stage
from fl_shield.simulations.arena.tables import TABLES, ArenaTable
from fl_shield.simulations.campaign import versions, write_json
from fl_shield.simulations.clients import attack_context, torch_seed
from fl_shield.simulations.defenses import Shielded
from fl_shield.simulations.outcome import RoundRow, rejection_rates
from fl_shield.simulations.scenario import stream
from fl_shield.stages import find_layers
from fl_shield.strategies import load_checkpoint, save_checkpoint, to_record
from fl_shield.training import set_arrays
from fl_shield.types import Action, ActivationReport, Samples

REPORTS = ("none", "honest", "omitted", "forged")
"""How clients report: nobody; everybody truthfully; attackers not; attackers as if honest."""

N_REPORTED = 4
"""Rows of a report, as :func:`fl_shield.strategies.report_activations` has it by default."""

_DRAWS = 0xE71D

Rates = Mapping[str, float | None]


def layers_named(recording: Recording, rounds: Sequence[int]) -> dict[str, float]:
    """How often the view that accuses an LP update most is of a layer that LP poisoned.

    Parameters
    ----------
    recording : Recording
        Of the attack ``lp``.
    rounds : sequence of int

    Returns
    -------
    dict
        ``named``: share of malicious updates whose strongest view is of a poisoned layer;
        ``by_chance``: the mean share of layers that are poisoned; ``n``: updates counted.
    """
    stage = _stage(recording)
    defense = _shield(stage)
    hits: list[bool] = []
    shares: list[float] = []
    for server_round in range(1, max(rounds) + 1):
        recorded = recording.round(server_round)
        stage.play(defense, recorded)
        if server_round not in rounds:
            continue
        verdicts = {v.client_id: v for v in defense.verdicts}
        for partition in recorded.malicious:
            poisoned = _poisoned_layers(stage, recorded, partition)
            views = verdicts[stage.task.data.client_names[partition]].view_scores
            layers = {name: score for name, score in views.items() if name.startswith("update:")}
            strongest = max(layers, key=lambda name: layers[name])
            hits.append(_layer(strongest) in poisoned)
            shares.append(len(poisoned) / len({_layer(name) for name in layers}))
    return {"named": float(np.mean(hits)), "by_chance": float(np.mean(shares)), "n": len(hits)}


def _stage(recording: Recording) -> Stage:
    scenario = recording.scenario.with_(defense="shield")
    return Stage(replace(recording.task, scenario=scenario))


def _shield(stage: Stage) -> Shielded:
    return Shielded(stage.task, None, stage.names.__getitem__)


def _poisoned_layers(stage: Stage, recorded: RecordedRound, partition: int) -> set[str]:
    """Layers that LP's analysis of this client finds critical, as the attack itself does."""
    task, server_round = stage.task, recorded.server_round
    context = attack_context(
        task,
        task.new_model(),
        recorded.global_arrays,
        server_round=server_round,
        partition=partition,
    )
    with torch_seed(stream(task.scenario, "client", server_round, partition)):
        return {_layer(name) for name in LayerPoisoning().critical_layers(context)}


def _layer(name: str) -> str:
    """Module of a tensor or of a view: ``update:conv.weight`` -> ``conv``."""
    return name.rpartition(":")[2].rpartition(".")[0] or name.rpartition(":")[2]


def reports_told(recording: Recording, how: str, weights: str) -> Rates:
    """What the shield finds where clients report activations in one of the ways of REPORTS.

    ``most_added_to_...`` are the largest log-odds that a report added to an update's.
    """
    task = recording.task
    detector = MetaShield.from_pretrained(weights)  # type: ignore[arg-type]
    inspector = Inspector(task.new_model(), task.data.clean, detector, seed=recording.scenario.seed)
    policy = Policy(fpr_budget=recording.scenario.fpr_budget)
    rejected: dict[bool, list[bool]] = {True: [], False: []}
    aucs, added = [], {True: [0.0], False: [0.0]}
    for server_round in range(1, recording.scenario.n_rounds + 1):
        recorded = recording.round(server_round)
        names = [task.data.client_names[p] for p in recorded.uploads]
        told = [_report(recording, recorded, p, how) for p in recorded.uploads]
        seen = inspector.inspect(
            recorded.global_arrays,
            recorded.uploads.values(),
            np.ones(len(names)),
            None if how == "none" else told,
            names,
        )
        decided = policy.decide(names, seen.scores.tolist(), seen.p_values.tolist())
        inspector.remember(
            np.array([d.is_trusted for d in decided]), np.array([d.doubt for d in decided])
        )
        malicious = np.array([p in recorded.malicious for p in recorded.uploads])
        if "report" in seen.view_names:
            column = seen.view_scores[:, seen.view_names.index("report")]
            for bad in (True, False):
                added[bad].extend(column[malicious == bad].tolist())
        for bad, decision in zip(malicious, decided, strict=True):
            rejected[bool(bad)].append(decision.action is Action.DROP)
        if malicious.any():
            aucs.append(auroc(malicious.astype(np.int64), seen.scores))
    return {
        "malicious_rejected": _share(rejected[True]),
        "benign_rejected": _share(rejected[False]),
        "auc": float(np.mean(aucs)) if aucs else None,
        "most_added_to_malicious": max(added[True]),
        "most_added_to_benign": max(added[False]),
    }


def _report(
    recording: Recording, recorded: RecordedRound, partition: int, how: str
) -> ActivationReport | None:
    """One client's report: half of what a truthful attacker shows has its trigger on."""
    task, attacks = recording.task, partition in recorded.malicious
    if how == "none" or (attacks and how == "omitted"):
        return None
    rng = keyed(recording.scenario.seed, _DRAWS, recorded.server_round, partition)
    data = task.data.clients[partition]
    drawn = data.take(rng.permutation(len(data))[:N_REPORTED])
    arrays = recorded.uploads[partition]
    if attacks and how == "forged":
        arrays = recording.honest_round(recorded.server_round)[1][partition]
    elif attacks:
        half = len(drawn) // 2
        stamped = Samples(x=task.trigger.stamp(drawn.x[:half]), y=drawn.y[:half])
        drawn = Samples.join((stamped, drawn.take(slice(half, None))))
    model = task.new_model()
    set_arrays(model, arrays)
    rows, _ = activations_of(model, drawn.x, find_layers(model))
    return ActivationReport(layers=rows)


def restarted(recording: Recording, at: int) -> dict[str, Rates]:
    """What is rejected from a round on: without a restart, after one with, and without its file."""
    return {how: _after_restart(recording, at, how) for how in ("never", "checkpoint", "forgotten")}


def _after_restart(recording: Recording, at: int, how: str) -> Rates:
    stage, rows = _stage(recording), []
    defense = _shield(stage)
    for server_round in range(1, recording.scenario.n_rounds + 1):
        recorded = recording.round(server_round)
        if server_round == at and how != "never":
            before, defense = defense, _shield(stage)
            if how == "checkpoint":
                _hand_over(before, defense, recorded)
        row = stage.play(defense, recorded)
        if server_round >= at:
            rows.append(row)
    return _rates(rows)


def _hand_over(before: Shielded, after: Shielded, recorded: RecordedRound) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        arrays = to_record(recorded.global_arrays)
        save_checkpoint(path, before.strategy, recorded.server_round - 1, arrays)
        load_checkpoint(path, after.strategy)


def _rates(rows: Sequence[RoundRow]) -> Rates:
    rates = rejection_rates([client for row in rows for client in row.clients])
    return {"malicious_rejected": rates["tpr"], "benign_rejected": rates["fpr"]}


def forgiven(recording: Recording, until: int) -> dict[str, list[float | None]]:
    """Mean votes by round of clients who attack up to a round and are honest after it.

    Returns
    -------
    dict
        ``attackers`` and ``others``, one mean vote a round; None where none takes part.
    """
    stage = _stage(recording)
    defense = _shield(stage)
    attackers = {p for r in range(1, until + 1) for p in recording.round(r).malicious}
    votes: dict[str, list[float | None]] = {"attackers": [], "others": []}
    for server_round in range(1, recording.scenario.n_rounds + 1):
        recorded = recording.round(server_round)
        if server_round > until:
            honest = recording.honest_round(server_round)[1]
            recorded = replace(recorded, uploads=honest, malicious=(), equal_to_honest=())
        row = stage.play(defense, recorded)
        for who, inside in (("attackers", True), ("others", False)):
            own = [c.vote for c in row.clients if (c.partition in attackers) is inside]
            votes[who].append(float(np.mean(own)) if own else None)
    return votes


def measured(
    table: ArenaTable, seed: int, cache: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """All four answers of one table and seed."""

    def recording(attack: str) -> Recording:
        return Recording(table.recorded(attack, seed), cache)

    n_rounds = table.recorded("lp", seed).n_rounds
    middle = n_rounds // 2 + 1
    found: dict[str, Any] = {}
    with quiet_flower():
        say("layers")
        found["layers"] = layers_named(recording("lp"), range(2, middle + 1))
        for attack in ("badnets", "dba", "model_replacement"):
            for how in REPORTS:
                say(f"reports, {attack}, {how}")
                told = reports_told(recording(attack), how, "inputs")
                found.setdefault("reports", {}).setdefault(attack, {})[how] = told
        for attack in ("dba", "edge_case"):
            say(f"restarts, {attack}")
            found.setdefault("restarts", {})[attack] = restarted(recording(attack), at=middle)
        say("forgiveness")
        found["forgiven"] = forgiven(recording("badnets"), until=middle - 2)
    return found


def _share(flags: Sequence[bool]) -> float | None:
    return float(np.mean(flags)) if flags else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="digits", choices=TABLES)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=Path(".cache/arena"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = {"data_dir": given.data_dir, "weights": given.weights, "n_rounds": given.rounds}
    table = TABLES[given.scenario].settings(**{k: v for k, v in settings.items() if v is not None})
    console = Console(stderr=True)
    found = measured(table, given.seed, given.cache, console.print)
    facts = {
        "table": table.name,
        "seed": given.seed,
        **found,
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, facts)
    Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
