"""Untargeted attacks against the papers' definitions, worked out slowly and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from fl_shield.attacks import (
    ALittleIsEnough,
    GaussianNoise,
    InnerProductManipulation,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    NoAttack,
)
from fl_shield.attacks.alie import largest_hidden_z
from fl_shield.attacks.benign_statistics import benign_statistics, benign_uploads
from fl_shield.training import get_arrays, set_arrays, train
from fl_shield.triggers import default_trigger
from fl_shield.types import Arrays, Attack, AttackContext, Samples, TrainingConfig

GLOBAL = {"weight": np.ones((1, 2), np.float32), "bias": np.ones(1, np.float32)}


def _samples(n: int, seed: int, n_features: int = 2) -> Samples:
    rng = np.random.default_rng(seed)
    x = rng.random((n, n_features)).astype(np.float32)
    return Samples(x=x, y=(x[:, 0] > 0.5).astype(np.int64))


def _context(
    uploads: tuple[Arrays, ...] = (),
    *,
    n_clients: int = 10,
    n_malicious: int = 1,
    model: nn.Module | None = None,
    global_arrays: Arrays = GLOBAL,
) -> AttackContext:
    """An attacker who is told the benign uploads; without any it has to estimate them."""
    peers = tuple(_samples(12 + 4 * i, seed=i) for i in range(n_malicious))
    return AttackContext(
        model=nn.Linear(2, 1) if model is None else model,
        global_arrays=global_arrays,
        data=peers[0],
        peers=peers,
        trigger=default_trigger("patch", np.zeros((1, 1, 8, 8), np.float32)),
        target_label=0,
        training=TrainingConfig(batch_size=4, lr=0.2),
        n_clients=n_clients,
        rng=np.random.default_rng(0),
        benign_uploads=uploads,
    )


def _upload(a: float, b: float, c: float) -> dict[str, NDArray[Any]]:
    """The upload whose update is (a, b) on the weight and c on the bias."""
    weight, bias = np.array([[1 + a, 1 + b]], np.float32), np.array([1 + c], np.float32)
    return {"weight": weight, "bias": bias}


def _update(arrays: Arrays, global_arrays: Arrays = GLOBAL) -> NDArray[Any]:
    return np.concatenate([(arrays[n] - a).ravel() for n, a in global_arrays.items()]).astype(float)


def _random_uploads(n: int, seed: int) -> tuple[Arrays, ...]:
    rng = np.random.default_rng(seed)
    return tuple(_upload(*(rng.normal(0.3, 1.0, size=3))) for _ in range(n))


def _two_classes() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def _estimating(client: int, n_malicious: int) -> AttackContext:
    """One of several malicious clients as each sees the round: its own examples first."""
    context = _context(
        n_malicious=n_malicious,
        model=_two_classes(),
        global_arrays=get_arrays(_two_classes()),
    )
    others = [p for i, p in enumerate(context.peers) if i != client]
    own = context.peers[client]
    return replace(
        context, data=own, peers=(own, *others), member=client, rng=np.random.default_rng(client)
    )


def test_benign_statistics_are_mean_and_population_deviation() -> None:
    benign = benign_statistics(_context((_upload(0, 2, 1), _upload(4, 2, 3))))
    np.testing.assert_allclose(benign.mean["weight"], [[2, 2]])
    np.testing.assert_allclose(benign.std["weight"], [[2, 0]])
    np.testing.assert_allclose((benign.mean["bias"], benign.std["bias"]), ([2], [1]))


def test_the_benign_uploads_are_taken_as_given_where_they_are_known() -> None:
    uploads = (_upload(0, 2, 1), _upload(4, 2, 3))
    assert all(u is g for u, g in zip(benign_uploads(_context(uploads)), uploads, strict=True))


def test_all_malicious_clients_arrive_at_the_same_estimates_and_leave_torch_alone() -> None:
    before = torch.random.get_rng_state()
    each = [benign_uploads(_estimating(client, 3)) for client in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before)
    for other in each[1:]:
        for mine, theirs in zip(each[0], other, strict=True):
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    later = benign_uploads(replace(_estimating(0, 3), server_round=2))
    assert not np.array_equal(later[0]["0.weight"], each[0][0]["0.weight"])


def test_estimates_are_honest_models_of_the_peers() -> None:
    """Trained by hand on one full batch, whose order does not matter."""
    context = _estimating(0, 3)
    context = replace(context, training=TrainingConfig(batch_size=100, lr=0.2))
    estimates = benign_uploads(context)
    for peer, estimate in zip(sorted(context.peers, key=len, reverse=True), estimates, strict=True):
        model = set_arrays(_two_classes(), context.global_arrays)
        train(model, peer, context.training, np.random.default_rng(99))
        for name, array in get_arrays(model).items():
            np.testing.assert_allclose(estimate[name], array, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [ALittleIsEnough(z=1.0), InnerProductManipulation(), MinMax(), MinSum(direction="std")],
    ids=lambda attack: type(attack).__name__,
)
def test_crafted_uploads_are_the_same_for_all_and_keep_benign_batch_statistics(
    attack: Attack,
) -> None:
    """A counter or a running variance that is scaled breaks the model instead of attacking it."""
    first, second = (attack(_estimating(client, 2)) for client in range(2))
    benign = benign_uploads(_estimating(0, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        if "running" in name:
            np.testing.assert_allclose(array, np.mean([b[name] for b in benign], axis=0), rtol=1e-6)
    assert first["1.num_batches_tracked"] == max(b["1.num_batches_tracked"] for b in benign)


def test_tied_tensors_move_under_both_of_their_names() -> None:
    """Loading the state writes both: the one left behind would undo the attack."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    uploads = tuple(
        {n: np.full((2, 2), a, np.float32) for n in ("0.weight", "1.weight")} for a in (1, 3)
    )
    start = {name: np.zeros((2, 2), np.float32) for name in uploads[0]}
    context = _context(uploads, model=nn.Sequential(first, second), global_arrays=start)
    crafted = InnerProductManipulation(epsilon=1.0)(context)
    assert [float(array.mean()) for array in crafted.values()] == [-2.0, -2.0]


@pytest.mark.parametrize("attack", [ALittleIsEnough(z=1.5), MinMax(), MinSum(), Mimic()], ids=str)
def test_a_lone_attacker_without_knowledge_has_nothing_to_hide_in(attack: Attack) -> None:
    """One estimate: no spread, so these four upload an honest model (documented)."""
    context = _estimating(0, 1)
    (honest,) = benign_uploads(context)
    for name, array in attack(context).items():
        np.testing.assert_allclose(array, honest[name], atol=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "z"),
    [
        (50, 24, 1.4260768722848),  # s = 2: the paper's own example, used as 1.5
        (50, 10, 0.2533471031358),  # public code has 0.72575 here: Phi(0.6) for its inverse
        (20, 4, 0.1573106846101),  # s = 7, quantile of 9/16
        (5, 2, 0.4307272992955),  # s = 1, quantile of 2/3
        (5, 3, 0.0),  # a majority already; s = 0 would be infinite in public code
        (8, 5, 0.4307272992955),  # s = 0 counted as 1
        (4, 1, 0.0),  # s = 2 of 3: the formula is negative
        (2, 1, 0.0),  # s = 1 of 1: minus infinity
        (3, 3, 0.0),  # nobody left to support anything: division by zero
    ],
)
def test_the_largest_hidden_z(n: int, m: int, z: float) -> None:
    assert largest_hidden_z(n, m) == pytest.approx(z, abs=1e-9)


def test_the_largest_hidden_z_agrees_with_a_search_over_the_normal_table() -> None:
    """z_max is the largest z with Phi(z) < (n - m - s) / (n - m), found step by step."""
    table = np.arange(0, 4, 1e-4)
    for n in range(6, 60, 7):
        for m in range(1, (n - 1) // 2 + 1):
            s = int(np.floor(n / 2 + 1)) - m
            below = table[stats.norm.cdf(table) < (n - m - s) / (n - m)]
            expected = below.max() if len(below) else 0.0
            assert largest_hidden_z(n, m) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("n_malicious", [0, 6])
def test_z_refuses_impossible_rounds(n_malicious: int) -> None:
    with pytest.raises(ValueError, match=r"n_malicious must be in 1 \.\. n_clients=5"):
        largest_hidden_z(5, n_malicious)


def test_alie_shifts_by_z_deviations() -> None:
    uploads = (_upload(0, 2, 1), _upload(4, 2, 3))
    shifted = _update(ALittleIsEnough(z=1.5)(_context(uploads)))
    np.testing.assert_allclose(shifted, [2 + 1.5 * 2, 2, 2 + 1.5 * 1], rtol=1e-6)
    by_formula = _update(ALittleIsEnough()(_context(uploads, n_clients=5, n_malicious=2)))
    np.testing.assert_allclose(by_formula, [2 + 0.4307273 * 2, 2, 2 + 0.4307273 * 1], rtol=1e-6)


def test_ipm_turns_the_mean_round_as_soon_as_epsilon_m_exceeds_the_benign() -> None:
    """Six benign and two malicious: the inner product changes its sign at epsilon = 3."""
    uploads = _random_uploads(6, seed=4)
    benign = np.array([_update(u) for u in uploads])
    for epsilon, sign in ((0.5, 1), (2.9, 1), (3.1, -1), (10.0, -1)):
        crafted = _update(InnerProductManipulation(epsilon=epsilon)(_context(uploads)))
        by_hand = [-epsilon * sum(u[j] for u in benign) / 6 for j in range(3)]
        np.testing.assert_allclose(crafted, by_hand, rtol=1e-4)
        aggregate = np.mean([*benign, crafted, crafted], axis=0)
        assert np.sign(aggregate @ benign.mean(axis=0)) == sign


def _mimicked_slowly(benign: NDArray[Any]) -> int:
    axis = np.linalg.svd(benign - benign.mean(axis=0))[2][0]
    projections = [abs(float(np.dot(axis, update))) for update in benign]
    return projections.index(max(projections))


def test_mimic_copies_the_most_extreme_benign_client_to_the_byte() -> None:
    """Some public code copies client 0, whoever that is."""
    chosen = set()
    for seed in range(12):
        uploads = _random_uploads(6, seed)
        expected = _mimicked_slowly(np.array([_update(u) for u in uploads]))
        copy = Mimic()(_context(uploads))
        assert all(np.array_equal(copy[name], uploads[expected][name]) for name in GLOBAL)
        chosen.add(expected)
    assert len(chosen) > 2


def test_mimics_choice_does_not_hang_on_the_sign_of_the_axis() -> None:
    """The public code takes the largest signed projection: of 1 and -5 it may take either."""
    uploads = tuple(_upload(a, 0, 0) for a in (1.0, -5.0, 0.5))
    for turned in (1, -1):
        mirrored = tuple({n: 2 - a if turned < 0 else a for n, a in u.items()} for u in uploads)
        assert _update(Mimic()(_context(mirrored)))[0] == -5 * turned


def test_estimating_mimics_all_copy_one_honest_model() -> None:
    copies = [Mimic()(_estimating(client, 3)) for client in range(3)]
    honest = benign_uploads(_estimating(0, 3))
    assert any(all(np.array_equal(copies[0][n], h[n]) for n in h) for h in honest)
    for copy in copies[1:]:
        assert all(np.array_equal(copy[n], copies[0][n]) for n in copy)


def test_label_flip_is_honest_training_on_mirrored_labels() -> None:
    context = _estimating(0, 1)
    mirrored = Samples(x=context.data.x, y=np.array([{0: 1, 1: 0}[int(y)] for y in context.data.y]))
    honest = NoAttack()(replace(context, data=mirrored))
    flipped = LabelFlip()(replace(context, rng=np.random.default_rng(0)))
    for name, array in honest.items():
        np.testing.assert_array_equal(flipped[name], array)


@pytest.mark.parametrize("std", [None, 0.3])
def test_gaussian_noise_is_normal_around_the_global_model(std: float | None) -> None:
    """Kolmogorov-Smirnov on 4,000 parameters; by default each has its own benign size."""
    model = nn.Linear(1999, 2)
    zero = {name: np.zeros_like(array) for name, array in get_arrays(model).items()}
    rng = np.random.default_rng(5)
    sizes = rng.uniform(0.1, 2.0, size=4000)
    draws = [rng.normal(size=4000) * sizes + 1 for _ in range(3)]
    uploads = tuple(
        {
            "weight": d[:3998].reshape(2, -1).astype(np.float32),
            "bias": d[3998:].astype(np.float32),
        }
        for d in draws
    )
    context = _context(uploads, model=model, global_arrays=zero)
    noise = _update(GaussianNoise(std=std)(context), zero)
    scale = (
        np.sqrt(sum(d.astype(np.float32).astype(float) ** 2 for d in draws) / 3)
        if std is None
        else std
    )
    assert stats.kstest(noise / scale, "norm").pvalue > 0.01
    own = replace(context, rng=np.random.default_rng(1))
    assert abs(np.corrcoef(noise, _update(GaussianNoise(std=std)(own), zero))[0, 1]) < 0.06


def test_a_lone_attackers_noise_is_as_long_as_its_honest_update() -> None:
    """The deviation of one estimate is 0: noise that forgot this would change nothing."""
    context = _estimating(0, 1)
    benign = benign_statistics(context)
    norm = np.sqrt(sum(float(np.sum(mean**2)) for mean in benign.mean.values()))
    names = list(benign.names)
    start = {name: context.global_arrays[name] for name in names}
    lengths = [
        np.linalg.norm(
            _update(GaussianNoise()(replace(context, rng=np.random.default_rng(i))), start)
        )
        for i in range(20)
    ]
    assert np.mean(lengths) == pytest.approx(norm, rel=0.25)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ALittleIsEnough, {"z": -1.0}, "z must be finite and >= 0"),
        (InnerProductManipulation, {"epsilon": 0.0}, "epsilon must be > 0"),
        (GaussianNoise, {"std": 0.0}, "std must be > 0"),
        (LabelFlip, {"n_epochs": 0}, "n_epochs must be >= 1"),
        (MinMax, {"direction": "up"}, "direction must be one of unit, std, sign"),
        (MinSum, {"tolerance": 0.0}, "tolerance must be > 0"),
        (MinSum, {"gamma_init": float("inf")}, "below gamma_init"),
    ],
)
def test_settings_are_checked(
    make: Callable[..., Attack], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
