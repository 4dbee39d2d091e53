"""White-box adaptive victims: what is left of each detector, and what evading it costs.

Each victim fights one detector with one penalty; every detector then judges it from clean inputs
that the attacker never had. A detector's own curve is made of the victims that fight it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.adversaries import (
    CASES,
    N_SHOTS,
    NOBODY,
    POISON_RATE,
    Adversary,
    Case,
    adversary_path,
    digest_of,
    simulate_one,
)
from fl_shield.simulations.episodes.clean_models import Workplace
from fl_shield.simulations.episodes.recording import Recording, load_recording
from fl_shield.simulations.evaluation.figures import adaptive_figure
from fl_shield.simulations.evaluation.settings import Report
from fl_shield.simulations.evaluation.study import MIN_ASR, judge_one
from fl_shield.simulations.processes import Workers, as_done
from fl_shield.simulations.victims.adaptive import check_penalty
from fl_shield.simulations.victims.opponents import FOUGHT, OURS, fit_of
from fl_shield.weights import Weights

MOST_TRIES = 5
"""Victims that are drawn for each that counts, at most: not every drawn trigger works."""

_FIRST_SEED = 90_000


@dataclass(frozen=True, kw_only=True)
class AdaptiveStudy:
    """Which victims fight which detectors.

    Attributes
    ----------
    weights : Weights
        Of MetaShield, which the attackers hold too.
    cases : tuple of Case
    penalties : tuple of float
        Must hold 0: costs are beside victims that fight nobody.
    fought : tuple of str
        Detectors that victims fight; all of them judge every victim.
    n_each : int
        Victims of each case: the first drawn ones whose attack works without a fight.
    seed : int
    place : Workplace
    n_workers : int
    """

    weights: Weights
    cases: tuple[Case, ...] = CASES
    penalties: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)
    fought: tuple[str, ...] = FOUGHT
    n_each: int = 1
    seed: int = 0
    place: Workplace
    n_workers: int = 1

    def __post_init__(self) -> None:
        for penalty in self.penalties:
            check_penalty(penalty)
        if 0 not in self.penalties or len(set(self.penalties)) < 2:
            raise ScenarioError(
                "penalties must hold 0, which costs are measured from, and another number, "
                f"got {self.penalties}; 0,0.1,1,10 are usual"
            )
        if not self.cases or self.n_each < 1:
            raise ScenarioError(
                "a study needs a case and n_each >= 1, "
                f"got {len(self.cases)} cases and n_each={self.n_each}"
            )
        if not self.fought:
            raise ScenarioError(f"nothing is fought: give some of {', '.join(FOUGHT)}")
        for name in self.fought:
            fit_of(name, self.weights)

    def twin(self, case: Case, which: int) -> Adversary:
        """One victim that fights nobody."""
        seed = self.seed * 100_000 + _FIRST_SEED + which
        return Adversary(case=case, seed=seed, fought=NOBODY, penalty=0.0)

    def fights(self, twin: Adversary) -> list[Adversary]:
        """Victims that differ from a twin in nothing but their fight."""
        return [
            Adversary(case=twin.case, seed=twin.seed, fought=name, penalty=penalty)
            for name in self.fought
            for penalty in sorted(set(self.penalties))
            if penalty
        ]

    def load(self, adversary: Adversary) -> Recording:
        """Load the recording of a victim that has been simulated."""
        return load_recording(adversary_path(adversary, self.weights, self.place))


@dataclass(frozen=True, kw_only=True)
class AdaptiveRow:
    """What one detector made of one victim.

    Attributes
    ----------
    pool, domain, family, architecture, fought, detector : str
    seed : int
    penalty : float
    accuracy, asr : float
        Of the victim.
    accuracy_cost, asr_cost : float
        What its twin that fights nobody has more of each.
    auc, tpr_at_fpr_5, tpr_5, fpr_5 : float, optional
        As in :class:`~fl_shield.simulations.evaluation.judging.Row`; None where no triggered input
        reaches the target: the penalty cost the whole attack.
    seconds : float
        What the training took.
    """

    pool: str
    domain: str
    family: str
    architecture: str
    seed: int
    fought: str
    penalty: float
    detector: str
    accuracy: float
    asr: float
    accuracy_cost: float
    asr_cost: float
    auc: float | None
    tpr_at_fpr_5: float | None
    tpr_5: float | None
    fpr_5: float | None
    seconds: float


def simulate_adversaries(study: AdaptiveStudy, wanted: Sequence[Adversary]) -> Iterator[int]:
    """Simulate what is not on disk yet; yields numbers of victims done, those on disk first."""
    place, weights = study.place, study.weights
    waiting = [a for a in wanted if not adversary_path(a, weights, place).exists()]
    yield len(wanted) - len(waiting)
    simulate = partial(simulate_one, weights=weights, place=place)
    for _ in as_done(simulate, waiting, Workers(n_processes=study.n_workers)):
        yield 1


def working_twins(
    study: AdaptiveStudy, report: Report = lambda step, done, total: None
) -> list[Adversary]:
    """For each case the first drawn victims that fight nobody and whose attack works."""
    found: list[Adversary] = []
    total = len(study.cases) * study.n_each
    for which in range(MOST_TRIES * study.n_each):
        short = [c for c in study.cases if sum(a.case == c for a in found) < study.n_each]
        drawn = [study.twin(case, which) for case in short]
        for _ in simulate_adversaries(study, drawn):
            report("victims that fight nobody", len(found), total)
        found += [twin for twin in drawn if study.load(twin).facts["asr"] >= MIN_ASR]
    report("victims that fight nobody", len(found), total)
    if not found:
        raise ScenarioError(
            f"no attack of {MOST_TRIES * study.n_each} victims of each case reaches an ASR of "
            f"{MIN_ASR}: draw others with another seed"
        )
    return sorted(found, key=lambda twin: study.cases.index(twin.case))


def run_adaptive(
    study: AdaptiveStudy, report: Report = lambda step, done, total: None
) -> list[AdaptiveRow]:
    """Simulate what is missing and let every fought detector judge every victim."""
    twins, done = working_twins(study, report), 0
    fights = [adversary for twin in twins for adversary in study.fights(twin)]
    for n in simulate_adversaries(study, fights):
        done += n
        report("victims that fight back", done, len(fights))
    rows = []
    for i, twin in enumerate(twins):
        report("judging", i, len(twins))
        plain = study.load(twin)
        for recording in (plain, *map(study.load, study.fights(twin))):
            rows += [_row(name, recording, plain.facts, study) for name in study.fought]
    report("judging", len(twins), len(twins))
    return rows


def _row(
    name: str, recording: Recording, twin: Mapping[str, Any], study: AdaptiveStudy
) -> AdaptiveRow:
    facts, found = recording.facts, judge_one(name, recording, study.weights, N_SHOTS)
    names = ("pool", "domain", "family", "architecture", "seed", "fought", "penalty")
    told: dict[str, Any] = {key: facts[key] for key in names}
    for key in ("auc", "tpr_at_fpr_5", "tpr_5", "fpr_5"):
        told[key] = None if found is None else getattr(found, key)
    return AdaptiveRow(
        **told,
        detector=name,
        accuracy=facts["accuracy"],
        asr=facts["asr"],
        accuracy_cost=twin["accuracy"] - facts["accuracy"],
        asr_cost=twin["asr"] - facts["asr"],
        seconds=facts["seconds"],
    )


def curves(rows: Sequence[AdaptiveRow]) -> list[dict[str, Any]]:
    """One line for each detector, fought detector and penalty: means over victims.

    Victims that fight nobody stand in every curve, as its beginning. ``auc`` is the mean over
    victims whose attack is left; ``n_dead`` counts the others.

    Examples
    --------
    >>> curves([])
    []
    """
    found = []
    for fought in dict.fromkeys(r.fought for r in rows if r.fought != NOBODY):
        own = [r for r in rows if r.fought in (NOBODY, fought)]
        for detector in dict.fromkeys(r.detector for r in own):
            for penalty in sorted({r.penalty for r in own}):
                at = [r for r in own if (r.detector, r.penalty) == (detector, penalty)]
                if at:
                    found.append(_point(fought, detector, penalty, at))
    return found


def _point(
    fought: str, detector: str, penalty: float, rows: Sequence[AdaptiveRow]
) -> dict[str, Any]:
    aucs = [r.auc for r in rows if r.auc is not None]
    names = ("accuracy", "asr", "accuracy_cost", "asr_cost", "seconds")
    return {
        "fought": fought,
        "detector": detector,
        "penalty": penalty,
        "n_victims": len(rows),
        "n_dead": len(rows) - len(aucs),
        "auc": float(np.mean(aucs)) if aucs else None,
        **{name: float(np.mean([getattr(r, name) for r in rows])) for name in names},
    }


def write_adaptive(study: AdaptiveStudy, rows: Sequence[AdaptiveRow], out: Path) -> list[Path]:
    """Write ``adaptive.json``, ``adaptive.csv`` and ``adaptive.png``, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"adaptive.{ending}" for ending in ("json", "csv", "png")]
    found = curves(rows)
    files[0].write_text(json.dumps(_described(study, found), indent=1) + "\n")
    with files[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(AdaptiveRow.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    adaptive_figure(found, OURS).savefig(files[2])
    return files


def _described(study: AdaptiveStudy, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "settings": {
            "cases": [asdict(case) for case in study.cases],
            "penalties": study.penalties,
            "fought": study.fought,
            "n_each": study.n_each,
            "seed": study.seed,
            "n_shots": N_SHOTS,
            "poison_rate": POISON_RATE,
            "weights": digest_of(study.weights),
        },
        "curves": list(found),
    }
