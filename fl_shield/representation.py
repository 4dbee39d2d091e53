"""What the detector reads of views: profiles, or the literal principal coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fl_shield.pca import principal_coordinates
from fl_shield.profile import Profiles, profiles
from fl_shield.types import Representation, View


def _each_by_itself(views: Sequence[View]) -> Profiles:
    found = [principal_coordinates(view) for view in views]
    return Profiles(
        points=np.stack([both.points for both in found], axis=1),
        references=np.stack([both.references for both in found], axis=1),
    )


REPRESENTATIONS: Mapping[Representation, Callable[[Sequence[View]], Profiles]] = {
    "profile": profiles,
    "pca": _each_by_itself,
}
"""Each gives as many numbers a point and view: (n, V, k) and, of references, (m, V, k)."""
