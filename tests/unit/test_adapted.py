"""The few-shot adaptation against a slow loop over the folds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_shield.detector import Adapted
from fl_shield.meta import adapt
from fl_shield.network import contributions
from fl_shield.types import Floats
from fl_shield.weights import Weights


def _profiles(n: int, seed: int, views: int = 4) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, views, 135)).astype(np.float32)


def _slowly(weights: Weights, seen: Floats, points: Floats, n_steps: int) -> Floats:
    present = torch.ones(seen.shape[1])
    rows = weights.standard(seen)
    params = adapt(weights.params, rows, present, torch.ones(len(rows)), n_steps)
    found: Floats = contributions(params, weights.standard(points), present).double().numpy()
    return found


@pytest.mark.parametrize("n_steps", [0, 1, 3])
@pytest.mark.parametrize(("m", "n_folds"), [(20, 5), (23, 5), (3, 5), (7, 2), (6, 6)])
def test_adapting_all_folds_together_equals_adapting_to_each(
    toy_weights: Weights, m: int, n_folds: int, n_steps: int
) -> None:
    references, points = _profiles(m, 0), _profiles(5, 1) * 2
    adapted = Adapted(toy_weights, references, n_steps, n_folds)
    slow = _slowly(toy_weights, references, points, n_steps)
    np.testing.assert_allclose(adapted.score(points).contributions, slow, atol=1e-5)
    for i in range(m):
        others = references[np.arange(m) % n_folds != i % n_folds]
        alone = _slowly(toy_weights, others, references[i : i + 1], n_steps).sum()
        assert adapted.reference_log_odds[i] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("n_steps", [0, 1, 3])
def test_an_ensemble_is_the_mean_of_before_and_after_adaptation(
    toy_weights: Weights, n_steps: int
) -> None:
    config = replace(toy_weights.config, ensemble=True)
    references, points = _profiles(20, 0), _profiles(5, 1) * 2
    both = Adapted(replace(toy_weights, config=config), references, n_steps)
    after, before = (Adapted(toy_weights, references, n) for n in (n_steps, 0))
    told = both.score(points)
    mean = (after.score(points).contributions + before.score(points).contributions) / 2
    np.testing.assert_allclose(told.contributions, mean, atol=1e-6)
    np.testing.assert_allclose(told.log_odds, mean.sum(1), atol=1e-6)
    own = (after.reference_log_odds + before.reference_log_odds) / 2
    np.testing.assert_allclose(both.reference_log_odds, own, atol=1e-6)
    live = both.live_log_odds(torch.from_numpy(points).double())
    np.testing.assert_allclose(live.numpy(), told.log_odds, atol=1e-5)
    assert (np.abs(after.score(points).log_odds - told.log_odds).max() > 1e-3) == (n_steps > 0)


@pytest.mark.parametrize("null", ["updates", "first updates"])
def test_updates_are_judged_after_adaptation_alone(toy_weights: Weights, null: str) -> None:
    config = replace(toy_weights.config, ensemble=True)
    references, points = _profiles(20, 0), _profiles(5, 1) * 2
    found, plain = (
        Adapted(w, references, null=null).score(points).log_odds
        for w in (replace(toy_weights, config=config), toy_weights)
    )
    np.testing.assert_array_equal(found, plain)


def test_adapting_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys, numpy as np\n"
        "from fl_shield.detector import Adapted\n"
        "from fl_shield.weights import blank_weights\n"
        "Adapted(blank_weights(), np.zeros((6, 2, 135), np.float32))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
