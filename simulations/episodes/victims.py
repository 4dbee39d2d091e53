"""Backdoored classifiers as meta-learning tasks: clean references beside triggered inputs.

A victim is trained on a share of the data set with triggered copies appended. Its clean
references and clean points come from data it never saw; the triggered points are stamped copies
of such data that reach the attacker's target, for a trigger that does not reach it does no harm.
A clean model under a trigger gives negatives only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import activation_views
from fl_shield.attacks import poison
from fl_shield.meta import Episode
from fl_shield.representation import REPRESENTATIONS
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import load
from fl_shield.simulations.victims import build_model
from fl_shield.training import TrainingConfig, logits_of, train
from fl_shield.triggers import IMAGE_FAMILIES, draw_trigger
from fl_shield.types import Representation, Samples, Trigger

N_POINTS = 60
"""Clean points, and at most so many triggered ones, of a victim."""


@dataclass(frozen=True, kw_only=True)
class VictimSetting:
    """One victim; everything in it follows from these numbers.

    Attributes
    ----------
    seed : int
    dataset, model, family : str
        ``family`` is the trigger's; a clean victim sees it at test time only.
    target_label : int
    poison_rate : float
        Share of the non-target examples with a triggered copy; 0 = a clean victim.
    n_train : int
    n_references : int
    training : TrainingConfig
    """

    seed: int
    dataset: str
    model: str
    family: str
    target_label: int
    poison_rate: float
    n_train: int
    n_references: int
    training: TrainingConfig
    representation: Representation = "profile"

    def manifest(self) -> dict[str, Any]:
        """Plain numbers for the manifest and the cache key."""
        return {"source": "victim", **asdict(self)}


def draw_victim(seed: int) -> VictimSetting:
    """Draw one digits victim; the same seed gives the same one.

    Examples
    --------
    >>> draw_victim(3) == draw_victim(3)
    True
    """
    rng = keyed(seed, 21)
    return VictimSetting(
        seed=seed,
        dataset="digits",
        model=str(rng.choice(["digits-cnn", "digits-mlp"])),
        family=str(rng.choice(IMAGE_FAMILIES)),
        target_label=int(rng.integers(10)),
        poison_rate=0.0 if rng.random() < 0.15 else float(rng.uniform(0.05, 0.5)),
        n_train=int(rng.integers(500, 901)),
        n_references=int(rng.integers(10, 41)),
        training=TrainingConfig(
            n_epochs=int(rng.integers(15, 31)), batch_size=32, lr=0.05, momentum=0.9
        ),
    )


def simulate_victim(setting: VictimSetting) -> list[Episode]:
    """Train one victim and profile clean and triggered inputs beside its references."""
    rng = keyed(setting.seed, 22)
    data = load(setting.dataset, n_clients=2, partition="iid", seed=setting.seed)
    pool = Samples.join([*data.clients, data.test, data.clean])
    pool = pool.take(rng.permutation(len(pool)))
    model = build_model(setting.model, data, setting.seed)
    trigger = draw_trigger(setting.family, pool.x[:50], rng)
    training, held_out = pool.take(slice(0, setting.n_train)), pool.take(slice(setting.n_train, -1))
    if setting.poison_rate > 0:
        training = poison(training, trigger, setting.target_label, setting.poison_rate, rng)
    train(model, training, setting.training, rng)
    return [_episode(setting, model, trigger, held_out)]


def _episode(
    setting: VictimSetting, model: nn.Module, trigger: Trigger, held_out: Samples
) -> Episode:
    references = held_out.x[: setting.n_references]
    rest = held_out.take(slice(setting.n_references, None))
    clean = rest.x[:N_POINTS]
    triggered = _successes(setting, model, trigger, rest.take(slice(N_POINTS, None)))[:N_POINTS]
    views = activation_views(model, np.concatenate([clean, triggered]), references)
    profiles = REPRESENTATIONS[setting.representation](views)
    backdoored = setting.poison_rate > 0
    labels = np.r_[np.zeros(len(clean)), np.full(len(triggered), float(backdoored))]
    return Episode(
        support=profiles.references,
        query=profiles.points,
        labels=labels.astype(np.int64),
        family=setting.family if backdoored else "none",
        domain=f"cv-{setting.dataset}",
    )


def _successes(
    setting: VictimSetting, model: nn.Module, trigger: Trigger, samples: Samples
) -> NDArray[Any]:
    others = samples.take(samples.y != setting.target_label)
    stamped = trigger.stamp(others.x)
    if setting.poison_rate == 0:
        return stamped
    reached = logits_of(model, stamped).argmax(1).numpy() == setting.target_label
    successes: NDArray[Any] = stamped[reached]
    return successes
