"""What the weights of a comparison learn from, with one thing changed for each ablation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fl_shield.activations import Activations
from fl_shield.columns import CLASS_STATISTICS
from fl_shield.errors import ScenarioError
from fl_shield.meta import MetaConfig, Progress
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.tasks import Task, victim_tasks
from fl_shield.simulations.evaluation.splits import Split
from fl_shield.simulations.meta_training import Parts, episodes_of, fit_weights
from fl_shield.simulations.null_distributions import (
    ReadClean,
    calibrated,
    clean_profiles,
    refit,
)
from fl_shield.types import Floats, Representation

MEASURED = ("accuracy", "asr", "mean_change", "share_changed", "seconds")
"""Facts of a victim that follow from the others, or from the machine."""

METHOD = "networks held out whole, nulls across data sets as long, families alike, views of inputs"
"""What else weights follow from: change it with the method, or a cache gives the old ones."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights of every split are meta-trained.

    Attributes
    ----------
    config : MetaConfig
    seed : int
    cache : Path
        Folder of finished weights.
    """

    config: MetaConfig
    seed: int
    cache: Path


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no-inner-steps": {"n_inner_steps": 0},
    "one-inner-step": {"n_inner_steps": 1},
    "inner-rate-0.01": {"inner_lr": 0.01},
    "inner-rate-0.2": {"inner_lr": 0.2},
    "first-order": {"second_order": False},
    "conditioned": {"conditioned": True},
    "no-ensemble": {"ensemble": False},
    "no-dropout": {"dropout": 0.0},
    "no-view-dropout": {"view_dropout": 0.0},
    "hidden-16": {"n_hidden": 16},
    "hidden-64": {"n_hidden": 64},
}
"""Settings of meta-training that differ from the ones that are shipped, one at a time."""

FEWER_VICTIMS = (0.25, 0.5)
"""Shares of the training victims that ablations learn from."""


def can_learn(split: Split, tasks: Sequence[Task]) -> bool:
    """Whether a split leaves enough: a task to learn from and one that calibrates."""
    return sum(split.trains_on(task.facts) for task in tasks) >= 2


def weights_file(
    split: Split,
    tasks: Sequence[Task],
    training: Training,
    report: Callable[[Progress], None] = lambda progress: None,
    read: ReadClean = clean_profiles,
) -> Path:
    """Meta-train without what a split leaves out, unless an earlier run did: where weights are."""
    learned = [task for task in tasks if split.trains_on(task.facts)]
    path = training.cache / f"{_key(learned, training)}.safetensors"
    if path.exists():
        return path
    parts = Parts.of(learned)
    card = {"split": split.name, "seed": str(training.seed)}
    episodes = episodes_of(parts.training)
    for progress, weights in fit_weights(episodes, [], training.config, training.seed, card):
        report(progress)
        kept = weights
    kept = calibrated(kept, parts, refit(training.config, training.seed), read)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".part{os.getpid()}")
    kept.save(partial)
    partial.replace(path)
    return path


def _key(tasks: Sequence[Task], training: Training) -> str:
    """Hash of everything that weights follow from."""
    kept = [{k: v for k, v in task.facts.items() if k not in MEASURED} for task in tasks]
    facts = [json.dumps(each, sort_keys=True, default=str) for each in kept]
    sizes = [[episode.query.shape[1:] for episode in task.episodes] for task in tasks]
    described = json.dumps([facts, sizes, asdict(training.config), training.seed, METHOD])
    return hashlib.sha256(described.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Weights with one thing changed.

    Attributes
    ----------
    name : str
    training : Training
    tasks : sequence of Task
        What they learn from.
    n_views : int, optional
        How many of an input's views they read, the last ones; None = all.
    """

    name: str
    training: Training
    tasks: Sequence[Task]
    n_views: int | None = None


def ablations(tasks: Sequence[Task], training: Training) -> Iterator[Ablation]:
    """Change one thing at a time: settings, representation, views, victims."""
    for name, changes in ABLATIONS.items():
        changed = replace(training, config=replace(training.config, **changes))
        yield Ablation(name=name, training=changed, tasks=tasks)
    known = [_without_class_statistics(task) for task in tasks]
    yield Ablation(name="without-class-statistics", training=training, tasks=known)
    literal = replace(training.config, representation="pca", conditioned=False)
    yield Ablation(
        name="pca-128",
        training=replace(training, config=literal),
        tasks=_made_again(tasks, representation="pca"),
    )
    head = _made_again(tasks, change=of_last_layer)
    yield Ablation(name="last-view-only", training=training, tasks=head, n_views=1)
    yield from _fewer(tasks, training)


def chosen_ablations(
    tasks: Sequence[Task], training: Training, names: Sequence[str]
) -> Iterator[Ablation]:
    """Those of :func:`ablations` that are named, or all; none is made after the last of them."""
    wanted = set(names)
    for ablation in ablations(tasks, training):
        if not names or ablation.name in wanted:
            wanted.discard(ablation.name)
            yield ablation
        if names and not wanted:
            return


def check_ablations(names: Sequence[str], domains: Sequence[str]) -> None:
    """Refuse names that no ablation has where some domains take part.

    Examples
    --------
    >>> check_ablations(["no-inner-steps", "without-rl"], ["cv", "rl"])
    """
    known = [*ABLATIONS, "without-class-statistics", "pca-128", "last-view-only"]
    known += [f"victims-{share:.0%}" for share in FEWER_VICTIMS]
    known += [*(f"without-{domain}" for domain in sorted(domains)), "without-warm-starts"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ScenarioError(f"an ablation must be one of {', '.join(known)}, got {unknown[0]!r}")


def _fewer(tasks: Sequence[Task], training: Training) -> Iterator[Ablation]:
    for share in FEWER_VICTIMS:
        drawn = _share_of(tasks, share, training.seed)
        yield Ablation(name=f"victims-{share:.0%}", training=training, tasks=drawn)
    for domain in sorted({str(task.facts["domain"]) for task in tasks}):
        rest = [task for task in tasks if task.facts["domain"] != domain]
        yield Ablation(name=f"without-{domain}", training=training, tasks=rest)
    cold = [task for task in tasks if task.facts.get("start") != "warm"]
    yield Ablation(name="without-warm-starts", training=training, tasks=cold)


def _made_again(
    tasks: Sequence[Task],
    representation: Representation = "profile",
    change: Callable[[Recording], Recording] = lambda recording: recording,
) -> list[Task]:
    """Tasks of the same victims read in another way; federations have no recording, and go."""
    made = []
    for task in tasks:
        if task.recording is not None:
            recording = change(task.recording)
            made += victim_tasks([recording], len(task.episodes), representation)
    return made


def _without_class_statistics(task: Task) -> Task:
    """A task without the columns of the class that the model gives a point, which come last."""

    def cut(rows: Floats) -> Floats:
        return rows[..., : -len(CLASS_STATISTICS)]

    cut_short = (replace(e, support=cut(e.support), query=cut(e.query)) for e in task.episodes)
    return replace(task, episodes=tuple(cut_short))


def of_last_layer(recording: Recording) -> Recording:
    """Recording of what the head reads, and nothing before it."""

    def last(part: Activations) -> Activations:
        name = tuple(part.layers)[-1]
        return Activations(layers={name: part.layers[name]}, logits=part.logits, head=part.head)

    return replace(
        recording,
        references=last(recording.references),
        clean=last(recording.clean),
        triggered=last(recording.triggered),
    )


def _share_of(tasks: Sequence[Task], share: float, seed: int) -> list[Task]:
    """Draw a share of the tasks; a larger one holds a smaller one.

    Every so many in a row would miss families, which take turns.
    """
    drawn = keyed(seed, 83).permutation(len(tasks))[: round(share * len(tasks))]
    return [tasks[i] for i in sorted(drawn)]
