"""The inner and outer loops against hand-written gradients and finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_shield.meta import (
    RATE_PREFIX,
    Batch,
    Episode,
    MetaConfig,
    adapt,
    adapt_each,
    as_it_stands,
    balanced_loss,
    draw_batch,
    initial_params,
    inner_loss,
    meta_train,
    outer_loss,
)
from fl_shield.network import Params, contributions, log_odds

COLUMNS = 5
TINY = MetaConfig(n_hidden=3, n_inner_steps=1, inner_lr=0.4, n_support=6, n_query=8, dropout=0.0)


def _params(seed: int = 0, config: MetaConfig = TINY) -> dict[str, Tensor]:
    drawn = initial_params(COLUMNS, config, np.random.default_rng(seed))
    generator = torch.Generator().manual_seed(seed)
    noise = {  # attention and biases start at zero: move them, so that their gradients show
        n: 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for n, p in drawn.items()
    }
    return {n: p.double() + noise[n] for n, p in drawn.items()}


def _rows(n: int, views: int = 2, seed: int = 1) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, views, COLUMNS)))


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def _batch(n_episodes: int = 2) -> Batch:
    labels = torch.tensor([[0.0, 1, 0, 1, 1]] * n_episodes, dtype=torch.float64)
    return Batch(
        support=torch.stack([_rows(4, seed=i) for i in range(n_episodes)]),
        support_weights=torch.ones(n_episodes, 4, dtype=torch.float64),
        query=torch.stack([_rows(5, seed=10 + i) for i in range(n_episodes)]),
        query_weights=torch.ones(n_episodes, 5, dtype=torch.float64),
        labels=labels,
        present=torch.ones(n_episodes, 2, dtype=torch.float64),
    )


def _outer_gradient(params: Mapping[str, Tensor], batch: Batch, config: MetaConfig) -> Params:
    live = {name: p.clone().requires_grad_() for name, p in params.items()}
    loss = outer_loss(live, batch, config)
    found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(live.items(), found, strict=True)
    }


def test_contributions_by_a_slow_loop() -> None:
    params, rows = _params(), _rows(3, views=2)
    fast = contributions(params, rows, _ones(2))
    for i in range(3):
        context = rows[i].mean(0) @ params["w_mean"] + rows[i].max(0).values @ params["w_max"]
        hidden = [
            torch.nn.functional.gelu(rows[i, v] @ params["w1"] + context + params["b1"])
            for v in range(2)
        ]
        evidence = [h @ params["w2"] + params["b2"] for h in hidden]
        pull = [float(torch.exp(h @ params["attention"])) for h in hidden]
        slow = [pull[v] / sum(pull) * float(evidence[v]) for v in range(2)]
        assert fast[i].tolist() == pytest.approx(slow)


def test_contributions_add_up_to_the_log_odds() -> None:
    params, rows = _params(), _rows(6, views=4)
    parts = contributions(params, rows, _ones(4))
    assert parts.shape == (6, 4)
    torch.testing.assert_close(parts.sum(1), log_odds(params, rows, _ones(4)))


def test_padding_views_changes_nothing() -> None:
    params, rows = _params(), _rows(6, views=2)
    garbage = torch.cat([rows, torch.full((6, 3, COLUMNS), 7.0, dtype=torch.float64)], dim=1)
    present = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    for padded in (garbage, torch.where(present[None, :, None] > 0, garbage, 0.0)):
        parts = contributions(params, padded, present)
        torch.testing.assert_close(
            parts[:, :2], contributions(params, rows, _ones(2)), atol=1e-6, rtol=1e-6
        )
        assert float(parts[:, 2:].abs().max()) < 1e-6


def test_order_of_views_moves_with_the_contributions() -> None:
    params, rows = _params(), _rows(4, views=3)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        contributions(params, rows[:, order], _ones(3)),
        contributions(params, rows, _ones(3))[:, order],
    )


def test_no_steps_are_the_identity() -> None:
    params = _params()
    adapted = adapt(params, _rows(4), _ones(2), _ones(4), 0)
    assert set(adapted) == set(params)
    assert all(torch.equal(adapted[name], params[name]) for name in params)


def test_one_step_is_a_hand_written_gradient_step() -> None:
    params, support = _params(), _rows(4)
    weights = torch.tensor([1.0, 1, 2, 0], dtype=torch.float64)
    adapted = adapt(params, support, _ones(2), weights, 1)
    weighed = {n: p for n, p in params.items() if not n.startswith(RATE_PREFIX)}
    live = {n: p.clone().requires_grad_() for n, p in weighed.items()}
    odds = log_odds(live, support, _ones(2))
    loss = (torch.log(1 + torch.exp(odds)) * weights).sum() / 4
    for (name, p), g in zip(
        live.items(), torch.autograd.grad(loss, list(live.values())), strict=True
    ):
        rate = float(torch.exp(params[RATE_PREFIX + name]))
        torch.testing.assert_close(adapted[name], p.detach() - rate * g)
    assert all(torch.equal(adapted[n], params[n]) for n in params if n.startswith(RATE_PREFIX))


def test_two_steps_are_two_single_steps() -> None:
    params, support = _params(), _rows(4)
    once = adapt(params, support, _ones(2), _ones(4), 1)
    twice = adapt(once, support, _ones(2), _ones(4), 1)
    both = adapt(params, support, _ones(2), _ones(4), 2)
    for name in params:
        torch.testing.assert_close(both[name], twice[name])


def test_adaptation_lowers_the_inner_loss() -> None:
    params, support = _params(), _rows(6)
    before = inner_loss(params, support, _ones(2), _ones(6))
    adapted = adapt(params, support, _ones(2), _ones(6), 3)
    assert float(inner_loss(adapted, support, _ones(2), _ones(6))) < float(before)


def test_references_of_weight_zero_are_not_seen() -> None:
    params, support = _params(), _rows(4)
    weights = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    changed = support.clone()
    changed[3] += 5
    first = adapt(params, support, _ones(2), weights, 2)
    second = adapt(params, changed, _ones(2), weights, 2)
    assert all(torch.equal(first[name], second[name]) for name in params)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_second_order_gradient_equals_finite_differences(n_steps: int) -> None:
    config, params, batch = replace(TINY, n_inner_steps=n_steps), _params(), _batch()
    gradient = _outer_gradient(params, batch, config)
    step = 1e-6
    for name, p in params.items():
        for index in np.ndindex(p.shape if p.ndim else ()):
            sides = []
            for sign in (1, -1):
                moved = p.clone()
                moved[index] += sign * step
                sides.append(float(outer_loss({**params, name: moved}, batch, config)))
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert float(gradient[name][index]) == pytest.approx(numeric, abs=1e-7, rel=1e-5)


def test_first_order_gradient_equals_a_direct_one_and_differs_from_second_order() -> None:
    config, params, batch = replace(TINY, second_order=False), _params(), _batch(1)
    first = _outer_gradient(params, batch, config)
    adapted = adapt(params, batch.support[0], batch.present[0], _ones(4), 1)
    fast = {n: p.detach().requires_grad_() for n, p in adapted.items()}
    weighed = [n for n in fast if not n.startswith(RATE_PREFIX)]
    odds = log_odds(fast, batch.query[0], batch.present[0])
    loss = balanced_loss(odds, batch.labels[0], _ones(5))
    direct = torch.autograd.grad(loss, [fast[n] for n in weighed])
    for name, g in zip(weighed, direct, strict=True):
        torch.testing.assert_close(first[name], g)
        step = params[name] - fast[name].detach()  # = rate * inner gradient; d/d(log rate) of it
        rate_gradient = -(step * g).sum()
        torch.testing.assert_close(first[RATE_PREFIX + name], rate_gradient)
    second = _outer_gradient(params, batch, TINY)
    assert float((second["w1"] - first["w1"]).abs().max()) > 1e-4


def test_adapting_under_several_weights_at_once_equals_one_after_the_other() -> None:
    params, support = _params(), _rows(4)
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 0], [2, 0, 0, 1]], dtype=torch.float64)
    with torch.no_grad():  # the caller's setting does not matter
        together = adapt_each(params, support, _ones(2), weights, 3)
    for i, own in enumerate(weights):
        alone = adapt(params, support, _ones(2), own, 3)
        for name, values in together.items():
            torch.testing.assert_close(values[i], alone[name])
    assert set(together) == {name for name in params if not name.startswith(RATE_PREFIX)}
    assert not any(values.requires_grad for values in together.values())


def test_balanced_loss_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 3.0])
    labels = torch.tensor([0.0, 0.0, 0.0, 1.0])
    negative = np.mean([np.log(2), np.log1p(np.exp(2)), np.log1p(np.exp(-1))])
    expected = (negative + np.log1p(np.exp(-3))) / 2
    assert float(balanced_loss(logits, labels, torch.ones(4))) == pytest.approx(expected, rel=1e-5)


def test_balanced_loss_ignores_what_weighs_nothing_and_takes_one_class() -> None:
    logits, labels = torch.tensor([1.0, 50.0, 2.0]), torch.tensor([0.0, 0.0, 1.0])
    weights = torch.tensor([1.0, 0.0, 1.0])
    expected = (np.log1p(np.exp(1)) + np.log1p(np.exp(-2))) / 2
    assert float(balanced_loss(logits, labels, weights)) == pytest.approx(expected, rel=1e-5)
    only = balanced_loss(logits[:1], labels[:1], torch.ones(1))
    assert float(only) == pytest.approx(np.log1p(np.exp(1)), rel=1e-5)


def _episode(seed: int, *, views: int = 2, n: int = 8, m: int = 6, shift: float = 3.0) -> Episode:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    query = rng.normal(size=(n, views, COLUMNS))
    query[labels == 1, :, 0] += shift
    support = rng.normal(size=(m, views, COLUMNS))
    return Episode(
        support=support.astype(np.float32),
        query=query.astype(np.float32),
        labels=labels,
        family="shift",
        domain="toy",
    )


def test_padded_batch_loses_what_its_episodes_lose() -> None:
    config = replace(TINY, n_support=9, n_query=12)
    params = {n: p.float() for n, p in _params().items()}
    episodes = [_episode(0, views=3), _episode(1, views=1, n=10, m=4)]
    rng = np.random.default_rng(0)
    whole = outer_loss(params, draw_batch(episodes, config, rng), config)
    alone = [float(outer_loss(params, draw_batch([e], config, rng), config)) for e in episodes]
    assert float(whole) == pytest.approx(np.mean(alone), rel=1e-4)


def test_inner_loop_sees_references_only() -> None:
    episode = _episode(0)
    episode.query[...] = 1e3  # a mark that no reference carries
    batch = draw_batch([episode], TINY, np.random.default_rng(0))
    assert float(batch.support.abs().max()) < 100
    assert set(batch.support_weights.flatten().tolist()) == {1.0}
    params = {n: p.float() for n, p in _params().items()}
    relabelled = replace(batch, labels=1 - batch.labels, query=batch.query * 0)
    fast = [
        adapt(params, b.support[0], b.present[0], b.support_weights[0], 2)
        for b in (batch, relabelled)
    ]
    assert all(torch.equal(fast[0][name], fast[1][name]) for name in params)


def test_a_draw_is_balanced_and_masks_columns_of_support_and_query_alike() -> None:
    config = replace(TINY, n_query=6, n_support=4, dropout=0.5)
    episode = _episode(0, n=40, m=10)
    batch = draw_batch([episode], config, np.random.default_rng(3))
    assert batch.support.shape == (1, 4, 2, COLUMNS)
    assert float(batch.labels.sum()) == 3
    gone = (batch.support == 0).all(dim=(0, 1, 2))
    assert torch.equal(gone, (batch.query == 0).all(dim=(0, 1, 2)))
    assert 0 < int(gone.sum()) < COLUMNS


def test_a_draw_leaves_out_views_of_inputs_and_never_all() -> None:
    episodes = [_episode(i, views=4) for i in range(150)] + [_episode(0, views=1)] * 50
    batch = draw_batch(episodes, replace(TINY, view_dropout=0.5), np.random.default_rng(0))
    kept = batch.present.sum(1)
    assert float(kept.min()) == 1
    assert abs(float(kept[:150].mean()) - 2.0) < 0.3
    assert kept[150:].eq(1).all()
    assert not batch.present[150:, 1:].any()
    of_updates = [replace(e, domain="fl-digits") for e in episodes]
    updates = draw_batch(of_updates, replace(TINY, view_dropout=0.5), np.random.default_rng(0))
    assert updates.present.sum(1).tolist() == [4.0] * 150 + [1.0] * 50
    whole = draw_batch(episodes, TINY, np.random.default_rng(0))
    assert whole.present.sum(1).tolist() == [4.0] * 150 + [1.0] * 50


def test_what_is_drawn_is_standardised_and_padding_stays_zero() -> None:
    episodes = [_episode(0, views=1, n=4, m=3), _episode(1, views=2)]
    config = replace(TINY, dropout=0.5)
    plain, moved = (
        draw_batch(episodes, config, np.random.default_rng(2), standard)
        for standard in (as_it_stands, lambda rows: 2 * rows + 1)
    )
    seen = plain.query != 0
    torch.testing.assert_close(moved.query[seen], 2 * plain.query[seen] + 1)
    assert not moved.query[~seen].any()
    seen = plain.support != 0
    torch.testing.assert_close(moved.support[seen], 2 * plain.support[seen] + 1)
    assert not moved.support[~seen].any()


def test_negatives_fill_up_where_positives_lack() -> None:
    episode = replace(_episode(0), labels=np.zeros(8, np.int64))
    batch = draw_batch([episode], TINY, np.random.default_rng(0))
    assert float(batch.query_weights.sum()) == 8
    assert not batch.labels.any()


def _trained(seed: int, config: MetaConfig) -> tuple[dict[str, Tensor], list[float]]:
    rng = np.random.default_rng(seed)
    params = initial_params(COLUMNS, config, rng)
    training, held_out = [_episode(i) for i in range(16)], [_episode(100 + i) for i in range(6)]
    losses = []
    for trained, progress in meta_train(params, training, held_out, config, rng):
        losses.append(progress.validation_loss)
        last = trained
    return last, losses


TRAINING = replace(TINY, n_hidden=8, inner_lr=0.05, n_epochs=8, batch_size=8, outer_lr=2e-2)


def test_meta_training_learns_a_separable_task() -> None:
    _, losses = _trained(0, TRAINING)
    assert len(losses) == TRAINING.n_epochs
    assert losses[-1] < 0.8 * losses[0]
    assert losses[-1] < np.log(2)


def test_same_seed_same_parameters() -> None:
    config = replace(TRAINING, n_epochs=2)
    (a, losses_a), (b, losses_b), (c, _) = (_trained(s, config) for s in (5, 5, 6))
    assert losses_a == losses_b
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["w1"], c["w1"])


def test_meta_training_leaves_its_start_untouched() -> None:
    params = initial_params(COLUMNS, TRAINING, np.random.default_rng(0))
    before = {n: p.clone() for n, p in params.items()}
    for trained, progress in meta_train(
        params, [_episode(0)], [], replace(TRAINING, n_epochs=1), np.random.default_rng(0)
    ):
        assert np.isnan(progress.validation_loss)
        assert not torch.equal(trained["w1"], params["w1"])
    assert all(torch.equal(params[n], before[n]) for n in params)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_hidden": 0},
        {"n_inner_steps": -1},
        {"dropout": 1.0},
        {"view_dropout": -0.1},
        {"n_query": 0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        MetaConfig(**settings)
    assert next(iter(settings)) in {f.name for f in fields(MetaConfig)}
