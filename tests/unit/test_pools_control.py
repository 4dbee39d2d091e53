"""Control pools: teachers, episodes, standardised states, returns."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import behaviour, episodes, teachers
from fl_shield.simulations.datasets.behaviour import standards_of
from fl_shield.simulations.datasets.episodes import (
    CONTROLS,
    ball_in_play,
    episode_seed,
    make_env,
    play,
    record,
    record_parts,
)
from fl_shield.simulations.pools import Pool, load_pool, policy_return, teacher_return
from fl_shield.types import Floats

STATES = {"cartpole": (4, 2), "acrobot": (6, 3), "mountaincar": (2, 3)}

pytest.importorskip("gymnasium")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pools")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task with few examples."""
    few = {name: replace(c, n_train=480, n_test=100, longest=160) for name, c in CONTROLS.items()}
    for module in (episodes, behaviour):
        monkeypatch.setattr(module, "CONTROLS", MappingProxyType(few))


def rows(x: NDArray[Any]) -> set[bytes]:
    return {row.tobytes() for row in x}


# Teachers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "label"),
    [
        ((0.0, 0.0, 0.02, 0.0), 1),
        ((0.0, 0.0, -0.02, 0.0), 0),
        ((0.0, 0.0, 0.02, -0.1), 0),
        ((1.0, 0.0, -0.02, 0.0), 1),
    ],
)
def test_balance(state: tuple[float, ...], label: int) -> None:
    assert teachers.balance(np.array([(9.0, 9.0, 9.0, 9.0), state])) == label


def test_the_acrobots_energy_agrees_with_its_simulation() -> None:
    """Without torque the environment's own integrator keeps our energy."""
    env = make_env("acrobot")
    observation, _ = env.reset(seed=0)
    env.unwrapped.state = np.array([1.2, 0.6, 0.5, -0.5])
    energies = []
    for _ in range(30):
        observation, *_ = env.unwrapped.step(1)
        energies.append(teachers.acrobot_energy(observation))
    assert np.ptp(energies) < 0.02 * 19.6


def test_the_car_coasts_only_when_that_carries_it_home() -> None:
    env = make_env("mountaincar")
    for speed in np.linspace(0.03, 0.07, 20):
        env.reset(seed=0)
        env.unwrapped.state = np.array([-0.5, speed])
        label = teachers.climb(np.array([[-0.5, speed]]))
        for _ in range(60):
            state, _, arrived, *_ = env.unwrapped.step(1)
            if arrived or state[1] < 0:
                break
        assert label == (1 if arrived else 2), speed


@pytest.mark.parametrize(
    ("before", "now", "label"),
    [
        # the ball goes away: wait at its height
        ((80, 60, 54), (76, 60, 54), teachers.STAY),
        ((80, 60, 100), (76, 60, 100), teachers.UP),
        # it comes and will be 50 lower
        ((84, 46, 50), (88, 50, 50), teachers.DOWN),
        # it comes, will bounce from the floor (156) and be at 144 when it arrives
        ((94, 120, 138), (98, 124, 138), teachers.STAY),
        # the paddle's own glide will do
        ((80, 60, 52), (76, 60, 43), teachers.DOWN),
        ((80, 60, 78), (76, 60, 66), teachers.STAY),
    ],
)
def test_track(before: tuple[float, ...], now: tuple[float, ...], label: int) -> None:
    assert teachers.track(np.array([before, now], dtype=np.float64)) == label


def test_bouncing_agrees_with_step_by_step_flight() -> None:
    for start in (0, 50, 155):
        y, step, free = start, 1, start
        for _ in range(1000):
            y, free = y + step, free + 1
            if y in (0, teachers.PONG_FLOOR):
                step = -step
            assert teachers.bounce(float(free)) == y


@pytest.mark.parametrize(("name", "least"), [("cartpole", 500), ("acrobot", -130)])
def test_teachers_play_well(name: str, least: float) -> None:
    assert teacher_return(name, n_episodes=4) >= least


def test_the_cars_teacher_arrives() -> None:
    assert -160 <= teacher_return("mountaincar", n_episodes=4) <= -100


# Episodes ----------------------------------------------------------------------------------------


def test_frames_run_on_and_the_newest_is_last() -> None:
    control, env = CONTROLS["cartpole"], make_env("cartpole")
    moments = list(play(env, control, lambda _, facts: control.teacher(facts), seed=5, noise=0.5))
    first = moments[0].frames
    assert (first == first[0]).all()
    for before, after in pairwise(moments):
        assert np.array_equal(before.frames[1:], after.frames[:-1])
    observation, _ = make_env("cartpole").reset(seed=5)
    assert np.array_equal(first[-1], observation)


def test_labels_are_the_teachers_even_where_chance_acts() -> None:
    control, env = CONTROLS["acrobot"], make_env("acrobot")
    moments = list(play(env, control, lambda _, facts: control.teacher(facts), seed=1, noise=1.0))
    assert len(moments) > 100
    assert all(moment.label == control.teacher(moment.facts) for moment in moments)


def test_no_two_episodes_share_a_seed() -> None:
    seeds = [episode_seed(s, stream, i) for s in (0, 1) for stream in range(3) for i in range(50)]
    assert len(set(seeds)) == 300


def test_an_action_that_dominates_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = replace(CONTROLS["acrobot"], teacher=lambda f: int(abs(f[-1, 4]) < 0.3) * 2)
    monkeypatch.setattr(episodes, "CONTROLS", {"acrobot": lazy})
    counts = np.bincount(record("acrobot", 400, seed=0, stream=0).y, minlength=3)
    assert counts.max() <= 0.6 * 400 + 10
    assert counts[1] == 0


def test_parts_share_no_input_and_repeat_none(small: None) -> None:
    train, test = record_parts("mountaincar", 0, 480, 100)
    assert (len(train), len(test)) == (480, 100)
    assert len(rows(train.x)) == 480
    assert rows(train.x).isdisjoint(rows(test.x))


# Pools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATES)
def test_states_are_standardised_and_varied(name: str, small: None) -> None:
    d, n_classes = STATES[name]
    pool = load_pool(name, seed=1)
    assert (pool.domain, pool.kind, pool.n_classes) == ("rl", "state", n_classes)
    assert pool.train.x.shape == (480, 4, d)
    assert pool.train.x.dtype == np.float32
    assert np.allclose(pool.train.x.mean((0, 1)), 0, atol=1e-4)
    assert np.allclose(pool.train.x.std((0, 1)), 1, atol=1e-4)
    assert set(pool.train.y.tolist()) == set(range(n_classes))
    assert len(pool.test) == 100


def test_a_pool_depends_on_its_seed_alone_and_is_cached(small: None, tmp_path: Path) -> None:
    def load(seed: int, cache: Path | None = None) -> Pool:
        return load_pool("cartpole", seed=seed, cache=cache)

    plain = load(4)
    assert np.array_equal(plain.train.x, load(4, tmp_path).train.x)
    assert np.array_equal(plain.train.x, load(4, tmp_path).train.x)
    assert [path.name for path in tmp_path.iterdir()] == ["cartpole-4-v1.npz"]
    assert not np.array_equal(plain.train.x, load(5).train.x)


def test_a_part_is_standardised_like_the_whole(small: None) -> None:
    whole, some = load_pool("acrobot"), load_pool("acrobot", n_train=30)
    assert rows(some.train.x) < rows(whole.train.x)


def test_a_cached_pool_needs_no_gymnasium(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_pool("cartpole", cache=tmp_path)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert len(load_pool("cartpole", cache=tmp_path).train) == 480


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(DatasetError, match=r"pong is played in ale-py, which is not installed .*"):
        load_pool("pong")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(DatasetError, match=r"pip install 'fl-shield\[control\]'$"):
        load_pool("cartpole")


def test_a_number_that_never_varies_is_no_division_by_zero() -> None:
    frames = np.zeros((5, 4, 2), np.float32)
    assert (standards_of(frames).apply(frames) == 0).all()


def test_a_policy_that_copies_the_teacher_plays_as_well(cache: Path) -> None:
    pool = load_pool("cartpole", cache=cache)
    features = np.concatenate([pool.train.x[:, -1], np.ones((len(pool.train), 1))], axis=1)
    weights, *_ = np.linalg.lstsq(features, pool.train.y * 2.0 - 1, rcond=None)

    def policy(x: NDArray[np.float32]) -> Floats:
        assert x.shape == (1, 4, 4)
        assert x.dtype == np.float32
        margin = np.append(x[0, -1], 1) @ weights
        return np.array([[-margin, margin]])

    assert policy_return("cartpole", policy, n_episodes=3, cache=cache) > 400
    assert policy_return("cartpole", lambda x: -policy(x), n_episodes=3, cache=cache) < 20


def test_a_game_that_is_not_there_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"must be one of cartpole, .*, got 'chess'"):
        policy_return("chess", lambda x: x)
    with pytest.raises(DatasetError, match="n_episodes must be at least 1, got 0"):
        teacher_return("cartpole", n_episodes=0)


# Pong --------------------------------------------------------------------------------------------


def test_pong_shows_what_the_teacher_reads(small: None) -> None:
    pytest.importorskip("ale_py")
    control, env = CONTROLS["pong"], make_env("pong")
    n_seen = 0
    moments = play(env, control, lambda _, facts: control.teacher(facts), seed=0)
    for step, moment in enumerate(moments):
        if step == 150:
            break
        x, y, top = moment.facts[-1]
        if not ball_in_play(moment.facts) or not 24 < x < 130:
            continue
        n_seen += 1
        bright = moment.frames[-1][:, 6:33]
        row, column = np.unravel_index(bright.argmax(), bright.shape)
        assert abs((row + 0.5) * 4 - (y + 2)) <= 4
        assert abs((column + 6.5) * 4 - (x + 1)) <= 4
        paddle = np.flatnonzero(moment.frames[-1][:, 35] > 10)
        if len(paddle):
            assert abs(paddle.min() * 4 - max(top, 0)) <= 4
    assert n_seen > 30


def test_pong_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ale_py")
    few = replace(CONTROLS["pong"], n_train=120, n_test=40, longest=60, stride=2)
    for module in (episodes, behaviour):
        monkeypatch.setattr(module, "CONTROLS", {"pong": few})
    pool = load_pool("pong", cache=tmp_path)
    assert (pool.domain, pool.kind, pool.n_classes) == ("rl", "image", 3)
    assert pool.train.x.shape == (120, 2, 40, 40)
    assert pool.train.x.dtype == np.float32
    assert pool.train.x.min() == 0
    assert 0.3 < pool.train.x.max() <= 1
    assert rows(pool.train.x).isdisjoint(rows(pool.test.x))
    assert set(pool.train.y.tolist()) == {0, 1, 2}
    again = load_pool("pong")
    assert np.array_equal(again.train.x, pool.train.x)
