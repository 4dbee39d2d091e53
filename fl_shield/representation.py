"""What the detector reads of a view: the profile, or the literal principal coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_shield.pca import principal_coordinates
from fl_shield.profile import Profiles, profile
from fl_shield.types import Representation, View

REPRESENTATIONS: Mapping[Representation, Callable[[View], Profiles]] = {
    "profile": profile,
    "pca": principal_coordinates,
}
"""Each gives 128 numbers a point."""
