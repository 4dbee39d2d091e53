"""``fl-shield arena``: every known attack against every known defence, on the same federations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_shield.cli.options import RayAddress, words

if TYPE_CHECKING:
    from fl_shield.simulations.arena.contest import Contest
    from fl_shield.simulations.arena.tables import ArenaTable

app = typer.Typer(rich_markup_mode="rich")

Table = Annotated[
    str, typer.Option("--scenario", help="Named table; --list shows all with their titles.")
]
Listed = Annotated[bool, typer.Option("--list", help="Show the named tables, and stop.")]
Attacks = Annotated[str, typer.Option(help="Attacks, such as lp,dba; none = the table's own.")]
Defenses = Annotated[str, typer.Option(help="Defences, such as flame,shield; none = the table's.")]
Closed = Annotated[
    str,
    typer.Option(
        help="Defences that also train through the attack; none = the table's own, '-' = skip it."
    ),
]
Seeds = Annotated[str, typer.Option(help="Roots of all chance.")]
Rounds = Annotated[int | None, typer.Option(help="Rounds, if not the table's.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Shipped weights of the shield: arena (the tables' own), updates or inputs."),
]
Budget = Annotated[
    float | None, typer.Option(help="The shield's FPR budget, if not the table's own.")
]
DataDir = Annotated[
    str | None, typer.Option(help="Folder of the data set, where it is not embedded.")
]
Out = Annotated[Path, typer.Option(help="Folder for results and what is finished.")]
Cache = Annotated[Path, typer.Option(help="Recordings, large; shared by all tables.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes [one for each core].")]


@app.command()
def arena(
    scenario: Table = "smoke",
    show: Listed = False,
    attacks: Attacks = "",
    defenses: Defenses = "",
    closed: Closed = "",
    seeds: Seeds = "0",
    rounds: Rounds = None,
    weights: Weights = None,
    fpr_budget: Budget = None,
    data_dir: DataDir = None,
    out: Out = Path("runs/arena"),
    cache: Cache = Path(".cache/arena"),
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Let every attack meet every defence, and compare them.

    Each attack's federation is recorded once: honest clients train once for all attacks, and every
    defence is asked about the same replies (detection, and what one aggregated round does to a
    clean model). Then FedAvg and the closed defences train through each attack. What is finished
    is kept: the same command again takes up where it stopped.

    [bold]Examples[/bold]

    Does it run, in a minute:

        fl-shield arena --scenario smoke --out runs/arena-smoke

    Everything on embedded digits, detection only:

        fl-shield arena --scenario digits --closed - --seeds 0,1,2 --out runs/arena-digits

    Real handwriting by writer, three defences beside the shield through the attack as well:

        fl-shield arena --scenario femnist --data-dir DIR --closed shield,flame,multikrum
        --seeds 0,1,2 --out runs/arena-femnist
    """
    from rich.console import Console

    if show:
        _show_tables()
        return
    contest = _contest(
        table_of(
            scenario,
            {"attacks": attacks, "defenses": defenses, "closed": closed},
            {
                "n_rounds": rounds,
                "data_dir": data_dir,
                "weights": weights,
                "fpr_budget": fpr_budget,
            },
        ),
        numbers(seeds),
        out,
        cache,
        workers,
        ray_address,
    )
    _conduct(contest, Console(stderr=True))


def _conduct(contest: Contest, console: Any) -> None:
    from fl_shield.cli.arena_tables import show_closed, show_standings
    from fl_shield.cli.progress import CampaignProgress, named_steps
    from fl_shield.simulations.arena.results import write_results
    from fl_shield.simulations.arena.summary import standings

    with named_steps(console) as report:
        recorded = contest.recorded(report)
    show_standings(standings(recorded))
    federations: list[Any] = []
    if contest.table.closed:
        with CampaignProgress(contest.campaign, console) as progress:
            federations = contest.closed(progress.on_event)
        show_closed(federations)
    files = write_results(contest, recorded, federations)
    typer.echo("written: " + ", ".join(str(path) for path in files))


def _contest(
    table: ArenaTable,
    seeds: tuple[int, ...],
    out: Path,
    cache: Path,
    workers: int | None,
    ray_address: str | None,
) -> Contest:
    import os

    from fl_shield.simulations.arena.contest import Contest
    from fl_shield.simulations.processes import Workers as Processes
    from fl_shield.simulations.task import open_task

    open_task(table.recorded("none", seeds[0]))  # what is wrong with the data shows at once
    n_processes = workers or os.cpu_count() or 1
    return Contest(
        table=table,
        seeds=seeds,
        out=out,
        cache=cache,
        workers=Processes(n_processes=n_processes, ray_address=ray_address),
    )


def table_of(name: str, lists: Mapping[str, str], settings: Mapping[str, Any]) -> ArenaTable:
    """Return the named table with what was given in the place of its own."""
    from fl_shield.errors import ScenarioError
    from fl_shield.simulations.arena.tables import TABLES

    if name not in TABLES:
        raise ScenarioError(f"scenario {name!r} is unknown; choose one of {', '.join(TABLES)}")
    chosen = {f: () if t == "-" else words(t) for f, t in lists.items() if t}
    given = {key: value for key, value in settings.items() if value is not None}
    return TABLES[name].with_(**chosen).settings(**given)


def numbers(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Whole numbers of an option, such as ``0,1,2``."""
    from fl_shield.errors import ScenarioError

    if not words(text) or not all(word.isdigit() for word in words(text)):
        raise ScenarioError(f"{option} must be whole numbers such as 0,1,2, got {text!r}")
    return tuple(int(word) for word in words(text))


def _show_tables() -> None:
    from fl_shield.simulations.arena.tables import TABLES

    for table in TABLES.values():
        typer.echo(f"{table.name:12} {table.title}")
