"""``fl-shield simulate`` from the command line to the files it leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fl_shield.audit import AuditStore
from fl_shield.cli import main
from fl_shield.simulations.engines import run
from fl_shield.weights import PRETRAINED, WEIGHTS_FILE

FEDERATION = "--clients 6 --rounds 2 --malicious 0.34 --model digits-mlp --epochs 1 --workers 1"
TINY = ["simulate", *FEDERATION.split()]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fl-shield", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def results(out: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["federations"]
    return entries


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the federations that really run."""
    names: list[str] = []

    def counting(scenario: Any, *args: Any) -> Any:
        names.append(scenario.name)
        return run(scenario, *args)

    monkeypatch.setattr("fl_shield.simulations.campaign.run", counting)
    return names


def test_it_leaves_results_figures_audit_and_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*TINY, "--attack", "badnets", "--attack-from", "2", "--out", str(out)]
    for defense in ("none", "multikrum", "shield"):
        words += ["--defense", defense]
    assert call(monkeypatch, *words) == 0

    entries = results(out)
    cells = [(e["attack"], e["defense"]) for e in entries]
    assert cells == [
        ("none", "none"),
        ("badnets", "none"),
        ("badnets", "multikrum"),
        ("badnets", "shield"),
    ]
    for entry in entries:
        assert entry["seed"] == 0
        assert 0 <= entry["main_accuracy"] <= 1
        assert 0 <= entry["asr"] <= entry["asr_peak"] <= 1
        assert entry["fpr_budget"] == 0.05
        assert 0 <= entry["shield_seconds"] < entry["round_seconds"]
        assert [row["server_round"] for row in entry["rounds"]] == [0, 1, 2]
        assert entry["versions"]["flwr"]
        assert entry["settings"]["n_clients"] == 6
        assert (entry["tpr"] is None) == (entry["attack"] == "none")
        assert entry["fpr"] is not None
    assert all(not row["malicious"] for e in entries for row in e["rounds"][:2])
    assert all(len(e["rounds"][2]["malicious"]) == 2 for e in entries[1:])

    audit = entries[3]["audit"]
    store = AuditStore(f"sqlite:///{out}/audit.db", create=False)
    assert store.verify(audit["head"], run_id=audit["run_id"]).ok
    page = (out / "report.html").read_text()
    for figure in ("rounds-badnets.png", "scores-badnets-s0.png"):
        assert base64.b64encode((out / figure).read_bytes()).decode() in page
    assert "<script" not in page
    printed = capsys.readouterr()
    assert "MultiKrum" in printed.out
    assert "round 2/2" in printed.err
    assert "configure_train" not in printed.out + printed.err


def test_a_published_rule_defends_and_is_drawn_like_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*TINY, "--attack", "sign_flip", "--out", str(out)]
    for defense in ("median", "foolsgold"):
        words += ["--defense", defense]
    assert call(monkeypatch, *words) == 0
    assert "foolsgold" in capsys.readouterr().out
    assert [e["defense"] for e in results(out)] == ["none", "median", "foolsgold"]
    assert (out / "rounds-sign_flip.png").exists()


def test_what_is_finished_is_kept_and_force_runs_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counted: list[str]
) -> None:
    words = [*TINY, "--out", str(tmp_path), "--attack", "sign_flip"]
    assert call(monkeypatch, *words, "--defense", "none") == 0
    before = results(tmp_path)
    assert call(monkeypatch, *words, "--defense", "none", "--defense", "shield") == 0
    assert counted == ["none-none-s0", "sign_flip-none-s0", "sign_flip-shield-s0"]
    assert results(tmp_path)[:2] == before
    assert call(monkeypatch, *words, "--defense", "none", "--lr", "0.01") == 0
    assert len(counted) == 5
    assert call(monkeypatch, *words, "--defense", "none", "--force") == 0
    assert counted[5:] == ["none-none-s0", "sign_flip-none-s0"]


def test_a_lost_audit_is_written_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counted: list[str]
) -> None:
    words = [*TINY, "--out", str(tmp_path), "--attack", "none", "--defense", "shield"]
    assert call(monkeypatch, *words) == 0
    (tmp_path / "audit.db").unlink()
    assert call(monkeypatch, *words) == 0
    assert counted == ["none-none-s0", "none-shield-s0", "none-shield-s0"]


def test_the_weights_that_judge_are_on_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shield judges with the weights that are asked for, and says which file they were."""
    words = [*TINY, "--attack", "sign_flip", "--defense", "shield"]
    scores = []
    for purpose, package in PRETRAINED.items():
        out = tmp_path / purpose
        assert call(monkeypatch, *words, "--weights", purpose, "--out", str(out)) == 0
        reference, shielded = results(out)
        file = files(package) / WEIGHTS_FILE
        assert shielded["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        assert reference["weights"] == ""
        scores.append([score for r in shielded["rounds"] for score in r["scores"]])
    assert scores[0] != scores[1]


def test_federations_side_by_side_give_the_same_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*TINY, "--attack", "badnets", "--defense", "none"]
    assert call(monkeypatch, *words, "--out", str(tmp_path / "one")) == 0
    assert call(monkeypatch, *words, "--workers", "2", "--out", str(tmp_path / "two")) == 0
    for one, two in zip(results(tmp_path / "one"), results(tmp_path / "two"), strict=True):
        assert one["settings"] == two["settings"]
        assert one["main_accuracy"] == pytest.approx(two["main_accuracy"], abs=0.01)


def test_a_failure_in_a_worker_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--attack", "badnets", "--out", str(tmp_path), "--workers", "2"]
    (tmp_path / "audit.db").write_text("this is no database")
    assert call(monkeypatch, *words) == 2
    assert_one_sentence(capsys, "audit.db")


def assert_one_sentence(capsys: pytest.CaptureFixture[str], *named: str) -> None:
    error = capsys.readouterr().err.strip().splitlines()
    told = [line for line in error if line.startswith("fl-shield: ")]
    assert len(told) == 1, error
    assert all(name in told[0] for name in named), told[0]
    assert "Traceback" not in "\n".join(error)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dataset", "mnist"], ["mnist", "digits"]),
        (["--attack", "flood"], ["flood", "badnets"]),
        (["--defense", "moat"], ["moat", "multikrum", "flame"]),
        (["--trigger", "hat"], ["hat", "patch"]),
        (["--trigger", "word"], ["word"]),
        (["--engine", "spark"], ["spark", "ray"]),
        (["--mode", "look"], ["look", "monitor"]),
        (["--preset", "party"], ["party", "demo"]),
        (["--malicious", "1.5"], ["malicious_fraction", "1.5"]),
        (["--malicious-per-round", "9"], ["malicious_per_round", "9"]),
        (["--attack-from", "3"], ["attack_from", "2 rounds", "3"]),
        (["--clients-per-round", "7"], ["clients_per_round", "7", "6 clients"]),
        (["--lr", "-1"], ["lr", "-1"]),
        (["--workers", "0"], ["workers", "0"]),
        (["--attack-option", "scale"], ["scale", "NAME=NUMBER"]),
        (["--attack", "badnets", "--scale", "3"], ["scale", "badnets"]),
        (["--target-label", "10"], ["target_label", "10", "9"]),
        (["--model", "leaf-lstm"], ["leaf-lstm", "digits"]),
        (["--partition", "natural"], ["natural", "digits"]),
        (["--dataset", "femnist", "--data-dir", "/no/such/folder"], ["/no/such/folder"]),
        (["--clean-examples", "2"], ["n_clean", "2"]),
        (["--fpr-budget", "0"], ["fpr_budget", "0"]),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    named: list[str],
) -> None:
    assert call(monkeypatch, *TINY, "--out", str(tmp_path / "out"), *words) == 2
    assert_one_sentence(capsys, *named)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert call(monkeypatch, *TINY, "--out", str(occupied / "out")) == 2
    assert_one_sentence(capsys, str(occupied))


@pytest.mark.parametrize("words", [["--rounds", "many"], ["--colour", "red"]])
def test_options_that_do_not_parse_end_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert call(monkeypatch, "simulate", *words) == 2
    assert words[0] in capsys.readouterr().err


def test_help_teaches_by_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "simulate", "--help") == 0
    page = capsys.readouterr().out
    for word in ("--malicious-per-round", "--preset demo", "--data-dir", "multikrum"):
        assert word in page


def test_version_and_unknown_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("fl-shield 0.")
    assert call(monkeypatch, "bogus") == 2
    assert "bogus" in capsys.readouterr().err


def test_help_loads_neither_torch_nor_flower() -> None:
    code = (
        "import sys; from fl_shield.cli import main\n"
        "sys.argv = ['fl-shield', 'simulate', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'flwr', 'ray', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
