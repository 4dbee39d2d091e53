"""Weights of several splits: one after the other, and in processes beside each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fl_shield.simulations.episodes.clean_models import Workplace
from fl_shield.simulations.episodes.recordings import load_population, simulate_population
from fl_shield.simulations.evaluation.campaign import contenders_of
from fl_shield.simulations.evaluation.settings import Evaluation
from fl_shield.simulations.evaluation.splits import all_splits
from fl_shield.weights import Weights


def test_processes_train_the_weights_that_one_process_trains(tmp_path: Path) -> None:
    one = Evaluation(
        axes=("trigger", "dataset"),
        domains=("rl",),
        pools=("cartpole", "mountaincar"),
        n_victims=8,
        n_each=1,
        n_digits=0,
        n_glyphs=0,
        n_epochs=1,
        n_draws=1,
        shots=(20,),
        ablate=False,
        seed=0,
        place=Workplace(data_dir=None, cache=tmp_path),
        n_workers=1,
    )
    learned = one.curriculum.victims()
    assert sum(simulate_population(learned, one.place)) == len(learned)
    splits = all_splits(load_population(learned, one.place), one.axes)
    reports: list[float] = []

    def report(step: str, done: float, total: float) -> None:
        reports.append(done)

    def trained(evaluation: Evaluation) -> dict[str, Weights]:
        found = contenders_of(splits, [], evaluation, report)
        return {c.split.name: Weights.load(c.path) for c in found}

    alone = trained(one)
    for path in (tmp_path / "weights").iterdir():
        path.unlink()
    together = trained(replace(one, n_workers=2))
    assert list(alone) == list(together) == [split.name for split in splits]
    assert reports == [1, 2, 3] * 2
    for name, weights in alone.items():
        for part, tensor in weights.tensors().items():
            assert torch.equal(tensor, together[name].tensors()[part]), (name, part)
    first, second = (alone[name].params["w1"] for name in list(alone)[:2])
    assert not torch.equal(first, second)
