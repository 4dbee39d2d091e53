"""The comparison: what weights learn from, what is cached, and which victims count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.activations import Activations
from fl_shield.detector import Weights, blank_weights
from fl_shield.detectors import ONE_PASS
from fl_shield.meta import Episode, MetaConfig, Progress
from fl_shield.simulations.episodes.recording import Recording
from fl_shield.simulations.episodes.tasks import FEDERATED, Task, victim_tasks
from fl_shield.simulations.evaluation import study
from fl_shield.simulations.evaluation.splits import Split
from fl_shield.simulations.evaluation.study import (
    ABLATIONS,
    OURS,
    UNADAPTED,
    Training,
    can_learn,
    counts,
    judge_ablations,
    judge_peers,
    judge_split,
    weights_for,
)
from fl_shield.simulations.evaluation.tables import PEERS

CONFIG = MetaConfig(n_hidden=4, n_inner_steps=1, n_epochs=1, n_support=6, n_query=8)
TRIGGERS = Split(axis="trigger", left_out="held-out")
POOLS = {"digits": "cv", "glyphs": "cv", "sst2": "nlp", "cartpole": "rl"}


def _activations(n: int, seed: int, shift: float = 0.0) -> Activations:
    rows = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32) + shift
    return Activations(
        layers={"fc": rows**2, "head": rows}, logits=rows[:, :3], head=np.eye(3, 5, dtype="f4")
    )


def _recording(seed: int = 0, **changes: Any) -> Recording:
    facts = {
        "seed": seed,
        "pool": "digits",
        "domain": "cv",
        "architecture": "mlp",
        "family": "patch",
        "evaluation": False,
        "poison_rate": 0.2,
        "asr": 0.95,
    }
    return Recording(
        references=_activations(50, 3 * seed),
        clean=_activations(10, 3 * seed + 1),
        triggered=_activations(8, 3 * seed + 2, shift=3.0),
        reached=np.arange(8) < 6,
        facts={**facts, **changes},
        peer_scores={"strip@20": np.stack([np.arange(18.0), np.linspace(1, 0.01, 18)])},
    )


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Some victims of each data set, one of them kept for evaluation, and federations."""
    recordings = [
        _recording(10 * i + j, pool=pool, domain=domain, evaluation=j == 3)
        for i, (pool, domain) in enumerate(POOLS.items())
        for j in range(4)
    ]
    found = victim_tasks(recordings, 1)
    federated = replace(found[0].episodes[0], domain="fl-digits")
    return [*found, *(Task(episodes=(federated,), facts=FEDERATED) for _ in range(3))]


class _Learned:
    """What ``fit_weights`` and ``calibrated`` were given, instead of what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[list[str]] = []
        self.configs: list[MetaConfig] = []
        monkeypatch.setattr(study, "fit_weights", self._fit)
        monkeypatch.setattr(study, "calibrated", self._calibrate)

    def _fit(
        self,
        episodes: Sequence[Episode],
        validation: Sequence[Episode],
        config: MetaConfig,
        seed: int,
        card: Mapping[str, str],
    ) -> Iterator[tuple[Progress, Weights]]:
        assert validation == []
        self.runs.append([e.domain for e in episodes])
        self.configs.append(config)
        weights = replace(blank_weights(seed, config), card=dict(card))
        for epoch in range(2):
            kept = replace(weights, mean=weights.mean + epoch)  # the last ones are kept
            yield Progress(epoch=epoch, loss=1.0, validation_loss=float("nan")), kept

    def _calibrate(self, weights: Weights, held_out: Sequence[Task]) -> Weights:
        self.runs[-1] += [e.domain for task in held_out for e in task.episodes]
        return weights


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> _Learned:
    """Meta-training that only notes what it is given."""
    return _Learned(monkeypatch)


def _training(cache: Path, seed: int = 0, **config: Any) -> Training:
    return Training(config=replace(CONFIG, **config), seed=seed, cache=cache)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (TRIGGERS, {"cv-digits": 3, "cv-glyphs": 3, "nlp-sst2": 3, "rl-cartpole": 3, "fl-": 3}),
        (
            Split(axis="dataset", left_out="digits"),
            {"cv-glyphs": 3, "nlp-sst2": 3, "rl-cartpole": 3, "fl-": 3},
        ),
        (Split(axis="domain", left_out="cv"), {"nlp-sst2": 3, "rl-cartpole": 3, "fl-": 3}),
        (Split(axis="architecture", left_out="mlp"), {"fl-": 3}),
        (Split(axis="transfer", left_out="cv"), {"cv-digits": 3, "cv-glyphs": 3}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_weights_never_learn_from_what_a_split_leaves_out(
    split: Split, expected: dict[str, int], tasks: list[Task], tmp_path: Path, learned: _Learned
) -> None:
    weights = weights_for(split, tasks, _training(tmp_path))
    (domains,) = learned.runs
    told = {d: sum(x.startswith(d) for x in domains) for d in expected}
    assert told == expected
    assert len(domains) == sum(expected.values())
    assert weights.card["split"] == split.name
    assert float(weights.mean[0]) == 1


def test_weights_are_cached_by_what_they_learned_from(
    tasks: list[Task], tmp_path: Path, learned: _Learned
) -> None:
    training = _training(tmp_path)
    reports: list[Progress] = []
    first = weights_for(TRIGGERS, tasks, training, reports.append)
    assert [p.epoch for p in reports] == [0, 1]
    again = weights_for(TRIGGERS, tasks, training, reports.append)
    assert len(learned.runs) == 1
    assert len(reports) == 2
    assert torch.equal(first.params["w1"], again.params["w1"])
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    # another name for the same victims: nothing to learn anew
    weights_for(Split(axis="dataset", left_out="cifar10"), tasks, training)
    assert len(learned.runs) == 1
    weights_for(Split(axis="dataset", left_out="digits"), tasks, training)
    weights_for(TRIGGERS, tasks[:-1], training)
    weights_for(TRIGGERS, tasks, _training(tmp_path, seed=1))
    weights_for(TRIGGERS, tasks, _training(tmp_path, n_epochs=2))
    more = [replace(t, episodes=t.episodes * 2) for t in tasks]
    weights_for(TRIGGERS, more, training)
    assert len(learned.runs) == len(list(tmp_path.iterdir())) == 6


def test_interrupted_training_leaves_no_weights(
    tasks: list[Task], tmp_path: Path, learned: _Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Weights, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            weights_for(TRIGGERS, tasks, _training(tmp_path))
    weights_for(TRIGGERS, tasks, _training(tmp_path))
    assert len(learned.runs) == 2


def test_a_split_needs_something_to_learn_from(tasks: list[Task]) -> None:
    assert can_learn(TRIGGERS, tasks)
    own = [task for task in tasks if task.facts["domain"] == "cv"]
    assert not can_learn(Split(axis="domain", left_out="cv"), own)
    assert not can_learn(TRIGGERS, own[:1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"asr": 0.9}, True),
        ({"asr": 0.89}, False),
        ({"asr": None}, False),
        ({"evaluation": False}, False),
    ],
)
def test_only_victims_whose_attack_works_count(changes: dict[str, Any], expected: bool) -> None:
    assert counts(_recording(**{"evaluation": True, "family": "circle", **changes})) is expected


def _judged() -> list[Recording]:
    told = {"evaluation": True, "family": "circle"}
    return [
        _recording(1, **told),
        _recording(2, **told, asr=0.5),  # does not work
        _recording(3, **{**told, "family": "patch"}),  # not of this split
        _recording(4, **{**told, "evaluation": False}),
    ]


def test_a_split_judges_its_own_victims_adapted_and_not() -> None:
    weights = blank_weights(config=CONFIG)
    rows = list(judge_split(weights, TRIGGERS, _judged(), (5, 20)))
    assert [(r.detector, r.n_shots, r.seed) for r in rows] == [
        (name, n, 1) for n in (5, 20) for name in (OURS, UNADAPTED)
    ]
    assert {r.split for r in rows} == {"trigger-held-out"}
    assert rows[2].auc != rows[3].auc
    assert all(0 <= r.auc <= 1 for r in rows)


def test_peers_are_judged_and_those_of_several_passes_have_their_scores_on_record() -> None:
    recording = _judged()[0]
    rows = list(judge_peers(recording, (10, 20)))
    assert [r.detector for r in rows if r.n_shots == 10] == list(ONE_PASS)
    assert [r.detector for r in rows if r.n_shots == 20] == [*ONE_PASS, "strip"]
    strip = rows[-1]
    assert (strip.auc, strip.split) == (1.0, PEERS)  # scores rise: clean ones come first
    assert strip.fit_seconds != strip.fit_seconds
    for other in _judged()[1:2] + _judged()[3:]:
        assert list(judge_peers(other, (20,))) == []


def test_ablations_change_one_thing_at_a_time(
    tasks: list[Task], tmp_path: Path, learned: _Learned
) -> None:
    training = _training(tmp_path, conditioned=True)
    rows = list(judge_ablations(TRIGGERS, tasks, training, _judged(), 20))
    shares = ["victims-25%", "victims-50%"]
    without = [f"without-{domain}" for domain in ("cv", "fl", "nlp", "rl")]
    assert [r.detector for r in rows] == [f"{OURS}/{n}" for n in (*ABLATIONS, *shares, *without)]
    for config, changes in zip(learned.configs, ABLATIONS.values(), strict=False):
        assert config == replace(training.config, **changes)
    assert [len(run) for run in learned.runs[: len(ABLATIONS)]] == [15] * len(ABLATIONS)
    quarter, half = learned.runs[len(ABLATIONS) : -4]
    assert len(quarter) <= 5  # of 19, of which 4 are kept for evaluation
    assert 6 <= len(half) <= 10
    assert not Counter(quarter) - Counter(half)  # the larger share holds the smaller one
    names = ("cv-", "fl-", "nlp-", "rl-")
    for run, prefix in zip(learned.runs[-4:], names, strict=True):
        assert not any(domain.startswith(prefix) for domain in run)


def test_ablations_that_leave_nothing_are_left_out(
    tasks: list[Task], tmp_path: Path, learned: _Learned
) -> None:
    own = [task for task in tasks if task.facts["domain"] == "cv"]
    rows = list(judge_ablations(TRIGGERS, own, _training(tmp_path), _judged(), 20))
    assert f"{OURS}/without-cv" not in {r.detector for r in rows}
    assert f"{OURS}/no-dropout" in {r.detector for r in rows}
