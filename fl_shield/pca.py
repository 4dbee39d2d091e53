"""The literal representation of the MetaShield design: raw principal coordinates, 128 of them.

It is here for the ablation. The axes are each space's own, so that a coordinate of one network
has no counterpart in another, and references that the axes were fitted to look too normal; the
profile of :mod:`fl_shield.profile` mends both.
"""

from __future__ import annotations

import numpy as np

from fl_shield.profile import Profiles, checked
from fl_shield.types import Floats, View

N_COORDINATES = 128
"""Coordinates kept; missing ones are zero."""


def principal_coordinates(view: View) -> Profiles:
    """Coordinates of a view's points and references on the principal axes of the references.

    Parameters
    ----------
    view : View
        Points (n, d) and at least three references (m, d).

    Returns
    -------
    Profiles
        At most min(m - 1, d, 128) coordinates by falling variance, then zeros; each axis points
        to where its largest loading is positive. In the units of the view.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean = rng.normal(size=(20, 6))
    >>> both = principal_coordinates(View(name="demo", points=clean[:2] + 9, references=clean))
    >>> both.points.shape, int(np.count_nonzero(both.points[0]))
    ((2, 128), 6)
    """
    points, references = (np.asarray(rows) for rows in checked(view))
    centre = references.mean(0)
    _, _, axes = np.linalg.svd(references - centre, full_matrices=False)
    axes = axes[: min(len(references) - 1, N_COORDINATES)]
    largest = np.abs(axes).argmax(1)
    axes = axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1.0, 1.0)[:, None]
    return Profiles(
        points=_padded((points - centre) @ axes.T),
        references=_padded((references - centre) @ axes.T),
    )


def _padded(rows: Floats) -> Floats:
    out: Floats = np.zeros((len(rows), N_COORDINATES), np.float32)
    out[:, : rows.shape[1]] = rows
    return out
