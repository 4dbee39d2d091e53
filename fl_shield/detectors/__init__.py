"""Published detectors, one file each, under the contract of :class:`fl_shield.types.Detector`.

All are fitted on a few clean inputs of one model, five to fifty in all, and score single inputs:
higher = more suspicious. :data:`ONE_PASS` read the activations of one forward pass and are also
fitted on :class:`fl_shield.activations.Activations`; :data:`MULTI_PASS` need the model itself.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fl_shield.detectors.badacts import BadActs
from fl_shield.detectors.beatrix import Beatrix
from fl_shield.detectors.confidence import Confidence
from fl_shield.detectors.contract import Calibrated, Kind, MultiPass, OnePass
from fl_shield.detectors.gmm import MixtureDensity
from fl_shield.detectors.ibd_psc import IbdPsc
from fl_shield.detectors.knn import KNearest
from fl_shield.detectors.mahalanobis import Mahalanobis
from fl_shield.detectors.mahalanobis_logit import MahalanobisLogit
from fl_shield.detectors.one_class_svm import OneClassSupport
from fl_shield.detectors.scale_up import ScaleUp, ScaleUpLimited
from fl_shield.detectors.strip import Strip
from fl_shield.detectors.tedpp import TedPlusPlus

DETECTORS: Mapping[str, Callable[..., Calibrated[Any]]] = {
    "confidence": Confidence,
    "mahalanobis": Mahalanobis,
    "mahalanobis_logit": MahalanobisLogit,
    "knn": KNearest,
    "knn3": partial(KNearest, k=3),
    "badacts": BadActs,
    "tedpp": TedPlusPlus,
    "beatrix": Beatrix,
    "gmm": MixtureDensity,
    "one_class_svm": OneClassSupport,
    "strip": Strip,
    "scale_up": ScaleUp,
    "scale_up_limited": ScaleUpLimited,
    "ibd_psc": IbdPsc,
}
"""Every published detector by name; call one with its settings."""

MULTI_PASS = ("strip", "scale_up", "scale_up_limited", "ibd_psc")
"""Detectors that run the model several times over each input."""

ONE_PASS = tuple(name for name in DETECTORS if name not in MULTI_PASS)
"""Detectors that read the activations of one forward pass."""


def make_detector(name: str, **settings: Any) -> Calibrated[Any]:
    """Return the detector of a name with some of its settings changed.

    Examples
    --------
    >>> make_detector("knn", k=3)
    KNearest(fpr_budget=0.05, layers='auto', k=3)
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {name!r}")
    return DETECTORS[name](**settings)


__all__ = [
    "DETECTORS",
    "MULTI_PASS",
    "ONE_PASS",
    "BadActs",
    "Beatrix",
    "Calibrated",
    "Confidence",
    "IbdPsc",
    "KNearest",
    "Kind",
    "Mahalanobis",
    "MahalanobisLogit",
    "MixtureDensity",
    "MultiPass",
    "OneClassSupport",
    "OnePass",
    "ScaleUp",
    "ScaleUpLimited",
    "Strip",
    "TedPlusPlus",
    "make_detector",
]
