"""How pooled activations travel from a client to the server: one ``ConfigRecord``, no pickles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fl_shield.errors import InvalidReplyError
from fl_shield.types import ActivationReport, Floats

REPORT_KEY = "fl-shield-activations"
"""Name of the ``ConfigRecord`` of a reply; the shield takes it out before anybody else reads."""

_MAX_LAYERS = 64
_MAX_ROWS = 1024


def write_report(layers: Mapping[str, Floats]) -> ConfigRecord:
    """Encode activations, one row a sample, as little-endian float32.

    Parameters
    ----------
    layers : mapping of str to (k, d) float array
        All with the same k >= 1.

    Examples
    --------
    >>> record = write_report({"fc": np.ones((2, 3))})
    >>> parse_report(record).layers["fc"].shape
    (2, 3)
    """
    rows = {len(a) for a in layers.values()}
    if len(rows) != 1 or any(a.ndim != 2 for a in layers.values()):
        raise ValueError("every layer of a report needs the same number of rows, as (k, d)")
    return ConfigRecord(
        {
            "layers": list(layers),
            "widths": [int(a.shape[1]) for a in layers.values()],
            "n-rows": rows.pop(),
            "data": b"".join(np.asarray(a, "<f4").tobytes() for a in layers.values()),
        }
    )


def parse_report(record: ConfigRecord, max_bytes: int = 1 << 20) -> ActivationReport:
    """Decode what a client claims its activations to be; nothing in it is trusted.

    Parameters
    ----------
    record : ConfigRecord
        As written by :func:`write_report`.
    max_bytes : int
        Largest payload that is read.

    Raises
    ------
    InvalidReplyError
        If it is oversized, holds NaN or does not say what it carries.
    """
    names, widths, n_rows, data = (record.get(k) for k in ("layers", "widths", "n-rows", "data"))
    if not isinstance(data, bytes) or len(record) != 4:
        raise InvalidReplyError("the activation report holds layers, widths, n-rows and data")
    if len(data) > max_bytes:
        raise InvalidReplyError(
            f"the activation report holds {len(data)} bytes; at most {max_bytes} are read"
        )
    shapes = _checked_shapes(names, widths, n_rows)
    if 4 * sum(k * d for k, d in shapes.values()) != len(data):
        raise InvalidReplyError("the activation report's shapes do not match its data")
    values = np.frombuffer(data, "<f4")
    if not np.isfinite(values).all():
        raise InvalidReplyError("the activation report holds NaN or infinite values")
    return ActivationReport(layers=_split(values, shapes))


def _checked_shapes(names: Any, widths: Any, n_rows: Any) -> dict[str, tuple[int, int]]:
    if not (isinstance(names, list) and isinstance(widths, list) and type(n_rows) is int):
        raise InvalidReplyError("the activation report's layers, widths and n-rows are misplaced")
    if not (0 < len(names) == len(set(names)) == len(widths) <= _MAX_LAYERS):
        raise InvalidReplyError(f"the activation report must name 1 to {_MAX_LAYERS} layers once")
    if not all(type(name) is str and len(name) <= 200 for name in names):
        raise InvalidReplyError("the activation report's layer names must be short strings")
    if not (0 < n_rows <= _MAX_ROWS and all(type(d) is int and d > 0 for d in widths)):
        raise InvalidReplyError(f"the activation report must hold 1 to {_MAX_ROWS} rows a layer")
    return {name: (n_rows, d) for name, d in zip(names, widths, strict=True)}


def _split(values: NDArray[Any], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Floats]:
    layers, start = {}, 0
    for name, (k, d) in shapes.items():
        layers[name] = values[start : start + k * d].reshape(k, d).astype(np.float32)
        start += k * d
    return layers
