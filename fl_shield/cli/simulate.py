"""``fl-shield simulate``: train federations under attack, with and without the shield."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(rich_markup_mode="rich")


def _option(panel: str, *names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


_WHO, _ATTACK, _DEFENSE, _RUN = "Federation", "Attack", "Defence", "Run"
Preset = Annotated[str | None, _option(_RUN, help="Start from named settings: demo, smoke.")]
Out = Annotated[Path, typer.Option(help="Folder for results.", rich_help_panel=_RUN)]
Dataset = Annotated[
    str | None,
    _option(
        _WHO,
        help="digits (default), glyphs, roles (all embedded), cartpole (played), femnist, "
        "shakespeare, cifar10, gtsrb, ag-news.",
    ),
]
DataDir = Annotated[
    str | None,
    _option(
        _WHO, help="Folder of the data set: LEAF json (also gzipped), npz, or csv for ag-news."
    ),
]
Partition = Annotated[
    str | None, _option(_WHO, help="natural (by writer or role), dirichlet or iid.")
]
Alpha = Annotated[float | None, _option(_WHO, help="Dirichlet concentration [0.5].")]
Clients = Annotated[int | None, _option(_WHO, help="Clients of the federation [20].")]
PerRound = Annotated[
    int | None, _option(_WHO, help="Clients asked each round [all, of more than 20 ten].")
]
Rounds = Annotated[int | None, _option(_WHO, help="Rounds of training [10].")]
Model = Annotated[str | None, _option(_WHO, help="Network [the data set's own].")]
LearningRate = Annotated[float | None, _option(_WHO, "--lr", help="Clients' learning rate.")]
Momentum = Annotated[float | None, _option(_WHO, help="Clients' momentum.")]
Epochs = Annotated[int | None, _option(_WHO, help="Clients' passes over their data, a round.")]
BatchSize = Annotated[int | None, _option(_WHO, help="Clients' batch size.")]
Attacks = Annotated[
    list[str] | None,
    _option(
        _ATTACK,
        "--attack",
        help="lp (default), none, or any attack of docs/arena.md, such as badnets, "
        "model_replacement, dba, neurotoxin, a3fl, alie; repeats.",
    ),
]
Options = Annotated[
    list[str] | None,
    _option(
        _ATTACK,
        "--attack-option",
        help="NAME=VALUE for the attacks that know it, such as poison_rate=0.5; repeats.",
    ),
]
Scale = Annotated[float | None, _option(_ATTACK, help="Boost of model_replacement.")]
TriggerFamily = Annotated[
    str | None,
    _option(
        _ATTACK,
        "--trigger",
        help="patch, polygon, blended; word for text; state_pattern for states.",
    ),
]
TargetLabel = Annotated[int | None, _option(_ATTACK, help="Class of stamped inputs [0].")]
Malicious = Annotated[float | None, _option(_ATTACK, help="Share of malicious clients [0.2].")]
MaliciousPerRound = Annotated[
    int | None, _option(_ATTACK, help="Exactly so many of them each round [as drawn].")
]
AttackFrom = Annotated[int | None, _option(_ATTACK, help="First round of the attack [1].")]
Defenses = Annotated[
    list[str] | None,
    _option(
        _DEFENSE,
        "--defense",
        help="none (plain FedAvg), perfect (told who attacks, to measure others by), multikrum "
        "(told the number of attackers), shield, or any rule "
        "of docs/arena.md, such as flame, fltrust, rlr, median; repeats [none and shield].",
    ),
]
FprBudget = Annotated[
    float | None, _option(_DEFENSE, help="Largest share of benign updates to drop [0.05].")
]
Mode = Annotated[str | None, _option(_DEFENSE, help="filter (default), downweight or monitor.")]
Probes = Annotated[
    bool | None, _option(_DEFENSE, "--probes/--no-probes", help="Whether to run clients' models.")
]
Weights = Annotated[
    str | None,
    _option(
        _DEFENSE,
        help="Shipped weights that judge: updates (default), inputs, which know all domains, or "
        "arena, which know sixteen kinds of attack.",
    ),
]
CleanExamples = Annotated[
    int | None, _option(_DEFENSE, help="Clean examples that the server holds [20].")
]
Seeds = Annotated[
    list[int] | None, _option(_RUN, "--seed", help="Root of all chance [0]; repeats.")
]
Engine = Annotated[
    str | None, _option(_RUN, help="in-process (default), or ray: Flower's own runtime.")
]
Workers = Annotated[
    int | None, _option(_RUN, help="Federations at a time [one for each core]; ray takes 1.")
]
Force = Annotated[bool, typer.Option(help="Run again what is there.", rich_help_panel=_RUN)]


@app.command()
def simulate(
    out: Out = Path("runs/simulation"),
    preset: Preset = None,
    seed: Seeds = None,
    engine: Engine = None,
    workers: Workers = None,
    force: Force = False,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    partition: Partition = None,
    alpha: Alpha = None,
    clients: Clients = None,
    clients_per_round: PerRound = None,
    rounds: Rounds = None,
    model: Model = None,
    lr: LearningRate = None,
    momentum: Momentum = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    attack: Attacks = None,
    attack_option: Options = None,
    scale: Scale = None,
    trigger: TriggerFamily = None,
    target_label: TargetLabel = None,
    malicious: Malicious = None,
    malicious_per_round: MaliciousPerRound = None,
    attack_from: AttackFrom = None,
    defense: Defenses = None,
    fpr_budget: FprBudget = None,
    mode: Mode = None,
    probes: Probes = None,
    weights: Weights = None,
    clean_examples: CleanExamples = None,
) -> None:
    """Train federations under attack, with and without the shield, and compare them.

    An attack-free FedAvg federation is always trained too, as the reference. What is finished is
    kept: the same command again takes up where it stopped.

    [bold]Examples[/bold]

    The demo, about a minute and a half on two cores:

        fl-shield simulate --preset demo --out runs/demo

    Real handwriting by writer, layer poisoning against FedAvg, MultiKrum and the shield:

        fl-shield simulate --dataset femnist --data-dir DIR --attack lp --malicious 0.2
        --clients 100 --clients-per-round 10 --rounds 40 --defense none --defense multikrum
        --defense shield --out runs/femnist

    How often the shield drops benign clients when nobody attacks:

        fl-shield simulate --attack none --defense shield --seed 0 --seed 1 --out runs/calm

    Then look at the decisions: fl-shield audit list --db runs/demo/audit.db
    """
    given = {
        "dataset": dataset,
        "data_dir": data_dir,
        "partition": partition,
        "alpha": alpha,
        "n_clients": clients,
        "clients_per_round": clients_per_round,
        "n_rounds": rounds,
        "model": model,
        "trigger": trigger,
        "target_label": target_label,
        "malicious_fraction": malicious,
        "malicious_per_round": malicious_per_round,
        "attack_from": attack_from,
        "fpr_budget": fpr_budget,
        "mode": mode,
        "probes": probes,
        "weights": weights,
        "n_clean": clean_examples,
        "engine": engine,
    }
    training = {"lr": lr, "momentum": momentum, "n_epochs": epochs, "batch_size": batch_size}
    options = _attack_options(attack_option or [], scale)
    from fl_shield.simulations.scenario import settings_from

    base = settings_from(preset, _present(given), _present(training), options)
    _simulate(base, attack, defense, seed, workers, out, force)


def _simulate(
    base: Mapping[str, Any],
    attacks: list[str] | None,
    defenses: list[str] | None,
    seeds: list[int] | None,
    workers: int | None,
    out: Path,
    force: bool,
) -> None:
    from fl_shield.cli.progress import CampaignProgress, show_results
    from fl_shield.simulations.campaign import Campaign, plan
    from fl_shield.simulations.presentation import write_artifacts
    from fl_shield.simulations.task import open_task

    scenarios = plan(base, attacks or ["lp"], defenses or ["none", "shield"], seeds or [0])
    open_task(scenarios[-1])  # what is wrong with the data shows before anything starts
    campaign = Campaign(
        scenarios=tuple(scenarios),
        out=out,
        n_workers=_n_workers(workers, scenarios[0].engine),
        force=force,
    )
    with CampaignProgress(campaign) as progress:
        entries = campaign.conduct(progress.on_event)
    show_results(entries)
    typer.echo("written: " + ", ".join(str(path) for path in write_artifacts(campaign, entries)))


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _attack_options(pairs: list[str], scale: float | None) -> dict[str, float]:
    from fl_shield.errors import ScenarioError

    options: dict[str, float] = {} if scale is None else {"scale": scale}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            options[name] = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError as error:
            raise ScenarioError(
                f"--attack-option {pair!r} is not NAME=NUMBER; write it as poison_rate=0.5"
            ) from error
    return options


def _n_workers(workers: int | None, engine: str) -> int:
    """Workers asked for, or one for each core; Flower's runtime spreads over cores itself."""
    import os

    if workers is not None:
        return workers
    return 1 if engine == "ray" else os.cpu_count() or 1
