"""Recordings on disk, and the tasks that are drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_shield.activations import Activations, views_beside
from fl_shield.errors import DatasetError
from fl_shield.profile import profile
from fl_shield.rng import keyed
from fl_shield.simulations.episodes.population import draw_victim
from fl_shield.simulations.episodes.recording import Recording, load_recording, save_recording
from fl_shield.simulations.episodes.shots import (
    FEWEST,
    MOST,
    episode_of,
    evaluation_shots,
    reference_index,
    shots_at,
    shots_of,
)
from fl_shield.simulations.episodes.tasks import (
    FEDERATED,
    federated_tasks,
    is_validation,
    victim_tasks,
)

PARTS = ("references", "clean", "triggered")
LAYERS = ("conv:mean", "conv:max", "head")


def _activations(n: int, seed: int, shift: float = 0.0) -> Activations:
    rng = np.random.default_rng(seed)
    layers = {name: (rng.normal(size=(n, 6)) + shift).astype(np.float32) for name in LAYERS}
    head = np.random.default_rng(99).normal(size=(3, 6)).astype(np.float32)
    return Activations(layers=layers, logits=layers["head"] @ head.T, head=head)


def _recording(poison_rate: float = 0.2, seed: int = 5, n_references: int = 50) -> Recording:
    setting = replace(draw_victim("digits", "patch", seed), poison_rate=poison_rate)
    reached = np.arange(9) < 7 if poison_rate else np.ones(9, np.bool_)
    return Recording(
        references=_activations(n_references, seed),
        clean=_activations(12, seed + 1),
        triggered=_activations(9, seed + 2, shift=4.0),
        reached=reached,
        facts={**setting.manifest(), "domain": "cv", "accuracy": 0.9, "asr": 0.95},
        peer_scores={"strip@20": np.arange(42.0).reshape(2, 21)},
    )


def test_a_recording_comes_back_in_half_precision(tmp_path: Path) -> None:
    before, path = _recording(), tmp_path / "deep" / "er" / "one.npz"
    save_recording(path, before)
    after = load_recording(path)
    for name in PARTS:
        old, new = getattr(before, name), getattr(after, name)
        assert list(new.layers) == list(LAYERS)
        for layer, rows in old.layers.items():
            np.testing.assert_array_equal(new.layers[layer], rows.astype(np.float16))
            assert new.layers[layer].dtype == np.float32
        np.testing.assert_array_equal(new.logits, old.logits)
        np.testing.assert_array_equal(new.head, old.head)
    np.testing.assert_array_equal(after.reached, before.reached)
    np.testing.assert_array_equal(after.peer_scores["strip@20"], before.peer_scores["strip@20"])
    assert after.facts == json.loads(json.dumps(dict(before.facts)))
    assert after.facts["scheme"] == asdict(draw_victim("digits", "patch", 5).scheme)
    assert (after.domain, after.backdoored) == ("cv", True)


def test_what_half_precision_cannot_hold_stays_finite(tmp_path: Path) -> None:
    huge = _activations(9, 0)
    huge.layers["head"][0] = 1e30
    save_recording(tmp_path / "huge.npz", replace(_recording(), triggered=huge))
    rows = load_recording(tmp_path / "huge.npz").triggered.layers["head"]
    assert np.isfinite(rows).all()
    assert rows[0].min() > 5e4


def test_a_head_that_is_not_linear_is_not_there_afterwards_either(tmp_path: Path) -> None:
    bare = {name: replace(getattr(_recording(), name), head=None) for name in PARTS}
    save_recording(tmp_path / "bare.npz", replace(_recording(), **bare))
    assert load_recording(tmp_path / "bare.npz").clean.head is None


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def _flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[200:1200] = bytes(255 - byte for byte in raw[200:1200])
    path.write_bytes(raw)


def _foreign(path: Path) -> None:
    np.savez(path, x=np.zeros(3))


def _single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _pickled(path: Path) -> None:
    arrays: dict[str, Any] = {"facts": np.array({"domain": "cv"}, dtype=object)}
    np.savez(path, **arrays)


def _no_facts(path: Path) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, "facts": np.array("{not json")})


@pytest.mark.parametrize(
    "spoil", [_truncated, _flipped, _foreign, _single, _pickled, _no_facts, Path.unlink]
)
def test_other_files_are_refused_with_a_remedy(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "one.npz"
    save_recording(path, _recording())
    spoil(path)
    with pytest.raises(DatasetError, match=r"one\.npz is not a readable recording.*delete it"):
        load_recording(path)


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.npz"
    save_recording(path, _recording())
    assert [p.name for p in tmp_path.iterdir()] == ["one.npz"]
    before = path.read_bytes()

    def interrupted(where: Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    for target in (path, tmp_path / "two.npz"):
        with pytest.raises(KeyboardInterrupt):
            save_recording(target, _recording(seed=6))
    assert path.read_bytes() == before
    assert not (tmp_path / "two.npz").exists()


def test_shots_by_hand() -> None:
    recording = _recording()
    shots = shots_at(recording, np.array([3, 40]))
    assert shots.labels.tolist() == [0] * 12 + [1] * 7 + [2] * 2
    head = recording.references.layers["head"]
    np.testing.assert_array_equal(shots.references.layers["head"], head[[3, 40]])
    np.testing.assert_array_equal(shots.points.logits[:12], recording.clean.logits)
    np.testing.assert_array_equal(shots.points.logits[12:], recording.triggered.logits)
    assert shots_at(_recording(poison_rate=0.0), np.array([0])).labels.tolist() == [0] * 21


def test_references_are_drawn_without_repetition_and_in_order() -> None:
    recording = _recording()
    everything = shots_of(recording, 50, keyed(0, 1))
    np.testing.assert_array_equal(everything.references.logits, recording.references.logits)
    first, again, other = (shots_of(recording, 10, keyed(0, i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first.references.logits, again.references.logits)
    assert not np.array_equal(first.references.logits, other.references.logits)


@pytest.mark.parametrize("n", [0, -1, 51])
def test_impossible_numbers_of_shots_say_what_there_is(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n_shots must be in 1\.\.50.*got {n}"):
        shots_of(_recording(), n, keyed(0))


def test_every_detector_gets_the_same_references() -> None:
    recording = _recording()
    index = reference_index(recording.facts, 20, 50)
    assert index.tolist() == sorted(set(index.tolist()))
    assert len(index) == 20
    np.testing.assert_array_equal(
        evaluation_shots(recording, 20).references.logits, recording.references.logits[index]
    )
    np.testing.assert_array_equal(index, reference_index(dict(recording.facts), 20, 50))
    for other in ({"seed": 6}, {"family": "circle"}, {"pool": "glyphs"}):
        changed = reference_index({**recording.facts, **other}, 20, 50)
        assert changed.tolist() != index.tolist()


def test_an_episode_is_made_of_profiles_and_leaves_failures_out() -> None:
    episode = episode_of(_recording(), 0)
    assert sorted(episode.labels.tolist()) == [0] * 12 + [1] * 7
    assert FEWEST <= len(episode.support) <= MOST
    assert episode.query.shape == (19, 3, 135)
    assert (episode.family, episode.domain) == ("patch", "cv-digits")
    clean = episode_of(_recording(poison_rate=0.0), 0)
    assert clean.labels.tolist() == [0] * 21
    assert clean.family == "none"


def test_an_episode_against_its_parts() -> None:
    recording = _recording()
    episode = episode_of(recording, 4, n_points=5)
    assert episode.labels.tolist() == [0] * 5 + [1] * 5
    rng = keyed(5, 61, 4, *b"digits")
    n_shots = round(float(np.exp(rng.uniform(np.log(5), np.log(50)))))
    drawn = shots_of(recording, n_shots, rng)
    kept = [rng.permutation(np.flatnonzero(drawn.labels == k))[:5] for k in (0, 1)]
    points = drawn.points.take(np.concatenate(kept))
    slow = [profile(view) for view in views_beside(points, drawn.references)]
    np.testing.assert_allclose(episode.support[:, 1], slow[1].references, atol=1e-5)
    np.testing.assert_allclose(episode.query[:, 2], slow[2].points, atol=1e-5)


def test_tasks_have_other_references_each_time_and_always_the_same() -> None:
    recordings = [_recording(), _recording(poison_rate=0.0, seed=9)]
    tasks, again = (victim_tasks(recordings, 3) for _ in range(2))
    assert [len(task.episodes) for task in tasks] == [3, 3]
    assert all(
        t.recording is r and t.facts is r.facts for t, r in zip(tasks, recordings, strict=True)
    )
    sizes = {len(e.support) for task in tasks for e in task.episodes}
    assert len(sizes) > 2
    for task, same in zip(tasks, again, strict=True):
        for one, other in zip(task.episodes, same.episodes, strict=True):
            np.testing.assert_array_equal(one.support, other.support)
            np.testing.assert_array_equal(one.query, other.query)


def test_federations_are_tasks_of_their_own() -> None:
    episodes = victim_tasks([_recording()], 2)[0].episodes
    (task,) = federated_tasks([episodes])
    assert task.episodes == episodes
    assert task.facts is FEDERATED
    assert task.recording is None
    assert not is_validation(task)
