"""Signs of a backdoor's target in the head, against slow loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fl_shield.activations import Activations, head_beside, views_beside
from fl_shield.columns import CLASS_STATISTICS, LIMIT, SLOTS
from fl_shield.head import Head
from fl_shield.profile import profiles
from fl_shield.signature import Signature
from fl_shield.types import Floats

M, D, N_CLASSES = 9, 12, 5


def _case(
    seed: int = 0, m: int = M, d: int = D, k: int = N_CLASSES
) -> tuple[Floats, Floats, Floats]:
    """Logits, activations and weight of a linear head."""
    rng = np.random.default_rng(seed)
    rows, weight = np.maximum(rng.normal(size=(m, d)), 0), rng.normal(size=(k, d))
    return rows @ weight.T + rng.normal(size=k), rows, weight


def _column(table: Floats, name: str) -> Floats:
    out: Floats = table[..., CLASS_STATISTICS.index(name)]
    return out


def _slow(logits: Floats, rows: Floats, weight: Floats, unit: float, bias: Floats) -> Floats:
    """Every class by plain loops: columns (n_classes, 7)."""
    k, d = weight.shape
    centred = weight - weight.mean(0)
    scores = np.zeros((3, k))
    for c in range(k):
        mean = sum(centred[c]) / d
        error = np.sqrt(sum((w - mean) ** 2 for w in centred[c]) / d / d)
        best = bias[c]
        for j in range(d):
            best += max(centred[c, j] * rows[:, j].min(), centred[c, j] * rows[:, j].max())
        told = np.mean([row[c] - row.mean() for row in logits])
        scores[:, c] = mean / error / 2, best / unit / 4, told / unit
    found = np.zeros((k, len(CLASS_STATISTICS)))
    for i, own in enumerate(scores):
        for c in range(k):
            below, above = (own < own[c]).sum(), (own > own[c]).sum()
            found[c, 2 * i : 2 * i + 2] = np.clip(own[c], -LIMIT, LIMIT), (below - above) / (k - 1)
    found[:, -1] = np.log(k) / 4
    return found


def _unit_and_bias(logits: Floats, rows: Floats, weight: Floats) -> tuple[float, Floats]:
    told = logits - logits.mean(1, keepdims=True)
    centred = weight - weight.mean(0)
    bias: Floats = (told - rows @ centred.T).mean(0)
    return float(told.std()), bias


@pytest.mark.parametrize("k", [2, 3, 7])
def test_classes_equal_a_slow_loop(k: int) -> None:
    logits, rows, weight = _case(k=k)
    unit, bias = _unit_and_bias(logits, rows, weight)
    found = Signature.of(logits, rows, weight).classes
    np.testing.assert_allclose(found, _slow(logits, rows, weight, unit, bias), atol=1e-9)


def test_references_equal_a_slow_leave_one_out_loop() -> None:
    logits, rows, weight = _case()
    unit, bias = _unit_and_bias(logits, rows, weight)  # of all: one reference hardly moves them
    found = Signature.of(logits, rows, weight).references
    for i in range(M):
        others = np.arange(M) != i
        slow = _slow(logits[others], rows[others], weight, unit, bias)
        np.testing.assert_allclose(found[i], slow[logits[i].argmax()], atol=1e-9)


def test_a_row_of_larger_weights_is_the_most_suspect() -> None:
    """What poisoning does to a head: the target's weights grow on many units a little."""
    logits, rows, weight = _case(d=64)
    marked = weight.copy()
    marked[3] += 0.5
    before, after = (Signature.of(logits, rows, w).classes for w in (weight, marked))
    assert _column(after, "signature_rank").argmax() == 3
    assert _column(after, "signature")[3] > _column(before, "signature")[3] + 1


def test_what_logits_have_in_common_does_not_matter() -> None:
    logits, rows, weight = _case()
    shift = np.random.default_rng(1).normal(size=(M, 1)) * 10
    plain, shifted = Signature.of(logits, rows, weight), Signature.of(logits + shift, rows, weight)
    np.testing.assert_allclose(plain.classes, shifted.classes, atol=1e-9)
    moved = Signature.of(logits, rows, weight + np.arange(D))  # all rows alike: no class gains
    np.testing.assert_allclose(moved.classes, plain.classes, atol=1e-9)


def test_order_of_classes_does_not_matter() -> None:
    logits, rows, weight = _case()
    order = np.array([2, 0, 4, 1, 3])
    plain = Signature.of(logits, rows, weight)
    shuffled = Signature.of(logits[:, order], rows, weight[order])
    np.testing.assert_allclose(shuffled.classes, plain.classes[order], atol=1e-9)
    np.testing.assert_allclose(shuffled.references, plain.references, atol=1e-9)


@pytest.mark.parametrize("weight", [None, np.ones((N_CLASSES, D + 1))])
def test_without_a_head_that_reads_the_activations_only_logits_tell(weight: Floats | None) -> None:
    logits, rows, _ = _case()
    found = Signature.of(logits, rows, weight).classes
    for name in ("signature", "signature_rank", "reach", "reach_rank"):
        assert not _column(found, name).any()
    assert _column(found, "mean_logit_rank").max() == 1


@pytest.mark.parametrize(
    ("logits", "rows", "weight"),
    [
        (np.zeros((4, 3)), np.zeros((4, 6)), np.zeros((3, 6))),
        (np.full((4, 3), 1e15), np.full((4, 6), 1e15), np.full((3, 6), -1e15)),
        (np.array([[1.0], [2.0]]), np.ones((2, 2)), np.ones((1, 2))),
        (np.eye(4)[:, :2] * 1e-30, np.eye(4) * 1e-30, np.eye(4)[:2]),
    ],
)
def test_flat_and_huge_heads_give_finite_numbers(
    logits: Floats, rows: Floats, weight: Floats
) -> None:
    found = Signature.of(logits, rows, weight)
    assert np.isfinite(found.classes).all()
    assert np.isfinite(found.references).all()
    assert np.abs(found.classes).max() <= LIMIT


def test_each_input_is_told_its_own_class() -> None:
    logits, rows, weight = _case()
    clean = Activations(layers={"head": rows}, logits=logits, head=weight)
    head = head_beside(clean)
    told = head.statistics(logits[:4], rows[:4])[:, SLOTS.index("signature") :]
    assert head.signature is not None
    np.testing.assert_array_equal(told, head.signature.classes[logits[:4].argmax(1)])
    found = profiles(views_beside(clean.take(slice(0, 4)), clean))
    np.testing.assert_allclose(found.points[:, 0, -7:], told, atol=1e-6)
    np.testing.assert_allclose(found.references[:, 0, -7:], head.signature.references, atol=1e-6)


def test_tensors_are_told_the_same() -> None:
    logits, rows, weight = _case()
    head = head_beside(Activations(layers={"head": rows}, logits=logits, head=weight))
    live = head.told(torch.from_numpy(logits).requires_grad_(), torch.from_numpy(rows))
    np.testing.assert_allclose(live.detach().numpy(), head.statistics(logits, rows), atol=1e-9)


def test_an_attacker_has_a_gradient_through_the_head() -> None:
    """Values stay; the gradient is that of finite differences, ranks and mean logits apart."""
    logits, rows, weight = _case()
    bounds = rows.min(0), rows.max(0)
    plain = Signature.of(logits, rows, weight)
    live = torch.from_numpy(weight).requires_grad_()
    found = plain.following(live, bounds)
    np.testing.assert_allclose(found.detach().numpy(), plain.classes, atol=1e-12)
    for name in ("signature", "reach"):
        column = CLASS_STATISTICS.index(name)
        (exact,) = torch.autograd.grad(found[:, column].sum(), live, retain_graph=True)
        for place in ((0, 0), (3, 7)):
            moved, told = weight.copy(), []
            for step in (1e-6, -1e-6):
                moved[place] = weight[place] + step
                shift = rows @ (moved - weight).T  # the bias and the unit stay what they were
                _, bias = _unit_and_bias(logits + shift, rows, moved)
                slow = _slow(logits, rows, moved, plain.unit, bias)
                told.append(slow[:, column].sum())
            assert exact[place].item() == pytest.approx((told[0] - told[1]) / 2e-6, abs=1e-5)
    assert not torch.autograd.grad(found[:, 1::2].sum(), live, allow_unused=True)[0].any()


def test_a_head_alone_has_no_signature() -> None:
    logits, rows, weight = _case()
    assert np.isnan(Head.of(weight).statistics(logits, rows)[:, SLOTS.index("signature")]).all()


def test_a_poisoned_network_shows_its_target() -> None:
    """Trained, not written: many triggered copies of one class, and its row stands out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    y = rng.integers(5, size=400)
    x[np.arange(400), y] += 3
    stamped, target = x[:200] + np.float32(2) * (np.arange(20) >= 10), np.full(200, 2)
    torch.manual_seed(0)
    head = nn.Linear(64, 5)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), head)
    inputs = torch.from_numpy(np.concatenate([x, stamped.astype(np.float32)]))
    labels = torch.from_numpy(np.concatenate([y, target]))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        rows = net[:2](torch.from_numpy(x[:20]))
        logits = head(rows)
    weight = head.weight.detach().numpy()
    found = Signature.of(logits.numpy(), rows.numpy(), weight).classes
    assert _column(found, "signature").argmax() == 2
