"""The comparison: what weights learn from, what is cached, and which victims count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.activations import Activations
from fl_shield.detectors import ONE_PASS
from fl_shield.errors import ScenarioError
from fl_shield.meta import Episode, MetaConfig, Progress
from fl_shield.simulations.episodes.recording import Recording, save_recording
from fl_shield.simulations.episodes.shots import Shots, evaluation_shots
from fl_shield.simulations.episodes.tasks import FEDERATED, Task, federated_tasks, victim_tasks
from fl_shield.simulations.evaluation import learning, study
from fl_shield.simulations.evaluation.answers import Profiled, evaluation_profiles
from fl_shield.simulations.evaluation.campaign import one_thread
from fl_shield.simulations.evaluation.learning import (
    ABLATIONS,
    Ablation,
    Training,
    ablations,
    can_learn,
    check_ablations,
    chosen_ablations,
    weights_file,
)
from fl_shield.simulations.evaluation.splits import Split
from fl_shield.simulations.evaluation.study import (
    UNADAPTED,
    Contender,
    both_ways,
    counts,
    judge_all,
    judge_peers,
    judge_victim,
)
from fl_shield.simulations.evaluation.tables import PEERS
from fl_shield.simulations.meta_training import Parts
from fl_shield.simulations.null_distributions import ReadClean, Refit, clean_profiles
from fl_shield.simulations.victims.opponents import OURS
from fl_shield.types import Representation
from fl_shield.weights import Weights, blank_weights

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
        monkeypatch.setattr(learning, "fit_weights", self._fit)
        monkeypatch.setattr(learning, "calibrated", self._calibrate)

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

    def _calibrate(self, weights: Weights, parts: Parts, fit: Refit, read: ReadClean) -> Weights:
        assert read is clean_profiles
        self.runs[-1] += [e.domain for task in parts.held_out for e in task.episodes]
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
    weights = Weights.load(weights_file(split, tasks, _training(tmp_path)))
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
    first = weights_file(TRIGGERS, tasks, training, reports.append)
    assert [p.epoch for p in reports] == [0, 1]
    again = weights_file(TRIGGERS, tasks, training, reports.append)
    assert len(learned.runs) == 1
    assert len(reports) == 2
    assert first == again
    assert list(tmp_path.iterdir()) == [first]
    assert first.suffix == ".safetensors"
    # another name for the same victims: nothing to learn anew
    weights_file(Split(axis="dataset", left_out="cifar10"), tasks, training)
    assert len(learned.runs) == 1
    weights_file(Split(axis="dataset", left_out="digits"), tasks, training)
    weights_file(TRIGGERS, tasks[:-1], training)
    weights_file(TRIGGERS, tasks, _training(tmp_path, seed=1))
    weights_file(TRIGGERS, tasks, _training(tmp_path, n_epochs=2))
    more = [replace(t, episodes=t.episodes * 2) for t in tasks]
    weights_file(TRIGGERS, more, training)
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
            weights_file(TRIGGERS, tasks, _training(tmp_path))
    weights_file(TRIGGERS, tasks, _training(tmp_path))
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


@pytest.fixture
def main(tmp_path: Path) -> list[Contender]:
    """Weights of the held-out triggers, adapted and not."""
    path = tmp_path / "blank.safetensors"
    blank_weights(config=CONFIG).save(path)
    return both_ways(TRIGGERS, path, (5, 20))


def test_weights_judge_the_victims_of_their_split_adapted_and_not(main: list[Contender]) -> None:
    found = [judge_victim(recording, main, (5, 20)) for recording in _judged()]
    ours = [[r for r in each.rows if r.split != PEERS] for each in found]
    assert [(r.detector, r.n_shots, r.seed) for r in ours[0]] == [
        (name, n, 1) for n in (5, 20) for name in (OURS, UNADAPTED)
    ]
    assert ours[1:] == [[], [], []]
    assert {r.split for r in ours[0]} == {"trigger-held-out"}
    assert ours[0][2].auc != ours[0][3].auc
    assert all(0 <= r.auc <= 1 for r in ours[0])
    assert [len(each.rows) > 0 for each in found] == [True, False, True, False]  # peers too


def test_clean_inputs_of_every_victim_kept_for_evaluation_are_counted(
    main: list[Contender],
) -> None:
    found = [judge_victim(recording, main, (5, 20)).alarms for recording in _judged()]
    assert [len(each) for each in found] == [2, 2, 2, 0]
    both = ("held-out triggers", "all")
    assert [(a.n_shots, a.n_clean, a.groups) for a in found[1]] == [(5, 10, both), (20, 10, both)]
    assert found[2][0].groups == ("all",)
    assert [judge_victim(r, main[1:], (20,)).alarms for r in _judged()] == [[]] * 4


def test_every_victim_of_a_left_out_data_set_gives_false_alarms(main: list[Contender]) -> None:
    learned = _judged()[3]
    pool = learned.facts["pool"]
    left_out = Split(axis="dataset", left_out=pool)
    contenders = both_ways(left_out, main[0].path, (5, 20))
    found = judge_victim(learned, contenders, (5, 20))
    assert found.rows == []
    assert [(a.groups, a.n_shots) for a in found.alarms] == [(("left-out data sets",), 20)]
    elsewhere = both_ways(replace(left_out, left_out="other"), main[0].path, (20,))
    assert judge_victim(learned, elsewhere, (20,)).alarms == []


def test_scores_of_the_main_weights_are_kept_at_the_shots_of_the_tables(
    main: list[Contender],
) -> None:
    standard = judge_victim(_judged()[0], main, (5, 20)).standard
    assert {label: len(scores) for label, scores in standard.items()} == {0: 10, 1: 6}
    assert judge_victim(_judged()[0], main, (5,)).standard == {}
    assert judge_victim(_judged()[1], main, (20,)).standard == {}


def test_profiles_are_worked_out_once_for_all_weights(
    main: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pca.safetensors"
    blank_weights(1, replace(CONFIG, representation="pca")).save(path)
    other = Contender(name="pca", split=TRIGGERS, path=path, shots=(20,))
    asked: list[tuple[int, str]] = []

    def noted(shots: Shots, representation: Representation) -> Profiled:
        asked.append((len(shots.references), representation))
        return evaluation_profiles(shots, representation)

    monkeypatch.setattr(study, "evaluation_profiles", noted)
    rows = judge_victim(_judged()[0], [*main, other, *main], (5, 20)).rows
    assert asked == [(5, "profile"), (20, "profile"), (20, "pca")]
    assert [r.n_shots for r in rows if r.detector == "pca"] == [20]


def test_processes_find_what_one_finds(main: list[Contender], tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    for path, recording in zip(files, _judged()[:2], strict=True):
        save_recording(path, recording)
    serial, parallel = (list(judge_all(files, main, (20,), n)) for n in (1, 2))
    assert len(serial) == len(parallel) == 2
    for one, other in zip(serial, parallel, strict=True):
        assert one.alarms == other.alarms
        assert [(r.detector, r.auc, r.roc, r.tpr_1) for r in one.rows] == [
            (r.detector, r.auc, r.roc, r.tpr_1) for r in other.rows
        ]


def test_peers_are_judged_and_those_of_several_passes_have_their_scores_on_record() -> None:
    recording = _judged()[0]
    rows = [r for n in (10, 20) for r in judge_peers(recording, evaluation_shots(recording, n))]
    assert [r.detector for r in rows if r.n_shots == 10] == list(ONE_PASS)
    assert [r.detector for r in rows if r.n_shots == 20] == [*ONE_PASS, "strip"]
    strip = rows[-1]
    assert (strip.auc, strip.split) == (1.0, PEERS)  # scores rise: clean ones come first
    assert strip.fit_seconds != strip.fit_seconds


def test_ablations_change_one_thing_at_a_time(tasks: list[Task], tmp_path: Path) -> None:
    training = _training(tmp_path, conditioned=False)
    found = {ablation.name: ablation for ablation in ablations(tasks, training)}
    shares = ["victims-25%", "victims-50%"]
    without = [f"without-{domain}" for domain in ("cv", "fl", "nlp", "rl")]
    read = ["without-class-statistics", "pca-128", "last-view-only"]
    assert list(found) == [*ABLATIONS, *read, *shares, *without, "without-warm-starts"]
    for name, changes in ABLATIONS.items():
        changed = replace(training, config=replace(training.config, **changes))
        assert found[name] == Ablation(name=name, training=changed, tasks=tasks)
    quarter, half = ([id(t) for t in found[name].tasks] for name in shares)
    assert (len(quarter), len(half)) == (5, 10)  # of 19
    assert set(quarter) < set(half)  # the larger share holds the smaller one
    for name in without:
        domain = name.removeprefix("without-")
        left = {str(t.facts["domain"]) for t in found[name].tasks}
        assert left == {"cv", "fl", "nlp", "rl"} - {domain}


def test_only_the_ablations_that_are_named(tasks: list[Task], tmp_path: Path) -> None:
    training = _training(tmp_path)
    names = ("without-class-statistics", "first-order")
    found = list(chosen_ablations(tasks, training, names))
    assert [a.name for a in found] == ["first-order", "without-class-statistics"]
    everything = [a.name for a in chosen_ablations(tasks, training, ())]
    assert everything == [a.name for a in ablations(tasks, training)]
    check_ablations(everything, ("cv", "fl", "nlp", "rl"))
    for wrong in ("colder", "without-cv"):
        with pytest.raises(ScenarioError, match=f"must be one of no-inner-steps.*got '{wrong}'"):
            check_ablations(("first-order", wrong), ("rl",))


def test_ablations_that_read_otherwise_are_made_of_the_same_recordings(tmp_path: Path) -> None:
    recordings = [_recording(seed) for seed in range(3)]
    tasks = [*victim_tasks(recordings, 2), *federated_tasks([[]])]
    found = {ablation.name: ablation for ablation in ablations(tasks, _training(tmp_path))}
    plain, literal, head = tasks[0], *(found[n].tasks[0] for n in ("pca-128", "last-view-only"))
    cut = found["without-class-statistics"].tasks
    assert len(cut) == len(tasks)
    np.testing.assert_array_equal(cut[0].episodes[0].query, plain.episodes[0].query[..., :-7])
    assert cut[0].episodes[0].support.shape[2] == 128
    assert len(found["pca-128"].tasks) == len(found["last-view-only"].tasks) == 3
    assert not np.array_equal(literal.episodes[0].query, plain.episodes[0].query)
    assert head.episodes[1].query.shape[1] == found["last-view-only"].n_views == 1
    np.testing.assert_array_equal(head.episodes[1].labels, plain.episodes[1].labels)
    assert head.recording is not None
    assert head.recording.clean.penultimate is not None
    assert len(head.recording.clean.layers) == 1


def test_some_views_are_the_last_ones_of_all() -> None:
    shots = evaluation_shots(_recording(1), 5)
    profiled = evaluation_profiles(shots, "profile")
    last = profiled.last(1).profiles
    np.testing.assert_array_equal(last.points[:, 0], profiled.profiles.points[:, -1])
    assert last.references.shape[1] == 1


def test_one_thread_and_then_as_many_as_before() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
