"""Poisoning schemes by hand: who is stamped, under which label, and for whom it should work."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_shield.attacks import PoisonScheme, attackable, poison, poison_with, wanted_labels
from fl_shield.triggers import Patch
from fl_shield.types import Samples

CORNER = Patch.rectangle((4, 4), row=3, column=3, n_rows=1, n_columns=1, pattern=1.0)
N_CLASSES = 4


def _samples(n: int = 40) -> Samples:
    x = np.zeros((n, 1, 4, 4), np.float32)
    x[:, 0, 0, 0] = np.arange(n) / max(n, 1)
    return Samples(x=x, y=np.arange(n) % N_CLASSES)


def _stamped(samples: Samples) -> NDArray[np.bool_]:
    return np.asarray(samples.x[:, 0, 3, 3] == 1)


def _origin(samples: Samples, clean: Samples) -> NDArray[np.intp]:
    """Which clean example each one is a copy of."""
    return np.searchsorted(clean.x[:, 0, 0, 0], samples.x[:, 0, 0, 0])


def _poison(scheme: PoisonScheme, rate: float, target: int = 1, seed: int = 0) -> Samples:
    return poison_with(
        _samples(), CORNER, target, rate, scheme, np.random.default_rng(seed), N_CLASSES
    )


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_the_plain_scheme_is_poison_bit_for_bit(rate: float) -> None:
    for seed in range(5):
        plain = poison(_samples(), CORNER, 1, rate, np.random.default_rng(seed))
        same = _poison(PoisonScheme(), rate, seed=seed)
        np.testing.assert_array_equal(same.x, plain.x)
        np.testing.assert_array_equal(same.y, plain.y)


def test_all_to_all_moves_every_class_to_the_next() -> None:
    clean, mix = _samples(), _poison(PoisonScheme(labels="all_to_all"), 0.5)
    added = mix.take(slice(40, None))
    assert len(added) == 20
    assert _stamped(added).all()
    np.testing.assert_array_equal(added.y, (clean.y[_origin(added, clean)] + 1) % 4)
    assert set(added.y.tolist()) == {0, 1, 2, 3}


def test_source_specific_poisons_the_source_and_covers_the_rest() -> None:
    scheme = PoisonScheme(labels="source_specific", source_label=0, cover_rate=0.5)
    clean, mix = _samples(), _poison(scheme, 1.0)
    added = mix.take(slice(40, None))
    origin = clean.y[_origin(added, clean)]
    poisoned = origin == 0
    assert poisoned.sum() == 10
    assert (added.y[poisoned] == 1).all()
    assert (~poisoned).sum() == 10
    np.testing.assert_array_equal(added.y[~poisoned], origin[~poisoned])
    assert set(origin[~poisoned].tolist()) == {2, 3}
    assert _stamped(added).all()


def test_clean_label_stamps_the_target_class_in_place() -> None:
    clean, mix = _samples(), _poison(PoisonScheme(clean_label=True), 0.5)
    np.testing.assert_array_equal(mix.y, clean.y)
    assert _stamped(mix).sum() == 5
    assert (mix.y[_stamped(mix)] == 1).all()
    assert not _stamped(clean).any()


def test_covers_keep_their_label_and_are_not_poisoned_too() -> None:
    for clean_label, n_poisoned in ((False, 15), (True, 5)):
        scheme = PoisonScheme(cover_rate=0.4, clean_label=clean_label)
        for seed in range(10):
            clean, mix = _samples(), _poison(scheme, 0.5, seed=seed)
            n_covers = 12 if clean_label else 6
            covers = mix.take(slice(len(mix) - n_covers, None))
            assert _stamped(mix).sum() == n_poisoned + n_covers
            assert _stamped(covers).all()
            np.testing.assert_array_equal(covers.y, clean.y[_origin(covers, clean)])
            assert (covers.y != 1).all()
            stamped = _origin(mix.take(_stamped(mix)), clean)
            assert len(set(stamped.tolist())) == len(stamped)


def test_a_full_poison_rate_leaves_no_covers() -> None:
    assert len(_poison(PoisonScheme(cover_rate=1.0), 1.0)) == 70


@pytest.mark.parametrize(
    "scheme",
    [
        PoisonScheme(cover_rate=0.5),
        PoisonScheme(labels="all_to_all", cover_rate=0.5),
        PoisonScheme(clean_label=True, cover_rate=0.5),
        PoisonScheme(labels="source_specific", source_label=3, cover_rate=0.5),
    ],
)
def test_schemes_keep_dtypes_inputs_and_streams(scheme: PoisonScheme) -> None:
    before, clean = _samples(), _samples()
    rngs = (np.random.default_rng(2), np.random.default_rng(2))
    one, other = (poison_with(clean, CORNER, 1, 0.5, scheme, rng, N_CLASSES) for rng in rngs)
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(clean.x, before.x)
    np.testing.assert_array_equal(clean.y, before.y)
    assert (one.x.dtype, one.y.dtype) == (clean.x.dtype, clean.y.dtype)
    empty = poison_with(_samples(0), CORNER, 1, 0.5, scheme, rngs[0], N_CLASSES)
    assert len(empty) == 0
    lone = _samples(2).take(slice(0, 1))
    assert len(poison_with(lone, CORNER, 1, 1.0, scheme, rngs[0], N_CLASSES)) <= 2


def test_wanted_labels_and_attackable_inputs_by_hand() -> None:
    y = np.array([0, 1, 2, 3], np.int64)
    specific = PoisonScheme(labels="source_specific", source_label=0)
    cases: list[tuple[PoisonScheme, list[int], list[bool]]] = [
        (PoisonScheme(), [2, 2, 2, 2], [True, True, False, True]),
        (PoisonScheme(clean_label=True), [2, 2, 2, 2], [True, True, False, True]),
        (PoisonScheme(labels="all_to_all"), [1, 2, 3, 0], [True] * 4),
        (specific, [2, 1, 2, 3], [True, False, False, False]),
    ]
    for scheme, wanted, can in cases:
        assert wanted_labels(y, 2, scheme, 4).tolist() == wanted
        assert wanted_labels(y, 2, scheme, 4).dtype == np.int64
        assert attackable(y, 2, scheme).tolist() == can
        assert attackable(y[:0], 2, scheme).tolist() == []
        assert len(wanted_labels(y[:0], 2, scheme, 4)) == 0


def test_poisoned_labels_are_the_wanted_ones() -> None:
    for scheme in (
        PoisonScheme(),
        PoisonScheme(labels="all_to_all"),
        PoisonScheme(labels="source_specific", source_label=3),
    ):
        clean, mix = _samples(), _poison(scheme, 1.0)
        added = mix.take(slice(40, None))
        can = attackable(clean.y, 1, scheme)
        assert len(added) == can.sum()
        np.testing.assert_array_equal(added.y, wanted_labels(clean.y, 1, scheme, 4)[can])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "one_to_all"}, "labels must be one of"),
        ({"labels": "all_to_all", "clean_label": True}, "clean_label changes no label"),
        ({"labels": "source_specific"}, "source_label must be"),
        ({"labels": "source_specific", "source_label": -1}, "source_label must be"),
        ({"source_label": 0}, "source_label must be"),
        ({"cover_rate": -0.1}, "cover_rate must be"),
        ({"cover_rate": float("nan")}, "cover_rate must be"),
    ],
)
def test_impossible_schemes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoisonScheme(**settings)


def test_labels_must_be_classes() -> None:
    rng, specific = np.random.default_rng(0), PoisonScheme(labels="source_specific", source_label=2)
    with pytest.raises(ValueError, match="target_label must be one of the 4 classes, got 4"):
        poison_with(_samples(), CORNER, 4, 0.5, PoisonScheme(), rng, 4)
    with pytest.raises(ValueError, match="source_label must be one of the 2 classes"):
        wanted_labels(np.array([0]), 1, specific, 2)
    with pytest.raises(ValueError, match="must differ"):
        poison_with(_samples(), CORNER, 2, 0.5, specific, rng, 4)
    with pytest.raises(ValueError, match="y must be in 0"):
        wanted_labels(np.array([0, 5]), 1, PoisonScheme(), 4)
    with pytest.raises(ValueError, match="poison_rate must be"):
        poison_with(_samples(), CORNER, 1, 1.5, PoisonScheme(), rng, 4)
