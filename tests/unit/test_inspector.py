"""Rounds of client updates from arrays to scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fl_shield.calibration import task_p_values
from fl_shield.detector import MetaShield, Scores
from fl_shield.inspector import N_MEMORY, N_REFERENCES, Inspector
from fl_shield.profile import profile
from fl_shield.training import get_arrays
from fl_shield.types import ActivationReport, Arrays, Inspection, Samples
from fl_shield.updates import (
    Sketcher,
    Standing,
    core_of,
    joined,
    standing,
    update_views,
    view_depths,
)
from fl_shield.weights import ODDS_NULL, Weights

N_CLIENTS = 10


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))


def _clean(n: int = 12) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(x=rng.random((n, 1, 8, 8), dtype=np.float32), y=rng.integers(0, 3, size=n))


GLOBAL: Arrays = get_arrays(_network())


def _update(seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """One client: a direction that all share, and noise of its own."""
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    return {
        name: (
            a + scale * (0.02 * shared.normal(size=a.shape) + 0.02 * own.normal(size=a.shape))
        ).astype(a.dtype)
        for name, a in GLOBAL.items()
    }


def _round(n: int = N_CLIENTS, first: int = 0) -> list[dict[str, NDArray[Any]]]:
    return [_update(first + i) for i in range(n)]


def _inspector(weights: Weights, *, seed: int = 0, **settings: Any) -> Inspector:
    return Inspector(_network(), _clean(), MetaShield(weights), seed=seed, **settings)


def _inspect(inspector: Inspector, updates: list[dict[str, NDArray[Any]]]) -> Inspection:
    return inspector.inspect(GLOBAL, updates, np.ones(len(updates)))


@pytest.fixture(scope="module")
def found(toy_weights: Weights) -> Inspection:
    """What an inspector finds in one honest round."""
    return _inspect(_inspector(toy_weights), _round())


def test_shapes_ranges_and_names(found: Inspection) -> None:
    assert found.scores.shape == found.p_values.shape == (N_CLIENTS,)
    assert found.view_scores.shape == (N_CLIENTS, len(found.view_names))
    assert len(set(found.view_names)) == len(found.view_names)
    assert {name.split(":")[0] for name in found.view_names} == {
        *("update", "head", "probe", "stamp", "flips"),
    }
    for values in (found.scores, found.p_values, found.view_scores, found.standard_scores):
        assert np.isfinite(values).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.p_values > 0) & (found.p_values <= 1)).all()


def test_views_add_up_to_the_log_odds(found: Inspection) -> None:
    odds = found.view_scores.sum(1)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-odds)), atol=1e-6)


def test_p_values_are_read_from_the_standard_scores(
    toy_weights: Weights, found: Inspection
) -> None:
    null = toy_weights.nulls["first updates"].double().numpy()
    expected = task_p_values(null, found.standard_scores)
    np.testing.assert_array_equal(found.p_values, expected)


def test_an_update_that_obeys_a_stamp_is_raised_by_what_it_flips(
    toy_weights: Weights, found: Inspection
) -> None:
    bent = _round()
    bright = np.full((10, 64), 30, np.float32)  # answers bright images alone, all alike
    bent[3] = {**bent[3], "1.weight": bright, "1.bias": np.full(10, -30 * 37, np.float32)}
    bent[3]["3.weight"] = np.repeat(np.array([[1], [-1], [-1]], np.float32), 10, axis=1)
    after = _inspect(_inspector(toy_weights), bent)
    flips = after.view_scores[:, after.view_names.index("flips")]
    assert flips[3] > 0
    assert (np.delete(flips, 3) == 0).all()
    without = _inspect(_inspector(toy_weights, probes=False), bent)
    assert "flips" not in without.view_names
    assert (found.view_scores[:, found.view_names.index("flips")] == 0).all()


def test_the_heads_view_adds_no_more_than_its_cap_to_the_score_alone(
    toy_weights: Weights, found: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = found.view_names.index("head:3.weight")
    most = float(np.median(found.view_scores[:, column]))
    monkeypatch.setattr("fl_shield.inspector.MOST_BY_HEAD", most)
    after = _inspect(_inspector(toy_weights), _round())
    expected = found.view_scores.copy()
    expected[:, column] = np.minimum(expected[:, column], most)
    np.testing.assert_array_equal(after.view_scores, expected)
    assert (after.scores < found.scores).sum() == N_CLIENTS // 2
    np.testing.assert_array_equal(after.p_values, found.p_values)  # as rare as before


def test_a_cap_takes_nothing_from_views_below_it() -> None:
    scores = Scores(log_odds=np.array([3.0, -1.0]), contributions=np.array([[2.0, 1], [-3, 2]]))
    capped = scores.capped(np.array([0.5, np.inf]))
    assert capped.contributions.tolist() == [[0.5, 1], [-3, 2]]
    assert capped.log_odds.tolist() == [1.5, -1]


def test_same_seed_same_scores(toy_weights: Weights, found: Inspection) -> None:
    again = _inspect(_inspector(toy_weights), _round())
    np.testing.assert_array_equal(again.scores, found.scores)
    np.testing.assert_array_equal(again.p_values, found.p_values)
    other = _inspect(_inspector(toy_weights, seed=1), _round())
    assert np.abs(other.scores - found.scores).max() > 0


def test_order_of_clients_does_not_matter(toy_weights: Weights, found: Inspection) -> None:
    order = np.random.default_rng(1).permutation(N_CLIENTS)
    updates = _round()
    shuffled = _inspect(_inspector(toy_weights), [updates[i] for i in order])
    np.testing.assert_allclose(shuffled.scores, found.scores[order], atol=1e-4)
    # references are dealt to folds in their order, so that p-values may move a little
    np.testing.assert_allclose(shuffled.p_values, found.p_values[order], atol=0.05)


def test_updates_are_read_once_and_in_order(toy_weights: Weights, found: Inspection) -> None:
    read: list[int] = []

    def replies() -> Iterator[Arrays]:
        for i, update in enumerate(_round()):
            read.append(i)
            yield update

    again = _inspector(toy_weights).inspect(GLOBAL, replies(), np.ones(N_CLIENTS))
    assert read == list(range(N_CLIENTS))
    np.testing.assert_array_equal(again.scores, found.scores)


def test_updates_and_global_model_are_left_untouched(toy_weights: Weights) -> None:
    updates = _round()
    _inspect(_inspector(toy_weights), updates)
    for update, fresh in zip(updates, _round(), strict=True):
        assert all(np.array_equal(update[name], fresh[name]) for name in fresh)
    assert all(np.array_equal(GLOBAL[name], a) for name, a in get_arrays(_network()).items())


@pytest.mark.parametrize("scale", [30.0, -10.0])
def test_a_scaled_update_is_the_most_suspicious(toy_weights: Weights, scale: float) -> None:
    updates = _round()
    updates[4] = _update(4, scale=scale)
    found = _inspect(_inspector(toy_weights), updates)
    others = np.arange(N_CLIENTS) != 4
    assert found.scores[4] > found.scores[others].max()
    assert found.p_values[4] <= found.p_values[others].min()


def test_the_shipped_detector_finds_a_scaled_update() -> None:
    shipped = MetaShield.from_pretrained()
    if shipped.weights.card.get("trained") == "never":
        pytest.skip("the shipped weights are blank: run fl-shield meta-train")
    updates = _round()
    updates[4] = _update(4, scale=30.0)
    inspector = Inspector(_network(), _clean(), shipped)
    assert _inspect(inspector, updates).scores.argmax() == 4


@pytest.mark.parametrize(
    "size",
    [1e4, 1e12],
)
def test_a_monstrous_update_cannot_stop_a_round(toy_weights: Weights, size: float) -> None:
    updates = _round()
    updates[2] = {name: np.full_like(a, size) for name, a in GLOBAL.items()}
    found = _inspect(_inspector(toy_weights), updates)
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.p_values).all()
    assert found.scores[2] > np.delete(found.scores, 2).max()


def test_p_values_of_settled_rounds_are_those_of_the_log_odds_where_weights_have_such_a_null(
    toy_weights: Weights,
) -> None:
    quantiles = torch.linspace(-6, 6, 101)
    with_odds = replace(toy_weights, nulls={**toy_weights.nulls, ODDS_NULL: quantiles})
    by_odds, plain = _inspector(with_odds), _inspector(toy_weights)
    first = [_inspect(inspector, _round()) for inspector in (by_odds, plain)]
    np.testing.assert_array_equal(first[0].p_values, first[1].p_values)
    for inspector in (by_odds, plain):
        inspector.remember(np.ones(N_CLIENTS, bool))
    found, standard = (_inspect(inspector, _round()) for inspector in (by_odds, plain))
    np.testing.assert_array_equal(found.scores, standard.scores)
    odds = np.log(found.scores) - np.log1p(-found.scores)
    above = [float(np.mean(quantiles.numpy() > o)) for o in odds]
    np.testing.assert_allclose(found.p_values, above, atol=0.011)
    assert np.abs(found.p_values - standard.p_values).max() > 0.02


def test_suspects_are_remembered_where_the_weights_are_calibrated_for_them(
    toy_weights: Weights,
) -> None:
    nulls = {**toy_weights.nulls, ODDS_NULL: torch.linspace(-6, 6, 101)}
    calibrated = MetaShield(replace(toy_weights, nulls=nulls))
    plain = MetaShield(toy_weights)
    assert Inspector(_network(), _clean(), calibrated).suspects is not None
    assert Inspector(_network(), _clean(), plain).suspects is None
    assert Inspector(_network(), _clean(), calibrated, suspects=False).suspects is None
    assert Inspector(_network(), _clean(), plain, suspects=True).suspects is not None


def test_reports_cannot_stop_a_round_of_weights_that_never_saw_inputs() -> None:
    shipped = MetaShield.from_pretrained("arena")
    assert not shipped.weights.knows_inputs
    assert MetaShield.from_pretrained().weights.knows_inputs
    rows = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    reports = [ActivationReport(layers={"0": rows, "2": rows})] * N_CLIENTS
    silent, told = (Inspector(_network(), _clean(), shipped) for _ in range(2))
    quiet = silent.inspect(GLOBAL, _round(), np.ones(N_CLIENTS))
    found = told.inspect(GLOBAL, _round(), np.ones(N_CLIENTS), reports)
    np.testing.assert_array_equal(found.scores, quiet.scores)
    assert quiet.notes == ()
    assert "not read" in found.notes[0]


def test_an_empty_round(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights)
    found = _inspect(inspector, [])
    assert found.scores.shape == found.p_values.shape == (0,)
    assert found.view_names == ()
    inspector.remember(np.zeros(0, np.bool_))
    assert len(_inspect(inspector, _round(3)).scores) == 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_rounds_are_scored(toy_weights: Weights, n: int) -> None:
    found = _inspect(_inspector(toy_weights), _round(n))
    assert found.scores.shape == (n,)
    assert np.isfinite(found.scores).all()


def test_equal_updates_are_equally_suspicious(toy_weights: Weights) -> None:
    found = _inspect(_inspector(toy_weights, probes=False), [_update(0)] * 5)
    assert np.isfinite(found.scores).all()


def test_probes_can_be_switched_off(toy_weights: Weights) -> None:
    found = _inspect(_inspector(toy_weights, probes=False), _round())
    assert {name.split(":")[0] for name in found.view_names} == {"update", "head"}
    assert np.isfinite(found.scores).all()


def test_inputs_without_triggers_need_probes_off(toy_weights: Weights) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    rows = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    clean = Samples(x=rows, y=np.arange(10) % 2)
    with pytest.raises(ValueError, match="probes=False"):
        Inspector(model, clean, MetaShield(toy_weights))
    inspector = Inspector(model, clean, MetaShield(toy_weights), probes=False)
    arrays = get_arrays(model)
    assert inspector.inspect(arrays, [arrays, arrays], np.ones(2)).scores.shape == (2,)


def test_too_few_clean_examples_are_refused(toy_weights: Weights) -> None:
    with pytest.raises(ValueError, match="has 2 examples; give at least 3"):
        Inspector(_network(), _clean(2), MetaShield(toy_weights))


def _n_references(inspector: Inspector, first: int) -> int:
    return len(inspector.views(dict(GLOBAL), _round(first=first))[1])  # a new global model


def test_kept_updates_become_references(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights, probes=False)
    core = N_CLIENTS // 2 + 1
    assert _n_references(inspector, 0) == N_REFERENCES  # the core, and simulated ones
    for i in range(1, 5):
        inspector.remember(np.ones(N_CLIENTS, np.bool_))
        expected = max(N_REFERENCES, core + i * N_CLIENTS)
        assert _n_references(inspector, 100 * i) == expected


def test_clients_are_profiled_in_their_order_and_the_core_leave_one_out(
    toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Standing] = []

    def recorded(groups: Sequence[Standing]) -> Standing:
        kept.append(joined(groups))
        return kept[0]

    monkeypatch.setattr("fl_shield.inspector.joined", recorded)
    inspector = _inspector(toy_weights, probes=False)
    clients, references = inspector.views(GLOBAL, _round())
    sketcher = Sketcher(GLOBAL, 0)
    group = standing([sketcher.sketch(GLOBAL, update) for update in _round()])
    views = update_views(group, kept[0], view_depths(sketcher.layers))
    assert clients.shape == (N_CLIENTS, len(views), 135)
    for i, both in enumerate(map(profile, views)):
        own = both.points.copy()
        own[core_of(group)] = both.references[: N_CLIENTS // 2 + 1]
        np.testing.assert_allclose(clients[:, i], own, atol=0.02)  # of a residual, round-off
        np.testing.assert_allclose(references[:, i], both.references, atol=0.02)


def test_dropped_updates_are_not_remembered(toy_weights: Weights) -> None:
    kept_none, never = (_inspector(toy_weights, probes=False) for _ in range(2))
    for inspector in (kept_none, never):
        _n_references(inspector, 0)
    kept_none.remember(np.zeros(N_CLIENTS, np.bool_))
    first, second = (i.views(GLOBAL, _round(first=50))[1] for i in (kept_none, never))
    np.testing.assert_array_equal(first, second)


def test_only_the_kept_ones_are_remembered(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights, probes=False)
    core = N_CLIENTS // 2 + 1
    kept = np.arange(N_CLIENTS) < 7
    for i in range(4):
        _n_references(inspector, 100 * i)
        inspector.remember(kept)
        inspector.remember(kept)  # a round is remembered once
    assert _n_references(inspector, 900) == core + 4 * 7


def test_memory_is_bounded(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights, probes=False)
    core = N_CLIENTS // 2 + 1
    for i in range(8):
        assert _n_references(inspector, 100 * i) <= core + N_MEMORY
        inspector.remember(np.ones(N_CLIENTS, np.bool_))
    assert _n_references(inspector, 900) == core + N_MEMORY


def test_references_of_a_large_round_are_bounded(
    toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = _round(60)
    inspector = _inspector(toy_weights, probes=False)
    assert len(inspector.views(GLOBAL, updates)[1]) == 31  # half of the round
    monkeypatch.setattr("fl_shield.updates.MOST_CORE", 26)
    clients, references = inspector.views(GLOBAL, updates)
    assert clients.shape[:1] == (60,)
    assert len(references) == 26
    group = standing([Sketcher(GLOBAL, 0).sketch(GLOBAL, update) for update in updates])
    core = core_of(group)
    np.testing.assert_array_equal(clients[core], references)  # leave-one-out, in their places
    order = np.random.default_rng(1).permutation(60)
    shuffled, _ = inspector.views(GLOBAL, [updates[i] for i in order])
    np.testing.assert_allclose(shuffled, clients[order], atol=0.02)  # of a residual, round-off
    scores = _inspect(inspector, updates).scores
    assert np.isfinite(scores).all()


def test_no_bound_changes_anything_in_a_round_of_256(
    toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = _round(256)
    bounded = _inspect(_inspector(toy_weights, probes=False), updates)
    for name in ("updates.MOST_CORE", "updates._PAIRS", "profile._POINTS"):
        monkeypatch.setattr(f"fl_shield.{name}", 1 << 40)
    free = _inspect(_inspector(toy_weights, probes=False), updates)
    np.testing.assert_array_equal(bounded.scores, free.scores)
    np.testing.assert_array_equal(bounded.p_values, free.p_values)


def _kinship(inspector: Inspector, clients: list[str]) -> NDArray[Any]:
    """What the likeness to suspects adds to each client of one and the same round."""
    found = inspector.inspect(GLOBAL, _round(len(clients)), np.ones(len(clients)), None, clients)
    return np.asarray(found.view_scores[:, found.view_names.index("suspects")])


def test_who_resembles_a_suspect_stands_out(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights, suspects=True)
    names = [f"client {i}" for i in range(N_CLIENTS)]
    assert (_kinship(inspector, names) == 0).all()  # no suspects yet
    inspector.remember(np.ones(N_CLIENTS, np.bool_), np.eye(N_CLIENTS)[0])
    assert inspector.suspects is not None
    assert len(inspector.suspects) == 1
    copied = _kinship(inspector, ["eve", *names[1:]])  # the doubted update, sent by another
    own = _kinship(inspector, names)
    assert copied[0] > copied[1:].max()
    assert own[0] == 0
    assert (copied >= 0).all()


def test_attackers_who_come_together_betray_one_another_at_once() -> None:
    arena = MetaShield.from_pretrained("arena").weights
    same = {name: a + np.float32(0.3) * np.sign(a) for name, a in GLOBAL.items()}
    colluding, names = [*_round(N_CLIENTS - 2), same, same], [f"c{i}" for i in range(N_CLIENTS)]

    def kinship(clients: list[str]) -> NDArray[Any]:
        seen = _inspector(arena).inspect(GLOBAL, colluding, np.ones(N_CLIENTS), None, clients)
        return np.asarray(seen.view_scores[:, seen.view_names.index("suspects")])

    found = kinship(names)
    assert (found[-2:] > found[:-2].max() + 0.5).all()
    alone = kinship([*names[:-1], names[-2]])  # one client, twice: nobody resembles another
    assert (alone[-2:] < found[-2:] - 0.5).all()


def test_nobody_becomes_a_suspect_without_a_doubt(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights, probes=False, suspects=True)
    inspector.views(GLOBAL, _round(3), ["a", "b", "c"])
    inspector.remember(np.zeros(3, np.bool_), np.zeros(3))
    assert inspector.suspects is not None
    assert len(inspector.suspects) == 0


def test_suspects_are_left_out_unless_asked_for(toy_weights: Weights, found: Inspection) -> None:
    inspector, names = _inspector(toy_weights), [f"client {i}" for i in range(N_CLIENTS)]
    inspector.inspect(GLOBAL, _round(), np.ones(N_CLIENTS), None, names)
    inspector.remember(np.zeros(N_CLIENTS, np.bool_), np.ones(N_CLIENTS))
    again = inspector.inspect(GLOBAL, _round(), np.ones(N_CLIENTS), None, names)
    np.testing.assert_array_equal(again.scores, found.scores)
    assert again.view_names == found.view_names


def test_remember_before_any_round_does_nothing(toy_weights: Weights, found: Inspection) -> None:
    inspector = _inspector(toy_weights)
    inspector.remember(np.ones(3, np.bool_))
    np.testing.assert_array_equal(_inspect(inspector, _round()).scores, found.scores)


def test_a_second_round_of_one_global_model_is_scored_alike(toy_weights: Weights) -> None:
    inspector = _inspector(toy_weights)
    first, second = (_inspect(inspector, _round()) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)


def _reports(odd: int | None = None) -> list[ActivationReport | None]:
    out: list[ActivationReport | None] = []
    for i in range(N_CLIENTS):
        rows = np.random.default_rng(i).normal(size=(4, 10)).astype(np.float32)
        out.append(ActivationReport(layers={"1": rows + (40 if i == odd else 0)}))
    return out


def test_reports_only_ever_add_suspicion(toy_weights: Weights, found: Inspection) -> None:
    told = _inspector(toy_weights).inspect(GLOBAL, _round(), np.ones(N_CLIENTS), _reports(3))
    assert told.view_names == (*found.view_names, "report")
    assert (told.scores >= found.scores - 1e-12).all()
    assert (told.p_values <= found.p_values + 1e-12).all()
    assert (told.view_scores[:, -1] >= 0).all()
    assert told.view_scores[:, -1].argmax() == 3


def test_rounds_without_reports_have_no_report_view(
    toy_weights: Weights, found: Inspection
) -> None:
    silent = _inspector(toy_weights).inspect(
        GLOBAL, _round(), np.ones(N_CLIENTS), [None] * N_CLIENTS
    )
    assert silent.view_names == found.view_names
    np.testing.assert_array_equal(silent.scores, found.scores)


def test_unreadable_reports_do_not_count(toy_weights: Weights, found: Inspection) -> None:
    odd = [
        ActivationReport(layers={"nowhere": np.zeros((2, 10), np.float32)}),
        ActivationReport(layers={"1": np.zeros((2, 7), np.float32)}),
        ActivationReport(layers={}),
    ]
    reports = [*odd, *[None] * (N_CLIENTS - 3)]
    told = _inspector(toy_weights).inspect(GLOBAL, _round(), np.ones(N_CLIENTS), reports)
    np.testing.assert_allclose(told.scores, found.scores)


def test_a_round_without_memory_has_a_null_of_its_own(toy_weights: Weights) -> None:
    nulls = {
        **toy_weights.nulls,
        "first updates": torch.full((99,), 1e6),  # beside it nothing is unusual
        "updates": torch.full((99,), -1e6),  # beside it everything is
    }
    inspector = _inspector(replace(toy_weights, nulls=nulls))
    assert not inspector.is_settled
    np.testing.assert_array_equal(_inspect(inspector, _round()).p_values, 1.0)
    inspector.remember(np.ones(N_CLIENTS, dtype=np.bool_))
    assert inspector.is_settled
    assert (_inspect(inspector, _round(first=50)).p_values <= 0.01).all()
