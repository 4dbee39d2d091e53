"""Save and resume what Flower does not keep: the model, the optimiser, and who was suspicious."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fl_shield.errors import ShieldError
from fl_shield.recollection import Recollection
from fl_shield.strategies.nesting import nested
from fl_shield.strategies.records import from_record, to_record
from fl_shield.strategies.shield import ShieldedStrategy
from fl_shield.strategies.votes import HISTORY
from fl_shield.types import Arrays

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_FORMAT = "fl-shield-checkpoint-1"
_MOMENTS = ("m_t", "v_t")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run continues from.

    Attributes
    ----------
    arrays : ArrayRecord
        The global model: ``initial_arrays`` of the next ``strategy.start``.
    server_round : int
        Rounds done; Flower counts the next ones from 1 again.
    """

    arrays: ArrayRecord
    server_round: int


def save_checkpoint(
    path: Path | str, strategy: Strategy, server_round: int, arrays: ArrayRecord
) -> None:
    """Write the state of a run to one safetensors file, replacing it in one step.

    Parameters
    ----------
    path : path
        The file; its folder is made where it is missing.
    strategy : Strategy
        A :class:`ShieldedStrategy`, or what is wrapped around one. Of a ``FedAdam``,
        ``FedYogi`` or ``FedAdagrad`` inside, both moments are kept too.
    server_round : int
        Rounds done.
    arrays : ArrayRecord
        The global model after that round.
    """
    model = from_record(arrays)
    tensors = {f"model/{name}": array for name, array in model.items()}
    for name, moments in _moments(strategy):
        tensors.update({f"{name}/{key}": np.asarray(a) for key, a in moments.items()})
    shield = _shield(strategy)
    recollection = shield.recollection_
    tensors.update({f"inspector/{name}": a for name, a in recollection.arrays.items()})
    state = {
        "server_round": server_round,
        "order": list(model),
        "suspicion": shield.policy_.suspicion_,
        "evidence": shield.policy_.evidence_,
        "counts": {client: list(past) for client, past in shield.caps_.history_.items()},
        "owners": recollection.owners,
        "suspects": recollection.suspects,
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    save_file(tensors, partial, metadata={"format": _FORMAT, "state": json.dumps(state)})
    os.replace(partial, target)


def load_checkpoint(path: Path | str, strategy: Strategy) -> Checkpoint:
    """Read a checkpoint and give the strategy its memory back.

    With the same seed and the same clean examples the next round is judged as if nothing had
    happened: reputations, evidence, references of earlier rounds and suspects are all back.

    Raises
    ------
    ShieldError
        If the file is missing or was not written by :func:`save_checkpoint`.
    """
    tensors, state = _read(Path(path))
    shield = _shield(strategy)
    shield.policy_.suspicion_ = dict(state["suspicion"])
    shield.policy_.evidence_ = {name: tuple(p) for name, p in state.get("evidence", {}).items()}
    shield.recall(
        Recollection(
            arrays=_under("inspector/", tensors),
            owners=tuple(state.get("owners", ())),
            suspects=tuple((name, doubt) for name, doubt in state.get("suspects", ())),
        )
    )
    shield.caps_.history_ = {
        client: deque(past, maxlen=HISTORY) for client, past in state["counts"].items()
    }
    for inner in nested(strategy):
        for name in _MOMENTS:
            found = _under(f"{name}/", tensors)
            if found and hasattr(inner, name):
                setattr(inner, name, found)
    model = _under("model/", tensors)
    arrays = to_record({name: model[name] for name in state["order"]})
    return Checkpoint(arrays=arrays, server_round=state["server_round"])


def checkpointing(
    path: Path | str,
    strategy: Strategy,
    evaluate_fn: EvaluateFn | None = None,
    *,
    rounds_done: int = 0,
) -> EvaluateFn:
    """Make an ``evaluate_fn`` for ``strategy.start`` that saves after every round.

    Parameters
    ----------
    path, strategy
        As for :func:`save_checkpoint`.
    evaluate_fn : callable, optional
        What is to be evaluated besides.
    rounds_done : int
        ``server_round`` of the checkpoint that this run continues.
    """

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        save_checkpoint(path, strategy, rounds_done + server_round, arrays)
        return None if evaluate_fn is None else evaluate_fn(server_round, arrays)

    return evaluate


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ShieldError(
            f"no readable checkpoint at {path} ({error}); write one with save_checkpoint"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise ShieldError(f"{path} is no {_FORMAT}; write one with save_checkpoint")
    return tensors, json.loads(metadata["state"])


def _shield(strategy: Strategy) -> ShieldedStrategy:
    for inner in nested(strategy):
        if isinstance(inner, ShieldedStrategy):
            return inner
    raise ShieldError(
        f"{type(strategy).__name__} holds no ShieldedStrategy; a checkpoint keeps a shield's memory"
    )


def _moments(strategy: Strategy) -> Iterator[tuple[str, Arrays]]:
    for inner in nested(strategy):
        for name in _MOMENTS:
            if found := getattr(inner, name, None):
                yield name, found


def _under(prefix: str, tensors: Arrays) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
