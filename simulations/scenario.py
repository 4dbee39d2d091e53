"""One frozen description of one federated experiment, and who takes part in it when.

Everything random about a scenario comes from named streams of its seed, so that the server, the
clients and colluding attackers know the same schedule on every engine without talking about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np

from fl_shield.aggregators import AGGREGATORS
from fl_shield.attacks import ATTACKS
from fl_shield.errors import ScenarioError
from fl_shield.policy import MODES, Mode
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import DATASETS, DEFAULT_CLIENTS
from fl_shield.simulations.victims import MODELS, default_model, default_training
from fl_shield.triggers import TRIGGERS
from fl_shield.types import TrainingConfig
from fl_shield.weights import PRETRAINED, Purpose

Engine = Literal["in-process", "ray"]
ROBUST_DEFENSES = tuple(rule for rule in AGGREGATORS if rule not in ("mean", "multikrum"))
DEFENSES = ("none", "multikrum", "shield", *ROBUST_DEFENSES, "perfect")
ENGINES: tuple[Engine, ...] = ("in-process", "ray")
PARTITIONS = ("natural", "dirichlet", "iid")
TEXT_DATASETS = ("shakespeare", "roles", "ag-news")
STATE_DATASETS = ("cartpole",)
OWNERLESS_DATASETS = ("digits", "cifar10", "gtsrb", "tiny-imagenet", "ag-news", "cartpole")

STREAMS = ("malicious", "participants", "client")
"""Named streams of a scenario's seed; append new ones at the end."""
_SCENARIO_KEY = 0x5CE  # keeps these streams apart from others of the same seed


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One federation: who holds what, who attacks how, and who defends.

    Attributes
    ----------
    dataset, data_dir
        Name in :data:`fl_shield.simulations.datasets.DATASETS` and, where it is not embedded, the
        folder that holds it.
    partition, alpha
        How examples are dealt to clients, "" = naturally where they have owners, else by
        Dirichlet; ``alpha`` is Dirichlet's concentration.
    n_clients, clients_per_round, n_rounds
        Size of the federation.
    model : str
        Name in :data:`fl_shield.simulations.victims.MODELS`; "" = the data set's own.
    training : TrainingConfig, optional
        How honest clients train; None = as usual for the data set.
    attack, attack_options
        Name in :data:`fl_shield.attacks.ATTACKS` and its keyword arguments.
    trigger : str
        Family in :data:`fl_shield.triggers.TRIGGERS`, in the fixed form of benchmarks
        (:func:`fl_shield.triggers.default_trigger`); "" = ``word`` for text, ``state_pattern`` for
        states, else ``patch``.
    target_label : int
        What the backdoor should make of a stamped input.
    malicious_fraction : float
        Share of clients that are malicious, in [0, 1).
    malicious_per_round : int, optional
        Malicious clients in each round; None = as the draw has it.
    attack_from : int
        First round (from 1) in which they attack; before, they train honestly.
    warm_rounds : int
        Honest rounds of plain FedAvg before the first one: the federation starts from their model.
    defense : str
        ``none`` (FedAvg), ``multikrum`` (Flower's, told each round's true number of attackers),
        ``shield`` (FedAvg inside :class:`fl_shield.strategies.ShieldedStrategy`, told nothing),
        a rule of :data:`fl_shield.aggregators.AGGREGATORS`, told nothing, or ``perfect`` (FedAvg
        over the clients that do not attack, told who does: the line that others are measured by).
    defense_options
        Keyword arguments of a rule of :data:`fl_shield.aggregators.AGGREGATORS`.
    fpr_budget, mode, probes
        Settings of the shield.
    weights : {"updates", "inputs", "arena"}
        Which shipped weights the shield judges with; those for inputs have learned from all
        domains, those of the arena from its attacks.
    n_clean : int
        Clean examples that the server holds.
    n_test : int
        Largest number of test examples, all evaluated after each round.
    seed : int
        Root of every random stream.
    engine : {"in-process", "ray"}
        Where the apps run.

    Examples
    --------
    >>> scenario = Scenario(n_clients=10, clients_per_round=5, malicious_fraction=0.2)
    >>> Scenario.from_json(scenario.to_json()) == scenario
    True
    >>> len(participants(scenario, server_round=1)), len(malicious_clients(scenario))
    (5, 2)
    """

    dataset: str = "digits"
    data_dir: str | None = None
    partition: str = ""
    alpha: float = 0.5
    n_clients: int = 20
    clients_per_round: int = 20
    n_rounds: int = 10
    model: str = ""
    training: TrainingConfig | None = None
    attack: str = "none"
    attack_options: Mapping[str, float] = field(default_factory=dict)
    trigger: str = ""
    target_label: int = 0
    malicious_fraction: float = 0.2
    malicious_per_round: int | None = None
    attack_from: int = 1
    warm_rounds: int = 0
    defense: str = "none"
    defense_options: Mapping[str, float] = field(default_factory=dict)
    fpr_budget: float = 0.05
    mode: Mode = "filter"
    probes: bool = True
    weights: Purpose = "updates"
    n_clean: int = 20
    n_test: int = 2000
    seed: int = 0
    engine: Engine = "in-process"

    def __post_init__(self) -> None:
        _check_names(self)
        _check_sizes(self)
        _check_malicious(self)
        _check_probes(self)
        defaults: dict[str, Any] = {
            "partition": "dirichlet" if self.dataset in OWNERLESS_DATASETS else "natural",
            "model": default_model(self.dataset),
            "training": default_training(self.dataset),
            "trigger": _usual_trigger(self.dataset),
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        object.__setattr__(self, "attack_options", _checked_options(self))
        object.__setattr__(self, "defense_options", _checked_rule(self))

    @property
    def local_training(self) -> TrainingConfig:
        """How honest clients train."""
        return self.training or default_training(self.dataset)

    @property
    def name(self) -> str:
        """Short name for progress bars, figures and file names."""
        return f"{self.attack}-{self.defense}-s{self.seed}"

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, by field."""
        return asdict(self)

    def to_json(self) -> str:
        """Return one JSON object, keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the scenario that :meth:`to_dict` described."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ScenarioError(f"a scenario has no setting {unknown[0]!r}; remove or rename it")
        training = values.get("training")
        config = None if training is None else TrainingConfig(**training)
        return cls(**{**values, "training": config})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the scenario that :meth:`to_json` described."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ScenarioError(f"a scenario must be one JSON object, but {error}") from error
        if not isinstance(values, dict):
            raise ScenarioError(f"a scenario must be one JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


def settings_from(
    preset: str | None,
    given: Mapping[str, Any],
    training: Mapping[str, Any],
    attack_options: Mapping[str, float],
) -> dict[str, Any]:
    """Keyword arguments of a scenario: a preset's, overridden by what was given.

    Parameters
    ----------
    preset : str, optional
        Key of :data:`PRESETS`.
    given, attack_options : mapping
        Fields of :class:`Scenario`, and options of the attack, to override.
    training : mapping
        Fields of :class:`TrainingConfig` to change in how clients train by default.

    Examples
    --------
    >>> settings_from(None, {"n_clients": 50}, {}, {})["clients_per_round"]
    10
    """
    if preset is not None and preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ScenarioError(f"preset {preset!r} is unknown; choose one of {known}")
    start: Mapping[str, Any] = PRESETS[preset] if preset is not None else {}
    settings: dict[str, Any] = {**start, **given}
    dataset = settings.setdefault("dataset", "digits")
    if dataset not in DATASETS:
        raise ScenarioError(f"dataset {dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
    n_clients = settings.setdefault("n_clients", DEFAULT_CLIENTS[dataset])
    settings.setdefault("clients_per_round", n_clients if n_clients <= 20 else 10)
    usual = settings.get("training") or default_training(dataset)
    try:
        settings["training"] = replace(usual, **training)
    except ValueError as error:
        raise ScenarioError(f"clients cannot train like this: {error}") from error
    settings["attack_options"] = {**settings.get("attack_options", {}), **attack_options}
    return settings


def stream(scenario: Scenario, name: str, *key: int) -> np.random.Generator:
    """Independent generator for one named use, such as ``("client", round, partition)``."""
    return keyed(scenario.seed, _SCENARIO_KEY, STREAMS.index(name), *key)


def malicious_clients(scenario: Scenario) -> tuple[int, ...]:
    """Partitions held by malicious clients, ascending; the same for every attack and defence."""
    rng = stream(scenario, "malicious")
    drawn = rng.choice(scenario.n_clients, _n_malicious(scenario), replace=False)
    return tuple(sorted(int(p) for p in drawn))


def participants(scenario: Scenario, server_round: int) -> tuple[int, ...]:
    """Partitions asked in one round, ascending; the same for every attack and defence."""
    rng = stream(scenario, "participants", server_round)
    everyone = np.arange(scenario.n_clients)
    if scenario.malicious_per_round is None:
        drawn = rng.choice(everyone, scenario.clients_per_round, replace=False)
    else:
        malicious = np.array(malicious_clients(scenario), dtype=int)
        benign = np.setdiff1d(everyone, malicious)
        n_malicious = scenario.malicious_per_round
        n_benign = scenario.clients_per_round - n_malicious
        parts = [
            rng.choice(malicious, n_malicious, replace=False) if n_malicious else malicious[:0],
            rng.choice(benign, n_benign, replace=False),
        ]
        drawn = np.concatenate(parts)
    return tuple(sorted(int(p) for p in drawn))


def attackers(scenario: Scenario, server_round: int) -> tuple[int, ...]:
    """Partitions that attack in one round, ascending: none before ``attack_from``."""
    if scenario.attack == "none" or server_round < scenario.attack_from:
        return ()
    asked = set(participants(scenario, server_round))
    return tuple(p for p in malicious_clients(scenario) if p in asked)


def _usual_trigger(dataset: str) -> str:
    if dataset in STATE_DATASETS:
        return "state_pattern"
    return "word" if dataset in TEXT_DATASETS else "patch"


def _n_malicious(scenario: Scenario) -> int:
    return round(scenario.malicious_fraction * scenario.n_clients)


def _check_names(scenario: Scenario) -> None:
    known: list[tuple[str, str, Any]] = [
        ("dataset", scenario.dataset, tuple(DATASETS)),
        ("partition", scenario.partition, ("", *PARTITIONS)),
        ("model", scenario.model, ("", *MODELS)),
        ("attack", scenario.attack, tuple(ATTACKS)),
        ("trigger", scenario.trigger, ("", *TRIGGERS)),
        ("defense", scenario.defense, DEFENSES),
        ("mode", scenario.mode, MODES),
        ("weights", scenario.weights, tuple(PRETRAINED)),
        ("engine", scenario.engine, ENGINES),
    ]
    for what, value, allowed in known:
        if value not in allowed:
            names = ", ".join(a for a in allowed if a)
            raise ScenarioError(f"{what} {value!r} is unknown; choose one of {names}")


def _checked_options(scenario: Scenario) -> dict[str, float]:
    try:
        ATTACKS[scenario.attack](**scenario.attack_options)
    except TypeError as error:
        raise ScenarioError(
            f"attack {scenario.attack!r} takes other options than {dict(scenario.attack_options)}: "
            f"{str(error).split('() ')[-1]}; remove it"
        ) from error
    except ValueError as error:
        raise ScenarioError(f"attack {scenario.attack!r} refuses its options: {error}") from error
    return dict(scenario.attack_options)


def _checked_rule(scenario: Scenario) -> dict[str, float]:
    options = dict(scenario.defense_options)
    if scenario.defense not in ROBUST_DEFENSES:
        if options:
            raise ScenarioError(
                f"defense {scenario.defense!r} takes no options, got {', '.join(options)}; remove "
                "them, or choose a rule that does"
            )
        return options
    try:
        AGGREGATORS[scenario.defense](**options)
    except TypeError as error:
        raise ScenarioError(
            f"defense {scenario.defense!r} takes other options than {options}: "
            f"{str(error).split('() ')[-1]}; remove it"
        ) from error
    except ValueError as error:
        raise ScenarioError(f"defense {scenario.defense!r} refuses its options: {error}") from error
    return options


def _check_sizes(scenario: Scenario) -> None:
    rules: list[tuple[str, float, bool, str]] = [
        ("n_clients", scenario.n_clients, scenario.n_clients >= 2, "at least 2"),
        ("n_rounds", scenario.n_rounds, scenario.n_rounds >= 1, "at least 1"),
        ("warm_rounds", scenario.warm_rounds, scenario.warm_rounds >= 0, "at least 0"),
        ("alpha", scenario.alpha, scenario.alpha > 0, "above 0"),
        ("target_label", scenario.target_label, scenario.target_label >= 0, "at least 0"),
        ("n_clean", scenario.n_clean, scenario.n_clean >= 4, "at least 4"),
        ("n_test", scenario.n_test, scenario.n_test >= 1, "at least 1"),
        ("seed", scenario.seed, scenario.seed >= 0, "at least 0"),
        (
            "clients_per_round",
            scenario.clients_per_round,
            1 <= scenario.clients_per_round <= scenario.n_clients,
            f"between 1 and the {scenario.n_clients} clients",
        ),
        (
            "attack_from",
            scenario.attack_from,
            1 <= scenario.attack_from <= scenario.n_rounds,
            f"between 1 and the {scenario.n_rounds} rounds",
        ),
        ("fpr_budget", scenario.fpr_budget, 0 < scenario.fpr_budget < 1, "between 0 and 1"),
    ]
    for what, value, holds, rule in rules:
        if not holds:
            raise ScenarioError(f"{what} must be {rule}, got {value}; choose another value")


def _check_malicious(scenario: Scenario) -> None:
    if not 0 <= scenario.malicious_fraction < 1:
        raise ScenarioError(
            f"malicious_fraction must be in [0, 1), got {scenario.malicious_fraction}; "
            "0.2 makes one client in five malicious"
        )
    n_malicious = _n_malicious(scenario)
    if scenario.attack != "none" and n_malicious == 0:
        raise ScenarioError(
            f"malicious_fraction {scenario.malicious_fraction} of {scenario.n_clients} clients is "
            "no client at all; raise it, or set attack to none"
        )
    per_round = scenario.malicious_per_round
    if per_round is None:
        return
    n_benign = scenario.n_clients - n_malicious
    if not 0 <= per_round <= min(n_malicious, scenario.clients_per_round):
        raise ScenarioError(
            f"malicious_per_round must be between 0 and the {n_malicious} malicious clients and "
            f"at most clients_per_round ({scenario.clients_per_round}), got {per_round}"
        )
    if scenario.clients_per_round - per_round > n_benign:
        raise ScenarioError(
            f"malicious_per_round {per_round} leaves {scenario.clients_per_round - per_round} "
            f"places for {n_benign} benign clients; lower clients_per_round or raise it"
        )


def _check_probes(scenario: Scenario) -> None:
    if scenario.dataset in STATE_DATASETS and scenario.defense == "shield" and scenario.probes:
        raise ScenarioError(
            f"the shield has no probes for the states of {scenario.dataset}, got probes=True; set "
            "it to False (--no-probes)"
        )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "dataset": "digits",
        "training": TrainingConfig(n_epochs=3, batch_size=16, lr=0.05, momentum=0.9),
        "n_clients": 20,
        "n_rounds": 15,
        "malicious_fraction": 0.2,
        "attack_from": 4,
        "attack_options": {"n_epochs": 6},
    },
    "smoke": {"n_clients": 6, "clients_per_round": 6, "n_rounds": 2, "malicious_fraction": 0.34},
}
"""Named settings to start from; ``fl-shield simulate --preset NAME`` takes one."""
