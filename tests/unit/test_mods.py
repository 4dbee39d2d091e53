"""Client mods: activation reports there and back, and an attacker to simulate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import nn

from fl_shield.activations import activations_of
from fl_shield.errors import InvalidReplyError
from fl_shield.simulations.in_process import InProcessGrid
from fl_shield.stages import find_layers
from fl_shield.strategies import from_record, malicious, report_activations, to_record
from fl_shield.strategies.mods import Mod
from fl_shield.strategies.reports import REPORT_KEY, parse_report, write_report
from fl_shield.training import get_arrays, set_arrays
from fl_shield.types import AttackContext

X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def network(_context: Context | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


ARRAYS = {
    name: np.random.default_rng(i).normal(size=a.shape).astype(np.float32)
    for i, (name, a) in enumerate(get_arrays(network()).items())
}


def inputs(_context: Context) -> NDArray[Any]:
    return X


def client(message: Message, _context: Context) -> Message:
    """Add one to every array."""
    arrays = from_record(message.content.array_records["arrays"])
    metrics = MetricRecord({"num-examples": 5})
    moved = to_record({name: a + np.float32(1) for name, a in arrays.items()})
    return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)


def ask(
    *mods: Mod, kind: str = "train", app: Callable[..., Message] = client, server_round: int = 1
) -> Message:
    def wrap(mod: Mod, inner: Callable[..., Message]) -> Callable[..., Message]:
        return lambda message, context: mod(message, context, inner)

    for mod in reversed(mods):
        app = wrap(mod, app)
    grid = InProcessGrid(app, {7: {}})
    config = ConfigRecord({"server-round": server_round})
    content = RecordDict({"arrays": to_record(ARRAYS), "config": config})
    [reply] = grid.send_and_receive([Message(content, 7, kind)])
    return reply


def report_of(reply: Message) -> dict[str, NDArray[Any]]:
    return dict(parse_report(reply.content.config_records[REPORT_KEY]).layers)


def test_a_report_describes_the_uploaded_model_on_local_samples() -> None:
    reply = ask(report_activations(network, inputs, n_samples=9, seed=0))
    model = set_arrays(network(), from_record(reply.content.array_records["arrays"]))
    expected, _ = activations_of(model, X, find_layers(model))
    report = report_of(reply)
    assert list(report) == list(expected) == ["0", "2"]
    for name, rows in report.items():
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected[name])


def test_samples_are_drawn_anew_each_round_and_repeat_with_the_seed() -> None:
    mod = report_activations(network, inputs, n_samples=2, layers=["2"], seed=0)
    first, again, later = (report_of(ask(mod, server_round=r))["2"] for r in (1, 1, 2))
    assert first.shape == (2, 8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


def test_rows_are_clipped_and_noised() -> None:
    clipped = report_of(ask(report_activations(network, inputs, clip_norm=0.1, seed=0)))
    noised = report_of(
        ask(report_activations(network, inputs, clip_norm=0.1, noise_std=10.0, seed=0))
    )
    for name, rows in clipped.items():
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(4, 0.1), rel=1e-5)
        noise = noised[name] - rows
        assert 0.5 < noise.std() < 2  # 10 clip norms of 0.1 each


def test_noise_cannot_be_foretold_without_a_seed() -> None:
    mod = report_activations(network, inputs, n_samples=9, clip_norm=1.0, noise_std=1.0)
    first, second = (report_of(ask(mod))["0"] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["evaluate", "query", "train"])
def test_only_training_replies_carry_a_report(kind: str) -> None:
    reply = ask(report_activations(network, inputs), kind=kind)
    assert (REPORT_KEY in reply.content) == (kind == "train")


def test_named_train_actions_carry_a_report_too() -> None:
    assert REPORT_KEY in ask(report_activations(network, inputs), kind="train.later").content


def test_a_mod_answers_with_an_error_and_does_not_raise() -> None:
    reply = ask(report_activations(lambda _: nn.Linear(2, 2), inputs))
    assert reply.error.code == 6
    assert "report_activations: RuntimeError" in str(reply.error.reason)
    reply = ask(report_activations(network, inputs, layers=["nowhere"]))
    assert "no layer named 'nowhere'" in str(reply.error.reason)


def test_an_error_reply_passes_through() -> None:
    def broken(message: Message, _context: Context) -> Message:
        return Message(Error(2, "it broke"), reply_to=message)

    reply = ask(
        report_activations(network, inputs), malicious(zeros, lambda m, c: known()), app=broken
    )
    assert reply.error.reason == "it broke"


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n_samples must be >= 1, got 0"):
        report_activations(network, inputs, n_samples=0)
    with pytest.raises(ValueError, match="must be >= 0, got -1 and 0"):
        report_activations(network, inputs, clip_norm=-1)


def zeros(context: AttackContext) -> dict[str, NDArray[Any]]:
    return {name: np.zeros_like(a) for name, a in context.global_arrays.items()}


def known() -> AttackContext:
    settings: Any = dict.fromkeys(
        ("model", "data", "peers", "trigger", "target_label", "training", "n_clients", "rng")
    )
    return AttackContext(**settings, global_arrays=ARRAYS)


def test_an_attacker_replaces_the_arrays_and_keeps_the_metrics() -> None:
    reply = ask(malicious(zeros, lambda message, context: known()))
    arrays = from_record(reply.content.array_records["arrays"])
    assert list(arrays) == list(ARRAYS)
    assert not any(a.any() for a in arrays.values())
    assert reply.content.metric_records["metrics"]["num-examples"] == 5


def test_an_attacker_may_stay_honest_and_never_attacks_evaluation() -> None:
    honest = from_record(ask().content.array_records["arrays"])
    for reply in (
        ask(malicious(zeros, lambda message, context: None)),
        ask(malicious(zeros, lambda message, context: known()), kind="evaluate"),
    ):
        arrays = from_record(reply.content.array_records["arrays"])
        assert all(np.array_equal(arrays[name], honest[name]) for name in honest)


def test_the_order_of_mods_decides_what_the_report_describes() -> None:
    attack = malicious(zeros, lambda message, context: known())
    report = report_activations(network, inputs, seed=0)
    truthful, lying = report_of(ask(report, attack)), report_of(ask(attack, report))
    assert not truthful["2"].any()  # a model of zeros has no activations
    assert lying["2"].any()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "extra key": ({"more": 1}, "holds layers, widths, n-rows and data"),
    "data is a list": ({"data": [1.0]}, "holds layers, widths, n-rows and data"),
    "layers are bytes": ({"layers": b"fc"}, "are misplaced"),
    "rows are a float": ({"n-rows": 2.0}, "are misplaced"),
    "rows are true": ({"n-rows": True}, "are misplaced"),
    "no rows": ({"n-rows": 0}, "1 to 1024 rows"),
    "negative width": ({"widths": [-3]}, "1 to 1024 rows"),
    "no layers": ({"layers": [], "widths": []}, "1 to 64 layers once"),
    "one layer twice": ({"layers": ["a", "a"], "widths": [1, 2]}, "1 to 64 layers once"),
    "numbered layers": ({"layers": [1]}, "short strings"),
    "endless name": ({"layers": ["a" * 201]}, "short strings"),
    "short of a byte": ({"data": b"\0" * 23}, "shapes do not match"),
    "infinite": ({"data": np.full(6, np.inf, "f4").tobytes()}, "NaN or infinite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_report_that_lies_about_its_form_is_refused(name: str) -> None:
    values, reason = BROKEN[name]
    record = ConfigRecord({**write_report({"fc": np.ones((2, 3))}), **values})
    with pytest.raises(InvalidReplyError, match=reason):
        parse_report(record)


def test_an_oversized_report_is_not_read() -> None:
    with pytest.raises(InvalidReplyError, match="holds 24 bytes; at most 23 are read"):
        parse_report(write_report({"fc": np.ones((2, 3))}), max_bytes=23)


def test_a_report_comes_back_as_it_was_written() -> None:
    layers = {"a": X[:2], "b": X[2:4, :3]}
    report = parse_report(write_report(layers))
    assert list(report.layers) == ["a", "b"]
    assert all(np.array_equal(report.layers[name], layers[name]) for name in layers)


def test_ragged_rows_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        write_report({"a": X[:2], "b": X[:3]})
    with pytest.raises(ValueError, match="same number of rows"):
        write_report({"a": X[0]})


def test_records_of_the_attack_are_flowers_own() -> None:
    reply = ask(malicious(zeros, lambda message, context: known()))
    assert isinstance(reply.content["arrays"], ArrayRecord)
