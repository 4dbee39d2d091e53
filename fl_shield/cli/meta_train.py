"""``fl-shield meta-train``: make the shipped detector again, from seeds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_shield.cli.options import CACHE, Cache, DataDir, Pools, RayAddress, Seed, words
from fl_shield.cli.progress import counting_bars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fl_shield.meta import MetaConfig
    from fl_shield.meta import Progress as EpochProgress
    from fl_shield.simulations.episodes.clean_models import Workplace
    from fl_shield.simulations.episodes.curriculum import Curriculum
    from fl_shield.simulations.episodes.tasks import Task
    from fl_shield.simulations.meta_training import Parts
    from fl_shield.simulations.processes import Workers
    from fl_shield.types import Floats
    from fl_shield.weights import Weights


class RepresentationName(StrEnum):
    """What the detector reads of a view."""

    profile = "profile"
    pca = "pca"


app = typer.Typer(add_completion=False)

console = Console(stderr=True)


@app.command()
def meta_train(
    out: Annotated[Path, typer.Option(help="Folder for weights, card, manifest, log and plot.")],
    domains: Annotated[
        str, typer.Option(help="What to learn from: some of cv, nlp, rl, fl.")
    ] = "cv,nlp,rl,fl",
    pools: Pools = "",
    victims: Annotated[int, typer.Option(min=0, help="Single models, over all data sets.")] = 1500,
    digits: Annotated[int, typer.Option(min=0, help="Federations on digits.")] = 16,
    glyphs: Annotated[int, typer.Option(min=0, help="Federations on generated glyphs.")] = 44,
    rounds: Annotated[int, typer.Option(min=1, help="Attacked rounds of a federation.")] = 3,
    zoo: Annotated[
        int,
        typer.Option(
            min=0,
            help="Federations of each data set more, attacked in all ways of the arena but for the "
            "families that stay unseen, and up to half of a round.",
        ),
    ] = 0,
    photos: Annotated[
        int,
        typer.Option(
            min=0,
            help="Federations on photographs, attacked like those; take Tiny-ImageNet from "
            "--data-dir.",
        ),
    ] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Tasks of one victim.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all tasks.")] = 12,
    inner_steps: Annotated[int, typer.Option(min=0, help="Steps of the inner loop.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks of one step of Adam.")] = 32,
    outer_lr: Annotated[float, typer.Option(min=1e-6, help="Its first learning rate.")] = 5e-3,
    representation: Annotated[
        RepresentationName,
        typer.Option(help="What is read of a view; pca, raw coordinates, is for the ablation."),
    ] = RepresentationName.profile,
    data_dir: DataDir = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 2,
    ray_address: RayAddress = None,
    cache: Cache = CACHE,
) -> None:
    """Simulate backdoored victims and federations and meta-train the detector on them.

    Everything follows from the seed. What the victims said is cached, so a second run, or one with
    other epochs, starts with the training at once.

    Example: [bold]fl-shield meta-train --out runs/meta --domains rl --victims 60[/bold]
    """
    from fl_shield.simulations.episodes.clean_models import Workplace
    from fl_shield.simulations.episodes.curriculum import Curriculum
    from fl_shield.simulations.meta_training import RECIPE
    from fl_shield.simulations.processes import Workers

    curriculum = Curriculum(
        domains=words(domains),
        n_victims=victims,
        n_digits=digits,
        n_glyphs=glyphs,
        n_rounds=rounds,
        n_zoo=zoo,
        n_photos=photos,
        data_dir=None if data_dir is None else str(data_dir),
        with_files=data_dir is not None,
        only=words(pools),
        seed=seed,
        representation=representation.value,
    )
    config = replace(
        RECIPE,
        n_epochs=epochs,
        n_inner_steps=inner_steps,
        batch_size=batch_size,
        outer_lr=outer_lr,
        representation=representation.value,
    )
    place = Workplace(data_dir=data_dir, cache=cache)
    started = time.perf_counter()
    _simulate(curriculum, place, Workers(n_processes=workers, ray_address=ray_address))
    tasks = _tasks(curriculum, place, draws)
    weights, history = _train(tasks, config, seed)
    weights = _calibrate(weights, curriculum, workers)
    _write(out, curriculum, tasks, weights, history, time.perf_counter() - started)


def _simulate(curriculum: Curriculum, place: Workplace, workers: Workers) -> None:
    from fl_shield.simulations.episodes.federations import simulate_all
    from fl_shield.simulations.episodes.recordings import simulate_population

    settings, victims = curriculum.federations(), curriculum.victims()
    with counting_bars(console) as progress:
        bar = progress.add_task("simulating federations", total=len(settings))
        for _ in simulate_all(settings, place.cache / "episodes", workers):
            progress.advance(bar)
        bar = progress.add_task("training victims", total=len(victims))
        for done in simulate_population(victims, place, workers):
            progress.advance(bar, done)


def _tasks(curriculum: Curriculum, place: Workplace, draws: int) -> list[Task]:
    from fl_shield.simulations.episodes.federations import load_all
    from fl_shield.simulations.episodes.recordings import load_population
    from fl_shield.simulations.episodes.tasks import federated_tasks, victim_tasks

    console.print("profiling what the victims said")
    federations = load_all(curriculum.federations(), place.cache / "episodes")
    recordings = load_population(curriculum.victims(), place)
    return [
        *federated_tasks(federations),
        *victim_tasks(recordings, draws, curriculum.representation),
    ]


def _train(
    tasks: Sequence[Task], config: MetaConfig, seed: int
) -> tuple[Weights, list[EpochProgress]]:
    from fl_shield.simulations.meta_training import Parts, episodes_of, fit_weights

    parts = Parts.of(tasks)
    held_out = episodes_of(parts.held_out)
    history: list[EpochProgress] = []
    with counting_bars(console) as progress:
        bar = progress.add_task("meta-training", total=config.n_epochs)
        training = episodes_of(parts.training)
        for epoch, weights in fit_weights(training, held_out, config, seed, {"seed": str(seed)}):
            history.append(epoch)
            kept = weights
            losses = f"loss {epoch.loss:.3f}, held out {epoch.validation_loss:.3f}"
            progress.update(bar, advance=1, description=f"meta-training ({losses})")
    return _calibrate_inputs(kept, parts, seed), history


def _calibrate_inputs(weights: Weights, parts: Parts, seed: int) -> Weights:
    from fl_shield.simulations.null_distributions import calibrated, folds_of, refit

    fit = refit(weights.config, seed)
    with counting_bars(console) as progress:
        n_folds = len(folds_of([*parts.training, *parts.held_out]))
        bar = progress.add_task("calibrating across data sets", total=n_folds)

        def counted(tasks: Sequence[Task]) -> Weights:
            found = fit(tasks)
            progress.advance(bar)
            return found

        return calibrated(weights, parts, counted)


def _calibrate(weights: Weights, curriculum: Curriculum, workers: int) -> Weights:
    from fl_shield.simulations.episodes.calm import N_PASSES, calm_null
    from fl_shield.simulations.null_distributions import (
        doubting_nobody,
        with_null,
        with_strictest_null,
    )
    from fl_shield.weights import ODDS_NULL

    settings = curriculum.calm_settings()
    if not settings:
        return weights
    with counting_bars(console) as progress:
        kind, by_odds = curriculum.calm_null, curriculum.calm_null == ODDS_NULL
        in_force = doubting_nobody(weights, kind) if by_odds else weights
        total = N_PASSES[kind] * len(settings)
        bar = progress.add_task("calibrating on attack-free federations", total=total)
        for _ in range(N_PASSES[kind]):
            scores: list[Floats] = []
            for found in calm_null(settings, in_force, workers, kind):
                scores.append(found)
                progress.advance(bar)
            with_scores = with_strictest_null if by_odds else with_null
            weights = in_force = with_scores(weights, kind, scores)
    return weights


def _write(
    out: Path,
    curriculum: Curriculum,
    tasks: Sequence[Task],
    weights: Weights,
    history: Sequence[EpochProgress],
    seconds: float,
) -> None:
    from fl_shield.simulations.episodes.cache import write_manifest
    from fl_shield.simulations.meta_training import Parts, episodes_of
    from fl_shield.simulations.model_card import facts_of, loss_figure, table, write_card

    out.mkdir(parents=True, exist_ok=True)
    weights.save(out / "metashield.safetensors")
    manifests = [setting.manifest() for setting in curriculum.federations()]
    manifests += [setting.manifest() for setting in curriculum.victims()]
    write_manifest(out / "manifest.jsonl", manifests)
    log = [json.dumps(epoch.__dict__) for epoch in history]
    (out / "training_log.jsonl").write_text("\n".join(log) + "\n")
    loss_figure(history).savefig(out / "training_loss.png", dpi=120)
    parts = Parts.of(tasks)
    rows = table(weights, episodes_of(parts.held_out))
    write_card(out, weights, rows, facts_of(curriculum, parts, weights.config, seconds))
    shown = Table("domain", "family", "tasks", "AUC", "TPR at FPR 5 %", title="held-out tasks")
    for row in rows:
        numbers = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("auc", "tpr_at_fpr_5")]
        shown.add_row(row["domain"], row["family"], str(row["n_tasks"]), *numbers)
    Console().print(shown)
    console.print(f"wrote {out}/metashield.safetensors, MODEL_CARD.md and manifest.jsonl")
