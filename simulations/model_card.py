"""What is told of weights: a table over held-out tasks, the model card, the loss plot."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_shield.detector import Adapted
from fl_shield.meta import Episode, MetaConfig, Progress
from fl_shield.metrics import auroc, tpr_at_fpr
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.rounds import HELD_OUT_FAMILIES
from fl_shield.simulations.meta_training import Parts
from fl_shield.simulations.null_distributions import kind_of
from fl_shield.weights import Weights


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


def facts_of(
    curriculum: Curriculum, parts: Parts, config: MetaConfig, seconds: float
) -> dict[str, str]:
    """What a card says of how weights were made."""
    c = curriculum
    draws = max((len(t.episodes) for t in parts.training if t.recording), default=1)
    command = (
        f"fl-shield meta-train --out runs/meta --domains {','.join(c.domains)} "
        + (f"--pools {','.join(c.only)} " if c.only else "")
        + f"--victims {c.n_victims} --digits {c.n_digits} --glyphs {c.n_glyphs} --zoo {c.n_zoo} "
        + (f"--photos {c.n_photos} " if c.n_photos else "")
        + f"--rounds {c.n_rounds} --draws {draws} --epochs {config.n_epochs} "
        f"--inner-steps {config.n_inner_steps} --batch-size {config.batch_size} "
        f"--outer-lr {config.outer_lr:g} --representation {c.representation} --seed {c.seed}"
        + (" --data-dir DIR" if c.with_files or c.n_photos else "")
    )
    victims, n_zoo = c.victims(), 2 * c.n_zoo + c.n_photos
    backdoored = sum(v.backdoored for v in victims)
    return {
        "command": command,
        "tasks": f"{len(parts.training)} sources for training, {len(parts.held_out)} held out",
        "sources": f"{backdoored} backdoored and {len(victims) - backdoored} clean victims on "
        f"{', '.join(c.pools()) or 'no data'}; {len(c.federations())} federations of "
        f"{c.n_rounds} rounds, each attacked in five ways and none"
        + (f" ({n_zoo} of them in six ways of the arena and none)" if n_zoo else "")
        + "; "
        f"{len(c.calm_settings())} attack-free federations for the null distribution of updates",
        "seconds of the last run (what is cached is not simulated again)": f"{seconds:.0f}",
    }


_OF_UPDATES = (
    "The null distribution of updates comes from attack-free federations of their own with the",
    "shield in the loop, that of first rounds from the tasks of this table, those of inputs from",
    "whole data sets under weights that were meta-trained without them. For federations on other",
    "data see the README. There adapting to a model's clean inputs pays on new triggers, data sets",
    "and control tasks; with all images or all text unknown the unadapted weights do a little",
    "better.",
)
_OF_FEDERATIONS = (
    "These weights have seen federations only and judge client updates. Their null distribution",
    "comes from attack-free federations of their own with the shield in the loop and holds in nine",
    "of ten of them by itself, that of first rounds from the tasks of this table. Attacks that no",
    "weights of this project ever learn from:",
    f"{', '.join(HELD_OUT_FAMILIES)}; copies of honest clients (mimic) and attackers who pause",
    "(on_off) neither.",
)
_OF_INPUTS = (
    "These weights have seen no federation and judge inputs of models only. Their null",
    "distributions, one for each of several numbers of references, come from whole data sets under",
    "weights that were meta-trained without them. Victims whose attack works on less than 70 % of",
    "the inputs are among neither.",
)


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
        "A two-layer MLP over profiles of comparable numbers, meta-learned by second-order",
        "MAML with a clean-only inner loop. It scores inputs of any model and client updates of",
        "any federation, higher = more suspicious.",
        "",
        *(f"- **{name}**: {value}" for name, value in facts.items()),
        "",
        "Tasks held out of training whole (no network or federation is on both sides):",
        "",
        "| domain | family | tasks | AUC | TPR at FPR 5 % | benign with p <= 5 % |",
        "|---|---|---|---|---|---|",
        *(_card_row(row) for row in rows),
        "",
        *_note(weights),
        "`manifest.jsonl` lists every source: seed, settings, data.",
    ]
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n")


def _note(weights: Weights) -> tuple[str, ...]:
    """What the null distributions of weights come from."""
    if "updates" not in weights.nulls:
        return _OF_INPUTS
    return _OF_UPDATES if "inputs" in weights.nulls else _OF_FEDERATIONS


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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
