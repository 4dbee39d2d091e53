"""One evaluation from settings to results: victims, weights of every split, rows, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from fl_shield.errors import ScenarioError
from fl_shield.simulations.episodes.federations import load_all, simulate_all
from fl_shield.simulations.episodes.population import VictimSetting
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.recordings import (
    load_population,
    recording_path,
    simulate_population,
)
from fl_shield.simulations.episodes.tasks import Task, federated_tasks, victim_tasks
from fl_shield.simulations.evaluation.federations import FederatedRow, judge_federations
from fl_shield.simulations.evaluation.judging import MAIN_SHOTS, Row
from fl_shield.simulations.evaluation.learning import (
    Ablation,
    can_learn,
    chosen_ablations,
    weights_file,
)
from fl_shield.simulations.evaluation.results import Results
from fl_shield.simulations.evaluation.settings import Evaluation, Report
from fl_shield.simulations.evaluation.splits import (
    MAIN_SPLIT,
    WITHOUT_FEDERATIONS,
    Split,
    all_splits,
)
from fl_shield.simulations.evaluation.study import (
    Contender,
    Findings,
    both_ways,
    judge_all,
)
from fl_shield.simulations.evaluation.tables import by_detector
from fl_shield.simulations.null_distributions import ReadClean, remembering
from fl_shield.simulations.processes import map_in_processes
from fl_shield.simulations.victims.opponents import OURS
from fl_shield.types import Floats


def run(evaluation: Evaluation, report: Report = lambda step, done, total: None) -> Results:
    """Simulate what is missing, train the weights of every split, then judge victim by victim.

    On one thread: tensors are small, and threads that wait for each other on a busy machine have
    made profiling ten times slower. Simulating, training and judging take ``n_workers`` processes.
    """
    with one_thread():
        return _run(evaluation, report)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(evaluation: Evaluation, report: Report) -> Results:
    judged, tasks = _material(evaluation, report)
    splits = [s for s in _splits(judged, evaluation) if can_learn(s, tasks)]
    if not splits:
        raise ScenarioError(
            f"nothing is left to learn from for {', '.join(evaluation.axes)} with "
            f"{', '.join(evaluation.domains)}: take part with more domains, or ask for other tables"
        )
    contenders = contenders_of(splits, tasks, evaluation, report)
    files = [recording_path(setting, evaluation.place) for setting in unseen(evaluation)]
    found: list[Findings] = []
    for findings in judge_all(files, contenders, evaluation.shots, evaluation.n_workers):
        found.append(findings)
        report("judging victims", len(found), len(files))
    rounds: list[FederatedRow] = []
    federations, cache = evaluation.judged_federations(), evaluation.episodes
    told = judge_federations(federations, contenders, cache, evaluation.n_workers)
    for i, each in enumerate(told):
        rounds += each
        report("judging federations", i + 1, len(federations))
    rows = in_order([row for each in found for row in each.rows], contenders)
    tables = {s.name: by_detector(rows, s.name, MAIN_SHOTS) for s in splits}
    return Results(
        rows=rows,
        tables={name: table for name, table in tables.items() if table},
        victims=[recording.facts for recording in judged],
        scores=(_pooled(found, 0), _pooled(found, 1)),
        alarms=[alarm for each in found for alarm in each.alarms],
        rounds=rounds,
    )


def _splits(judged: Sequence[Recording], evaluation: Evaluation) -> list[Split]:
    """Every split that the recorded victims allow, and the one without federations."""
    splits = all_splits(judged, evaluation.axes)
    if "fl" in evaluation.domains and "domain" in evaluation.axes:
        splits.append(WITHOUT_FEDERATIONS)
    return splits


def unseen(evaluation: Evaluation) -> list[VictimSetting]:
    """Victims that some weights have not seen: those kept for evaluation, first, and all others.

    The others give false alarms only, under the weights that leave their data set out.
    """
    others = evaluation.curriculum.victims() if "dataset" in evaluation.axes else []
    return [*evaluation.judged(), *others]


def contenders_of(
    splits: Sequence[Split], tasks: Sequence[Task], evaluation: Evaluation, report: Report
) -> list[Contender]:
    """Train the weights of every split, and of every ablation, before anything is judged."""
    found: list[Contender] = []
    for i, path in enumerate(_trained(splits, evaluation)):
        report("meta-training", i + 1, len(splits))
        found += both_ways(splits[i], path, evaluation.shots)
    for split in splits:
        if evaluation.ablate and split.name == MAIN_SPLIT:
            jobs = list(chosen_ablations(tasks, evaluation.training, evaluation.ablations))
            found += _ablated(split, jobs, remembering(), report)
    return found


def _trained(splits: Sequence[Split], evaluation: Evaluation) -> Iterator[Path]:
    """Files of the weights of every split, in order; each process reads all recordings once."""
    train = partial(_weights_of, evaluation=evaluation)
    return map_in_processes(train, splits, evaluation.n_workers)


def _weights_of(split: Split, evaluation: Evaluation) -> Path:
    tasks, read = _learned_from(evaluation)
    return weights_file(split, tasks, evaluation.training, read=read)


@lru_cache(maxsize=1)
def _learned_from(evaluation: Evaluation) -> tuple[list[Task], ReadClean]:
    """Tasks of everything that has been simulated to learn from, once a process."""
    curriculum, place = evaluation.curriculum, evaluation.place
    tasks = [
        *federated_tasks(load_all(curriculum.federations(), evaluation.episodes)),
        *victim_tasks(load_population(curriculum.victims(), place), evaluation.n_draws),
    ]
    return tasks, remembering()


def _ablated(
    split: Split, jobs: Sequence[Ablation], read: ReadClean, report: Report
) -> Iterator[Contender]:
    """Train the weights of every ablation that leaves something to learn from."""
    for i, job in enumerate(jobs):
        report("ablations", i, len(jobs))
        if can_learn(split, job.tasks):
            yield Contender(
                name=f"{OURS}/{job.name}",
                split=split,
                path=weights_file(split, job.tasks, job.training, read=read),
                shots=(MAIN_SHOTS,),
                n_views=job.n_views,
            )
    report("ablations", len(jobs), len(jobs))


def in_order(rows: Sequence[Row], contenders: Sequence[Contender]) -> list[Row]:
    """Rows split by split, those of peers last; within a split they stay as they were."""
    place = {c.split.name: i for i, c in reversed(list(enumerate(contenders)))}
    return sorted(rows, key=lambda row: place.get(row.split, len(place) + len(contenders)))


def _pooled(found: Sequence[Findings], label: int) -> Floats:
    kept = [each.standard[label] for each in found if each.standard]
    return np.concatenate([np.zeros(0), *kept])


def _material(evaluation: Evaluation, report: Report) -> tuple[list[Recording], list[Task]]:
    """Recordings that are judged, and tasks to learn from."""
    curriculum, place = evaluation.curriculum, evaluation.place
    settings = [*curriculum.victims(), *evaluation.judged()]
    done = 0
    for n in simulate_population(settings, place, evaluation.workers):
        done += n
        report("training victims", done, len(settings))
    federations = [*curriculum.federations(), *evaluation.judged_federations()]
    for i, _ in enumerate(simulate_all(federations, evaluation.episodes, evaluation.workers)):
        report("simulating federations", i + 1, len(federations))
    return load_population(evaluation.judged(), place), _learned_from(evaluation)[0]
