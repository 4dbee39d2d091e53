"""FederatedData: what it refuses, and its fingerprint."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_shield.errors import DatasetError
from fl_shield.simulations.datasets import FederatedData, fingerprint
from fl_shield.types import Samples


def pictures(n: int = 3, value: float = 0.5, label: int = 1) -> Samples:
    return Samples(x=np.full((n, 1, 4, 4), value, np.float32), y=np.full(n, label, np.int64))


def federation(**changes: Any) -> FederatedData:
    fields: dict[str, Any] = {
        "name": "demo",
        "kind": "image",
        "clients": (pictures(), pictures(2)),
        "client_names": ("a", "b"),
        "test": pictures(),
        "clean": pictures(1),
        "n_classes": 2,
    }
    return FederatedData(**(fields | changes))


def tokens(value: int = 1, dtype: Any = np.int64) -> Samples:
    return Samples(x=np.full((2, 5), value, dtype), y=np.zeros(2, np.int64))


def test_a_sound_federation_is_taken() -> None:
    assert federation().input_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"kind": "sound"}, "kind must be one of image, text, state"),
        ({"clients": (), "client_names": ()}, "at least one client"),
        ({"client_names": ("a",)}, "2 clients and 1 names"),
        ({"client_names": ("a", "a")}, "unique"),
        ({"test": pictures(0)}, "test of demo has no examples"),
        ({"clean": pictures(label=2)}, r"clean of demo must be int64 in 0\.\.1"),
        ({"clean": pictures(label=-1)}, "clean of demo must be int64"),
        ({"clean": pictures(value=1.5)}, "inputs of clean"),
        ({"clean": pictures(value=float("nan"))}, "inputs of clean"),
        ({"clean": Samples(x=np.zeros((1, 4, 4), np.float32), y=np.zeros(1, np.int64))}, "shape"),
        ({"clean": Samples(x=np.zeros((1, 1, 4, 4)), y=np.zeros(1, np.int64))}, "float32"),
        ({"test": Samples(x=pictures().x, y=np.ones(3, np.int32))}, "int32"),
    ],
)
def test_unsound_federations_are_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(DatasetError, match=rule):
        federation(**changes)


def test_text_needs_tokens_of_its_vocabulary() -> None:
    text = federation(
        kind="text",
        clients=(tokens(),),
        client_names=("a",),
        test=tokens(),
        clean=tokens(),
        vocabulary="xy",
    )
    assert text.input_shape == (5,)
    with pytest.raises(DatasetError, match=r"in 0\.\.1"):
        replace(text, clean=tokens(2))
    with pytest.raises(DatasetError, match="float32"):
        replace(text, clean=tokens(dtype=np.float32))


def test_a_vocabulary_may_be_of_words() -> None:
    text = federation(
        kind="text",
        clients=(tokens(),),
        client_names=("a",),
        test=tokens(),
        clean=tokens(),
        vocabulary=("<padding>", "<unknown>"),
    )
    assert text.vocabulary[1] == "<unknown>"
    assert fingerprint(text) != fingerprint(replace(text, vocabulary=("<padding>", "word")))
    with pytest.raises(DatasetError, match=r"in 0\.\.1"):
        replace(text, clean=tokens(2))


def states(value: float = -3.0, dtype: Any = np.float32, n_axes: int = 3) -> Samples:
    shape = (2, 4, 5)[:n_axes]
    return Samples(x=np.full(shape, value, dtype), y=np.zeros(2, np.int64))


def test_states_are_finite_numbers_of_any_size() -> None:
    control = federation(
        kind="state",
        clients=(states(1e6),),
        client_names=("a",),
        test=states(),
        clean=states(),
    )
    assert control.input_shape == (4, 5)
    for wrong in (states(float("nan")), states(float("inf")), states(dtype=np.float64)):
        with pytest.raises(DatasetError, match="inputs of clean of demo must be float32 with 3"):
            replace(control, clean=wrong)
    flat = states(n_axes=2)
    with pytest.raises(DatasetError, match="got float32 with 2 axes"):
        replace(control, clean=flat, test=flat, clients=(flat,))


def test_fingerprint_sees_one_changed_pixel_label_or_name() -> None:
    original = federation()
    touched = pictures()
    touched.x[2, 0, 3, 3] = 0.25
    others = [
        replace(original, test=touched),
        replace(original, clean=pictures(1, label=0)),
        replace(original, client_names=("a", "c")),
        replace(original, clients=original.clients[::-1]),
        replace(original, n_classes=3),
    ]
    prints = [fingerprint(data) for data in [original, *others]]
    assert fingerprint(federation()) == prints[0]
    assert len(set(prints)) == len(prints)
