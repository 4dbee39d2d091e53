"""The one place that knows ``ArrayRecord``: replies are checked against the global model.

A reply is input from an attacker. Nothing in it is decoded before its declared shape and dtype,
its ``.npy`` header and its length in bytes agree with the global model, and nothing is ever
unpickled; an array is decoded once, without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, MetricRecordValues, RecordDict
from numpy.typing import NDArray

from fl_shield.errors import InvalidReplyError
from fl_shield.strategies.payload import MAX_INTEGER, checked_norm, decode
from fl_shield.strategies.reports import REPORT_KEY, parse_report
from fl_shield.types import ActivationReport, Arrays

_MAX_METRIC = 1e15
_Record = TypeVar("_Record", ArrayRecord, MetricRecord)


@dataclass(frozen=True, kw_only=True)
class ReplyLimits:
    """What a well-formed reply looks like, apart from the arrays themselves.

    Parameters
    ----------
    arrayrecord_key, metricrecord_key : str
        Names of the only ``ArrayRecord`` and the only ``MetricRecord`` of a reply.
    weighted_by_key : str
        Metric that holds the client's example count.
    max_examples : float
        Largest example count taken seriously.
    max_norm : float
        Largest Euclidean norm of one array; anything beyond would overflow what reads it.
    max_growth : float
        Largest norm of one array in norms of its like (see :func:`outgrown`); an update beyond
        is suspicious, and no detector has to look at it.
    max_metrics, max_list : int
        Most keys of the ``MetricRecord``, and longest list in it.
    max_report_bytes : int
        Largest activation report.
    config_records : tuple of str
        ``ConfigRecord`` names that the inner strategy wants to see; any other is dropped.

    Examples
    --------
    >>> ReplyLimits(weighted_by_key="n").max_examples
    1000000000.0
    """

    arrayrecord_key: str = "arrays"
    metricrecord_key: str = "metrics"
    weighted_by_key: str = "num-examples"
    max_examples: float = 1e9
    max_norm: float = 1e7
    max_growth: float = 100.0
    max_metrics: int = 64
    max_list: int = 4096
    max_report_bytes: int = 1 << 20
    config_records: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.max_examples, self.max_norm, self.max_growth, self.max_metrics)
        if min(*sizes, self.max_list, self.max_report_bytes) <= 0:
            raise ValueError(f"every limit must be > 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class CheckedReply:
    """A reply that keeps the contract of the global model.

    Attributes
    ----------
    arrays : Arrays
        Names, order, shapes and dtypes of the global model; read-only views of the payload.
        Empty for an evaluation reply.
    norms : mapping of str to float
        Euclidean norm of each array; 0 where it is not floating point.
    n_examples : float
        Example count as claimed: finite and positive.
    metrics : mapping of str to number or list
        Usable metrics, the example count among them.
    report : ActivationReport, optional
        The client's own, untrusted account of its activations.
    notes : tuple of str
        What was dropped, in plain words.
    """

    arrays: Arrays = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    n_examples: float
    metrics: Mapping[str, MetricRecordValues]
    report: ActivationReport | None = None
    notes: tuple[str, ...] = ()


def from_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Decode the server's own record into named arrays: copies, in its order.

    Examples
    --------
    >>> from_record(to_record({"w": np.ones(2)}))
    {'w': array([1., 1.])}
    """
    arrays = {name: array.numpy() for name, array in record.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"array {name!r} of the global model has dtype {array.dtype}; the shield reads "
                "real numbers, integers and booleans: convert it before strategy.start"
            )
    return arrays


def to_record(arrays: Arrays, *, like: Arrays | None = None) -> ArrayRecord:
    """Encode named arrays, in the order and with the dtypes of ``like`` where it is given.

    Integers are rounded to the nearest one, booleans are true from one half.
    """
    if like is None:
        return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})
    restored = {name: _restored(arrays[name], to) for name, to in like.items()}
    return ArrayRecord({name: Array(a) for name, a in restored.items()})


def restored_record(record: ArrayRecord, like: Arrays) -> ArrayRecord:
    """Give an aggregate the order and dtypes of the global model.

    The same object comes back where nothing has to change. An aggregate whose names are not
    those of the global model is returned as it is: what the inner strategy made of it is its
    own affair.
    """
    if record.keys() != like.keys():
        return record
    if list(record) == list(like) and all(
        record[name].dtype == str(a.dtype) for name, a in like.items()
    ):
        return record
    return to_record({name: a.numpy() for name, a in record.items()}, like=like)


def _restored(array: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    values = np.asarray(array)
    if values.dtype == like.dtype:
        return values
    if like.dtype.kind == "b":
        return np.asarray(values >= 0.5)
    if like.dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(like.dtype)
        low, high = max(info.min, -MAX_INTEGER), min(info.max, MAX_INTEGER)
        values = np.rint(np.where(np.isfinite(values), values, like)).clip(low, high)
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(like.dtype))


def check_reply(reply: Message, reference: Arrays, limits: ReplyLimits) -> CheckedReply:
    """Check one training reply against the global model and decode it.

    Parameters
    ----------
    reply : Message
        A reply with content. It is not changed.
    reference : Arrays
        The global model that the client was sent.
    limits : ReplyLimits
        Names and bounds of everything else.

    Raises
    ------
    InvalidReplyError
        If anything about it breaks the contract; the message is the reason.

    Examples
    --------
    >>> import pytest
    >>> from flwr.app import RecordDict
    >>> class Reply:
    ...     content = RecordDict({"arrays": to_record({"w": np.ones(1)})})
    >>> with pytest.raises(InvalidReplyError, match="shape"):
    ...     check_reply(Reply(), {"w": np.ones(10)}, ReplyLimits())
    """
    content = reply.content
    arrays = _decoded(_sole(content, ArrayRecord, limits.arrayrecord_key), reference)
    norms = {name: checked_norm(name, a, limits.max_norm) for name, a in arrays.items()}
    n_examples, metrics, notes = _checked_metrics(content, limits)
    report = None
    if REPORT_KEY in content.config_records:
        report = parse_report(content.config_records[REPORT_KEY], limits.max_report_bytes)
    known = {REPORT_KEY, *limits.config_records}
    unknown = [name for name in content.config_records if name not in known]
    if unknown:
        notes = (*notes, f"dropped unknown ConfigRecord {quoted(unknown)}")
    return CheckedReply(
        arrays=arrays,
        norms=norms,
        n_examples=n_examples,
        metrics=metrics,
        report=report,
        notes=notes,
    )


def check_evaluation(reply: Message, limits: ReplyLimits) -> CheckedReply:
    """Check one evaluation reply: its example count and metrics; arrays are not looked at.

    Raises
    ------
    InvalidReplyError
        If it has no usable example count or not exactly one ``MetricRecord``.
    """
    n_examples, metrics, notes = _checked_metrics(reply.content, limits)
    return CheckedReply(n_examples=n_examples, metrics=metrics, notes=notes)


def is_unchanged(arrays: Arrays, reference: Arrays) -> bool:
    """Whether an update's norm, computed as Flower's clipping does, is exactly zero."""
    return all(
        float(np.linalg.norm(np.subtract(arrays[name], a).ravel())) == 0
        for name, a in reference.items()
    )


def scaled_towards(arrays: Arrays, reference: Arrays, weight: float) -> dict[str, NDArray[Any]]:
    """Move an update towards the global model: reference + weight * (update - reference).

    Examples
    --------
    >>> scaled_towards({"w": np.array([3.0])}, {"w": np.array([1.0])}, 0.25)
    {'w': array([1.5])}
    """
    moved = {}
    for name, a in reference.items():
        start = a.astype(np.float64)
        moved[name] = _restored(start + weight * (arrays[name] - start), a)
    return moved


def rebuilt_content(
    reply: Message,
    checked: CheckedReply,
    limits: ReplyLimits,
    *,
    metrics: Mapping[str, MetricRecordValues],
    arrays: Arrays | None = None,
) -> RecordDict:
    """Content that inner strategies may read: one array record, one metric record, no more.

    The arrays stand in the global model's order, so that strategies which pair arrays by
    position cannot be misled; their bytes are the client's own unless ``arrays`` is given.
    """
    content = RecordDict()
    if arrays is not None:
        content[limits.arrayrecord_key] = to_record(arrays, like=checked.arrays)
    elif checked.arrays:
        sent = reply.content.array_records[limits.arrayrecord_key]
        in_order = list(sent) == list(checked.arrays)
        content[limits.arrayrecord_key] = (
            sent if in_order else ArrayRecord({name: sent[name] for name in checked.arrays})
        )
    content[limits.metricrecord_key] = MetricRecord(dict(metrics))
    for name in limits.config_records:
        if name in reply.content.config_records:
            content[name] = reply.content.config_records[name]
    return content


def quoted(names: list[str], at_most: int = 3) -> str:
    """Names that a client chose, shortened and escaped for a log or an audit.

    Examples
    --------
    >>> quoted(["a", "b" * 99, "c", "d"])
    "'a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'c' and 1 more"
    """
    shown = ", ".join(ascii(name[:40]) for name in names[:at_most])
    rest = len(names) - at_most
    return f"{shown} and {rest} more" if rest > 0 else shown


def _sole(content: RecordDict, kind: type[_Record], key: str) -> _Record:
    found = {name: r for name, r in content.items() if isinstance(r, kind)}
    if len(found) != 1 or key not in found:
        had = quoted(list(found)) or "none"
        raise InvalidReplyError(
            f"a reply holds exactly one {kind.__name__}, named {key!r}; this one holds {had}"
        )
    return found[key]


def _decoded(record: ArrayRecord, reference: Arrays) -> Arrays:
    if record.keys() != reference.keys():
        missing = [name for name in reference if name not in record]
        extra = [name for name in record if name not in reference]
        raise InvalidReplyError(
            "array names differ from the global model's: "
            + "; ".join(
                f"{what} {quoted(names)}"
                for what, names in (("missing", missing), ("unknown", extra))
                if names
            )
        )
    return {name: decode(name, record[name], a) for name, a in reference.items()}


def _checked_metrics(
    content: RecordDict, limits: ReplyLimits
) -> tuple[float, dict[str, MetricRecordValues], tuple[str, ...]]:
    record = _sole(content, MetricRecord, limits.metricrecord_key)
    if len(record) > limits.max_metrics:
        raise InvalidReplyError(f"{len(record)} metrics; at most {limits.max_metrics} are read")
    n_examples = _checked_count(record, limits)
    usable: dict[str, MetricRecordValues] = {}
    dropped: list[str] = []
    for name, value in record.items():
        if name == limits.weighted_by_key or _is_usable(name, value, limits.max_list):
            usable[name] = value
        else:
            dropped.append(name)
    notes = (f"dropped unusable metrics {quoted(dropped)}",) if dropped else ()
    return n_examples, usable, notes


def _checked_count(record: MetricRecord, limits: ReplyLimits) -> float:
    key = limits.weighted_by_key
    if key not in record:
        raise InvalidReplyError(f"the example count {key!r} is missing")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidReplyError(f"the example count {key!r} must be one number")
    if not 0 < value <= limits.max_examples:
        raise InvalidReplyError(
            f"the example count must be in (0, {limits.max_examples:g}], got {_shown(value)}"
        )
    return float(value)


def _shown(value: float) -> str:
    return "a huge number" if abs(value) >= _MAX_METRIC else f"{value:g}"


def _is_usable(name: str, value: MetricRecordValues, max_list: int) -> bool:
    values = value if isinstance(value, list) else [value]
    if len(name) > 200 or len(values) > max_list:
        return False
    return all(isinstance(v, int | float) and abs(v) <= _MAX_METRIC for v in values)
