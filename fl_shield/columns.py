"""What the numbers of a profile are called, and in which order they stand.

New columns come last: weights read as many as they were trained with.
"""

from __future__ import annotations

from fl_shield.geometry import (
    ANGLE_LEVELS,
    NEAR_LEVELS,
    SHRINKAGES,
    SIGNED_LEVELS,
    UNIT_LEVELS,
)

KINDS = ("activation", "update", "head", "probe", "stamp")
"""What a view shows: inputs in a layer, one tensor's update, the head's update, the shift of
clean probes' activations, the shift of stamped probes' probabilities."""

STATISTICS = (
    "largest_logit",
    "confidence",
    "margin",
    "energy",
    "entropy",
    "head_cosine",
    "row_space",
    "clipped_change",
    "norm",
    "peer_cosine",
    "nearest_cosine",
    "nearest_distance",
    "peak",
    "row_peak",
    "norm_share",
    "shift_peak",
)
"""Scalars that are read beside the references' own: eight for inputs, eight for client updates."""

CLASS_STATISTICS = (
    "signature",
    "signature_rank",
    "reach",
    "reach_rank",
    "mean_logit",
    "mean_logit_rank",
    "log_classes",
)
"""Scalars of the class that the model gives a point, read as they are: see
:mod:`fl_shield.signature`."""

SLOTS = (*STATISTICS, *CLASS_STATISTICS)
"""Slots of a view's scalar statistics."""

LIMIT = 8.0
"""Every column is clipped to [-LIMIT, LIMIT]."""

COLUMNS: tuple[str, ...] = (
    *(f"unit_{q:g}" for q in UNIT_LEVELS),
    *(f"signed_{q:g}" for q in SIGNED_LEVELS),
    *("beyond_2", "beyond_3", "beyond_5", "unit_rms", "unit_kurtosis", "unit_mean"),
    *("silent_energy", "silent_units", "out_of_range", "range_excess"),
    *(f"near_{q:g}" for q in NEAR_LEVELS),
    *(f"angle_{q:g}" for q in ANGLE_LEVELS),
    *("cosine_max", "cosine_min", "cosine_mean", "cosine_std"),
    *(f"mahalanobis_{s:g}" for s in SHRINKAGES),
    *("centre_distance", "residual", "in_span", "residual_share", "effective_rank"),
    *(
        "norm_ratio",
        "l1_l2",
        "participation",
        "peak_ratio",
        "near_zero",
        "kurtosis",
        "sign",
        "mean",
    ),
    *(f"z_{name}" for name in STATISTICS),
    *(f"rank_{name}" for name in STATISTICS),
    *(
        f"z_{name}"
        for name in (
            *("mahalanobis_0.1", "mahalanobis_0.5", "mahalanobis_0.9", "centre_distance"),
            *("residual", "nearest", "cosine_max", "norm_ratio", "l1_l2", "unit_rms"),
            *("unit_max", "range_excess"),
        )
    ),
    *(f"kind_{kind}" for kind in KINDS),
    *("depth", "log_references", "log_units", "has_statistics", "few_units", "spread", "constant"),
    *CLASS_STATISTICS,
)
"""Names of the columns, in order; a test holds that they are 135 and distinct. New ones come last:
weights read as many as they were trained with."""

N_COLUMNS = len(COLUMNS)

ROTATION_INVARIANT = frozenset(
    name
    for name in COLUMNS
    if name.startswith(("near_", "angle_", "cosine_", "mahalanobis_", "kind_", "rank_"))
    or name in {"centre_distance", "residual", "in_span", "residual_share", "effective_rank"}
    or name in {"norm_ratio", "depth", "log_references", "log_units", "has_statistics"}
    or name in {"few_units", "spread", "constant", *(f"z_{s}" for s in STATISTICS)}
    or name in {f"z_{s}" for s in ("centre_distance", "residual", "nearest", "cosine_max")}
    or name in {f"z_mahalanobis_{s:g}" for s in SHRINKAGES} | {"z_norm_ratio", *CLASS_STATISTICS}
) - {"near_zero"}
