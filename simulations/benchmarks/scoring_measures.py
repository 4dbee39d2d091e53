"""What the benchmark of scoring times: the shield, its probes, and every published rule.

Replies are drawn one at a time from seeds. The shield is fed by a generator that checks each
encoded reply before it hands the arrays on, so that both clocks run on the same replies in turn
and nothing but one reply is ever held. What remains once the last reply was read does not know how
large the model is: it works on sketches, and that part alone may grow with the square of the
clients. The published rules need all updates at once. Peak memory is the growth of the high-water
mark beside the replies: for the shield beside one reply, for a rule beside all updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray
from torch import nn

from fl_shield.aggregators import AGGREGATORS, AggregationContext, Layout, Preparing
from fl_shield.inspector import Inspector
from fl_shield.rng import keyed
from fl_shield.simulations.benchmarks.aggregation_cost import high_water
from fl_shield.simulations.in_process import InProcessGrid, node_configs
from fl_shield.strategies.records import ReplyLimits, check_reply, to_record
from fl_shield.training import get_arrays
from fl_shield.types import Floats, Samples

OFFSETS = 1 << 16
"""Places at which the noise of a client may begin in the pool."""

LEAST_PARAMETERS = 28_157
"""Parameters of the smallest network."""

Figures = dict[str, Any]
Ready = Callable[[], None]
"""Called when all is drawn and the clock starts."""


def network(n_parameters: int, seed: int) -> nn.Module:
    """Two convolutions, a dense layer as wide as it takes, and a head, for 28x28 images."""
    n_hidden = max(round((n_parameters - 18_878) / 9_279), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(9216, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 62)),
        )


class Replies:
    """A global model and its clients' replies: a common way, and noise cut from one pool."""

    def __init__(self, seed: int, n_parameters: int) -> None:
        self.model = network(n_parameters, seed)
        self.arrays = get_arrays(self.model)
        self.layout = Layout.of(self.arrays)
        rng, self._seed = keyed(seed, 1), seed
        self.clean = Samples(
            x=rng.random((20, 1, 28, 28), dtype=np.float32), y=rng.integers(0, 62, size=20)
        )
        size = self.layout.size
        self._grid = InProcessGrid(_unasked, node_configs(1, seed))
        self._common = 0.02 * rng.standard_normal(size, dtype=np.float32)
        self._pool = 0.02 * rng.standard_normal(size + OFFSETS, dtype=np.float32)

    def update(self, i: int) -> Floats:
        """What client i changes, ``(P,)``."""
        rng = keyed(self._seed, 2, i)
        start = int(rng.integers(OFFSETS))
        along = np.float32(rng.normal(1, 0.2))
        moved: Floats = self._common * along + self._pool[start : start + self.layout.size]
        return moved

    def updates(self, n: int) -> Floats:
        """Updates of n clients, ``(n, P)``."""
        rows = np.empty((n, self.layout.size), np.float32)
        for i, row in enumerate(rows):
            row[:] = self.update(i)
        return rows

    def content(self, i: int) -> RecordDict:
        """Encode what client i sends."""
        moved = self.layout.shaped(self.update(i))
        arrays: dict[str, NDArray[Any]] = {n: a + moved[n] for n, a in self.arrays.items()}
        metrics = MetricRecord({"num-examples": 100 + i % 100})
        return RecordDict({"arrays": to_record(arrays), "metrics": metrics})

    def message(self, i: int) -> Message:
        """Wrap it as Flower does."""
        return self._grid.create_message(self.content(i), "train", 1, "1")


def _unasked(message: Message, context: Context) -> Message:
    raise RuntimeError("nobody is asked anything here")


class Clock:
    """Wall and processor seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._wall, self._cpu = perf_counter(), process_time()

    def lap(self) -> Floats:
        """Seconds, (2,): wall, processor."""
        wall, cpu = self._wall, self._cpu
        self._wall, self._cpu = perf_counter(), process_time()
        return np.array([self._wall - wall, self._cpu - cpu])


def shield(seed: int, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Read and check replies, and score them without probes: both clocks on the same replies."""
    replies, laps, clock = Replies(seed, n_parameters), dict[str, Floats](), Clock()

    def add(what: str) -> None:
        laps[what] = laps.get(what, np.zeros(2)) + clock.lap()

    def checked(n_replies: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        for i in range(n_replies):
            add("sketch")
            reply = replies.message(i)
            add("draw")
            arrays = check_reply(reply, replies.arrays, ReplyLimits()).arrays
            add("check")
            yield arrays
            reply.content.clear()  # it holds views of itself, and would stay till it is collected
        add("sketch")

    list(map(len, checked(1)))
    ready()
    before = high_water()
    inspector = Inspector(replies.model, replies.clean, seed=seed, probes=False)
    inspector.inspect(replies.arrays, checked(2), np.ones(2))  # simulates references, once a model
    add("first")
    first = laps["first"][0]
    laps.clear()
    clock.lap()
    inspector.inspect(replies.arrays, checked(n), np.ones(n))
    add("space")
    seconds = laps["sketch"] + laps["space"]
    return {
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        **{f"{w}_seconds": laps[w][0] for w in ("check", "sketch", "space")},
        **{f"{w}_cpu_seconds": laps[w][1] for w in ("check", "sketch", "space")},
        "first_seconds": first,
        "memory_bytes": high_water() - before,
        "n_parameters": replies.layout.size,
    }


def probes(seed: int, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Run clients' models on the probes, one after the other."""
    replies = Replies(seed, n_parameters)
    inspector = Inspector(replies.model, replies.clean, seed=seed)
    asked = inspector.probes
    assert asked is not None
    asked.set_global(replies.arrays)
    ready()
    before, seconds = high_water(), np.zeros(2)
    for i in range(n):
        moved = replies.layout.shaped(replies.update(i))
        arrays = {name: a + moved[name] for name, a in replies.arrays.items()}
        clock = Clock()
        asked.shifts(arrays)
        seconds += clock.lap()
    return _timed(seconds, before)


def rule(name: str, seed: int, n: int, n_parameters: int, ready: Ready) -> Figures:
    """One step of a published rule with its own settings."""
    replies, aggregator = Replies(seed, n_parameters), AGGREGATORS[name]()
    updates = replies.updates(n)
    context = AggregationContext(
        server_round=1,
        global_arrays=replies.arrays,
        layout=replies.layout,
        client_ids=tuple(f"client {i}" for i in range(n)),
        rng=keyed(seed, 3),
        model=replies.model,
        clean=replies.clean,
    )
    ready()
    before, clock = high_water(), Clock()
    state: Mapping[str, NDArray[Any]] = {}
    if isinstance(aggregator, Preparing):
        _, state = aggregator.prepare(state, context)
    aggregator.step(updates, np.full(n, 100.0), state, context)
    return _timed(clock.lap(), before)


def flower_multi_krum(seed: int, n: int, n_parameters: int, ready: Ready) -> Figures:
    """Flower's choice of replies, told that a fifth are malicious."""
    replies = Replies(seed, n_parameters)
    contents = [replies.content(i) for i in range(n)]
    ready()
    before, clock = high_water(), Clock()
    select_multikrum(contents, n // 5, n - n // 5)
    return _timed(clock.lap(), before)


def _timed(seconds: Floats, before: int) -> Figures:
    return {
        "seconds": float(seconds[0]),
        "cpu_seconds": float(seconds[1]),
        "memory_bytes": high_water() - before,
    }


MEASURES: Mapping[str, Callable[[int, int, int, Ready], Figures]] = {
    "shield": shield,
    "probes": probes,
    "flower_multi_krum": flower_multi_krum,
    **{name: partial(rule, name) for name in AGGREGATORS},
}
"""Measures by name, called with a seed, a number of clients, one of parameters, and ``ready``."""
