"""Rounds of unseen federations judged by the weights that judge inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fl_shield.columns import N_COLUMNS
from fl_shield.detector import Adapted
from fl_shield.meta import Episode, MetaConfig
from fl_shield.simulations.episodes.cache import save_episodes
from fl_shield.simulations.episodes.curriculum import Curriculum
from fl_shield.simulations.episodes.federations import path_of
from fl_shield.simulations.episodes.rounds import (
    ATTACK_NAMES,
    HELD_OUT_ATTACK,
    draw_attack,
    draw_setting,
)
from fl_shield.simulations.evaluation.federations import (
    SPECIALIST,
    FederatedRow,
    federated_tables,
    judge_federations,
    judged_federations,
    rows_of,
)
from fl_shield.simulations.evaluation.splits import MAIN_SPLIT, WITHOUT_FEDERATIONS, Split
from fl_shield.simulations.evaluation.study import Contender, both_ways
from fl_shield.weights import Weights, blank_weights

SETTING = draw_setting("digits", 50_000, 3)


def _round(seed: int, family: str = "lp", n_malicious: int = 2) -> Episode:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(8, 3, N_COLUMNS)).astype(np.float32)
    query[:n_malicious] += 0.5
    return Episode(
        support=rng.normal(size=(10, 3, N_COLUMNS)).astype(np.float32),
        query=query,
        labels=(np.arange(8) < n_malicious).astype(np.int64),
        family=family,
        domain="fl-digits",
        settled=True,
    )


@pytest.fixture
def weights() -> Weights:
    return blank_weights(config=MetaConfig(n_hidden=8))


def test_judged_federations_are_none_that_is_learned_from() -> None:
    judged, learned = judged_federations(2, 0), Curriculum(domains=("fl",)).federations()
    assert [f.dataset for f in judged] == ["digits"] * 2 + ["glyphs"] * 2
    assert not {f.seed for f in judged} & {f.seed for f in learned}
    assert {f.attacks for f in judged} == {(*ATTACK_NAMES, HELD_OUT_ATTACK)}
    assert {f.attacks for f in learned} == {ATTACK_NAMES}
    assert judged_federations(1, 1)[0].seed != judged[0].seed


def test_the_held_out_attack_changes_no_other_draw() -> None:
    rng = np.random.default_rng(0)
    draw_attack("lp", 10, rng)
    other = np.random.default_rng(0)
    draw_attack(HELD_OUT_ATTACK, 10, other)
    assert rng.random() == other.random()


def test_cached_federations_keep_their_names() -> None:
    known = draw_setting("digits", 3)
    assert "attacks" not in known.manifest()
    assert "attacks" in replace(known, attacks=("lp",)).manifest()


def test_rows_equal_a_slow_loop(weights: Weights) -> None:
    rounds = [_round(0), _round(1), _round(2, "badnets"), _round(3, "none", n_malicious=0)]
    found = {r.attack: r for r in rows_of(SETTING, rounds, weights, None, ("ours", "split"))}
    assert list(found) == ["lp", "badnets"]
    row, aucs, caught, lost = found["lp"], [], [], []
    for episode in rounds[:2]:
        adapted = Adapted(weights, episode.support, null="updates")
        odds = adapted.score(episode.query).log_odds
        flags = adapted.p_values(odds, "tasks") <= 0.05
        aucs.append(roc_auc_score(episode.labels, odds))
        caught.append(flags[:2].mean())
        lost.append(flags[2:].mean())
    assert (row.detector, row.split, row.dataset, row.n_rounds) == ("ours", "split", "digits", 2)
    assert row.auc == pytest.approx(np.mean(aucs))
    assert row.rejected == pytest.approx(np.mean(caught))
    assert row.rejected_benign == pytest.approx(np.mean(lost))


def test_weights_that_saw_no_federation_promise_nothing(weights: Weights) -> None:
    alone = replace(weights, nulls={"inputs": weights.nulls["inputs"]})
    (row,) = rows_of(SETTING, [_round(0)], alone, None, ("ours", WITHOUT_FEDERATIONS.name))
    assert 0 <= row.auc <= 1
    assert row.rejected is row.rejected_benign is None


def test_weights_that_saw_no_federation_average_both_verdicts_as_of_inputs(
    weights: Weights,
) -> None:
    both = replace(weights, config=replace(weights.config, ensemble=True))
    alone = replace(both, nulls={"inputs": weights.nulls["inputs"]})
    episodes = [_round(seed) for seed in range(6)]

    def mean_auc(used: Weights, null: str) -> float:
        odds = [Adapted(used, e.support, null=null).score(e.query).log_odds for e in episodes]
        return float(
            np.mean([roc_auc_score(e.labels, o) for e, o in zip(episodes, odds, strict=True)])
        )

    (known,) = rows_of(SETTING, episodes, both, None, ("ours", "split"))
    (unknown,) = rows_of(SETTING, episodes, alone, None, ("ours", "split"))
    assert known.auc == pytest.approx(mean_auc(both, "updates"))
    assert unknown.auc == pytest.approx(mean_auc(both, "inputs"))
    assert known.auc != unknown.auc


def test_only_weights_that_fit_take_part(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights.save(path)
    save_episodes(path_of(SETTING, tmp_path), [_round(0), _round(1, "badnets")])
    main = both_ways(Split(axis="trigger", left_out="held-out"), path, (20,))
    contenders = [
        *main,
        *both_ways(Split(axis="dataset", left_out="digits"), path, (20,)),
        *both_ways(WITHOUT_FEDERATIONS, path, (20,)),
        Contender(name="one view", split=main[0].split, path=path, shots=(20,), n_views=1),
    ]
    (rows,) = judge_federations([SETTING], contenders, tmp_path)
    assert {(r.detector, r.split) for r in rows} == {
        (SPECIALIST, "peers"),
        *(
            (name, split)
            for name in ("metashield", "metashield-unadapted")
            for split in (MAIN_SPLIT, WITHOUT_FEDERATIONS.name)
        ),
    }
    assert {r.attack for r in rows} == {"lp", "badnets"}
    adapted, unadapted = (
        next(r.auc for r in rows if (r.detector, r.split) == (c.name, MAIN_SPLIT)) for c in main
    )
    assert 0 <= min(adapted, unadapted) <= max(adapted, unadapted) <= 1


def test_the_split_without_federations_learns_from_everything_else() -> None:
    fact = {"evaluation": False, "family": "patch", "pool": "digits", "domain": "cv"}
    assert WITHOUT_FEDERATIONS.trains_on(fact)
    assert not WITHOUT_FEDERATIONS.trains_on({"evaluation": False, "domain": "fl"})
    assert Split(axis="domain", left_out="cv").trains_on({"evaluation": False, "domain": "fl"})
    assert not WITHOUT_FEDERATIONS.judges({**fact, "evaluation": True})


def test_tables_by_hand() -> None:
    def row(attack: str, auc: float, dataset: str = "digits") -> FederatedRow:
        return FederatedRow(
            detector="ours",
            split="main",
            dataset=dataset,
            attack=attack,
            seed=0,
            n_rounds=3,
            auc=auc,
            rejected=None,
            rejected_benign=auc / 10 if dataset == "digits" else None,
        )

    found = federated_tables([row("lp", 0.8), row("lp", 0.6, "glyphs"), row("badnets", 1.0)])
    lines = found["main/ours"]["attacks"]
    assert lines["lp"]["auc"] == pytest.approx(0.7)
    assert lines["lp"]["n_federations"] == 2
    assert lines["lp"]["rejected"] is None
    assert lines["lp"]["rejected_benign"] == pytest.approx(0.08)
    assert found["main/ours"]["cells"] == {
        "digits lp": 0.8,
        "glyphs lp": 0.6,
        "digits badnets": 1.0,
    }
    assert federated_tables([]) == {}
