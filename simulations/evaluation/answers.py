"""The shipped method on one victim: profiles worked out once, then read by any weights."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from fl_shield.activations import views_beside
from fl_shield.calibration import standardise
from fl_shield.detector import Adapted
from fl_shield.profile import Profiles
from fl_shield.representation import REPRESENTATIONS
from fl_shield.simulations.episodes.shots import Shots
from fl_shield.types import Floats, Representation
from fl_shield.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """Profiles of shots: they follow from the victim alone, so all weights share them.

    Attributes
    ----------
    profiles : Profiles
        Of points (n, V, 135) and, leave-one-out, of references (m, V, 135).
    fit_seconds : float
        Profiling the references and one point, as a fit does.
    score_seconds : float
        Profiling all points and, once more, the references, as scoring does.
    """

    profiles: Profiles
    fit_seconds: float
    score_seconds: float

    def last(self, n_views: int) -> Profiled:
        """Keep the last views only; the times stay those of all."""
        points, references = self.profiles.points, self.profiles.references
        kept = Profiles(points=points[:, -n_views:], references=references[:, -n_views:])
        return replace(self, profiles=kept)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one detector says of the points of shots.

    Attributes
    ----------
    scores, p_values : (n_points,) float arrays
        Under the guarantee ``tasks``.
    standard : (n_points,) float array
        Log-odds beside the references' own, in their spread.
    seconds : pair of float
        Adaptation, and judging one point; the time of profiling counts in each.
    """

    scores: Floats
    p_values: Floats
    standard: Floats
    seconds: tuple[float, float]


def evaluation_profiles(shots: Shots, representation: Representation) -> Profiled:
    """Profile the points and the references of shots.

    Parameters
    ----------
    shots : Shots
    representation : {"profile", "pca"}
    """
    represent, one = REPRESENTATIONS[representation], slice(0, 1)
    started = time.perf_counter()
    represent(views_beside(shots.references.take(one), shots.references))
    fitted = time.perf_counter()
    profiles = represent(views_beside(shots.points, shots.references))
    scored = time.perf_counter()
    return Profiled(profiles=profiles, fit_seconds=fitted - started, score_seconds=scored - fitted)


def answers(weights: Weights, profiled: Profiled, n_inner_steps: int | None = None) -> Answers:
    """Adapt weights to the references of shots and judge the points.

    The numbers are those of :class:`~fl_shield.detector.MetaShield` with the guarantee ``tasks``.

    Parameters
    ----------
    weights : Weights
    profiled : Profiled
        In the representation of the weights.
    n_inner_steps : int, optional
        Steps of the inner loop; the meta-trained number by default, 0 for no adaptation.
    """
    profiles = profiled.profiles
    started = time.perf_counter()
    adapted = Adapted(weights, profiles.references, n_inner_steps)
    fitted = time.perf_counter()
    told = adapted.score(profiles.points)
    scored = time.perf_counter()
    return Answers(
        scores=told.scores,
        p_values=adapted.p_values(told.log_odds, "tasks"),
        standard=standardise(told.log_odds, adapted.reference_log_odds),
        seconds=(
            profiled.fit_seconds + fitted - started,
            (profiled.score_seconds + scored - fitted) / len(profiles.points),
        ),
    )
