"""White-box adaptive victims: what is left of each detector, and what evading it costs.

Each victim fights one detector with one penalty; every detector then judges it from clean inputs
that the attacker never had. A detector's own curve is made of the victims that fight it.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_shield.attacks import PoisonScheme
from fl_shield.detector import Weights
from fl_shield.detectors import DETECTORS
from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.cache import key_of
from fl_shield.simulations.episodes.clean_models import (
    WEIGHT_DECAY,
    Workplace,
    pool_of,
    recipe_of,
)
from fl_shield.simulations.episodes.population import FAMILIES, POOLS, VictimSetting, draw_victim
from fl_shield.simulations.episodes.recording import Recording, load_recording, save_recording
from fl_shield.simulations.episodes.victims import N_RECORDED_LAYERS, prepare, record
from fl_shield.simulations.evaluation.figures import adaptive_figure
from fl_shield.simulations.evaluation.judging import Row, judge
from fl_shield.simulations.evaluation.study import MIN_ASR, OURS, ours
from fl_shield.simulations.victims.adaptive import (
    FOUGHT,
    PEERS,
    Fight,
    check_penalty,
    fit_of,
    train_fighting,
)
from fl_shield.stages import find_stages

VERSION = 1
"""Raise it when training changes its meaning: victims on disk are then ignored."""

NOBODY = "nobody"
"""What a victim without a penalty fights."""

N_SHOTS = 20
"""Clean inputs of the defender, and as many other ones of the attacker."""

POISON_RATE = 0.3

_FIRST_SEED = 90_000

Report = Callable[[str, float, float], None]
"""Name of a step, how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data set, trigger family and network of victims.

    Examples
    --------
    >>> Case(pool="digits", family="circle", architecture="cnn").pool
    'digits'
    """

    pool: str
    family: str
    architecture: str

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ScenarioError(f"data set must be one of {', '.join(POOLS)}, got {self.pool!r}")
        facts = POOLS[self.pool]
        for name, known in (
            ("family", FAMILIES[facts.kind]),
            ("architecture", facts.architectures),
        ):
            if getattr(self, name) not in known:
                raise ScenarioError(
                    f"{name} of {self.pool} must be one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )


CASES = (
    Case(pool="digits", family="circle", architecture="cnn"),
    Case(pool="gtsrb", family="circle", architecture="cnn"),
    Case(pool="ag-news", family="rare_token", architecture="text-cnn"),
    Case(pool="cartpole", family="state_pair", architecture="policy-mlp"),
)
"""One of each kind of input and photographs, with triggers that no shipped weights have seen."""


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """One victim, what it fights and how hard.

    Attributes
    ----------
    case : Case
    seed : int
    fought : str
        One of :data:`~fl_shield.simulations.victims.adaptive.FOUGHT`, or ``nobody``.
    penalty : float
        0 with ``nobody``, else above.
    """

    case: Case
    seed: int
    fought: str
    penalty: float

    @property
    def setting(self) -> VictimSetting:
        """What the victim would be without a fight: the same for every penalty."""
        case = self.case
        drawn = draw_victim(case.pool, case.family, self.seed, evaluation=True)
        return replace(
            drawn,
            architecture=case.architecture,
            poison_rate=POISON_RATE,
            scheme=PoisonScheme(),
        )


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
        Victims of each case.
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

    def adversaries(self) -> list[Adversary]:
        """Every victim: for each case and seed one that fights nobody, then those that fight."""
        found = []
        for case in self.cases:
            for i in range(self.n_each):
                seed = self.seed * 100_000 + _FIRST_SEED + i
                fights = [(NOBODY, 0.0)]
                fights += [(f, p) for f in self.fought for p in sorted(set(self.penalties)) if p]
                found += [Adversary(case=case, seed=seed, fought=f, penalty=p) for f, p in fights]
        return found


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
    counts : bool
        Whether the attack of that twin works.
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
    counts: bool
    auc: float | None
    tpr_at_fpr_5: float | None
    tpr_5: float | None
    fpr_5: float | None
    seconds: float


def adversary_path(adversary: Adversary, study: AdaptiveStudy) -> Path:
    """Where the recording of a victim is kept: by all that its training follows from."""
    setting = adversary.setting
    told = {
        **setting.manifest(),
        **asdict(recipe_of(setting.pool, POOLS[setting.pool].kind)),
        "fought": adversary.fought,
        "penalty": adversary.penalty,
        "weights": _digest(study.weights) if adversary.fought == OURS else "",
        "layers": N_RECORDED_LAYERS,
        "version": VERSION,
    }
    return study.place.cache / "adaptive" / f"{key_of(told, ())}.npz"


def _digest(weights: Weights) -> str:
    """Hash of everything that scores follow from."""
    digest = sha256(repr(weights.config).encode())
    for name, tensor in sorted(weights.tensors().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def simulate_adversary(adversary: Adversary, study: AdaptiveStudy) -> Recording:
    """Train one victim against what it fights, and record what it says of the defender's inputs.

    The attacker's clean inputs are the first of its training examples, which are left out of the
    training; the defender's come from data that neither has seen.
    """
    setting = adversary.setting
    pool = pool_of(setting.pool, study.place)
    recipe, warm = recipe_of(pool.name, pool.kind), setting.start == "warm"
    victim = prepare(setting, pool, study.place)
    n_clean = min(len(pool.train), recipe.n_train)
    triggered = np.arange(len(victim.training)) >= n_clean
    name = OURS if adversary.fought == NOBODY else adversary.fought
    fight = Fight(
        fit=fit_of(name, study.weights),
        clean=victim.training.x[:N_SHOTS],
        layers=find_stages(victim.model, N_RECORDED_LAYERS),
        penalty=adversary.penalty,
    )
    started = time.perf_counter()
    train_fighting(
        victim.model,
        victim.training.take(slice(N_SHOTS, None)),
        triggered[N_SHOTS:],
        fight,
        victim.rng,
        n_steps=recipe.n_judged_steps if warm else recipe.n_steps,
        batch_size=recipe.batch_size,
        lr=recipe.warm_lr if warm else recipe.lr,
        weight_decay=WEIGHT_DECAY,
    )
    seconds = time.perf_counter() - started
    apart = replace(victim, setting=replace(setting, evaluation=False))  # one-pass peers only
    found = record(apart, pool, seconds)
    facts = {"fought": adversary.fought, "penalty": adversary.penalty, "evaluation": True}
    return replace(found, facts={**found.facts, **facts})


def simulate_one(adversary: Adversary, study: AdaptiveStudy) -> None:
    """Simulate and save one victim."""
    torch.set_num_threads(1)
    save_recording(adversary_path(adversary, study), simulate_adversary(adversary, study))


def simulate_adversaries(study: AdaptiveStudy) -> Iterator[int]:
    """Simulate what is not on disk yet; yields numbers of victims done, those on disk first."""
    everyone = study.adversaries()
    waiting = [a for a in everyone if not adversary_path(a, study).exists()]
    yield len(everyone) - len(waiting)
    if study.n_workers <= 1:
        for adversary in waiting:
            simulate_one(adversary, study)
            yield 1
        return
    with ProcessPoolExecutor(study.n_workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(simulate_one, a, study) for a in waiting]):
            future.result()
            yield 1


def run_adaptive(
    study: AdaptiveStudy, report: Report = lambda step, done, total: None
) -> list[AdaptiveRow]:
    """Simulate what is missing and let every fought detector judge every victim."""
    everyone, done = study.adversaries(), 0
    for n in simulate_adversaries(study):
        done += n
        report("victims that fight back", done, len(everyone))
    recordings = [load_recording(adversary_path(a, study)) for a in everyone]
    twins = {
        (a.case, a.seed): r.facts
        for a, r in zip(everyone, recordings, strict=True)
        if a.fought == NOBODY
    }
    rows = []
    for i, (adversary, recording) in enumerate(zip(everyone, recordings, strict=True)):
        report("judging", i, len(everyone))
        twin = twins[adversary.case, adversary.seed]
        rows += [_row(name, recording, twin, study) for name in study.fought]
    report("judging", len(everyone), len(everyone))
    return rows


def _row(
    name: str, recording: Recording, twin: Mapping[str, Any], study: AdaptiveStudy
) -> AdaptiveRow:
    facts = recording.facts
    detector = DETECTORS[name]() if name in PEERS else ours(study.weights)
    found: Row | None = judge(detector, recording, N_SHOTS, name=name, split="adaptive")
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
        counts=bool(twin["asr"] >= MIN_ASR),
        seconds=facts["seconds"],
    )


def curves(rows: Sequence[AdaptiveRow]) -> list[dict[str, Any]]:
    """One line for each detector, fought detector and penalty: means over victims that count.

    Victims that fight nobody stand in every curve, as its beginning. ``auc`` is the mean over
    victims whose attack is left; ``n_dead`` counts the others.

    Examples
    --------
    >>> curves([])
    []
    """
    counted = [row for row in rows if row.counts]
    found = []
    for fought in dict.fromkeys(r.fought for r in counted if r.fought != NOBODY):
        own = [r for r in counted if r.fought in (NOBODY, fought)]
        for detector in dict.fromkeys(r.detector for r in own):
            for penalty in sorted({r.penalty for r in own}):
                at = [r for r in own if (r.detector, r.penalty) == (detector, penalty)]
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
    files[0].write_text(json.dumps(_described(study, rows, found), indent=1) + "\n")
    with files[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(AdaptiveRow.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    adaptive_figure(found, OURS).savefig(files[2])
    return files


def _described(
    study: AdaptiveStudy, rows: Sequence[AdaptiveRow], found: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
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
            "weights": _digest(study.weights),
        },
        "n_left_out": len({(r.pool, r.seed) for r in rows if not r.counts}),
        "curves": list(found),
    }


def cases_of(pools: Sequence[str], *, with_files: bool) -> tuple[Case, ...]:
    """Cases of some data sets, of all where none is named; files only where there is a folder.

    Examples
    --------
    >>> [case.pool for case in cases_of((), with_files=False)]
    ['digits', 'cartpole']
    """
    known = [case.pool for case in CASES]
    unknown = [pool for pool in pools if pool not in known]
    if unknown:
        raise ScenarioError(
            f"data sets of adaptive victims are {', '.join(known)}, got {unknown[0]!r}"
        )
    found = tuple(
        case
        for case in CASES
        if (not pools or case.pool in pools) and (with_files or not POOLS[case.pool].files)
    )
    if not found:
        raise ScenarioError(f"{', '.join(pools)} are read from files: give --data-dir")
    return found
