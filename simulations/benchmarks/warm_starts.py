"""What a warm start does to a victim: the same backdoors from a clean model and from scratch.

Both networks of a pair have the same data, trigger and target, and train for the steps of the
recipe. The table shows accuracy, attack success, and how well detectors tell their triggered inputs
from clean ones with 20 clean inputs. Triggers are of families that the shipped weights have learned
from. Run::

    python -m fl_shield.simulations.benchmarks.warm_starts --data-dir DATA --out warm.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fl_shield.detector import MetaShield
from fl_shield.simulations.episodes.clean_models import Workplace
from fl_shield.simulations.episodes.population import Start, VictimSetting, draw_victim
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.victims import simulate_victims
from fl_shield.simulations.evaluation.judging import MAIN_SHOTS
from fl_shield.simulations.evaluation.study import judge_one
from fl_shield.simulations.victims.opponents import OURS
from fl_shield.weights import Weights

PEERS = ("confidence", "mahalanobis", "knn")
STARTS: tuple[Start, ...] = ("warm", "scratch")


@dataclass(frozen=True, kw_only=True)
class Victim:
    """One victim and how well each detector sees its trigger.

    Attributes
    ----------
    pool, family, start : str
    accuracy, asr : float
    auc : dict of str to float or None
        By detector; None where the attack never works.
    """

    pool: str
    family: str
    start: str
    accuracy: float
    asr: float
    auc: dict[str, float | None]


def measured(
    pools: Sequence[str], families: Sequence[str], seed: int, place: Workplace
) -> Iterator[Victim]:
    """Train every pair and let the detectors judge it."""
    weights = MetaShield.from_pretrained("inputs").weights
    for pool in pools:
        for family in families:
            drawn = draw_victim(pool, family, seed, evaluation=True)
            for start in STARTS:
                yield _judged(replace(drawn, architecture="cnn", start=start), weights, place)


def _judged(setting: VictimSetting, weights: Weights, place: Workplace) -> Victim:
    plain = replace(setting, evaluation=False)  # detectors of several passes are not asked
    (recording,) = simulate_victims([plain], place)
    return Victim(
        pool=setting.pool,
        family=setting.family,
        start=setting.start,
        accuracy=recording.facts["accuracy"],
        asr=recording.facts["asr"],
        auc=aucs(recording, weights),
    )


def aucs(recording: Recording, weights: Weights) -> dict[str, float | None]:
    """AUC of the shipped detector and of some peers on one victim."""
    rows = {name: judge_one(name, recording, weights, MAIN_SHOTS) for name in (OURS, *PEERS)}
    return {name: None if row is None else row.auc for name, row in rows.items()}


def show(found: Sequence[Victim]) -> None:
    """Print a row for each victim."""
    table = Table("data set", "trigger", "start", "accuracy", "ASR", "metashield", *PEERS)
    for v in found:
        seen = ("–" if auc is None else f"{auc:.3f}" for auc in v.auc.values())
        table.add_row(v.pool, v.family, v.start, f"{v.accuracy:.3f}", f"{v.asr:.3f}", *seen)
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", nargs="+", default=["gtsrb", "femnist"])
    parser.add_argument("--families", nargs="+", default=["patch", "polygon", "blended"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/meta"))
    parser.add_argument("--out", type=Path, default=Path("warm_starts.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = Workplace(data_dir=given.data_dir, cache=given.cache)
    found = list(measured(given.pools, given.families, given.seed, place))
    show(found)
    described = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": given.seed,
        "victims": [asdict(victim) for victim in found],
    }
    given.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
