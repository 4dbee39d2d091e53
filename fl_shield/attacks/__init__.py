"""What a malicious client uploads: one file each, pure functions of what the client knows."""

from collections.abc import Callable, Mapping
from typing import Any

from fl_shield.attacks.a3fl import A3FL
from fl_shield.attacks.alie import ALittleIsEnough
from fl_shield.attacks.badnets import BadNets
from fl_shield.attacks.chameleon import Chameleon
from fl_shield.attacks.constrain_and_scale import ConstrainAndScale
from fl_shield.attacks.dba import DistributedBackdoor
from fl_shield.attacks.edge_case import EdgeCase
from fl_shield.attacks.evasive import Evasive
from fl_shield.attacks.gaussian import GaussianNoise
from fl_shield.attacks.iba import IBA
from fl_shield.attacks.ipm import InnerProductManipulation
from fl_shield.attacks.label_flip import LabelFlip
from fl_shield.attacks.layer_substitution import layer_substitution_analysis
from fl_shield.attacks.lf import LayerFlipping
from fl_shield.attacks.lp import LayerPoisoning
from fl_shield.attacks.mimic import Mimic
from fl_shield.attacks.min_max import MinMax
from fl_shield.attacks.min_sum import MinSum
from fl_shield.attacks.model_replacement import ModelReplacement
from fl_shield.attacks.neurotoxin import Neurotoxin
from fl_shield.attacks.none import NoAttack
from fl_shield.attacks.norm_clipped import NormClipped
from fl_shield.attacks.on_off import OnOff
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
from fl_shield.attacks.sybil import SybilClones
from fl_shield.types import Attack

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "none": NoAttack,
    "badnets": BadNets,
    "model_replacement": ModelReplacement,
    "norm_clipped": NormClipped,
    "sign_flip": SignFlip,
    "lp": LayerPoisoning,
    "perturbation": Perturbation,
    "alie": ALittleIsEnough,
    "ipm": InnerProductManipulation,
    "min_max": MinMax,
    "min_sum": MinSum,
    "mimic": Mimic,
    "label_flip": LabelFlip,
    "gaussian": GaussianNoise,
    "sybil": SybilClones,
    "on_off": OnOff,
    "constrain_and_scale": ConstrainAndScale,
    "dba": DistributedBackdoor,
    "neurotoxin": Neurotoxin,
    "chameleon": Chameleon,
    "a3fl": A3FL,
    "iba": IBA,
    "lf": LayerFlipping,
    "edge_case": EdgeCase,
    "evasive": Evasive,
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
    "A3FL",
    "ATTACKS",
    "IBA",
    "ALittleIsEnough",
    "BadNets",
    "Chameleon",
    "ConstrainAndScale",
    "DistributedBackdoor",
    "EdgeCase",
    "Evasive",
    "GaussianNoise",
    "InnerProductManipulation",
    "LabelFlip",
    "LayerFlipping",
    "LayerPoisoning",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Neurotoxin",
    "NoAttack",
    "NormClipped",
    "OnOff",
    "Perturbation",
    "PoisonScheme",
    "SignFlip",
    "SybilClones",
    "attack_success_rate",
    "attackable",
    "layer_substitution_analysis",
    "make_attack",
    "poison",
    "poison_with",
    "wanted_labels",
]
