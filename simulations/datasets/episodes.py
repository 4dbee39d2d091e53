"""Episodes of Gymnasium's control tasks, played by a scripted teacher and recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_shield.errors import DatasetError
from fl_shield.rng import keyed
from fl_shield.simulations.datasets import teachers
from fl_shield.simulations.datasets.parts import PARTS_STREAM, apart
from fl_shield.types import Floats, Ints, Samples

EXPLORATION = 0.15
"""Share of random actions that are executed; the label stays the teacher's."""

MOST = 0.6
"""Most that one action may make up of the recorded examples."""

SPARE = 1.2
"""How much more is recorded than is kept."""

PLAYED_STREAM = 2
"""Episodes that a policy plays; 0 and 1 are those of train and test."""

PONG_TOP, PONG_BOTTOM = 34, 194
PONG_CELL = 4
PONG_DARK, PONG_BRIGHT = 87, 236
"""Grey of the empty field and of the ball."""

BALL_X, BALL_Y, OWN_Y = 49, 54, 51
"""Where Pong's 128 bytes of memory hold the ball and the own paddle."""

Look = Callable[[Any, NDArray[Any]], tuple[NDArray[Any], Floats]]
"""Environment and observation -> what a network sees, and the facts that the teacher reads."""

Act = Callable[[NDArray[Any], Floats], int]
"""Stacked frames (frames, ...) and facts (frames, k) -> label of the action."""


def see_state(env: Any, observation: NDArray[Any]) -> tuple[NDArray[Any], Floats]:
    """The observation itself, for network and teacher alike."""
    return observation.astype(np.float32), observation.astype(np.float64)


def see_pong(env: Any, observation: NDArray[Any]) -> tuple[NDArray[Any], Floats]:
    """The field of Pong in 40 x 40 bytes, and ball and paddle from the memory, in field pixels.

    Parameters
    ----------
    env : gymnasium.Env
        An ALE environment.
    observation : (210, 160) uint8 array
        Its grey screen.

    References
    ----------
    A. Anand et al., "Unsupervised State Representation Learning in Atari", NeurIPS 2019,
    appendix (which byte holds what).
    """
    memory = env.unwrapped.ale.getRAM()
    facts = [float(memory[i]) for i in (BALL_X, BALL_Y, OWN_Y)]
    return shrink_pong(observation), np.array(facts) - (49.0, 48.0, 47.0)


def shrink_pong(screen: NDArray[Any]) -> NDArray[np.uint8]:
    """Cut out the field and average cells of 4 x 4 pixels: 0 = empty, 255 = full of ball.

    A square root lifts what is faint: the ball fills half of a cell at most.

    Parameters
    ----------
    screen : (210, 160) uint8 array
        Grey levels.

    Examples
    --------
    >>> screen = np.full((210, 160), 87, np.uint8)
    >>> screen[34:38, 4:8] = 236
    >>> shrink_pong(screen)[0, :3].tolist()
    [0, 255, 0]
    """
    field_ = screen[PONG_TOP:PONG_BOTTOM].astype(np.float64)
    rows, columns = (size // PONG_CELL for size in field_.shape)
    cells = field_.reshape(rows, PONG_CELL, columns, PONG_CELL).mean(axis=(1, 3))
    light = (cells - PONG_DARK) / (PONG_BRIGHT - PONG_DARK)
    small: NDArray[np.uint8] = np.rint(np.sqrt(light.clip(0, 1)) * 255).astype(np.uint8)
    return small


def always(facts: Floats) -> bool:
    """Every moment is worth recording."""
    return True


def ball_in_play(facts: Floats) -> bool:
    """Whether the ball of Pong was on the field in all frames."""
    return bool((facts[:, 0] > -49).all())


@dataclass(frozen=True, kw_only=True)
class Control:
    """A task of Gymnasium with its teacher.

    Attributes
    ----------
    env : str
        Gymnasium's name.
    teacher : callable
        Facts (frames, k) -> label.
    buttons : tuple of int
        The environment's action of each label.
    look : callable
        See :data:`Look`.
    recorded : callable
        Facts -> whether a moment is worth recording.
    options : mapping
        Passed to ``gymnasium.make``.
    n_frames : int
        Newest observations that are stacked.
    n_train, n_test : int
        Examples of each part.
    longest : int
        Most examples of one episode: more episodes, more variety.
    stride : int
        Every so many steps are recorded.
    """

    env: str
    teacher: Callable[[Floats], int]
    buttons: tuple[int, ...]
    look: Look = see_state
    recorded: Callable[[Floats], bool] = always
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    n_frames: int = 4
    n_train: int = 8000
    n_test: int = 3000
    longest: int = 200
    stride: int = 1


CONTROLS: Mapping[str, Control] = {
    "cartpole": Control(env="CartPole-v1", teacher=teachers.balance, buttons=(0, 1)),
    "acrobot": Control(env="Acrobot-v1", teacher=teachers.pump, buttons=(0, 1, 2)),
    "mountaincar": Control(env="MountainCar-v0", teacher=teachers.climb, buttons=(0, 1, 2)),
    "pong": Control(
        env="ALE/Pong-v5",
        teacher=teachers.track,
        buttons=(0, 2, 3),
        look=see_pong,
        recorded=ball_in_play,
        options={"obs_type": "grayscale", "frameskip": 4, "repeat_action_probability": 0.25},
        n_frames=2,
        n_train=6000,
        n_test=2000,
        longest=250,
        stride=3,
    ),
}
"""Every control task by the name of its data set."""


def make_env(name: str) -> Any:
    """Environment of a control task.

    Parameters
    ----------
    name : str
        A key of :data:`CONTROLS`.

    Raises
    ------
    DatasetError
        Where gymnasium (or ale-py, for pong) is not installed.
    """
    control = CONTROLS[name]
    atari = control.env.startswith("ALE/")
    try:
        import gymnasium  # optional: extra ``control``

        if atari:
            import ale_py

            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
            gymnasium.register_envs(ale_py)
    except ImportError as error:
        raise DatasetError(
            f"{name} is played in {'ale-py' if atari else 'gymnasium'}, which is not installed "
            f"({error}): pip install 'fl-shield[control]'"
        ) from error
    return gymnasium.make(control.env, disable_env_checker=True, **control.options)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step of an episode, before its action.

    Attributes
    ----------
    frames : (n_frames, ...) array
        What a network sees, the newest last; the first observation stands in for earlier ones.
    facts : (n_frames, k) float array
        What the teacher reads.
    label : int
        The chosen action's label.
    reward : float
        What the executed action brought.
    """

    frames: NDArray[Any]
    facts: Floats
    label: int
    reward: float


def play(env: Any, control: Control, act: Act, seed: int, noise: float = 0.0) -> Iterator[Moment]:
    """Play one episode: the same arguments give the same moments.

    Parameters
    ----------
    env : gymnasium.Env
        See :func:`make_env`.
    control : Control
        The task.
    act : callable
        See :data:`Act`.
    seed : int
        Of the environment and of random actions.
    noise : float
        Share of random actions that are executed instead of the chosen ones.
    """
    rng = np.random.default_rng(seed)
    seen, _ = env.reset(seed=seed)
    first = control.look(env, seen)
    history = deque([first] * control.n_frames, maxlen=control.n_frames)
    over = False
    while not over:
        frames = np.stack([frame for frame, _ in history])
        facts = np.stack([fact for _, fact in history])
        label = act(frames, facts)
        random = rng.random() < noise
        executed = int(rng.integers(len(control.buttons))) if random else label
        seen, reward, terminated, truncated, _ = env.step(control.buttons[executed])
        yield Moment(frames=frames, facts=facts, label=label, reward=float(reward))
        history.append(control.look(env, seen))
        over = terminated or truncated


def episode_seed(seed: int, stream: int, episode: int) -> int:
    """Seed of one episode: streams 0 (train), 1 (test) and 2 (played) share none."""
    return int(keyed(seed, PARTS_STREAM, 2, stream, episode).integers(2**31))


def record(name: str, n: int, seed: int, stream: int) -> Samples:
    """Record ``n`` moments of episodes that the teacher plays with some random actions.

    Parameters
    ----------
    name : str
        A key of :data:`CONTROLS`.
    n : int
        Examples; none occurs twice, and no action is the label of many more than 60 %.
    seed : int
        Of all episodes.
    stream : int
        0 for train, 1 for test.

    Returns
    -------
    Samples
        Frames as the environment shows them (not standardised) and the teacher's labels.
    """
    control = CONTROLS[name]
    env = make_env(name)
    kept: list[Moment] = []
    counts = np.zeros(len(control.buttons), dtype=np.int64)
    episode = 0
    while len(kept) < n:
        kept += _one_episode(env, control, episode_seed(seed, stream, episode), counts)
        episode += 1
    env.close()
    x = np.stack([moment.frames for moment in kept[:n]])
    return Samples(x=x, y=np.array([moment.label for moment in kept[:n]], dtype=np.int64))


def _one_episode(env: Any, control: Control, seed: int, counts: Ints) -> list[Moment]:
    """Moments of one episode that are worth recording; ``counts`` of labels goes on."""
    kept: list[Moment] = []
    played = play(env, control, lambda _, facts: control.teacher(facts), seed, EXPLORATION)
    for step, moment in enumerate(played):
        common = counts[moment.label] > MOST * (counts.sum() + 10)
        if step % control.stride == 0 and control.recorded(moment.facts) and not common:
            kept.append(moment)
            counts[moment.label] += 1
        if len(kept) == control.longest:
            break
    return kept


def record_parts(name: str, seed: int, n_train: int, n_test: int) -> tuple[Samples, Samples]:
    """Train and test from episodes of their own, no picture of one in the other.

    What is seen may repeat (Pong's screens, a car at the wall), so a fifth more is recorded and
    repeated inputs are dropped.
    """
    parts = [record(name, round(n * SPARE), seed, i) for i, n in enumerate((n_train, n_test))]
    kept = apart(*([x.tobytes() for x in part.x] for part in parts))
    train, test = (part.take(flags) for part, flags in zip(parts, kept, strict=True))
    return train.take(slice(n_train)), test.take(slice(n_test))
