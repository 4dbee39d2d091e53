"""From tasks to weights: which are learned from, standardising, meta-training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fl_shield.conditioning import Habits, beside_each_other
from fl_shield.meta import Episode, MetaConfig, Progress, initial_params, meta_train
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.tasks import Task, is_validation
from fl_shield.types import Floats
from fl_shield.weights import Weights

HOLD_OUT = 6
"""One network of so many is held out with all its tasks: they make the card's table."""

MOST_TURNS, FAMILY_TURNS = 3, 4
"""How often an episode of a rare domain, and of a rare family, may come in one epoch."""

RECIPE = MetaConfig(
    batch_size=32, outer_lr=5e-3, dropout=0.1, n_epochs=12, ensemble=True, view_dropout=0.5
)
"""How weights are meta-trained unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Tasks to learn from, and others that no gradient ever sees."""

    training: list[Task]
    held_out: list[Task]

    @staticmethod
    def of(tasks: Sequence[Task]) -> Parts:
        """Hold out one network or federation of :data:`HOLD_OUT`: none is on both sides.

        Drawn from a fixed stream, for data sets and trigger families take turns in a list.
        """
        names = [task.network or (i,) for i, task in enumerate(tasks)]
        networks = list(dict.fromkeys(names))
        drawn = keyed(0, 33).permutation(len(networks))[: -(-len(networks) // HOLD_OUT)]
        held = {networks[i] for i in drawn}
        return Parts(
            training=[t for t, name in zip(tasks, names, strict=True) if name not in held],
            held_out=[t for t, name in zip(tasks, names, strict=True) if name in held],
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


def balanced(kinds: Sequence[tuple[str, str]], rng: np.random.Generator) -> list[int]:
    """Indices of episodes with every domain, and every family of a domain, as often as the largest.

    Control victims cost seconds and image victims minutes, so there are many more of them: without
    this the detector learns control. Families whose backdoors often fail are rare too. No episode
    comes more than :data:`MOST_TURNS` times for its domain's sake, and for its family's sake not
    more than :data:`FAMILY_TURNS` times. Attacks on federations take part as they come.

    Parameters
    ----------
    kinds : sequence of (str, str)
        Domain of each episode, such as ``cv-gtsrb`` (what stands before the dash counts), and
        trigger family.
    rng : numpy.random.Generator

    Examples
    --------
    >>> kinds = [("rl-a", "x"), ("rl-a", "y"), ("rl-b", "y"), ("rl-b", "y"), ("cv-x", "patch")]
    >>> sorted(balanced(kinds, np.random.default_rng(0)))
    [0, 0, 0, 1, 2, 3, 4, 4, 4]
    """
    families: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (domain, family) in enumerate(kinds):
        kind = domain.partition("-")[0]
        families[kind]["" if kind == "fl" else family].append(i)
    domains = {kind: _alike(own.values(), FAMILY_TURNS, rng) for kind, own in families.items()}
    return _alike(domains.values(), MOST_TURNS, rng)


def _alike(
    groups: Collection[Sequence[int]], most_turns: int, rng: np.random.Generator
) -> list[int]:
    """All groups, each repeated until it is as large as the largest or has had its turns."""
    largest = max(map(len, groups))
    turns: list[int] = []
    for own in groups:
        whole, rest = divmod(min(largest, most_turns * len(own)), len(own))
        turns += list(own) * whole + sorted(rng.permutation(own)[:rest].tolist())
    return turns


def column_scales(
    episodes: Sequence[Episode], turns: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column over every third row of support and query.

    An episode at a time: all their rows at once would take more memory than everything else.

    Parameters
    ----------
    episodes : sequence of Episode
    turns : sequence of int, optional
        Indices of episodes, each counted as often as it comes; every one once by default.

    Returns
    -------
    mean, scale : (n_columns,) tensor
        The scale is the standard deviation and 0.05, so that no column is divided by nothing.
    """
    drawn = np.arange(len(episodes)) if turns is None else np.asarray(turns, dtype=np.intp)
    counts = np.bincount(drawn, minlength=len(episodes))
    counted = [(e, int(n)) for e, n in zip(episodes, counts, strict=True) if n]
    n_rows = sum(n * len(rows) for e, n in counted for rows in _thirds(e))
    mean = sum(n * rows.sum(0) for e, n in counted for rows in _thirds(e)) / n_rows
    squares = sum(n * ((rows - mean) ** 2).sum(0) for e, n in counted for rows in _thirds(e))
    spread = np.sqrt(squares / n_rows)
    return torch.from_numpy(mean).float(), torch.from_numpy(spread).float() + 0.05


def _thirds(episode: Episode) -> Iterator[Floats]:
    """Every third row of the support, and of the query, in double precision."""
    for part in (episode.support, episode.query):
        yield part.reshape(-1, part.shape[-1])[::3].astype(np.float64)


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
    turns = balanced([(e.domain, e.family) for e in episodes], keyed(seed, 34))
    mean, scale = column_scales(episodes, turns)
    raw = Weights(params={}, mean=mean, scale=scale, nulls={}, config=config, card=dict(card))
    training = [episodes[i] for i in turns]
    start = initial_params(len(mean), config, keyed(seed, 31))
    best = float("inf")
    trained = meta_train(start, training, validation, config, keyed(seed, 32), raw.standardised)
    for params, progress in trained:
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
