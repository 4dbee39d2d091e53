"""Null distributions of the detector's scores: what clean inputs and honest rounds give.

The promise ``tasks`` is about a model that nobody has seen, most often on data that nobody has
seen. Clean inputs of a data set that the weights know look calmer than those of a new one, so the
null distribution of inputs is taken across data sets: each is scored by weights that were
meta-trained without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl_shield.activations import views_beside
from fl_shield.calibration import standardise
from fl_shield.detector import Adapted
from fl_shield.meta import Episode, MetaConfig
from fl_shield.profile import Profiles
from fl_shield.representation import REPRESENTATIONS
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.shots import shots_of
from fl_shield.simulations.episodes.tasks import Task
from fl_shield.simulations.meta_training import Parts, episodes_of, fit_weights
from fl_shield.types import Floats, Representation
from fl_shield.weights import Weights

N_NULL = 1001
"""Quantiles kept of each null distribution."""

NULLS = ("inputs", "updates", "first updates")
"""Kinds of tasks with a null distribution of their own."""

NULL_SHOTS = (5, 7, 10, 14, 20, 30, 50)
"""Numbers of references of inputs with a null distribution of their own."""

N_FOLDS = 3
"""Groups of data sets that take turns in being left out."""

MOST_NETWORKS = 25
"""Networks of each data set whose clean inputs are scored, at most."""

ReadClean = Callable[[Recording, int, Representation], Profiles]
Refit = Callable[[Sequence[Task]], Weights]


def folds_of(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks of victims in up to :data:`N_FOLDS` groups of whole data sets, domains dealt evenly.

    Fewer where there are fewer data sets; federations are in none.
    """
    pools = sorted({(t.facts["domain"], t.facts["pool"]) for t in tasks if t.recording is not None})
    fold = {pool: i % N_FOLDS for i, (_, pool) in enumerate(pools)}
    folds: list[list[Task]] = [[] for _ in range(min(N_FOLDS, len(pools)))]
    for task in tasks:
        if task.recording is not None:
            folds[fold[task.facts["pool"]]].append(task)
    return folds


def refit(config: MetaConfig, seed: int) -> Refit:
    """How weights that leave data sets out are meta-trained: as all others, and as long.

    Shorter training would make them less sure of what is strange than the weights they stand for.
    """

    def fit(tasks: Sequence[Task]) -> Weights:
        for _, weights in fit_weights(episodes_of(tasks), [], config, seed, {}):
            kept = weights
        return kept

    return fit


def clean_profiles(recording: Recording, n_shots: int, representation: Representation) -> Profiles:
    """Clean inputs of one victim beside N references that are drawn for this alone."""
    rng = keyed(int(recording.facts["seed"]), 62, n_shots)
    references = shots_of(recording, n_shots, rng).references
    return REPRESENTATIONS[representation](views_beside(recording.clean, references))


def remembering(read: ReadClean = clean_profiles) -> ReadClean:
    """Read each recording once: profiles are the same for all weights that are compared."""
    known: dict[tuple[int, int, str], tuple[Recording, Profiles]] = {}

    def remembered(recording: Recording, n_shots: int, representation: Representation) -> Profiles:
        key = (id(recording), n_shots, representation)
        if key not in known:  # the recording is kept, so that its id stays its own
            known[key] = (recording, read(recording, n_shots, representation))
        return known[key][1]

    return remembered


def calibrated(
    weights: Weights, parts: Parts, fit: Refit, read: ReadClean = clean_profiles
) -> Weights:
    """Weights with the null distributions of clean inputs and benign updates.

    Inputs have one for each of :data:`NULL_SHOTS`, across data sets. With a single data set, it is
    that of the held-out victims. Updates are calibrated on held-out attack-free rounds: a false
    alarm is what an honest round gives, and beside malicious updates benign ones look calmer than
    they do alone.

    Parameters
    ----------
    weights : Weights
    parts : Parts
        What they learned from, and what they did not.
    fit : callable
        Weights that learned from other tasks, see :func:`refit`.
    read : callable
        See :func:`clean_profiles` and :func:`remembering`.
    """
    held_out = [t for t in parts.held_out if t.recording is None]
    nulls = _input_nulls(_scorers(weights, parts, fit), read)
    return replace(weights, nulls=nulls | _update_nulls(weights, episodes_of(held_out)))


def _scorers(weights: Weights, parts: Parts, fit: Refit) -> list[tuple[Weights, list[Recording]]]:
    """Weights, and the victims that they have not seen and score."""
    tasks = [*parts.training, *parts.held_out]
    folds = folds_of(tasks)
    if len(folds) < 2:
        return [(weights, one_a_network(parts.held_out))]
    found = []
    for fold in folds:
        left_out = {id(task) for task in fold}
        found.append((fit([t for t in tasks if id(t) not in left_out]), one_a_network(fold)))
    return found


def one_a_network(tasks: Sequence[Task]) -> list[Recording]:
    """Recordings of different networks, at most :data:`MOST_NETWORKS` of each data set."""
    networks: dict[str, dict[tuple[object, ...], Recording]] = defaultdict(dict)
    for task in tasks:
        if task.recording is not None:
            networks[task.facts["pool"]].setdefault(task.network, task.recording)
    found: list[Recording] = []
    for own in networks.values():
        recordings = list(own.values())
        drawn = keyed(0, 35).permutation(len(recordings))[:MOST_NETWORKS]
        found += [recordings[i] for i in sorted(drawn)]
    return found


def _input_nulls(
    scorers: Sequence[tuple[Weights, Sequence[Recording]]], read: ReadClean
) -> dict[str, Tensor]:
    if not any(recordings for _, recordings in scorers):
        return {}
    nulls = {}
    for n_shots in NULL_SHOTS:
        pooled = [input_null(weights, own, n_shots, read) for weights, own in scorers]
        nulls[f"inputs@{n_shots}"] = quantiles(np.concatenate(pooled))
    return {**nulls, "inputs": nulls["inputs@20"].clone()}


def input_null(
    weights: Weights,
    recordings: Sequence[Recording],
    n_shots: int,
    read: ReadClean = clean_profiles,
) -> Floats:
    """Standardised scores of clean inputs beside N references, pooled over victims, (n,)."""
    bare = replace(weights, nulls={"inputs": torch.zeros(1)})
    pooled: list[Floats] = [np.zeros(0)]
    for recording in recordings:
        profiles = read(recording, n_shots, weights.config.representation)
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


def doubting_nobody(weights: Weights, kind: str) -> Weights:
    """Weights with a null distribution by which every p-value is 1, to begin with."""
    return replace(weights, nulls={**weights.nulls, kind: torch.full((N_NULL,), 1e6)})


def with_strictest_null(weights: Weights, kind: str, scores: Sequence[Floats]) -> Weights:
    """Weights with a null distribution that holds in nine of ten groups of scores (n,), by itself.

    At every level it is the largest quantile of any group, one in ten left out: plain log-odds
    differ in spread between federations, and a pooled distribution would promise a mean over
    federations that no single server sees. Where the same few clients come every round and two of
    them are odd in the same way, no distribution holds, for nothing but time tells them from
    attackers; such a group is spared.

    A null distribution of this kind that the weights have already counts half: under a tight one
    more honest clients are doubted and resemble one another, so that the next one is loose, and the
    other way round; the fixed point lies between. Without any score the weights come back as they
    were.
    """
    groups = [quantiles(group) for group in scores if len(group)]
    if not groups:
        return weights
    held = torch.stack(groups).sort(0).values[-1 - len(groups) // 10]
    before = weights.nulls.get(kind, held)
    return replace(weights, nulls={**weights.nulls, kind: (before + held) / 2})


def quantiles(values: Floats) -> Tensor:
    """Quantiles of a null distribution, as :class:`~fl_shield.weights.Weights` keeps them."""
    levels = (np.arange(N_NULL) + 0.5) / N_NULL
    return torch.from_numpy(np.quantile(values, levels).astype(np.float32))


def kind_of(episode: Episode) -> str:
    """Which null distribution of :class:`~fl_shield.weights.Weights` an episode belongs to."""
    if not episode.of_updates:
        return "inputs"
    return "updates" if episode.settled else "first updates"
