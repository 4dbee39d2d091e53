"""What one client of a scenario does in one round: honest training and, in its turn, the attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from fl_shield.attacks import ATTACKS
from fl_shield.attacks.evasive import Evasive, Suspicion
from fl_shield.detector import MetaShield
from fl_shield.live_rules import LIVE_RULES, RuleSuspicion
from fl_shield.live_suspicion import guessed_suspicion, guessed_uploads
from fl_shield.profile import MIN_REFERENCES
from fl_shield.rng import keyed
from fl_shield.simulations.scenario import attackers, malicious_clients, stream
from fl_shield.simulations.task import FederatedTask
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.triggers.natural import Natural
from fl_shield.types import Arrays, AttackContext, Samples, ShapesTrigger

KNOWS_THE_RULE = "evasive"
"""The attack whose clients know by what rule the server decides; the shield's weights with it."""

REFRESH = 10
"""Steps of such an attacker after which it reads anew what it stands beside."""

_GUESSES = 0x6E55  # keeps an attacker's guesses apart from other draws of the same seed


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What one client uploads, and whether an attacker's upload is just its honest one."""

    arrays: Arrays
    train_loss: float
    n_examples: int
    equals_honest: bool


def local_update(
    task: FederatedTask,
    model: nn.Module,
    global_arrays: Arrays,
    *,
    server_round: int,
    partition: int,
    previous_arrays: Arrays | None = None,
) -> LocalUpdate:
    """Train one client honestly and, where it is its turn to attack, let it attack.

    The result depends on nothing but its arguments: not on the process, the engine or the order
    of clients.

    Parameters
    ----------
    task : FederatedTask
        Data, trigger and scenario.
    model : nn.Module
        Scratch network of the task's architecture; overwritten.
    global_arrays : Arrays
        The model that the server sent.
    server_round, partition : int
        When, and which client.
    previous_arrays : Arrays, optional
        The model of the round before, for attackers who remember it.
    """
    loss, honest = honest_update(
        task, model, global_arrays, server_round=server_round, partition=partition
    )
    arrays: Arrays = honest
    attacks = partition in attackers(task.scenario, server_round)
    if attacks:
        arrays = malicious_upload(
            task,
            model,
            global_arrays,
            server_round=server_round,
            partition=partition,
            previous_arrays=previous_arrays,
        )
    return LocalUpdate(
        arrays=arrays,
        train_loss=loss,
        n_examples=len(task.data.clients[partition]),
        equals_honest=attacks and same_arrays(arrays, honest),
    )


def honest_update(
    task: FederatedTask,
    model: nn.Module,
    global_arrays: Arrays,
    *,
    server_round: int,
    partition: int,
) -> tuple[float, Arrays]:
    """Mean loss of the last epoch, and the model that a client gets by honest training."""
    scenario = task.scenario
    with torch_seed(stream(scenario, "client", server_round, partition)):
        set_arrays(model, global_arrays)
        rng = stream(scenario, "client", server_round, partition)
        loss = train(model, task.data.clients[partition], scenario.local_training, rng)
        return loss, get_arrays(model)


def malicious_upload(
    task: FederatedTask,
    model: nn.Module,
    global_arrays: Arrays,
    *,
    server_round: int,
    partition: int,
    previous_arrays: Arrays | None = None,
) -> Arrays:
    """What a malicious client uploads in its turn."""
    scenario = task.scenario
    context = attack_context(
        task,
        model,
        global_arrays,
        server_round=server_round,
        partition=partition,
        previous_arrays=previous_arrays,
    )
    if scenario.attack == KNOWS_THE_RULE:
        context = _knowing_the_rule(task, context)
    attack = ATTACKS[scenario.attack](**scenario.attack_options)
    with torch_seed(stream(scenario, "client", server_round, partition)):
        return attack(context)


def attack_context(
    task: FederatedTask,
    model: nn.Module,
    global_arrays: Arrays,
    *,
    server_round: int,
    partition: int,
    previous_arrays: Arrays | None = None,
) -> AttackContext:
    """What a malicious client knows in one round; attackers of a round pool their examples."""
    scenario = task.scenario
    members = malicious_clients(scenario)
    attacking = attackers(scenario, server_round)
    own_first = (partition, *(p for p in attacking if p != partition))
    return AttackContext(
        model=model,
        global_arrays=global_arrays,
        data=task.data.clients[partition],
        peers=tuple(task.data.clients[p] for p in own_first),
        trigger=task.trigger,
        target_label=scenario.target_label,
        training=scenario.local_training,
        n_clients=scenario.clients_per_round,
        rng=stream(scenario, "client", server_round, partition),
        server_round=server_round,
        member=members.index(partition),
        n_members=len(members),
        previous_arrays=previous_arrays,
    )


def _knowing_the_rule(task: FederatedTask, context: AttackContext) -> AttackContext:
    """Give an attacker the rule of the server, as far as it has a gradient, else the shield's.

    The server's seed, examples and round it guesses.
    """
    scenario = task.scenario
    if sum(map(len, context.peers)) < MIN_REFERENCES:
        return context
    rng = keyed(scenario.seed, _GUESSES, context.server_round, context.member)
    suspicion: Suspicion
    if scenario.defense in LIVE_RULES:
        others = guessed_uploads(context, rng)
        suspicion = RuleSuspicion(
            scenario.defense, context.global_arrays, others, middle=Evasive().margin
        )
    else:
        suspicion = guessed_suspicion(
            context,
            MetaShield.from_pretrained(scenario.weights),
            rng,
            probes=scenario.probes,
            refresh=REFRESH,
            capped=False,
        )
    return replace(context, suspicion=suspicion)


def shaped_inputs(
    task: FederatedTask, model: nn.Module, global_arrays: Arrays, server_round: int
) -> Samples | None:
    """Test inputs stamped with the trigger that the attackers of a round have shaped.

    None where the attack keeps the scenario's trigger, or nobody attacks in this round. Where the
    trigger is natural examples, those of the test set that the attack would choose stand here:
    examples that the attackers trained on would show what was learned by heart.
    """
    scenario = task.scenario
    attack = ATTACKS[scenario.attack](**scenario.attack_options)
    attacking = attackers(scenario, server_round)
    if not attacking or not isinstance(attack, ShapesTrigger):
        return None
    context = attack_context(
        task, model, global_arrays, server_round=server_round, partition=attacking[0]
    )
    with torch_seed(stream(scenario, "client", server_round, attacking[0])):
        trigger = attack.trigger(context)
        if not isinstance(trigger, Natural):
            return task.stamped_with(trigger)
        test = task.data.test
        unseen = attack.trigger(replace(context, data=test, peers=(test,)))
        assert isinstance(unseen, Natural)
        return Samples(x=unseen.examples, y=np.zeros(len(unseen.examples), np.int64))


@contextmanager
def torch_seed(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's global generator (dropout draws from it) and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(0, 2**63 - 1)))
        yield


def same_arrays(a: Arrays, b: Arrays) -> bool:
    """Whether two models are equal number by number."""
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in b)
