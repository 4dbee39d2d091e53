"""From tasks to weights: standardise, meta-train, calibrate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fl_shield.activations import views_beside
from fl_shield.calibration import standardise
from fl_shield.conditioning import Habits, beside_each_other
from fl_shield.detector import Adapted, Weights
from fl_shield.meta import Episode, MetaConfig, Progress, initial_params, meta_train
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import shots_of
from fl_shield.simulations.episodes.tasks import Task, is_validation
from fl_shield.types import Floats

N_NULL = 1001
"""Quantiles kept of each null distribution."""

NULLS = ("inputs", "updates", "first updates")
"""Kinds of tasks with a null distribution of their own."""

HOLD_OUT = 6
"""One task of so many is held out whole: it calibrates, and makes the card's table."""

MOST_TURNS = 3
"""How often an episode of a rare domain may come in one epoch."""

NULL_SHOTS = (5, 7, 10, 14, 20, 30, 50)
"""Numbers of references of inputs with a null distribution of their own."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Tasks to learn from, and others that no gradient ever sees."""

    training: list[Task]
    held_out: list[Task]

    @staticmethod
    def of(tasks: Sequence[Task]) -> Parts:
        """Hold out one task of :data:`HOLD_OUT`: no victim or federation is on both sides.

        Drawn from a fixed stream, for data sets and trigger families take turns in a list.
        """
        drawn = keyed(0, 33).permutation(len(tasks))[: -(-len(tasks) // HOLD_OUT)]
        held = set(drawn.tolist())
        return Parts(
            training=[t for i, t in enumerate(tasks) if i not in held],
            held_out=[t for i, t in enumerate(tasks) if i in held],
        )


def episodes_of(tasks: Sequence[Task]) -> list[Episode]:
    """All episodes of tasks, in order."""
    return [e for t in tasks for e in t.episodes]


def best_length(tasks: Sequence[Task], config: MetaConfig, seed: int) -> list[Progress]:
    """Losses by epoch of a run that does not see the validation's families and networks.

    The epoch with the least validation loss says how long the run that counts may train.
    """
    seen = episodes_of([t for t in tasks if not is_validation(t)])
    unseen = episodes_of([t for t in tasks if is_validation(t)])
    return [progress for progress, _ in fit_weights(seen, unseen, config, seed, {})]


def balanced(domains: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Indices of episodes with each domain as often as the one with the most, as far as that goes.

    Control victims cost seconds and image victims minutes, so there are many more of them: without
    this the detector learns control. No episode comes more than :data:`MOST_TURNS` times.

    Parameters
    ----------
    domains : sequence of str
        Of each episode, such as ``cv-gtsrb``: what stands before the dash counts.
    rng : numpy.random.Generator

    Examples
    --------
    >>> turns = balanced(["rl-a", "rl-a", "rl-b", "rl-b", "cv-x"], np.random.default_rng(0))
    >>> sorted(turns)
    [0, 1, 2, 3, 4, 4, 4]
    """
    own: dict[str, list[int]] = defaultdict(list)
    for i, domain in enumerate(domains):
        own[domain.partition("-")[0]].append(i)
    most = max(map(len, own.values()))
    turns: list[int] = []
    for index in own.values():
        n = min(most, MOST_TURNS * len(index))
        whole, rest = divmod(n, len(index))
        turns += index * whole + sorted(rng.permutation(index)[:rest].tolist())
    return turns


def column_scales(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column over support and query rows, each (n_columns,)."""
    n_columns = episodes[0].query.shape[-1]
    rows = [part.reshape(-1, n_columns)[::3] for e in episodes for part in (e.support, e.query)]
    stacked = np.concatenate(rows).astype(np.float64)
    mean = torch.from_numpy(stacked.mean(0).astype(np.float32))
    return mean, torch.from_numpy(stacked.std(0).astype(np.float32) + 0.05)


def fit_weights(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    config: MetaConfig,
    seed: int,
    card: Mapping[str, str],
) -> Iterator[tuple[Progress, Weights]]:
    """Meta-train and yield the progress and the best weights so far after each epoch.

    Without validation the last ones are the best. Nothing is calibrated yet.
    """
    episodes, validation = ([_read(e, config) for e in es] for es in (episodes, validation))
    turns = balanced([e.domain for e in episodes], keyed(seed, 34))
    mean, scale = column_scales([episodes[i] for i in turns])
    raw = Weights(params={}, mean=mean, scale=scale, nulls={}, config=config, card=dict(card))
    standardised = [_standardised(e, raw) for e in episodes]
    training = [standardised[i] for i in turns]
    held_out = [_standardised(e, raw) for e in validation]
    start = initial_params(len(mean), config, keyed(seed, 31))
    best = float("inf")
    for params, progress in meta_train(start, training, held_out, config, keyed(seed, 32)):
        weights = Weights(**{**raw.__dict__, "params": params})
        improved = not progress.validation_loss >= best
        best = min(best, progress.validation_loss)
        if improved:
            kept = weights
        yield progress, kept


def _read(episode: Episode, config: MetaConfig) -> Episode:
    """An episode as the network reads it, before any standardisation."""
    if not config.conditioned:
        return episode
    query = Habits.of(episode.support).beside(episode.query)
    return replace(episode, support=beside_each_other(episode.support), query=query)


def _standardised(episode: Episode, weights: Weights) -> Episode:
    return replace(
        episode,
        support=weights.standard(episode.support).numpy(),
        query=weights.standard(episode.query).numpy(),
    )


def kind_of(episode: Episode) -> str:
    """Which null distribution of :class:`~fl_shield.detector.Weights` an episode belongs to."""
    if not episode.domain.startswith("fl-"):
        return "inputs"
    return "updates" if episode.settled else "first updates"


def calibrated(weights: Weights, held_out: Sequence[Task]) -> Weights:
    """Weights with the null distributions of clean inputs and benign updates of held-out tasks.

    Inputs have one for each of :data:`NULL_SHOTS`. Updates are calibrated on attack-free rounds: a
    false alarm is what an honest round gives, and beside malicious updates benign ones look calmer
    than they do alone.
    """
    recordings = [t.recording for t in held_out if t.recording is not None]
    nulls = {}
    for n_shots in NULL_SHOTS if recordings else ():
        nulls[f"inputs@{n_shots}"] = quantiles(input_null(weights, recordings, n_shots))
    if recordings:
        nulls["inputs"] = nulls["inputs@20"].clone()
    federated = episodes_of([t for t in held_out if t.recording is None])
    return replace(weights, nulls=nulls | _update_nulls(weights, federated))


def input_null(weights: Weights, recordings: Sequence[Recording], n_shots: int) -> Floats:
    """Standardised scores of clean inputs beside N references, pooled over victims, (n,)."""
    bare = replace(weights, nulls={"inputs": torch.zeros(1)})
    pooled = []
    for recording in recordings:
        rng = keyed(int(recording.facts["seed"]), 62, n_shots)
        references = shots_of(recording, n_shots, rng).references
        profiles = bare.represent(views_beside(recording.clean, references))
        adapted = Adapted(bare, profiles.references)
        odds = adapted.score(profiles.points).log_odds
        pooled.append(standardise(odds, adapted.reference_log_odds))
    return np.concatenate(pooled)


def _update_nulls(weights: Weights, episodes: Sequence[Episode]) -> dict[str, Tensor]:
    bare = replace(weights, nulls={kind: torch.zeros(1) for kind in NULLS})
    pooled: dict[str, list[Floats]] = defaultdict(list)
    for episode in episodes:
        if episode.labels.any():
            continue
        adapted = Adapted(bare, episode.support, null="updates")
        odds = adapted.score(episode.query).log_odds
        pooled[kind_of(episode)].append(standardise(odds, adapted.reference_log_odds))
    nulls = {kind: quantiles(np.concatenate(found)) for kind, found in pooled.items()}
    if "updates" in nulls and "first updates" not in nulls:
        nulls["first updates"] = nulls["updates"].clone()
    return nulls


def with_null(weights: Weights, kind: str, scores: Sequence[Floats]) -> Weights:
    """Weights with another null distribution: quantiles of standardised scores (n,), pooled.

    Without any score the weights come back as they were.
    """
    pooled = np.concatenate([np.zeros(0), *scores])
    if not len(pooled):
        return weights
    return replace(weights, nulls={**weights.nulls, kind: quantiles(pooled)})


def quantiles(values: Floats) -> Tensor:
    """Quantiles of a null distribution, as :class:`~fl_shield.detector.Weights` keeps them."""
    levels = (np.arange(N_NULL) + 0.5) / N_NULL
    return torch.from_numpy(np.quantile(values, levels).astype(np.float32))
