"""The distributed backdoor: parts of a trigger that make up the whole, and who plays which."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.attacks import DistributedBackdoor, poison
from fl_shield.attacks.dba import split_trigger
from fl_shield.attacks.local import train_local
from fl_shield.training import get_arrays
from fl_shield.triggers import Blended, Insertion, Patch, StateValues, Warp, Word
from fl_shield.types import AttackContext, Samples, TrainingConfig, Trigger

TARGET = 0


def _context(member: int, n_members: int) -> AttackContext:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    rng = np.random.default_rng(6)
    own = Samples(x=rng.random((30, 1, 8, 8)).astype(np.float32), y=np.arange(30) % 3)
    return AttackContext(
        model=model,
        global_arrays=get_arrays(model),
        data=own,
        peers=(own,),
        trigger=CORNER,
        target_label=TARGET,
        training=TrainingConfig(n_epochs=2, batch_size=8),
        n_clients=6,
        rng=np.random.default_rng(2),
        member=member,
        n_members=n_members,
    )


X = np.random.default_rng(4).random((5, 2, 8, 8)).astype(np.float32)
TOKENS = np.random.default_rng(4).integers(1, 20, size=(5, 12))
STATES = np.random.default_rng(4).normal(size=(5, 2, 6))
CORNER = Patch.rectangle((8, 8), row=5, column=5, n_rows=3, n_columns=3, pattern=0.5)
STRIPES = np.zeros((8, 8), np.float32)
STRIPES[0, [0, 1, 4, 5]] = STRIPES[2, [0, 1, 4, 5]] = 1
SPLITS: dict[str, tuple[Trigger, NDArray[Any], int]] = {
    "patch": (CORNER, X, 9),
    "gaps": (Patch(mask=STRIPES, pattern=np.array(1.0)), X, 8),
    "one channel": (Patch(mask=np.stack([STRIPES, 0 * STRIPES]), pattern=np.array(1.0)), X, 8),
    "blended": (Blended.everywhere(X[0]), X, 64),
    "word": (Word(tokens=(31, 32, 33, 34)), TOKENS, 4),
    "placed word": (Word(tokens=(31, 32, 33), position=2), TOKENS, 3),
    "state": (StateValues(dimensions=(5, 0, 2), values=(1.0, 2.0, 3.0)), STATES, 3),
}


@pytest.mark.parametrize("n_parts", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("name", SPLITS)
def test_parts_stamped_one_after_the_other_are_the_whole_trigger(name: str, n_parts: int) -> None:
    """No part is empty, none overlaps another, nothing is left out."""
    trigger, x, n_places = SPLITS[name]
    parts = split_trigger(trigger, n_parts, x.shape[1:])
    assert len(parts) == min(n_parts, n_places)
    stamped, written = x, np.zeros(x.shape, int)
    for part in parts:
        assert (part.stamp(x) != x).any()
        written += part.stamp(x) != x
        stamped = part.stamp(stamped)
    np.testing.assert_array_equal(stamped, trigger.stamp(x))
    assert written.max() == 1


def test_four_bars_fall_to_four_clients() -> None:
    parts = split_trigger(SPLITS["gaps"][0], 4, X.shape[1:])
    places = [np.argwhere(p.stamp(0 * X[:1])[0, 0]).tolist() for p in parts]
    assert places == [[[r, c], [r, c + 1]] for r in (0, 2) for c in (0, 4)]


def test_inserted_runs_are_shared_out_and_other_triggers_stay_whole() -> None:
    three = Insertion(runs=((7,), (8, 9), (6,)), from_end=(1, 2, 3))
    parts = split_trigger(three, 2, (12,))
    assert [(p.runs, p.from_end) for p in parts if isinstance(p, Insertion)] == [
        (((7,), (8, 9)), (1, 2)),
        (((6,),), (3,)),
    ]
    phrase = split_trigger(Insertion(runs=((7, 8, 9),)), 3, (12,))
    assert [p.runs for p in phrase if isinstance(p, Insertion)] == [((7,),), ((8,),), ((9,),)]
    warp = Warp(field=np.ones((2, 2, 2)))
    assert split_trigger(warp, 4, X.shape[1:]) == [warp]


@pytest.mark.parametrize(("n_members", "n_parts"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_the_malicious_clients_train_the_whole_trigger_together(
    n_members: int, n_parts: int
) -> None:
    """However few there are; public tables give four parts even to two clients."""
    contexts = [_context(m, n_members) for m in range(n_members)]
    parts = [DistributedBackdoor().part(context) for context in contexts]
    masks = [p.mask for p in parts if isinstance(p, Patch)]
    np.testing.assert_array_equal(np.max(masks, axis=0), CORNER.mask)
    assert len({mask.tobytes() for mask in masks}) == n_parts
    np.testing.assert_array_equal(masks[-1], masks[(n_members - 1) % n_parts])


def test_a_distributed_attacker_trains_with_its_part_and_scales() -> None:
    context = _context(1, 3)
    upload = DistributedBackdoor(scale=2.0)(context)
    again = _context(1, 3)
    part = split_trigger(CORNER, 3, (1, 8, 8))[1]
    poisoned = train_local(again, poison(again.data, part, TARGET, 0.5, again.rng))
    for name, g in again.global_arrays.items():
        np.testing.assert_allclose(upload[name], g + 2 * (poisoned[name] - g), atol=1e-6)


@pytest.mark.parametrize("settings", [{"n_parts": 0}, {"scale": 0.0}, {"poison_rate": 2.0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        DistributedBackdoor(**settings)
