"""From cached episodes to shipped weights: standardise, meta-train, calibrate, describe."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fl_shield.calibration import standardise
from fl_shield.detector import Adapted, Weights
from fl_shield.meta import Episode, MetaConfig, Progress, initial_params, meta_train
from fl_shield.metrics import auroc, tpr_at_fpr
from fl_shield.profile import N_COLUMNS
from fl_shield.rng import keyed
from fl_shield.types import Floats

N_NULL = 1001
"""Quantiles kept of each null distribution."""

NULLS = ("inputs", "updates", "first updates")
"""Kinds of tasks with a null distribution of their own."""

HOLD_OUT = 6
"""Every so many sources one is held out: validation, null distribution and the card's table."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Episodes to learn from, and episodes of other sources to stop and calibrate by."""

    training: list[Episode]
    held_out: list[Episode]


def split_sources(episodes: Sequence[Sequence[Episode]]) -> Split:
    """Hold out every :data:`HOLD_OUT`-th source whole: no victim or federation is on both sides."""
    training = [e for i, es in enumerate(episodes) if i % HOLD_OUT for e in es]
    held_out = [e for i, es in enumerate(episodes) if i % HOLD_OUT == 0 for e in es]
    return Split(training=training, held_out=held_out)


def column_scales(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column over support and query rows, each (128,)."""
    rows = [part.reshape(-1, N_COLUMNS)[::3] for e in episodes for part in (e.support, e.query)]
    stacked = np.concatenate(rows).astype(np.float64)
    mean = torch.from_numpy(stacked.mean(0).astype(np.float32))
    return mean, torch.from_numpy(stacked.std(0).astype(np.float32) + 0.05)


def fit_weights(
    split: Split, config: MetaConfig, seed: int, card: Mapping[str, str]
) -> Iterator[tuple[Progress, Weights]]:
    """Meta-train and yield the progress and the calibrated best weights after each epoch."""
    mean, scale = column_scales(split.training)
    raw = Weights(params={}, mean=mean, scale=scale, nulls={}, config=config, card=dict(card))
    training = [_standardised(e, raw) for e in split.training]
    held_out = [_standardised(e, raw) for e in split.held_out]
    start = initial_params(N_COLUMNS, config, keyed(seed, 31))
    best = float("inf")
    for params, progress in meta_train(start, training, held_out, config, keyed(seed, 32)):
        weights = Weights(**{**raw.__dict__, "params": params})
        improved = not progress.validation_loss >= best
        best = min(best, progress.validation_loss)
        if improved:
            kept = weights
        yield progress, kept


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


def calibrated(weights: Weights, held_out: Sequence[Episode]) -> Weights:
    """Weights with the null distributions of benign points over held-out episodes.

    Updates are calibrated on attack-free rounds: a false alarm is what an honest round gives, and
    beside malicious updates benign ones look calmer than they do alone.
    """
    blank = {kind: torch.zeros(1) for kind in NULLS}
    bare = Weights(**{**weights.__dict__, "nulls": blank})
    pooled: dict[str, list[Floats]] = defaultdict(list)
    for episode in held_out:
        if kind_of(episode) != "inputs" and episode.labels.any():
            continue
        adapted = Adapted(bare, episode.support)
        odds = adapted.score(episode.query[episode.labels == 0]).log_odds
        pooled[kind_of(episode)].append(standardise(odds, adapted.reference_log_odds))
    nulls = blank | {kind: quantiles(np.concatenate(found)) for kind, found in pooled.items()}
    if "first updates" not in pooled:
        nulls["first updates"] = nulls["updates"].clone()
    return Weights(**{**weights.__dict__, "nulls": nulls})


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


def table(weights: Weights, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """AUC, TPR at FPR 5 % and the share flagged at p <= 5 %, by domain and family."""
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for episode in episodes:
        kind = kind_of(episode)
        adapted = Adapted(weights, episode.support, null=kind)
        odds = adapted.score(episode.query).log_odds
        benign = episode.labels == 0
        flagged = float((adapted.p_values(odds[benign], "tasks") <= 0.05).mean())
        if episode.labels.any() and benign.any():
            found = (auroc(episode.labels, odds), tpr_at_fpr(episode.labels, odds, 0.05))
        else:
            found = (float("nan"), float("nan"))
        rows[(episode.domain, episode.family)].append((*found, flagged))
    out = []
    for (domain, family), values in sorted(rows.items()):
        columns = np.array(values)
        auc, tpr = (
            float(c[np.isfinite(c)].mean()) if np.isfinite(c).any() else None for c in columns.T[:2]
        )
        out.append(
            {
                "domain": domain,
                "family": family,
                "n_tasks": len(values),
                "auc": auc,
                "tpr_at_fpr_5": tpr,
                "benign_flagged": float(columns[:, 2].mean()),
            }
        )
    return out


def write_card(
    folder: Path, weights: Weights, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write ``metashield.json`` (facts and table) and ``MODEL_CARD.md`` beside the weights."""
    described = {**facts, "date": datetime.now(UTC).date().isoformat(), "held_out": list(rows)}
    described["config"] = asdict(weights.config)
    (folder / "metashield.json").write_text(json.dumps(described, indent=2) + "\n")
    lines = [
        "# Model card: MetaShield",
        "",
        "A two-layer MLP over profiles of 128 comparable numbers, meta-learned by second-order",
        "MAML with a clean-only inner loop. It scores inputs of any model and client updates of",
        "any federation, higher = more suspicious.",
        "",
        *(f"- **{name}**: {value}" for name, value in facts.items()),
        "",
        "Tasks held out of training whole (no victim or federation is on both sides):",
        "",
        "| domain | family | tasks | AUC | TPR at FPR 5 % | benign with p <= 5 % |",
        "|---|---|---|---|---|---|",
        *(_card_row(row) for row in rows),
        "",
        "The null distribution of updates comes from attack-free federations of their own with the",
        "shield in the loop, those of inputs and of first rounds from the tasks of this table. For",
        "federations on other data see the README. The weights have seen scikit-learn's digits and",
        "generated glyphs only. `manifest.jsonl` lists every source: seed, settings, data.",
    ]
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n")


def _card_row(row: Mapping[str, Any]) -> str:
    numbers = [row["auc"], row["tpr_at_fpr_5"], row["benign_flagged"]]
    shown = ["–" if value is None else f"{value:.3f}" for value in numbers]
    return f"| {row['domain']} | {row['family']} | {row['n_tasks']} | {' | '.join(shown)} |"


def loss_figure(history: Sequence[Progress]) -> Figure:
    """Training and validation loss by epoch."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    epochs = [p.epoch + 1 for p in history]
    axes.plot(epochs, [p.loss for p in history], label="training")
    axes.plot(epochs, [p.validation_loss for p in history], label="held-out sources")
    axes.set(xlabel="epoch", ylabel="balanced cross-entropy")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
