"""Published robust aggregation rules, one file each: pure steps over flat updates."""

from collections.abc import Callable, Mapping
from typing import Any

from fl_shield.aggregators.alignins import AlignIns
from fl_shield.aggregators.backdoor_indicator import BackdoorIndicator
from fl_shield.aggregators.bulyan import Bulyan
from fl_shield.aggregators.centred_clipping import CenteredClip
from fl_shield.aggregators.contract import (
    Aggregate,
    AggregationContext,
    Aggregator,
    Layout,
    Preparing,
    State,
    is_plain_mean,
)
from fl_shield.aggregators.crfl import CRFL
from fl_shield.aggregators.deepsight import DeepSight
from fl_shield.aggregators.dnc import DnC
from fl_shield.aggregators.flame import Flame
from fl_shield.aggregators.fldetector import FLDetector
from fl_shield.aggregators.fltrust import FLTrust
from fl_shield.aggregators.foolsgold import FoolsGold
from fl_shield.aggregators.freqfed import FreqFed
from fl_shield.aggregators.krum import Krum, MultiKrum
from fl_shield.aggregators.layerguard import LayerGuard
from fl_shield.aggregators.mean import Mean
from fl_shield.aggregators.median import Median
from fl_shield.aggregators.norm_clipping import NormClipping
from fl_shield.aggregators.rfa import RFA
from fl_shield.aggregators.rlr import RobustLearningRate
from fl_shield.aggregators.signguard import SignGuard
from fl_shield.aggregators.snowball import Snowball
from fl_shield.aggregators.trimmed_mean import TrimmedMean
from fl_shield.aggregators.weak_dp import WeakDP

AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "mean": Mean,
    "flame": Flame,
    "fltrust": FLTrust,
    "foolsgold": FoolsGold,
    "rlr": RobustLearningRate,
    "deepsight": DeepSight,
    "fldetector": FLDetector,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "rfa": RFA,
    "norm_clipping": NormClipping,
    "weak_dp": WeakDP,
    "crfl": CRFL,
    "centred_clipping": CenteredClip,
    "dnc": DnC,
    "signguard": SignGuard,
    "alignins": AlignIns,
    "layerguard": LayerGuard,
    "snowball": Snowball,
    "freqfed": FreqFed,
    "backdoor_indicator": BackdoorIndicator,
}
"""Every rule by name; call one with its settings."""


def make_aggregator(name: str, **settings: Any) -> Aggregator:
    """Return the rule of a name with some of its settings changed.

    Examples
    --------
    >>> make_aggregator("flame", noise=0.0)
    Flame(noise=0.0)
    """
    if name not in AGGREGATORS:
        raise ValueError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {name!r}")
    return AGGREGATORS[name](**settings)


__all__ = [
    "AGGREGATORS",
    "CRFL",
    "RFA",
    "Aggregate",
    "AggregationContext",
    "Aggregator",
    "AlignIns",
    "BackdoorIndicator",
    "Bulyan",
    "CenteredClip",
    "DeepSight",
    "DnC",
    "FLDetector",
    "FLTrust",
    "Flame",
    "FoolsGold",
    "FreqFed",
    "Krum",
    "LayerGuard",
    "Layout",
    "Mean",
    "Median",
    "MultiKrum",
    "NormClipping",
    "Preparing",
    "RobustLearningRate",
    "SignGuard",
    "Snowball",
    "State",
    "TrimmedMean",
    "WeakDP",
    "is_plain_mean",
    "make_aggregator",
]
