"""One round of client updates, from arrays to scores: sketches, views, profiles, detector.

Follow one update: :class:`~fl_shield.updates.Sketcher` reads it once and
:class:`~fl_shield.probes.Probes` runs it once; :func:`~fl_shield.updates.standing` relates the
round's sketches to the round's medians; :func:`~fl_shield.updates.update_views` puts them beside
the references; :func:`~fl_shield.profile.profiles` describes them by comparable numbers; the
adapted detector scores them; and evidence that needs no references, such as a stamp that flips
most clean inputs (:func:`~fl_shield.probes.flip_evidence`), raises the scores.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import activations_of
from fl_shield.calibration import standardise, task_p_values
from fl_shield.detector import Adapted, MetaShield, Scores
from fl_shield.probes import Probes, flip_evidence
from fl_shield.profile import MIN_REFERENCES, Profiles
from fl_shield.rng import keyed
from fl_shield.stages import find_layers
from fl_shield.suspects import Suspects, first_doubts, kinship_evidence
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.types import (
    ActivationReport,
    Arrays,
    Flags,
    Floats,
    Inspection,
    Samples,
    TrainingConfig,
)
from fl_shield.updates import (
    Sketch,
    Sketcher,
    Standing,
    core_of,
    joined,
    standing,
    update_views,
    view_depths,
)
from fl_shield.weights import ODDS_NULL
from fl_shield.witness import witness_evidence

N_REFERENCES = 24
"""References that the inspector tries to have before it stops simulating benign updates."""

N_MEMORY = 48
"""Accepted updates of earlier rounds that are kept as references."""

MOST_BY_HEAD = math.log(4)
"""Log-odds that the head's view adds at most to a score: with the policy's prior it alone condemns
nobody, for it mostly shows the mix of labels, in which honest clients differ more than in anything
else. How *rare* an update is, its p-value, counts the view in full.
"""

FAINTEST_PEAK = 0.05
"""Added to every peak of a shift: below it, shifts of probabilities are noise."""

LARGEST_SHIFT = 1e6
"""A model that overflows on the probes stands out; it must not stop a round."""

UNREAD_REPORTS = "reports of activations are not read: these weights have learned from updates only"

REFERENCE_TRAINING = TrainingConfig(n_epochs=2, batch_size=5, lr=0.05)
"""How the server trains on its own examples to simulate benign updates; only directions matter."""


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A round before it is scored: profiles by view, and evidence that only adds suspicion.

    ``group`` are its updates and ``beside`` the references, before they were profiled.
    """

    group: Standing
    beside: Standing
    points: Floats
    references: Floats
    names: tuple[str, ...]
    evidence: Mapping[str, Floats]


class Inspector:
    """Scores rounds of client updates with one adapted detector.

    Parameters
    ----------
    model : nn.Module
        Scratch network of the global architecture; its weights are overwritten.
    clean : Samples
        The server's own clean examples, 10-20 are enough to start.
    detector : MetaShield, optional
        The shipped one by default.
    seed : int
        Draws projections and probes; keep it secret from clients.
    probes : bool
        Whether to run each client's model on clean and stamped probes.
    suspects : bool, optional
        Whether likeness to the doubted updates of other clients adds suspicion, see
        :mod:`fl_shield.suspects`. By default where the weights have a null distribution that was
        made with it (``arena``); with others the budget does not hold then.

    Attributes
    ----------
    model, clean, detector, seed
        As they were given.
    probes : Probes, optional
        None where they are off.
    suspects : Suspects, optional
        None where they are off.
    depths : mapping of view name to float
        Depth of each tensor's view, once a round was read.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Samples,
        detector: MetaShield | None = None,
        *,
        seed: int = 0,
        probes: bool = True,
        suspects: bool | None = None,
    ) -> None:
        if len(clean) < MIN_REFERENCES:
            raise ValueError(
                f"clean_data has {len(clean)} examples; give at least {MIN_REFERENCES}, better 20"
            )
        self.model = model
        self.clean = clean
        self.detector = detector or MetaShield.from_pretrained()
        self.seed = seed
        self.probes = Probes(model, clean.x, seed=seed) if probes else None
        self.depths: dict[str, float] = {}
        self._sketcher: Sketcher | None = None
        self._memory: deque[Standing] = deque(maxlen=N_MEMORY)
        calibrated = ODDS_NULL in self.detector.weights.nulls
        self.suspects = Suspects() if (calibrated if suspects is None else suspects) else None
        self._round: Standing | None = None
        self._simulation: tuple[Arrays, Standing] | None = None

    def inspect(
        self,
        global_arrays: Arrays,
        updates: Iterable[Arrays],
        n_examples: Floats,
        reports: Sequence[ActivationReport | None] | None = None,
        clients: Sequence[str] = (),
    ) -> Inspection:
        """Read each update once, in order, and score them together."""
        read = self._read(global_arrays, updates, clients)
        if read is None:
            empty = np.zeros(0)
            return Inspection(
                scores=empty, p_values=empty, view_names=(), view_scores=np.zeros((0, 0))
            )
        weights, steps = self.detector.weights, self.detector.n_inner_steps
        adapted = Adapted(weights, read.references, steps, null=self.null)
        evidence = dict(read.evidence)
        reported = reports is not None and any(report is not None for report in reports)
        if reports is not None and reported and weights.knows_inputs:
            evidence["report"] = self._reported(global_arrays, reports)
        found = adapted.score(read.points)
        for added in evidence.values():
            found = found.raised(added)
        names = (*read.names, *evidence)
        believed = found.capped(most_by_view(names))
        if self.suspects is not None:
            names = (*names, "suspects")
            doubts = first_doubts(self._p_values(adapted, found, believed))
            found = found.raised(_kinship(self.suspects, doubts, read))
            believed = found.capped(most_by_view(names))
        return Inspection(
            scores=believed.scores,
            p_values=self._p_values(adapted, found, believed),
            view_names=names,
            view_scores=believed.contributions,
            standard_scores=standardise(found.log_odds, adapted.reference_log_odds),
            notes=(UNREAD_REPORTS,) if reported and not weights.knows_inputs else (),
        )

    def _p_values(self, adapted: Adapted, found: Scores, believed: Scores) -> Floats:
        """p-values by the log-odds themselves where the weights have a null distribution of those.

        Log-odds beside the references' own lose their meaning where attackers stand among the
        references: whoever copies the middle of the round widens the spread that he is measured in.
        """
        weights = self.detector.weights
        if self.is_settled and ODDS_NULL in weights.nulls:
            return task_p_values(weights.null_for(ODDS_NULL, 0), believed.log_odds)
        return adapted.p_values(found.log_odds, "tasks")

    def _reported(
        self, global_arrays: Arrays, reports: Sequence[ActivationReport | None]
    ) -> Floats:
        set_arrays(self.model, global_arrays)
        layers = find_layers(self.model)
        references, _ = activations_of(self.model, self.clean.x, layers)
        return witness_evidence(self.detector.weights, reports, references)

    @property
    def memory(self) -> tuple[Standing, ...]:
        """Accepted updates of earlier rounds, one each, the oldest first."""
        return tuple(self._memory)

    def remember_all(self, updates: Standing) -> None:
        """Take accepted updates of earlier rounds for this inspector's own, as after a restart."""
        self._memory.clear()
        self._memory.extend(updates.take(np.array([i])) for i in range(len(updates.distances)))

    @property
    def is_settled(self) -> bool:
        """Whether updates of earlier rounds stand among the references."""
        return len(self._memory) > 0

    @property
    def null(self) -> str:
        """Null distribution that the p-values of the next round are taken from."""
        return "updates" if self.is_settled else "first updates"

    def remember(self, trusted: Flags, doubts: Floats | None = None) -> None:
        """Learn from the round just inspected, once.

        Parameters
        ----------
        trusted : (n,) bool array
            Updates that become references for later rounds.
        doubts : (n,) float array, optional
            In [0, 1]; later updates of other clients are compared with those in doubt.
        """
        if self._round is None:
            return
        for index in np.flatnonzero(trusted):
            self._memory.append(self._round.take(np.array([index])))
        if doubts is not None and self.suspects is not None:
            self.suspects.add(self._round.owners, self._round.points, doubts.tolist())
        self._round = None

    def views(
        self, global_arrays: Arrays, updates: Iterable[Arrays], clients: Sequence[str] = ()
    ) -> tuple[Floats, Floats]:
        """Profiles of a round's updates (n, V, 135) and of its references (m, V, 135)."""
        read = self._read(global_arrays, updates, clients)
        if read is None:
            return np.zeros((0, 0, 0)), np.zeros((0, 0, 0))
        return read.points, read.references

    def _read(
        self, global_arrays: Arrays, updates: Iterable[Arrays], clients: Sequence[str]
    ) -> _Reading | None:
        """Read a round's updates, None where there are none, and keep them to learn from."""
        sketches = self.sketches(global_arrays, updates)
        if not sketches:
            return None
        group = standing(sketches, clients)
        self._round = group
        core = core_of(group)
        references = self.references(global_arrays, group.take(core))
        outside = np.setdiff1d(np.arange(len(sketches)), core)
        found = update_views(group.take(outside), references, self.depths)
        both = self.detector.weights.represent(found)
        evidence: dict[str, Floats] = {}
        if self.probes is not None:
            evidence["flips"] = flip_evidence([sketch.vectors for sketch in sketches])
        return _Reading(
            group=group,
            beside=references,
            points=_put_back(both, core, outside),
            references=both.references,
            names=tuple(view.name for view in found),
            evidence=evidence,
        )

    def references(self, global_arrays: Arrays, core: Standing) -> Standing:
        """Return what a round stands beside: its core first, then earlier and simulated updates."""
        groups = [core, *self._memory]
        missing = N_REFERENCES - len(core.distances) - len(self._memory)
        if missing > 0:
            groups.append(self._simulated(global_arrays, max(missing, MIN_REFERENCES + 1)))
        return joined(groups)

    def sketches(self, global_arrays: Arrays, updates: Iterable[Arrays]) -> list[Sketch]:
        """Read each update once, in order, and run it on the probes."""
        if self._sketcher is None:
            self._sketcher = Sketcher(global_arrays, self.seed)
            self.depths = view_depths(self._sketcher.layers)
        if self.probes is not None:
            self.probes.set_global(global_arrays)
        return [self._sketch(self._sketcher, global_arrays, update) for update in updates]

    def _sketch(self, sketcher: Sketcher, global_arrays: Arrays, update: Arrays) -> Sketch:
        sketch = sketcher.sketch(global_arrays, update)
        if self.probes is None:
            return sketch
        shifts = {
            name: np.nan_to_num(shift, nan=LARGEST_SHIFT).clip(-LARGEST_SHIFT, LARGEST_SHIFT)
            for name, shift in self.probes.shifts(update).items()
        }
        norms = {name: float(np.linalg.norm(shift)) for name, shift in shifts.items()}
        peaks = {n: max(float(shift.max()), 0.0) + FAINTEST_PEAK for n, shift in shifts.items()}
        rows = dict.fromkeys(shifts, 1.0)
        return replace(
            sketch,
            vectors={**sketch.vectors, **shifts},
            norms={**sketch.norms, **norms},
            peaks={**sketch.peaks, **peaks},
            row_peaks={**sketch.row_peaks, **rows},
        )

    def _simulated(self, global_arrays: Arrays, n: int) -> Standing:
        """Benign updates trained on bootstrap samples of the server's own examples."""
        sketcher = self._sketcher
        assert sketcher is not None
        if self._simulation is not None and self._simulation[0] is global_arrays:
            members = self._simulation[1]
            return members.take(np.arange(min(n, len(members.distances))))
        sketches = []
        for i in range(n):
            rng = keyed(self.seed, 5, i)
            drawn = rng.integers(0, len(self.clean), size=len(self.clean))
            set_arrays(self.model, global_arrays)
            train(self.model, self.clean.take(drawn), REFERENCE_TRAINING, rng)
            sketches.append(self._sketch(sketcher, global_arrays, get_arrays(self.model)))
        self._simulation = (global_arrays, standing(sketches))
        return self._simulation[1]


def _put_back(both: Profiles, core: NDArray[np.intp], outside: NDArray[np.intp]) -> Floats:
    """Profiles of a round: those in the core, who are the first references, leave-one-out."""
    order = np.argsort(np.concatenate([core, outside]))
    found: Floats = np.concatenate([both.references[: len(core)], both.points])[order]
    return found


def most_by_view(names: Sequence[str]) -> Floats:
    """Log-odds that each view adds at most to a score, shape (V,): see :data:`MOST_BY_HEAD`.

    Examples
    --------
    >>> most_by_view(["update:conv.weight", "head:fc.weight"]).round(2).tolist()
    [inf, 1.39]
    """
    return np.array([MOST_BY_HEAD if name.startswith("head:") else np.inf for name in names])


def _kinship(suspects: Suspects, doubts: Floats, read: _Reading) -> Floats:
    """What likeness to suspects adds to the log-odds, (n,), beside each one's own doubts (n,).

    Whoever is in doubt is a suspect to the others of its round, so that attackers who come together
    betray one another, already in the first round.
    """
    group, beside = read.group, read.beside
    with_round = suspects.joined_by(group.owners, group.points, doubts.tolist())
    earlier, now = (
        kinship_evidence(
            known.likeness(group.points, group.owners),
            known.likeness(beside.points, beside.owners),
        )
        for known in (suspects, with_round)
    )
    return np.maximum(earlier, now)
