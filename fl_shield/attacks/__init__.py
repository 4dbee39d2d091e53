"""What a malicious client uploads: one file each, pure functions of what the client knows."""

from collections.abc import Callable, Mapping
from typing import Any

from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.layer_substitution import layer_substitution_analysis
from fl_shield.attacks.lp import LayerPoisoning
from fl_shield.attacks.model_replacement import ModelReplacement
from fl_shield.attacks.none import NoAttack
from fl_shield.attacks.norm_clipped import NormClipped
from fl_shield.attacks.perturbation import Perturbation
from fl_shield.attacks.poisoning import (
    PoisonScheme,
    attackable,
    poison,
    poison_with,
    wanted_labels,
)
from fl_shield.attacks.sign_flip import SignFlip
from fl_shield.attacks.success import attack_success_rate
from fl_shield.types import Attack

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "none": NoAttack,
    "badnets": BadNets,
    "model_replacement": ModelReplacement,
    "norm_clipped": NormClipped,
    "sign_flip": SignFlip,
    "lp": LayerPoisoning,
    "perturbation": Perturbation,
}
"""Every attack by name; call one with its settings to get a function of an attack context."""


def make_attack(name: str, **settings: Any) -> Attack:
    """Return the attack of a name with some of its settings changed.

    Examples
    --------
    >>> make_attack("badnets", poison_rate=0.2)
    BadNets(poison_rate=0.2, n_epochs=None)
    """
    if name not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {name!r}")
    return ATTACKS[name](**settings)


__all__ = [
    "ATTACKS",
    "BadNets",
    "LayerPoisoning",
    "ModelReplacement",
    "NoAttack",
    "NormClipped",
    "Perturbation",
    "PoisonScheme",
    "SignFlip",
    "attack_success_rate",
    "attackable",
    "layer_substitution_analysis",
    "make_attack",
    "poison",
    "poison_with",
    "wanted_labels",
]
