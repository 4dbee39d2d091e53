"""Named tables of the arena: which federations, attacks and defences meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fl_shield.attacks import ATTACKS
from fl_shield.errors import ScenarioError
from fl_shield.simulations.arena.replay import is_replayable
from fl_shield.simulations.scenario import DEFENSES, Scenario
from fl_shield.types import TrainingConfig

UNTARGETED = frozenset(
    name
    for name in (
        "sign_flip",
        "alie",
        "ipm",
        "min_max",
        "min_sum",
        "mimic",
        "label_flip",
        "gaussian",
    )
    if name in ATTACKS
)
"""Attacks that plant nothing: they are judged by the accuracy they cost."""

EVERY_ATTACK = tuple(name for name in ATTACKS if name != "none")
EVERY_DEFENSE = tuple(DEFENSES)


SHORT_FEDERATIONS: Mapping[str, Mapping[str, float]] = {
    "fldetector": {"first_round": 0, "window": 3},
    "deepsight": {"n_inputs": 200},
}
"""Settings without which a rule would sleep, or run for hours, in a table of a few rounds: by
default FLDetector begins at round 50 and DeepSight reads 60,000 noise inputs of each client.
"""


@dataclass(frozen=True, kw_only=True)
class ArenaTable:
    """One grid of attacks and defences on one kind of federation.

    Attributes
    ----------
    name, title : str
    base : mapping
        Settings of :class:`~fl_shield.simulations.scenario.Scenario` that all cells share.
    attacks : tuple of str
        The attack-free federation always stands beside them, for false alarms.
    defenses : tuple of str
        Asked about every recorded reply.
    closed : tuple of str
        Defences that also train through the attack; plain FedAvg always does.
    attack_options, defense_options : mapping of str to mapping
        By name, where a table changes the published settings.

    Examples
    --------
    >>> TABLES["smoke"].with_(attacks=("lp",)).attacks
    ('lp',)
    """

    name: str
    title: str
    base: Mapping[str, Any]
    attacks: tuple[str, ...] = EVERY_ATTACK
    defenses: tuple[str, ...] = EVERY_DEFENSE
    closed: tuple[str, ...] = ("shield",)
    attack_options: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {"evasive": {"n_steps": 40}}
    )
    defense_options: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: SHORT_FEDERATIONS
    )

    def __post_init__(self) -> None:
        for what, names, known in (
            ("attack", self.attacks, tuple(ATTACKS)),
            ("defence", (*self.defenses, *self.closed), DEFENSES),
        ):
            for name in names:
                if name not in known:
                    raise ScenarioError(
                        f"{what} {name!r} is unknown; choose among {', '.join(known)}"
                    )

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def settings(self, **changes: Any) -> Self:
        """Return a copy with some settings of the federation changed."""
        return replace(self, base={**self.base, **changes})

    @property
    def replayed(self) -> tuple[str, ...]:
        """Defences that can be asked about recorded replies."""
        return tuple(name for name in self.defenses if is_replayable(name))

    def recorded(self, attack: str, seed: int) -> Scenario:
        """Return the scenario whose replies are recorded."""
        options = self.attack_options.get(attack, {})
        return Scenario(**{**self.base, "attack": attack, "attack_options": options, "seed": seed})

    def contenders(self, attack: str, seed: int) -> list[Scenario]:
        """Return the recorded scenario under each defence that can be asked about its replies."""
        return [self._under(defense, attack, seed) for defense in self.replayed]

    def closed_loop(self, seeds: Sequence[int]) -> list[Scenario]:
        """Return the federations that are trained through their defence."""
        return [
            self._under(defense, attack, seed)
            for seed in seeds
            for attack in ("none", *self.attacks)
            for defense in dict.fromkeys(("none", *self.closed))
        ]

    def _under(self, defense: str, attack: str, seed: int) -> Scenario:
        options = self.defense_options.get(defense, {})
        return self.recorded(attack, seed).with_(defense=defense, defense_options=options)


_WITHOUT_IMAGES = tuple(a for a in EVERY_ATTACK if a not in ("a3fl", "iba"))
"""Attacks that have something to say about tokens and states: no shaped image triggers."""

_PICTURES = {
    "n_clients": 50,
    "clients_per_round": 10,
    "n_rounds": 10,
    "malicious_fraction": 0.2,
    "malicious_per_round": 2,
    "fpr_budget": 0.025,
    "weights": "arena",
}

_LONE = {
    **_PICTURES,
    "n_clients": 100,
    "warm_rounds": 30,
    "malicious_fraction": 0.1,
    "malicious_per_round": 1,
}
_THREE_IN_TEN = {**_LONE, "malicious_fraction": 0.3, "malicious_per_round": 3}
_WITH_LP = ("lp", "badnets", "model_replacement")

TABLES: Mapping[str, ArenaTable] = {
    table.name: table
    for table in (
        ArenaTable(
            name="smoke",
            title="Two attacks on embedded digits, a few rounds: does everything run?",
            base={
                "dataset": "digits",
                "n_clients": 10,
                "clients_per_round": 10,
                "n_rounds": 3,
                "warm_rounds": 3,
                "malicious_fraction": 0.2,
            },
            attacks=("badnets", "sign_flip"),
            defenses=("none", "multikrum", "flame", "shield"),
        ),
        ArenaTable(
            name="digits",
            title="Every attack and every defence on embedded handwritten digits",
            base={
                "dataset": "digits",
                "training": TrainingConfig(n_epochs=3, batch_size=16, lr=0.05, momentum=0.9),
                "n_clients": 20,
                "clients_per_round": 20,
                "n_rounds": 10,
                "warm_rounds": 8,
                "malicious_fraction": 0.2,
                "fpr_budget": 0.025,
                "weights": "arena",
            },
        ),
        ArenaTable(
            name="femnist",
            title="FEMNIST by writer, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "femnist", "n_clients": 100, "warm_rounds": 30},
        ),
        ArenaTable(
            name="gtsrb",
            title="GTSRB by Dirichlet, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "gtsrb", "warm_rounds": 30},
        ),
        ArenaTable(
            name="cifar10",
            title="CIFAR-10 by Dirichlet with a small network, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "cifar10", "warm_rounds": 30},
        ),
        ArenaTable(
            name="cifar10-resnet18",
            title="CIFAR-10 with a ResNet-18, 100 clients, 200 rounds: for a machine with a GPU",
            base={
                **_PICTURES,
                "dataset": "cifar10",
                "model": "resnet18-gn",
                "n_clients": 100,
                "n_rounds": 200,
            },
            closed=("shield", "multikrum", "flame", "fltrust", "rlr", "layerguard"),
        ),
        ArenaTable(
            name="shakespeare",
            title="Next characters by role, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "shakespeare", "warm_rounds": 30},
            attacks=_WITHOUT_IMAGES,
        ),
        ArenaTable(
            name="ag-news",
            title="News topics by Dirichlet, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "ag-news", "warm_rounds": 15},
            attacks=_WITHOUT_IMAGES,
        ),
        ArenaTable(
            name="cartpole",
            title="A policy for CartPole cloned from a teacher, 20 % of every round malicious",
            base={**_PICTURES, "dataset": "cartpole", "warm_rounds": 15, "probes": False},
            attacks=_WITHOUT_IMAGES,
        ),
        ArenaTable(
            name="lp",
            title="The published LP setting: 100 clients, 10 a round, a lone attacker in each",
            base={**_LONE, "dataset": "femnist"},
            attacks=_WITH_LP,
        ),
        ArenaTable(
            name="lp-30",
            title="LP with 30 % of every round malicious",
            base={**_THREE_IN_TEN, "dataset": "femnist"},
            attacks=_WITH_LP,
        ),
        ArenaTable(
            name="lp-cifar10",
            title="The published LP setting on CIFAR-10, with a small network",
            base={**_LONE, "dataset": "cifar10"},
            attacks=_WITH_LP,
        ),
        ArenaTable(
            name="lp-30-cifar10",
            title="LP with 30 % of every round malicious on CIFAR-10, with a small network",
            base={**_THREE_IN_TEN, "dataset": "cifar10"},
            attacks=_WITH_LP,
        ),
    )
}
"""Every table by name."""
