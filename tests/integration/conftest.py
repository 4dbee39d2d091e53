"""A federation of five tiny numpy clients, and inspectors that know what to say."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import nn

from fl_shield.simulations.in_process import InProcessGrid, Transport, node_configs
from fl_shield.strategies import ShieldedStrategy, from_record, to_record
from fl_shield.types import ActivationReport, Arrays, Flags, Floats, Inspection, Samples

N_CLIENTS = 5


class Scripted:
    """An inspector that suspects updates whose first weight moved by more than ``limit``."""

    def __init__(self, limit: float = np.inf, score: float = 0.99, p_value: float = 0.001) -> None:
        self.limit = limit
        self.score = score
        self.p_value = p_value
        self.remembered: list[list[bool]] = []
        self.doubts: list[list[float]] = []
        self.clients: list[list[str]] = []
        self.reports: list[Sequence[ActivationReport | None] | None] = []
        self.n_examples: list[list[float]] = []

    def inspect(
        self,
        global_arrays: Arrays,
        updates: Iterable[Arrays],
        n_examples: Floats,
        reports: Sequence[ActivationReport | None] | None = None,
        clients: Sequence[str] = (),
    ) -> Inspection:
        moves = [float(abs(u["w"][0] - global_arrays["w"][0])) for u in updates]
        bad = np.array(moves) > self.limit
        self.reports.append(reports)
        self.clients.append(list(clients))
        self.n_examples.append(n_examples.tolist())
        return Inspection(
            scores=np.where(bad, self.score, 0.01),
            p_values=np.where(bad, self.p_value, 0.9),
            view_names=("update:w",),
            view_scores=np.where(bad, 4.0, -4.0)[:, None],
        )

    def remember(self, trusted: Flags, doubts: Floats | None = None) -> None:
        self.remembered.append(trusted.tolist())
        self.doubts.append([] if doubts is None else doubts.tolist())


def initial_arrays() -> dict[str, NDArray[Any]]:
    return {
        "w": np.linspace(-1, 1, 10, dtype=np.float32),
        "k": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "steps": np.array(3, dtype=np.int64),
    }


def step(name: str, array: NDArray[Any], size: int) -> NDArray[Any]:
    """One client's training: counters go up by two, ``w`` moves, everything else shrinks."""
    if array.dtype.kind == "i":
        return np.asarray(array + 2)
    if name == "w":
        return array + np.float32(0.1 * size)
    return array * np.float32(1 - 0.01 * size)


def new_client_app(mods: list[Any] | None = None) -> ClientApp:
    """Each client moves the model by its own step; the number of examples is 10 + partition."""
    app = ClientApp(mods=mods or [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        arrays = from_record(message.content.array_records["arrays"])
        moved = {name: step(name, array, i + 1) for name, array in arrays.items()}
        metrics = MetricRecord({"loss": 0.5 + i, "num-examples": 10 + i})
        content = RecordDict({"arrays": to_record(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        metrics = MetricRecord({"accuracy": 0.1 * i, "num-examples": 10 + i})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@pytest.fixture
def ordered_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Flower sample the first nodes in order: its global generator is nobody's to seed."""
    monkeypatch.setattr(random, "sample", lambda population, k: list(population)[:k])


@pytest.fixture
def node_of() -> Callable[[int], int]:
    """From a partition to its node id."""
    ids = list(node_configs(N_CLIENTS))
    return lambda partition: ids[partition]


@pytest.fixture
def new_grid() -> Callable[..., InProcessGrid]:
    """Build a grid of the five clients, or of some of them."""

    def build(
        *,
        without: Sequence[int] = (),
        transport: Transport | None = None,
        mods: list[Any] | None = None,
        on_error: Any = "raise",
    ) -> InProcessGrid:
        configs: Mapping[int, Any] = {
            node: config
            for i, (node, config) in enumerate(node_configs(N_CLIENTS).items())
            if i not in without
        }
        return InProcessGrid(new_client_app(mods), configs, transport=transport, on_error=on_error)

    return build


@pytest.fixture
def initial() -> ArrayRecord:
    return to_record(initial_arrays())


@pytest.fixture
def clean() -> Samples:
    return Samples(x=np.zeros((4, 2), np.float32), y=np.zeros(4, np.int64))


@pytest.fixture
def scripted() -> Callable[..., Scripted]:
    """Build an inspector that suspects large first weights."""
    return Scripted


@pytest.fixture
def new_shield(clean: Samples) -> Callable[..., ShieldedStrategy]:
    """Build a shield around a strategy, with a scripted inspector unless one is given."""

    def build(strategy: Strategy, **settings: Any) -> ShieldedStrategy:
        settings.setdefault("inspector", Scripted())
        model = nn.Linear(2, 2)
        return ShieldedStrategy(strategy, model=model, clean_data=clean, **settings)

    return build
