"""``fl-shield meta-train``: make the shipped detector again, from seeds."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fl_shield.detector import Weights
    from fl_shield.meta import MetaConfig
    from fl_shield.meta import Progress as EpochProgress
    from fl_shield.simulations.episodes.sources import Curriculum, Source
    from fl_shield.simulations.meta_training import Split
    from fl_shield.types import Floats


class RepresentationName(StrEnum):
    """What the detector reads of a view."""

    profile = "profile"
    pca = "pca"


app = typer.Typer(add_completion=False)

console = Console(stderr=True)


@app.command()
def meta_train(
    out: Annotated[Path, typer.Option(help="Folder for weights, card, manifest, log and plot.")],
    victims: Annotated[int, typer.Option(min=0, help="Digits victims to train.")] = 300,
    digits: Annotated[int, typer.Option(min=0, help="Federations on digits.")] = 16,
    glyphs: Annotated[int, typer.Option(min=0, help="Federations on generated glyphs.")] = 44,
    rounds: Annotated[int, typer.Option(min=1, help="Attacked rounds of a federation.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all tasks.")] = 20,
    inner_steps: Annotated[int, typer.Option(min=0, help="Steps of the inner loop.")] = 3,
    representation: Annotated[
        RepresentationName,
        typer.Option(help="What is read of a view; pca, raw coordinates, is for the ablation."),
    ] = RepresentationName.profile,
    seed: Annotated[int, typer.Option(min=0, help="Root of every random stream.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 2,
    cache: Annotated[
        Path, typer.Option(help="Where profiles are kept; an interrupted run goes on from here.")
    ] = Path(".cache/episodes"),
) -> None:
    """Simulate backdoored victims and federations and meta-train the detector on them.

    Everything follows from the seed. Profiles are cached, so a second run, or one with other
    epochs, starts with the training at once.

    Example: [bold]fl-shield meta-train --out runs/meta --victims 20 --digits 4 --glyphs 0[/bold]
    """
    from fl_shield.meta import MetaConfig
    from fl_shield.simulations.episodes.sources import Curriculum

    curriculum = Curriculum(
        n_victims=victims,
        n_digits=digits,
        n_glyphs=glyphs,
        n_rounds=rounds,
        seed=seed,
        representation=representation.value,
    )
    config = MetaConfig(
        n_epochs=epochs, n_inner_steps=inner_steps, representation=representation.value
    )
    started = time.perf_counter()
    sources = curriculum.sources()
    _simulate(sources, cache, workers)
    split, weights, history = _train(sources, cache, config, seed)
    weights = _calibrate(weights, curriculum, workers)
    _write(out, sources, split, weights, history, curriculum, time.perf_counter() - started)


def _simulate(sources: Sequence[Source], cache: Path, workers: int) -> None:
    from fl_shield.simulations.episodes.sources import simulate_all

    with _progress() as progress:
        bar = progress.add_task("simulating tasks", total=len(sources))
        for _ in simulate_all(sources, cache, workers):
            progress.advance(bar)


def _train(
    sources: Sequence[Source], cache: Path, config: MetaConfig, seed: int
) -> tuple[Split, Weights, list[EpochProgress]]:
    from fl_shield.simulations.episodes.sources import load_all
    from fl_shield.simulations.meta_training import calibrated, fit_weights, split_sources

    split = split_sources(load_all(sources, cache))
    history: list[EpochProgress] = []
    with _progress() as progress:
        bar = progress.add_task("meta-training", total=config.n_epochs)
        for epoch, weights in fit_weights(split, config, seed, {"seed": str(seed)}):
            history.append(epoch)
            kept = weights
            losses = f"loss {epoch.loss:.3f}, held out {epoch.validation_loss:.3f}"
            progress.update(bar, advance=1, description=f"meta-training ({losses})")
    return split, calibrated(kept, split.held_out), history


def _calibrate(weights: Weights, curriculum: Curriculum, workers: int) -> Weights:
    from fl_shield.simulations.episodes.calm import N_PASSES, calm_null
    from fl_shield.simulations.meta_training import with_null

    settings = curriculum.calm_settings()
    if not settings:
        return weights
    with _progress() as progress:
        total = N_PASSES * len(settings)
        bar = progress.add_task("calibrating on attack-free federations", total=total)
        for _ in range(N_PASSES):
            scores: list[Floats] = []
            for found in calm_null(settings, weights, workers):
                scores.append(found)
                progress.advance(bar)
            weights = with_null(weights, "updates", scores)
    return weights


def _write(
    out: Path,
    sources: Sequence[Source],
    split: Split,
    weights: Weights,
    history: Sequence[EpochProgress],
    curriculum: Curriculum,
    seconds: float,
) -> None:
    from fl_shield.simulations.episodes.cache import write_manifest
    from fl_shield.simulations.meta_training import loss_figure, table, write_card

    out.mkdir(parents=True, exist_ok=True)
    weights.save(out / "metashield.safetensors")
    write_manifest(out / "manifest.jsonl", (source.manifest() for source in sources))
    log = [json.dumps(epoch.__dict__) for epoch in history]
    (out / "training_log.jsonl").write_text("\n".join(log) + "\n")
    loss_figure(history).savefig(out / "training_loss.png", dpi=120)
    rows = table(weights, split.held_out)
    c = curriculum
    command = (
        f"fl-shield meta-train --out fl_shield/pretrained --victims {c.n_victims} "
        f"--digits {c.n_digits} --glyphs {c.n_glyphs} --rounds {c.n_rounds} "
        f"--epochs {weights.config.n_epochs} --inner-steps {weights.config.n_inner_steps} "
        f"--representation {c.representation} --seed {c.seed}"
    )
    facts = {
        "command": command,
        "tasks": f"{len(split.training)} for training, {len(split.held_out)} held out",
        "sources": f"{c.n_victims} victims, {c.n_digits} digits and {c.n_glyphs} glyphs "
        f"federations of {c.n_rounds} rounds, each attacked in five ways and none; "
        f"{len(c.calm_settings())} attack-free federations for the null distribution of updates",
        "seconds of the last run (cached tasks are not simulated again)": f"{seconds:.0f}",
    }
    write_card(out, weights, rows, facts)
    shown = Table("domain", "family", "tasks", "AUC", "TPR at FPR 5 %", title="held-out tasks")
    for row in rows:
        numbers = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("auc", "tpr_at_fpr_5")]
        shown.add_row(row["domain"], row["family"], str(row["n_tasks"]), *numbers)
    Console().print(shown)
    console.print(f"wrote {out}/metashield.safetensors, MODEL_CARD.md and manifest.jsonl")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
