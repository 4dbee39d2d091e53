"""FLTrust against a gradient written out by hand, and the fault of running as FedAvg."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.aggregators.contract import AggregationContext, Layout, is_plain_mean
from fl_shield.aggregators.fltrust import FLTrust, server_update
from fl_shield.errors import AggregationError
from fl_shield.training import get_arrays
from fl_shield.types import Floats, Samples, TrainingConfig

N_FEATURES, N_CLASSES = 6, 3
SIZE = N_CLASSES * (N_FEATURES + 1)


def _context(n: int, seed: int = 0) -> AggregationContext:
    """A linear network, 12 labelled examples on the server, one step of full-batch descent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(N_FEATURES, N_CLASSES)
    rng = np.random.default_rng(seed)
    clean = Samples(
        x=rng.normal(size=(12, N_FEATURES)).astype(np.float32), y=np.arange(12) % N_CLASSES
    )
    arrays = get_arrays(model)
    return AggregationContext(
        server_round=1,
        global_arrays=arrays,
        layout=Layout.of(arrays),
        client_ids=tuple(f"c{i}" for i in range(n)),
        rng=np.random.default_rng(seed),
        model=model,
        clean=clean,
        training=TrainingConfig(n_epochs=1, batch_size=12, lr=0.5),
    )


def _slow_server_update(context: AggregationContext) -> Floats:
    """One step down the gradient of softmax regression, written out."""
    assert context.clean is not None
    weight, bias = context.global_arrays["weight"], context.global_arrays["bias"]
    x = context.clean.x.astype(np.float64)
    slope_w, slope_b = np.zeros(weight.shape), np.zeros(bias.shape)
    for row, label in zip(x, context.clean.y, strict=True):
        raised = np.exp(weight.astype(np.float64) @ row + bias)
        error = raised / raised.sum()
        error[label] -= 1
        slope_w += np.outer(error, row) / len(x)
        slope_b += error / len(x)
    return -0.5 * np.concatenate([slope_w.ravel(), slope_b])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [1, 4, 9])
def test_fltrust_is_the_paper_s_algorithm(seed: int, n: int) -> None:
    context = _context(n, seed)
    own = _slow_server_update(context)
    np.testing.assert_allclose(server_update(context), own, atol=1e-6)
    rng = np.random.default_rng(seed)
    updates = (own + rng.normal(size=(n, SIZE))) * rng.uniform(0.1, 9, size=(n, 1))
    found, _ = FLTrust().step(updates, np.arange(1.0, n + 1), {}, _context(n, seed))
    total, weighted = 0.0, np.zeros(SIZE)
    for i, update in enumerate(updates):
        cosine = update @ own / np.linalg.norm(update) / np.linalg.norm(own)
        trust = max(cosine, 0.0)
        assert found.votes[i] == pytest.approx(trust, abs=1e-5)
        total += trust
        weighted += trust * np.linalg.norm(own) / np.linalg.norm(update) * update
    expected = weighted / total if total else weighted
    np.testing.assert_allclose(found.update, expected, atol=1e-5)


def test_fltrust_by_hand_hears_only_who_points_the_server_s_way_at_its_length() -> None:
    context = _context(3)
    own = server_update(context)
    updates = np.stack([7 * own, -own, -100 * own])
    found, _ = FLTrust().step(updates, np.array([1.0, 50.0, 50.0]), {}, _context(3))
    np.testing.assert_allclose(found.votes, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.update, own, rtol=1e-4)


def test_fltrust_follows_its_clean_examples_and_is_never_the_plain_mean() -> None:
    """Turning the server's labels turns its trust: what it trains on decides."""
    context = _context(6)
    assert context.clean is not None
    updates = np.random.default_rng(3).normal(size=(6, SIZE))
    one, _ = FLTrust().step(updates, np.ones(6), {}, context)
    turned = replace(context.clean, y=(context.clean.y + 1) % N_CLASSES)
    other, _ = FLTrust().step(updates, np.ones(6), {}, replace(_context(6), clean=turned))
    assert np.abs(one.votes - other.votes).max() > 0.1
    assert not is_plain_mean(one, updates, np.ones(6))


def test_fltrust_never_runs_without_the_server_s_own_update() -> None:
    updates = np.ones((3, SIZE), np.float32)
    for context in (replace(_context(3), model=None), replace(_context(3), clean=None)):
        with pytest.raises(AggregationError, match="fltrust runs the model on clean examples"):
            FLTrust().step(updates, np.ones(3), {}, context)


def test_fltrust_keeps_the_model_where_nobody_points_its_way() -> None:
    context = _context(3)
    own = server_update(context)
    found, _ = FLTrust().step(np.stack([-own] * 3), np.ones(3), {}, _context(3))
    np.testing.assert_array_equal(found.update, np.zeros(SIZE))
    assert found.kept.sum() == 0


def test_fltrust_withstands_a_majority() -> None:
    own = server_update(_context(10))
    rng = np.random.default_rng(0)
    honest = own + 0.3 * np.linalg.norm(own) / math.sqrt(SIZE) * rng.normal(size=(4, SIZE))
    updates = np.vstack([-20 * np.stack([own] * 6), honest]).astype(np.float32)
    found, _ = FLTrust().step(updates, np.ones(10), {}, _context(10))
    assert found.votes[:6].max() == 0
    honest_mean, plain = honest.mean(0), updates.mean(0)
    off = np.linalg.norm(found.update - honest_mean)
    assert off < 0.5 * np.linalg.norm(plain - honest_mean)


def test_fltrust_leaves_torch_s_global_generator_alone() -> None:
    torch_state = torch.random.get_rng_state()
    server_update(_context(3))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
