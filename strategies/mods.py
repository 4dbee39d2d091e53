"""Client mods: report activations to the shield, and play an attacker in simulations.

In ``ClientApp(mods=[a, b])`` the first mod sees the reply last. List :func:`report_activations`
before :func:`malicious` to report on the poisoned arrays that the server will see, or after it
to report on the honest model, as a lying client would.

Activations travel as a second, *untrusted* witness. A client computes its report itself, so a
report that looks clean proves nothing: the shield lets it make a client more suspicious, never
less. A report that contradicts the uploaded arrays, or shows the backdoor, is one more chance to
be caught; leaving it out is no offence. Pooled activations leak something about local samples:
the mod is off until it is listed, sends few rows, and can clip them and add noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, MessageType
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import Layers, activations_of
from fl_shield.rng import keyed
from fl_shield.stages import find_layers
from fl_shield.strategies.records import from_record, to_record
from fl_shield.strategies.reports import REPORT_KEY, write_report
from fl_shield.training import set_arrays
from fl_shield.types import Attack, AttackContext, Floats

ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]

MOD_FAILED = 6
"""Flower's error code of a mod that could not do its work."""


def report_activations(
    model_fn: Callable[[Context], nn.Module],
    data_fn: Callable[[Context], NDArray[Any]],
    *,
    n_samples: int = 4,
    layers: Layers = "auto",
    clip_norm: float = 0.0,
    noise_std: float = 0.0,
    seed: int | None = None,
) -> Mod:
    """Make a mod that attaches pooled activations of a few local samples to training replies.

    Parameters
    ----------
    model_fn : callable
        From the client's context to a network of the global architecture; its weights are
        overwritten with the reply's.
    data_fn : callable
        From the client's context to local inputs (n, ...).
    n_samples : int
        Rows to report, drawn anew in each round.
    layers : sequence of str, or "auto"
        Module names, the head last.
    clip_norm : float
        Largest Euclidean norm of one row of one layer; 0 = no clipping.
    noise_std : float
        Standard deviation of the Gaussian noise on each number, in units of ``clip_norm``
        (absolute where rows are not clipped).
    seed : int, optional
        Draws samples and noise, together with the node id and the round: for simulations. By
        default they come from fresh entropy, or whoever knows the seed could undo the noise.

    Examples
    --------
    >>> mod = report_activations(lambda c: nn.Linear(4, 2), lambda c: np.zeros((8, 4)))
    >>> callable(mod)
    True
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be >= 1, got {n_samples}")
    if min(clip_norm, noise_std) < 0:
        raise ValueError(f"clip_norm and noise_std must be >= 0, got {clip_norm} and {noise_std}")
    std = noise_std * (clip_norm or 1.0)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if reply.has_error() or not is_training(message):
            return reply
        try:
            rng = _generator(seed, message, context)
            model = model_fn(context)
            set_arrays(model, from_record(_sole_arrays(reply)))
            names = find_layers(model) if isinstance(layers, str) else tuple(layers)
            x = data_fn(context)
            drawn = rng.choice(len(x), size=min(n_samples, len(x)), replace=False)
            rows, _ = activations_of(model, x[np.sort(drawn)], names)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = f"report_activations: {type(error).__name__}: {error}"
            return Message(Error(MOD_FAILED, reason), reply_to=message)
        private = {name: _privatised(r, clip_norm, std, rng) for name, r in rows.items()}
        reply.content[REPORT_KEY] = write_report(private)
        return reply

    return mod


def malicious(
    attack: Attack, make_context: Callable[[Message, Context], AttackContext | None]
) -> Mod:
    """Make a mod that uploads an attack's arrays in place of the honest ones. Simulations only.

    The honest reply is computed first: its metrics and example count are kept.

    Parameters
    ----------
    attack : Attack
        From a context to the arrays to upload.
    make_context : callable
        From the server's message and the client's context to what the attacker knows, or None
        where this client stays honest in this round.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        known = make_context(message, context) if is_training(message) else None
        reply = call_next(message, context)
        if known is None or reply.has_error():
            return reply
        [name] = reply.content.array_records
        reply.content[name] = to_record(attack(known))
        return reply

    return mod


def is_training(message: Message) -> bool:
    """Whether a message asks for training, under any action name (``train``, ``train.action``)."""
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


def _generator(seed: int | None, message: Message, context: Context) -> np.random.Generator:
    if seed is None:
        return np.random.default_rng()
    return keyed(seed, context.node_id, _server_round(message))


def _server_round(message: Message) -> int:
    for record in message.content.config_records.values():
        value = record.get("server-round")
        if isinstance(value, int):
            return value
    return 0


def _sole_arrays(reply: Message) -> ArrayRecord:
    [record] = reply.content.array_records.values()
    return record


def _privatised(rows: Floats, clip_norm: float, std: float, rng: np.random.Generator) -> Floats:
    if clip_norm > 0:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-12))
    if std > 0:
        rows = rows + rng.normal(0.0, std, rows.shape)
    return np.asarray(rows, dtype=np.float32)
