"""Episodes on disk and from tiny simulations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_shield.columns import COLUMNS, LIMIT
from fl_shield.errors import DatasetError, ScenarioError
from fl_shield.meta import Episode
from fl_shield.simulations.datasets import load
from fl_shield.simulations.episodes import cache, federations
from fl_shield.simulations.episodes.cache import (
    key_of,
    load_episodes,
    save_episodes,
    write_manifest,
)
from fl_shield.simulations.episodes.calm import calm_null, calm_scores
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.federations import path_of, simulate, simulate_all
from fl_shield.simulations.episodes.rounds import (
    ATTACK_NAMES,
    HELD_OUT_FAMILIES,
    MODELS,
    ZOO,
    FederationSetting,
    among_all_attacks,
    draw_attack,
    draw_setting,
    partial_clients,
    simulate_federation,
)
from fl_shield.suspects import Suspects
from fl_shield.types import TrainingConfig
from fl_shield.weights import ODDS_NULL, Weights

FEDERATION = FederationSetting(
    seed=3,
    dataset="digits",
    model="digits-mlp",
    n_clients=5,
    clients_per_round=5,
    n_rounds=1,
    alpha=5.0,
    training=TrainingConfig(n_epochs=1, batch_size=32, lr=0.05),
    n_clean=10,
    warm_rounds=0,
    leak=0.0,
)


def _episode(seed: int, family: str = "patch") -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        support=rng.normal(size=(4, 2, 128)).astype(np.float32),
        query=rng.uniform(-LIMIT, LIMIT, size=(6, 2, 128)).astype(np.float32),
        labels=rng.integers(0, 2, size=6),
        family=family,
        domain="cv-digits",
    )


def test_episodes_return_from_disk_in_half_precision(tmp_path: Path) -> None:
    episodes = [_episode(0), _episode(1, "none")]
    path = tmp_path / "new" / "episodes.npz"
    save_episodes(path, episodes)
    again = load_episodes(path)
    assert [e.family for e in again] == ["patch", "none"]
    assert [e.domain for e in again] == ["cv-digits"] * 2
    for old, new in zip(episodes, again, strict=True):
        assert new.support.dtype == new.query.dtype == np.float32
        np.testing.assert_array_equal(new.support, old.support.astype(np.float16))
        np.testing.assert_allclose(new.query, old.query, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(new.labels, old.labels)


def test_no_episodes_return_as_none(tmp_path: Path) -> None:
    save_episodes(tmp_path / "none.npz", [])
    assert load_episodes(tmp_path / "none.npz") == []


def test_writing_leaves_one_whole_file(tmp_path: Path) -> None:
    save_episodes(tmp_path / "a.npz", [_episode(0)])
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_broken_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    save_episodes(path, [_episode(0)])
    before = path.read_bytes()

    def full_disk(file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_episodes(path, [_episode(1)])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a zip", id="text"),
        pytest.param(b"PK\x03\x04 cut off", id="zip's head"),
    ],
)
def test_an_unreadable_file_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="delete it to have it made again"):
        load_episodes(path)


def test_a_cut_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    save_episodes(path, [_episode(0)])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DatasetError, match="delete it to have it made again"):
        load_episodes(path)


def test_a_foreign_or_absent_file_says_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    for name in ("foreign", "absent"):
        with pytest.raises(DatasetError, match="delete it to have it made again"):
            load_episodes(tmp_path / f"{name}.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, family=np.array([{"an": "object"}], dtype=object), domain=np.array(["d"]))
    with pytest.raises(DatasetError, match="not a readable episode file"):
        load_episodes(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"alpha": 0.5},
        {"training": replace(FEDERATION.training, lr=0.06)},
        {"n_rounds": 2},
        {"leak": 0.3},
    ],
)
def test_keys_change_with_settings(changes: dict[str, Any]) -> None:
    other = replace(FEDERATION, **changes)
    assert key_of(other.manifest()) != key_of(FEDERATION.manifest())
    assert key_of(FEDERATION.manifest()) == key_of(replace(FEDERATION).manifest())


def test_keys_change_with_the_version_and_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(FEDERATION.manifest())
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    newer = key_of(FEDERATION.manifest())
    other = key_of(FEDERATION.manifest(), COLUMNS[::-1])
    assert len({key, newer, other}) == 3


def test_manifest_has_a_line_a_source(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [FEDERATION.manifest(), {"source": "victim", "family": "patch"}])
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["source"] == "federation"
    assert first["training"]["lr"] == 0.05
    assert second == {"source": "victim", "family": "patch"}


@pytest.mark.parametrize("dataset", ["digits", "glyphs"])
def test_settings_are_drawn_from_their_seed(dataset: str) -> None:
    drawn = [draw_setting(dataset, seed, n_rounds=2) for seed in range(20)]
    assert drawn == [draw_setting(dataset, seed, n_rounds=2) for seed in range(20)]
    assert len({key_of(s.manifest()) for s in drawn}) == 20
    for setting in drawn:
        assert setting.dataset == dataset
        assert setting.n_rounds == 2
        assert 6 <= setting.clients_per_round <= setting.n_clients
        assert 10 <= setting.n_clean <= 20
    assert {s.model for s in drawn} == set(MODELS[dataset])


@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_attacks_are_drawn_from_their_stream(name: str) -> None:
    first, second = (draw_attack(name, 10, np.random.default_rng(5)) for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """A federation of one round."""
    return list(simulate_federation(FEDERATION))


def test_a_round_is_attacked_in_every_way_and_none(episodes: list[Episode]) -> None:
    assert len(episodes) == 6
    assert sorted(e.family for e in episodes[:5]) == sorted(ATTACK_NAMES)
    assert episodes[5].family == "none"
    assert {e.domain for e in episodes} == {"fl-digits"}


def test_labels_of_a_round(episodes: list[Episode]) -> None:
    labels = episodes[0].labels
    assert 1 <= labels.sum() <= 2  # at most 40 % of five clients
    for episode in episodes[:5]:
        np.testing.assert_array_equal(episode.labels, labels)
    assert not episodes[5].labels.any()
    assert episodes[5].labels.shape == labels.shape == (5,)


def test_profiles_of_a_round(episodes: list[Episode]) -> None:
    for episode in episodes:
        n, views, columns = episode.query.shape
        assert (n, columns) == (5, 135)
        assert episode.support.shape[1:] == (views, columns)
        for rows in (episode.query, episode.support):
            assert np.isfinite(rows).all()
            assert np.abs(rows).max() <= LIMIT


def test_only_malicious_updates_differ_from_the_honest_round(episodes: list[Episode]) -> None:
    """In the honest episode the same clients stand among the others."""
    honest = episodes[5]
    malicious = episodes[0].labels == 1
    for episode in episodes[:5]:
        moved = np.abs(episode.query - honest.query).mean((1, 2))
        assert moved[malicious].min() > 0
        assert moved[malicious].mean() > moved[~malicious].mean()


def test_a_federation_is_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [FEDERATION, replace(FEDERATION, seed=4)]
    save_episodes(path_of(FEDERATION, tmp_path), [_episode(0)])
    simulated: list[int] = []

    def fake(setting: FederationSetting) -> list[Episode]:
        simulated.append(setting.seed)
        return [_episode(setting.seed)]

    monkeypatch.setattr(federations, "simulate_federation", fake)
    assert list(simulate_all(wanted, tmp_path)) == wanted
    assert simulated == [4]
    assert list(simulate_all(wanted, tmp_path)) == wanted
    assert simulated == [4]
    assert simulate(FEDERATION, tmp_path) == path_of(FEDERATION, tmp_path)


def _keys(curriculum: Curriculum) -> list[str]:
    federations = [key_of(s.manifest()) for s in curriculum.federations()]
    return federations + [key_of(s.manifest()) for s in curriculum.victims()]


def test_curriculum_lists_distinct_sources() -> None:
    curriculum = Curriculum(n_victims=50, n_digits=3, n_glyphs=2, seed=1)
    keys = _keys(curriculum)
    assert len(set(keys)) == len(keys)
    assert abs(len(curriculum.victims()) - 50) <= 7  # rounded by data set
    assert curriculum.victims() == Curriculum(n_victims=50, seed=1).victims()
    other = Curriculum(n_victims=50, n_digits=3, n_glyphs=2, seed=2)
    assert not set(keys) & set(_keys(other))
    with pytest.raises(ValueError, match="at least 2 sources"):
        Curriculum(n_victims=1, n_digits=0, n_glyphs=0)
    with pytest.raises(ValueError, match="n_victims must be >= 0"):
        Curriculum(n_victims=-1)


def test_a_curriculum_keeps_to_its_domains_and_files() -> None:
    embedded = Curriculum(domains=("cv", "nlp"))
    assert embedded.pools() == ["digits", "glyphs", "roles"]
    assert not embedded.federations()
    assert not embedded.calm_settings()
    assert "cifar10" in Curriculum(domains=("cv",), with_files=True).pools()
    assert Curriculum(only=("digits", "cartpole")).pools() == ["digits", "cartpole"]
    with pytest.raises(ScenarioError, match="cifar10 is read from files: point --data-dir"):
        Curriculum(only=("digits", "cifar10"))
    with pytest.raises(ScenarioError, match=r"data set must be one of .* got 'cifar11'"):
        Curriculum(only=("cifar11",))


def test_partial_clients_hold_a_part_of_the_classes() -> None:
    data = load("digits", n_clients=3, partition="iid", seed=0)
    everyone = partial_clients(replace(FEDERATION, partial=1.0), data)
    for before, after in zip(data.clients, everyone, strict=True):
        held = set(after.y.tolist())
        assert 1 <= len(held) <= 5  # a sixth to a half of ten classes
        assert len(after) == np.isin(before.y, list(held)).sum()  # of those, every example
    nobody = partial_clients(replace(FEDERATION, partial=0.0), data)
    assert all(a is b for a, b in zip(nobody, data.clients, strict=True))


def test_principal_coordinates_stand_in_for_profiles() -> None:
    setting = replace(FEDERATION, representation="pca")
    for episode in simulate_federation(setting):
        assert episode.query.shape[2] == 128
        assert not episode.query[..., len(episode.support) :].any()  # fewer axes than references
        assert episode.query[..., 0].any()


def test_calm_rounds_give_finite_scores_of_settled_rounds(toy_weights: Weights) -> None:
    setting = replace(FEDERATION, n_rounds=3, warm_rounds=0)
    scores = calm_scores(setting, toy_weights)
    assert len(scores) == 2 * setting.clients_per_round  # the first round has no memory yet
    assert np.isfinite(scores).all()
    (again,) = calm_null([setting], toy_weights)
    odds = calm_scores(setting, toy_weights, ODDS_NULL)
    assert odds.shape == scores.shape
    assert np.corrcoef(odds, scores)[0, 1] > 0.9
    assert np.abs(odds - scores).max() > 0.01
    np.testing.assert_array_equal(again, scores)


def test_calm_rounds_count_likeness_to_honest_clients_in_doubt(
    toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A null distribution without suspects would promise what a server with them does not keep."""
    told: list[Sequence[str]] = []
    monkeypatch.setattr(Suspects, "add", lambda self, clients, *_: told.append(clients))
    setting = replace(FEDERATION, n_rounds=3, warm_rounds=0)
    calm_scores(setting, toy_weights, ODDS_NULL)
    assert len(told) == 3
    for clients in told:  # a client without a name is not remembered
        assert len(set(clients)) == setting.clients_per_round
        assert all(clients)


def test_calm_rounds_remember_what_the_shield_kept_only(toy_weights: Weights) -> None:
    """Beside a null that calls everybody suspicious nobody is kept, so no round ever settles."""
    nulls = dict.fromkeys(toy_weights.nulls, torch.full((99,), -1e6))
    certain = {**toy_weights.params, "b2": toy_weights.params["b2"] + 1e3}
    strict = replace(toy_weights, nulls=nulls, params=certain)
    setting = replace(FEDERATION, n_rounds=2, warm_rounds=0)
    assert len(calm_scores(setting, strict)) == 0


def test_calm_federations_are_none_of_the_sources() -> None:
    curriculum = Curriculum(n_victims=0, n_digits=16, n_glyphs=8)
    calm = curriculum.calm_settings()
    assert [s.dataset for s in calm] == ["glyphs", "digits", "digits"]
    assert not {s.seed for s in calm} & {s.seed for s in curriculum.federations()}
    assert curriculum.calm_null == "updates"
    zoo = replace(curriculum, n_zoo=1)
    assert zoo.calm_null == ODDS_NULL
    assert len(zoo.calm_settings()) == 2 * len(calm)


def test_photographs_are_federated_where_they_are_given() -> None:
    plain = Curriculum(domains=("fl",), n_victims=0, n_digits=2, n_glyphs=1)
    more = replace(plain, n_photos=9, data_dir="somewhere")
    added = more.federations()[3:]
    assert {(f.dataset, f.model, f.data_dir) for f in added} == {
        ("tiny-imagenet", "cifar-cnn", "somewhere")
    }
    assert all(f.attacks == ZOO for f in added)
    assert "data_dir" not in added[0].manifest()
    assert [s.dataset for s in more.calm_settings()].count("tiny-imagenet") == 2
    with pytest.raises(ScenarioError, match="tiny_imagenet/"):
        replace(plain, n_photos=1)


def test_the_arena_adds_federations_that_never_see_the_held_out_families() -> None:
    plain = Curriculum(domains=("fl",), n_victims=0, n_digits=2, n_glyphs=1)
    more = replace(plain, n_zoo=2)
    assert more.federations()[:3] == plain.federations()
    added = more.federations()[3:]
    assert [f.dataset for f in added] == ["glyphs", "glyphs", "digits", "digits"]
    for setting in added:
        assert not set(setting.attacks) & set(HELD_OUT_FAMILIES)
        assert set(ATTACK_NAMES) <= set(setting.attacks)
        assert (setting.n_attacks, setting.most_malicious) == (6, 0.5)
    assert {path_of(s, Path()) for s in added}.isdisjoint(
        path_of(s, Path()) for s in plain.federations()
    )


def test_a_round_of_the_arena_is_attacked_in_some_ways_and_none() -> None:
    setting = replace(
        among_all_attacks(draw_setting("digits", 3, n_rounds=1), n_attacks=2),
        attacks=("ipm", "label_flip", "sign_flip"),
        warm_rounds=0,
    )
    episodes = list(simulate_federation(setting))
    families = [e.family for e in episodes]
    assert families[-1] == "none"
    assert len(set(families[:-1])) == len(families) - 1 <= 2
    assert set(families[:-1]) < {"ipm", "label_flip", "sign_flip"}
    assert all(0 < e.labels.sum() <= len(e.labels) / 2 for e in episodes[:-1])
