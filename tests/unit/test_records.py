"""Between ArrayRecord and named arrays: exact, without copies, and never on trust."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fl_shield.errors import InvalidReplyError
from fl_shield.strategies import ReplyLimits, check_reply, from_record, to_record
from fl_shield.strategies.nesting import limits_of
from fl_shield.strategies.records import (
    is_unchanged,
    quoted,
    rebuilt_content,
    restored_record,
    scaled_towards,
)
from fl_shield.strategies.votes import WeightCap, agree_on_metrics, outgrown

REFERENCE: dict[str, NDArray[Any]] = {
    "w": np.zeros((2, 3), np.float32),
    "b": np.zeros(4, np.float64),
    "h": np.zeros(300, np.float16),
    "n": np.array(0, np.int64),
    "m": np.zeros(2, np.bool_),
    "e": np.zeros((0, 3), np.float32),
}


class Reply:
    """As much of a Message as a check reads."""

    def __init__(self, arrays: Any, **metrics: Any) -> None:
        record = arrays if isinstance(arrays, ArrayRecord) else to_record(arrays)
        numbers = MetricRecord({"num-examples": 5, **metrics})
        self.content = RecordDict({"arrays": record, "metrics": numbers})


def check(reply: Any, limits: ReplyLimits | None = None) -> Any:
    return check_reply(reply, REFERENCE, limits or ReplyLimits())


def drawn(seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(10 * rng.normal(size=a.shape)).astype(a.dtype)
        for name, a in REFERENCE.items()
    }


def npy_bytes(array: NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def test_round_trip_of_every_dtype() -> None:
    arrays = drawn()
    checked = check(Reply(arrays, loss=0.5))
    assert list(checked.arrays) == list(REFERENCE)
    for name, array in arrays.items():
        assert checked.arrays[name].dtype == array.dtype
        assert np.array_equal(checked.arrays[name], array)
    assert (checked.n_examples, checked.metrics["loss"]) == (5.0, 0.5)
    assert (checked.report, checked.notes) == (None, ())


def test_decoding_copies_nothing_and_gives_read_only_views() -> None:
    reply = Reply(drawn())
    w = check(reply).arrays["w"]
    assert not w.flags.owndata
    assert not w.flags.writeable
    data = reply.content.array_records["arrays"]["w"].data
    address = w.__array_interface__["data"][0]
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert start < address < start + len(data)


def test_the_reply_is_left_as_it_was() -> None:
    reply = Reply(drawn(), odd=float("nan"))
    before = {n: a.data for n, a in reply.content.array_records["arrays"].items()}
    check(reply)
    assert {n: a.data for n, a in reply.content.array_records["arrays"].items()} == before
    assert sorted(reply.content.metric_records["metrics"]) == ["num-examples", "odd"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_headers_of_other_numpys_and_fortran_order_are_read(
    version: tuple[int, int], order: Any
) -> None:
    arrays = drawn()
    record = to_record(arrays)
    w = np.asarray(arrays["w"], order=order)
    record["w"] = Array("float32", (2, 3), "numpy.ndarray", npy_bytes(w, version))
    assert np.array_equal(check(Reply(record)).arrays["w"], w)


def test_an_old_numpys_unpadded_header_is_read() -> None:
    arrays = drawn()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    record = to_record(arrays)
    record["w"] = Array("float32", (2, 3), "numpy.ndarray", data + arrays["w"].tobytes())
    w = check(Reply(record)).arrays["w"]
    assert np.array_equal(w, arrays["w"])
    assert w.flags.aligned
    assert not w.flags.writeable


def test_bytes_that_are_not_bytes_are_refused() -> None:
    record = to_record(drawn())
    record["w"].data = bytearray(record["w"].data)  # type: ignore[assignment]
    with pytest.raises(InvalidReplyError, match="'w' is not in numpy's format"):
        check(Reply(record))


def test_large_half_precision_arrays_do_not_overflow_the_finite_check() -> None:
    arrays = {**drawn(), "h": np.full(300, 6e4, np.float16)}
    assert check(Reply(arrays)).arrays["h"][0] == np.float16(6e4)
    arrays["h"][5] = np.inf
    with pytest.raises(InvalidReplyError, match="'h' holds 1 NaN or infinite"):
        check(Reply(arrays))


def test_opposite_infinities_do_not_cancel() -> None:
    arrays = drawn()
    arrays["b"][:2] = np.inf, -np.inf
    with pytest.raises(InvalidReplyError, match="'b' holds 2 NaN or infinite"):
        check(Reply(arrays))


def test_metrics_that_would_crash_an_average_are_dropped() -> None:
    reply = Reply(
        drawn(), nan=float("nan"), big=10**400, long=[0.0] * 5000, fine=[1.0, 2.0], **{"k" * 300: 1}
    )
    checked = check(reply)
    assert list(checked.metrics) == ["num-examples", "fine"]
    [note] = checked.notes
    assert note.startswith("dropped unusable metrics 'nan', 'big', 'long' and 1 more")


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every limit must be > 0"):
        ReplyLimits(max_metrics=0)


def test_limits_follow_the_inner_strategys_keys() -> None:
    limits = limits_of(FedAvg(weighted_by_key="n", arrayrecord_key="model"))
    assert (limits.weighted_by_key, limits.arrayrecord_key) == ("n", "model")
    reply = Reply(drawn(), n=7)
    reply.content["model"] = reply.content.pop("arrays")
    assert check(reply, limits).n_examples == 7
    with pytest.raises(InvalidReplyError, match="the example count 'n' is missing"):
        check(Reply(drawn()), ReplyLimits(weighted_by_key="n"))


def test_a_global_model_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="'w' of the global model has dtype complex64"):
        from_record(to_record({"w": np.zeros(2, np.complex64)}))


def test_aggregates_get_the_global_models_dtypes_and_order() -> None:
    like = {
        "w": np.zeros(2, np.float32),
        "n": np.array(7),
        "u": np.zeros(2, "u1"),
        "m": np.ones(2, "?"),
    }
    aggregate = to_record(
        {
            "u": np.array([-3.0, 300.0]),
            "n": np.array(4.6),
            "m": np.array([0.4, 0.5]),
            "w": np.array([1.0, 1e300]),
        }
    )
    restored = from_record(restored_record(aggregate, like))
    assert [(n, str(a.dtype), a.tolist()) for n, a in restored.items()] == [
        ("w", "float32", [1.0, np.inf]),
        ("n", "int64", 5),
        ("u", "uint8", [0, 255]),
        ("m", "bool", [False, True]),
    ]


def test_a_counter_that_became_nan_keeps_its_old_value() -> None:
    restored = restored_record(to_record({"n": np.array(np.nan)}), {"n": np.array(7)})
    assert restored["n"].numpy() == 7


def test_an_aggregate_that_needs_no_change_is_the_same_object() -> None:
    record = to_record(drawn())
    assert restored_record(record, REFERENCE) is record
    foreign = to_record({"else": np.zeros(1)})
    assert restored_record(foreign, REFERENCE) is foreign


def test_scaling_moves_towards_the_reference_and_keeps_dtypes() -> None:
    reference = {"w": np.array([1.0, 1.0], np.float32), "n": np.array(10)}
    update = {"w": np.array([3.0, -1.0], np.float32), "n": np.array(20)}
    moved = scaled_towards(update, reference, 0.25)
    assert moved["w"].tolist() == [1.5, 0.5]
    assert [str(a.dtype) for a in moved.values()] == ["float32", "int64"]
    assert moved["n"] == 12
    assert update["w"].tolist() == [3.0, -1.0]


def test_unchanged_means_every_array() -> None:
    same = {name: a.copy() for name, a in REFERENCE.items()}
    del same["m"]
    reference = {name: REFERENCE[name] for name in same}
    assert is_unchanged(same, reference)
    same["b"][3] = 1e-3
    assert not is_unchanged(same, reference)


def test_rebuilt_content_holds_nothing_but_what_was_checked() -> None:
    reply = Reply(drawn(), loss=1.0)
    reply.content["spy"] = ConfigRecord({"x": 1})
    reply.content["wanted"] = ConfigRecord({"x": 2})
    limits = ReplyLimits(config_records=("wanted", "absent"))
    checked = check(reply, limits)
    assert checked.notes == ("dropped unknown ConfigRecord 'spy'",)
    content = rebuilt_content(reply, checked, limits, metrics={"num-examples": 3})  # type: ignore[arg-type]
    assert sorted(content) == ["arrays", "metrics", "wanted"]
    assert dict(content.metric_records["metrics"]) == {"num-examples": 3}
    sent = reply.content.array_records["arrays"]
    assert all(content.array_records["arrays"][n].data is sent[n].data for n in REFERENCE)


def test_names_that_clients_chose_are_escaped() -> None:
    assert quoted(["a\n\x1b[31m", "\u202eb"]) == r"'a\n\x1b[31m', '\u202eb'"
    assert quoted([]) == ""


def test_one_claim_cannot_raise_the_cap_of_its_own_round() -> None:
    caps = WeightCap(max_weight=3)
    assert caps.apply(["a", "b"], [100.0, 1e9]) == [100.0, 300.0]
    assert caps.apply(["a"], [1e9]) == [1e9]
    assert caps.apply([], []) == []


def test_a_client_cannot_outgrow_its_own_history() -> None:
    caps = WeightCap(max_weight=10)
    for _ in range(3):
        assert caps.apply(["a", "b", "c"], [10.0, 100.0, 100.0]) == [10.0, 100.0, 100.0]
    assert caps.apply(["a", "b", "c"], [1000.0, 100.0, 100.0]) == [20.0, 100.0, 100.0]
    assert caps.apply(["a", "b", "new"], [15.0, 100.0, 900.0]) == [15.0, 100.0, 900.0]


def test_a_minority_cannot_bend_the_metrics() -> None:
    honest: list[dict[str, Any]] = [{"n": 1, "loss": x, "hits": [1, 2]} for x in (0.1, 0.2, 0.3)]
    liars: list[dict[str, Any]] = [
        {"n": 9, "loss": [5.0], "hits": [1], "own": 1.0},
        {"n": 9, "own": 2.0},
    ]
    agreed = agree_on_metrics([*honest, *liars], "n")
    assert agreed.metrics[:3] == tuple(honest)
    assert agreed.metrics[3] == agreed.metrics[4] == {"n": 9, "loss": 0.2, "hits": [1, 2]}
    assert agreed.notes[:3] == ((), (), ())
    assert agreed.notes[3][0] == "dropped metric 'own'"


def test_half_of_the_round_is_not_a_majority() -> None:
    agreed = agree_on_metrics([{"n": 1, "a": 1.0}, {"n": 2, "b": 2.0}], "n")
    assert agreed.metrics == ({"n": 1}, {"n": 2})


def test_growth_is_measured_by_the_round_the_global_model_and_one() -> None:
    reference = {"w": np.full(4, 50.0), "b": np.zeros(2), "n": np.array(9)}

    def verdicts(*norms: tuple[float, float]) -> list[bool]:
        replies = [{"w": w, "b": b, "n": 0.0} for w, b in norms]
        return [bool(reason) for reason in outgrown(replies, reference, 10)]

    # ||w|| = 100 in the global model, b is new: its yardstick is 1.
    assert verdicts((100, 0), (100, 0), (999, 10)) == [False, False, False]
    assert verdicts((100, 0), (1001, 0), (100, 10.1)) == [False, True, True]
    # Where everybody grew, so did the yardstick; two zeros of three cannot shrink it below 1.
    assert verdicts((5000, 90), (5000, 90), (5000, 100)) == [False, False, False]
    assert verdicts((0, 0), (0, 0), (900, 9)) == [False, False, False]
