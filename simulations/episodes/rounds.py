"""Federated rounds as meta-learning tasks: one honest round, attacked in every way we know.

Each federation is drawn from a wide distribution of settings. In each of its rounds the honest
updates are trained once; then a random minority of the clients turns malicious, once for every
attack, and the inspector profiles each attacked round exactly as the shield would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.attacks import make_attack
from fl_shield.detector import MetaShield
from fl_shield.inspector import Inspector
from fl_shield.meta import Episode, MetaConfig
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import FederatedData, load
from fl_shield.simulations.victims import build_model
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.triggers import IMAGE_FAMILIES, draw_trigger
from fl_shield.types import (
    Arrays,
    Attack,
    AttackContext,
    Ints,
    Representation,
    Samples,
    TrainingConfig,
    Trigger,
)
from fl_shield.weights import blank_weights

ATTACK_NAMES = ("badnets", "model_replacement", "norm_clipped", "sign_flip", "lp")
HELD_OUT_ATTACK = "perturbation"
"""No weights ever learn from it: it is for evaluation."""

STEALTHY = ("badnets", "norm_clipped", "lp")
"""Attacks that may leak: an undetected one shifts the global model without wrecking it."""

ZOO = (
    *ATTACK_NAMES,
    "dba",
    "chameleon",
    "a3fl",
    "iba",
    "edge_case",
    "sybil",
    "ipm",
    "min_max",
    "min_sum",
    "label_flip",
    "gaussian",
)
"""Attacks of the arena that weights may learn from."""

HELD_OUT_FAMILIES = (
    "lf",
    "neurotoxin",
    "constrain_and_scale",
    "alie",
    "evasive",
    HELD_OUT_ATTACK,
)
"""Attacks of the arena that no weights ever learn from."""

MODELS = {
    "digits": {"digits-cnn": 0.7, "digits-mlp": 0.3},
    "glyphs": {"small-cnn": 1.0},
    "tiny-imagenet": {"cifar-cnn": 1.0},
}
"""Networks of each data set, and how often each is drawn."""


@dataclass(frozen=True, kw_only=True)
class FederationSetting:
    """One simulated federation; everything in it follows from these numbers.

    Attributes
    ----------
    seed : int
    dataset, model : str
    n_clients, clients_per_round, n_rounds : int
    alpha : float
        Of the Dirichlet partition; 0 = natural partition.
    training : TrainingConfig
    n_clean : int
        Clean examples that the server holds.
    warm_rounds : int
        Honest rounds before the first one that is profiled.
    leak : float
        Probability that a round is aggregated with one malicious update of a stealthy attack.
    partial : float
        Share of clients that hold a random part of the classes only.
    representation : {"profile", "pca"}
        What the detector reads of a view.
    attacks : tuple of str
        Attacks of each profiled round, in the order of the draws before they are shuffled.
    n_attacks : int
        So many of them are drawn for each profiled round; 0 = all.
    most_malicious : float
        Largest share of a round that is malicious; at most four clients unless it is above 0.4.
    data_dir : str, optional
        Folder of a data set that is read from files; no part of what the federation is.
    """

    seed: int
    dataset: str
    model: str
    n_clients: int
    clients_per_round: int
    n_rounds: int
    alpha: float
    training: TrainingConfig
    n_clean: int
    warm_rounds: int
    leak: float
    partial: float = 0.0
    representation: Representation = "profile"
    attacks: tuple[str, ...] = ATTACK_NAMES
    n_attacks: int = 0
    most_malicious: float = 0.4
    data_dir: str | None = None

    def manifest(self) -> dict[str, Any]:
        """Plain numbers for the manifest and the cache key."""
        facts = asdict(self)
        del facts["data_dir"]
        once = {"attacks": ATTACK_NAMES, "n_attacks": 0, "most_malicious": 0.4}
        for name, value in once.items():  # as all once were: caches keep their names
            if getattr(self, name) == value:
                del facts[name]
        return {"source": "federation", **facts}


def draw_setting(dataset: str, seed: int, n_rounds: int = 8) -> FederationSetting:
    """Draw one federation; the same seed gives the same one.

    Examples
    --------
    >>> draw_setting("digits", 3) == draw_setting("digits", 3)
    True
    """
    rng = keyed(seed, 1)
    clients_per_round = int(rng.integers(6, 21 if dataset == "digits" else 13))
    glyphs = dataset == "glyphs"
    natural = glyphs and rng.random() < 0.7
    return FederationSetting(
        seed=seed,
        dataset=dataset,
        model=str(rng.choice(list(MODELS[dataset]), p=list(MODELS[dataset].values()))),
        n_clients=int(clients_per_round * rng.integers(1, 9 if glyphs else 4)),
        clients_per_round=clients_per_round,
        n_rounds=n_rounds,
        alpha=0.0 if natural else float(np.exp(rng.uniform(np.log(0.2), np.log(10)))),
        training=_draw_training(rng),
        n_clean=int(rng.integers(10, 21)),
        warm_rounds=int(rng.choice([0, 1, 2, 5, 10, 15])),
        leak=float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        partial=0.0 if not glyphs else float(keyed(seed, 9).choice([0.0, 0.3, 0.6])),
    )


def among_all_attacks(setting: FederationSetting, n_attacks: int = 6) -> FederationSetting:
    """The same federation, each round under attacks drawn from :data:`ZOO`, up to half malicious.

    Examples
    --------
    >>> among_all_attacks(draw_setting("digits", 3)).most_malicious
    0.5
    """
    return replace(setting, attacks=ZOO, n_attacks=n_attacks, most_malicious=0.5)


def _draw_training(rng: np.random.Generator) -> TrainingConfig:
    momentum = float(rng.choice([0.0, 0.9]))
    fastest = 0.06 if momentum else 0.2
    return TrainingConfig(
        n_epochs=int(rng.integers(1, 4)),
        batch_size=int(rng.choice([10, 16, 20, 32])),
        lr=float(np.exp(rng.uniform(np.log(fastest / 6), np.log(fastest)))),
        momentum=momentum,
    )


def draw_attack(name: str, n_clients: int, rng: np.random.Generator) -> Attack:
    """Draw an attack's strength: how much poison, how large a scale."""
    rate = float(rng.uniform(0.3, 1.0))
    settings: dict[str, dict[str, float]] = {
        "badnets": {"poison_rate": rate},
        "model_replacement": {"poison_rate": rate, "scale": float(rng.uniform(2, n_clients))},
        "norm_clipped": {"poison_rate": rate},
        "sign_flip": {"scale": float(rng.uniform(1, 5))},
        "lp": {"lambda_": float(rng.choice([0.5, 1.0, 2.0])), "max_passes": 12},
        HELD_OUT_ATTACK: {"poison_rate": rate},
    }
    return make_attack(name, **(settings[name] if name in settings else _draw_rarer(name, rng)))


def _draw_rarer(name: str, rng: np.random.Generator) -> dict[str, float]:
    """Settings of an attack that only :data:`ZOO` has; further draws, so that others stay."""
    rate, factor = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.5, 4.0))
    shorter = {
        "a3fl": {"n_steps": 40, "n_adversary_epochs": 2},
        "iba": {"n_turns": 2, "n_steps": 12},
    }
    if name in ("dba", "chameleon", "a3fl", "iba", "edge_case"):
        return {"poison_rate": rate, **shorter.get(name, {})}
    return {"epsilon": factor} if name == "ipm" else {}


def simulate_federation(setting: FederationSetting) -> Iterator[Episode]:
    """Train one federation and yield each of its attacked rounds as an episode."""
    config = MetaConfig(representation=setting.representation)
    blank = MetaShield(blank_weights(config=config))  # profiles only: nothing is scored here
    federation = Federation(setting, blank)
    for server_round in range(setting.warm_rounds):
        federation.honest_round(server_round)
    for server_round in range(setting.warm_rounds, setting.warm_rounds + setting.n_rounds):
        if not federation.diverged:
            yield from federation.attacked_round(server_round)


def partial_clients(setting: FederationSetting, data: FederatedData) -> tuple[Samples, ...]:
    """Clients' examples, some clients left with a sixth to a half of the classes."""
    clients = []
    for i, samples in enumerate(data.clients):
        rng = keyed(setting.seed, 10, i)
        held = rng.permutation(data.n_classes)[: int(data.n_classes / rng.integers(2, 7))]
        chosen = np.isin(samples.y, held)
        few = rng.random() < setting.partial and chosen.sum() >= setting.training.batch_size
        clients.append(samples.take(chosen) if few else samples)
    return tuple(clients)


def _is_finite(arrays: Arrays) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


class Federation:
    """A federation that trains round by round, with an inspector beside it.

    Parameters
    ----------
    setting : FederationSetting
    detector : MetaShield
        What the inspector profiles and scores with.
    suspects : bool
        Whether the inspector remembers whom it doubted.
    """

    def __init__(
        self, setting: FederationSetting, detector: MetaShield, *, suspects: bool = False
    ) -> None:
        data = load(
            setting.dataset,
            n_clients=setting.n_clients,
            partition="dirichlet" if setting.alpha else "natural",
            alpha=setting.alpha or 1.0,
            data_dir=setting.data_dir,
            n_clean=setting.n_clean,
            seed=setting.seed,
        )
        data = replace(data, clients=partial_clients(setting, data))
        self.setting, self.data = setting, data
        self.diverged = False
        self.model = build_model(setting.model, data, setting.seed)
        self.scratch = build_model(setting.model, data, setting.seed)
        self.arrays: Arrays = get_arrays(self.model)
        self.previous: Arrays | None = None
        self.inspector = Inspector(
            self.scratch, data.clean, detector, seed=setting.seed, suspects=suspects
        )

    def honest_round(self, server_round: int) -> None:
        """Train and aggregate one round that nobody looks at."""
        clients = self.participants(server_round)
        self.aggregate(self.honest_updates(clients, server_round), clients)

    def attacked_round(self, server_round: int) -> Iterator[Episode]:
        """Profile one round under every attack and under none, then aggregate it."""
        rng = keyed(self.setting.seed, 3, server_round)
        clients = self.participants(server_round)
        honest = self.honest_updates(clients, server_round)
        if self.diverged:
            return
        malicious = self._draw_malicious(len(clients), rng)
        labels = np.zeros(len(clients), np.int64)
        labels[malicious] = 1
        leaking: list[Arrays] = honest
        for name in rng.permutation(self.setting.attacks)[: self.setting.n_attacks or None]:
            uploads = self._attacked(name, honest, clients, malicious, server_round, rng)
            if not all(map(_is_finite, uploads)):
                continue
            if name in STEALTHY:
                leaking = list(honest)
                leaking[malicious[0]] = uploads[malicious[0]]
            yield self._episode(name, uploads, labels)
        yield self._episode("none", honest, np.zeros_like(labels))
        self.inspector.remember(rng.random(len(clients)) < 0.95)
        self.aggregate(leaking if rng.random() < self.setting.leak else honest, clients)

    def _draw_malicious(self, n_clients: int, rng: np.random.Generator) -> NDArray[np.intp]:
        share = self.setting.most_malicious
        n_malicious = int(rng.integers(1, max(2, int(share * n_clients) + 1)))
        most = n_malicious if share > 0.4 else min(n_malicious, 4)
        return rng.choice(n_clients, size=most, replace=False)

    def _episode(self, family: str, uploads: Sequence[Arrays], labels: Ints) -> Episode:
        query, support = self.inspector.views(self.arrays, uploads)
        return Episode(
            support=support,
            query=query,
            labels=labels,
            family=family,
            domain=f"fl-{self.setting.dataset}",
            settled=self.inspector.is_settled,
        )

    def participants(self, server_round: int) -> NDArray[np.intp]:
        """Clients asked in a round."""
        rng = keyed(self.setting.seed, 2, server_round)
        return rng.choice(self.setting.n_clients, self.setting.clients_per_round, replace=False)

    def honest_updates(self, clients: NDArray[np.intp], server_round: int) -> list[Arrays]:
        """Models of honest clients; ``diverged`` where the drawn rates were too high."""
        trained: list[Arrays] = []
        for client in clients:
            set_arrays(self.model, self.arrays)
            rng = keyed(self.setting.seed, 4, server_round, int(client))
            train(self.model, self.data.clients[client], self.setting.training, rng)
            trained.append(get_arrays(self.model))
        self.diverged = not all(map(_is_finite, trained))
        return trained

    def _attacked(
        self,
        name: str,
        honest: Sequence[Arrays],
        clients: NDArray[np.intp],
        malicious: NDArray[np.intp],
        server_round: int,
        rng: np.random.Generator,
    ) -> list[Arrays]:
        attack = draw_attack(name, len(clients), rng)
        trigger: Trigger = draw_trigger(
            str(keyed(self.setting.seed, 8).choice(IMAGE_FAMILIES)),
            self.data.clean.x,
            keyed(self.setting.seed, 6),
        )
        target = int(keyed(self.setting.seed, 7).integers(self.data.n_classes))
        uploads = list(honest)
        members = sorted(malicious)
        for position in malicious:
            others = [self.data.clients[clients[p]] for p in malicious if p != position]
            own = self.data.clients[clients[position]]
            uploads[position] = attack(
                AttackContext(
                    model=self.model,
                    global_arrays=self.arrays,
                    data=own,
                    peers=(own, *others),
                    trigger=trigger,
                    target_label=target,
                    training=self.setting.training,
                    n_clients=len(clients),
                    rng=keyed(self.setting.seed, 5, server_round, int(clients[position])),
                    server_round=server_round + 1,
                    member=members.index(position),
                    n_members=len(members),
                    previous_arrays=self.previous,
                )
            )
        return uploads

    def aggregate(self, uploads: Sequence[Arrays], clients: NDArray[np.intp]) -> None:
        """Replace the global model by the mean of uploads, weighted by examples."""
        sizes = np.array([len(self.data.clients[c]) for c in clients], dtype=np.float64)
        weights = sizes / sizes.sum()
        self.previous = self.arrays
        self.arrays = {
            name: np.tensordot(weights, np.stack([u[name] for u in uploads]), 1).astype(a.dtype)
            for name, a in self.arrays.items()
        }
