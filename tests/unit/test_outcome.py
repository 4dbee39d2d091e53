"""What results.json says is what happened, counted by hand."""

import json
import math

import pytest

from fl_shield.simulations.figures import rounds_figure, score_matrix, scores_figure
from fl_shield.simulations.outcome import ClientRow, Outcome, RoundRow, summarise
from fl_shield.simulations.scenario import Scenario

SCENARIO = Scenario(
    n_clients=4, clients_per_round=3, n_rounds=20, attack="lp", malicious_fraction=0.25
).with_(attack_from=2, defense="shield")


def client(
    partition: int, score: float | None = None, vote: float = 1.0, **truth: bool
) -> ClientRow:
    return ClientRow(
        partition=partition,
        malicious=truth.get("malicious", False),
        equals_honest=truth.get("equals_honest", False),
        rejected=truth.get("rejected", False),
        vote=vote,
        score=score,
    )


def outcome() -> Outcome:
    first = (client(0, 0.9, vote=0.0, rejected=True), client(1, 0.1), client(2, 0.1))
    second = (
        client(0, 0.3),
        client(1, 0.2, vote=0.4, malicious=True),
        client(3, 0.8, vote=0.0, malicious=True, rejected=True),
    )
    third = (client(0, 0.4), client(3, 0.1, malicious=True, equals_honest=True), client(2))
    clients = {1: first, 2: second, 3: third}
    rows = [
        RoundRow(
            server_round=r,
            accuracy=r / 100,
            asr=1.0 if r == 1 else r / 40,
            round_seconds=2.0,
            shield_seconds=0.5,
            clients=clients.get(r, ()),
        )
        for r in range(21)
    ]
    return Outcome(rounds=tuple(rows), audit={"run_id": "x"})


def test_the_last_tenth_of_the_rounds_is_averaged() -> None:
    entry = summarise(SCENARIO, outcome())
    assert entry["main_accuracy"] == pytest.approx((0.19 + 0.20) / 2)
    assert entry["final_accuracy"] == pytest.approx(0.20)
    assert entry["asr"] == pytest.approx((19 / 40 + 20 / 40) / 2)


def test_the_peak_counts_from_the_attack_on() -> None:
    assert summarise(SCENARIO, outcome())["asr_peak"] == pytest.approx(0.5)
    assert summarise(SCENARIO.with_(attack_from=1), outcome())["asr_peak"] == 1.0


def test_rejections_are_shares_of_benign_and_of_malicious_updates() -> None:
    entry = summarise(SCENARIO, outcome())
    assert entry["tpr"] == pytest.approx(1 / 2)
    assert entry["fpr"] == pytest.approx(1 / 6)
    assert (entry["n_malicious_updates"], entry["n_benign_updates"]) == (2, 6)


def test_votes_are_averaged_apart_for_benign_and_for_malicious_updates() -> None:
    entry = summarise(SCENARIO, outcome())
    assert entry["benign_vote"] == pytest.approx(5 / 6)
    assert entry["malicious_vote"] == pytest.approx(0.4 / 2)
    assert entry["rounds"][2]["votes"] == [1.0, 0.4, 0.0]


def test_uploads_equal_to_honest_ones_are_listed_apart() -> None:
    entry = summarise(SCENARIO, outcome())
    assert entry["n_malicious_equal_to_honest"] == 1
    assert entry["n_malicious_equal_to_honest_rejected"] == 0


def test_the_auc_ranks_malicious_over_benign_scores_since_the_attack() -> None:
    # malicious 0.2, 0.8 against benign 0.3, 0.4: two of four pairs are in order
    assert summarise(SCENARIO, outcome())["score_auc"] == pytest.approx(0.5)


def test_times_are_totals() -> None:
    entry = summarise(SCENARIO, outcome())
    assert (entry["round_seconds"], entry["shield_seconds"]) == (40.0, 10.0)


def test_without_malicious_updates_there_is_no_tpr() -> None:
    rows = (RoundRow(server_round=1, accuracy=0.5, asr=0.0, clients=(client(0),)),)
    entry = summarise(SCENARIO.with_(attack="none", attack_from=1), Outcome(rounds=rows))
    assert (entry["tpr"], entry["fpr"], entry["score_auc"]) == (None, 0.0, None)


def test_an_outcome_survives_json() -> None:
    assert Outcome.from_dict(json.loads(json.dumps(outcome().to_dict()))) == outcome()


def test_the_heat_map_holds_each_score_in_its_place() -> None:
    entry = {**summarise(SCENARIO, outcome()), "settings": SCENARIO.to_dict()}
    matrix = score_matrix(entry)
    assert matrix.shape == (4, 20)
    assert matrix[3, 1] == 0.8
    assert matrix[0, 0] == 0.9
    assert math.isnan(matrix[2, 2])
    assert math.isnan(matrix[3, 0])


def test_figures_show_every_defence_and_mark_the_attackers() -> None:
    entries = [
        {**summarise(scenario, outcome()), "settings": scenario.to_dict()}
        for scenario in (
            SCENARIO.with_(attack="none", defense="none"),
            SCENARIO.with_(defense="none"),
            SCENARIO,
        )
    ]
    labels = {line.get_label() for line in rounds_figure(entries, "lp").axes[0].get_lines()}
    assert {"FedAvg, no attack", "FedAvg", "shield"} <= labels
    ticks = scores_figure(entries[2]).axes[0].get_yticklabels()
    assert [tick.get_color() == "#c0392b" for tick in ticks] == [False, True, False, True]
