"""One real run on Flower's own runtime (Ray), and what happens when its processes misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fl_shield.audit import AuditStore
from fl_shield.errors import EngineError
from fl_shield.simulations import ray_engine
from fl_shield.simulations.engines import run
from fl_shield.simulations.federation import MODEL_FILE
from fl_shield.simulations.outcome import RoundRow
from fl_shield.simulations.ray_engine import LOG_FILE
from fl_shield.simulations.scenario import Scenario

SCENARIO = Scenario(
    model="digits-mlp",
    n_clients=4,
    clients_per_round=3,
    n_rounds=2,
    attack="model_replacement",
    malicious_fraction=0.25,
    malicious_per_round=1,
    defense="shield",
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that the engine starts."""
    processes: list[subprocess.Popen[bytes]] = []
    start = ray_engine._start

    def noting(*args: object) -> subprocess.Popen[bytes]:
        processes.append(start(*args))  # type: ignore[arg-type]
        return processes[-1]

    monkeypatch.setattr(ray_engine, "_start", noting)
    return processes


def group_is_gone(leader: subprocess.Popen[bytes]) -> bool:
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_both_engines_agree_and_nothing_is_left_running(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the tools are found beside this Python
    told: list[RoundRow] = []
    url = f"sqlite:///{tmp_path}/audit.db"
    here = run(SCENARIO, tmp_path / "here", url)
    ray = run(SCENARIO.with_(engine="ray"), tmp_path / "ray", url, told.append)

    ours, theirs = (load_file(tmp_path / name / MODEL_FILE) for name in ("here", "ray"))
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, atol=1e-3)
    assert [row.server_round for row in told] == [0, 1, 2]
    assert tuple(told) == ray.rounds
    for one, two in zip(here.rounds, ray.rounds, strict=True):
        assert one.accuracy == pytest.approx(two.accuracy, abs=0.01)
        assert [(c.partition, c.malicious) for c in one.clients] == [
            (c.partition, c.malicious) for c in two.clients
        ]
        for ours_row, theirs_row in zip(one.clients, two.clients, strict=True):
            assert ours_row.action == theirs_row.action
            assert ours_row.score == pytest.approx(theirs_row.score, abs=1e-2)
    assert len(AuditStore(url).runs()) == 2
    assert AuditStore(url).verify(ray.audit["head"]).ok

    assert "[ROUND 2/2]" in (tmp_path / "ray" / LOG_FILE).read_text()
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert all(group_is_gone(process) for process in started)


def tools(monkeypatch: pytest.MonkeyPatch, folder: Path, **scripts: str) -> None:
    """Put stand-ins where the engine looks for Flower's tools."""
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    python = folder / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_superlink_that_ends_at_once_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    tools(monkeypatch, bin_folder, flower_superlink="echo no luck; exit 3")
    with pytest.raises(EngineError, match="flower-superlink ended with code 3"):
        run(SCENARIO.with_(engine="ray"), tmp_path / "run", "sqlite://")
    assert "no luck" in (tmp_path / "run" / LOG_FILE).read_text()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    tools(monkeypatch, bin_folder)
    with pytest.raises(EngineError, match=r"needs flower-superlink.*install flwr\[simulation\]"):
        run(SCENARIO.with_(engine="ray"), tmp_path / "run", "sqlite://")


SERVE = (
    'exec {python} -c "import sys; from http.server import *\n'
    "class Healthy(BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Healthy)"
    '.serve_forever()" "$@"'
)


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ('{"runs": [{"status": "finished:failed", "status-details": "it broke"}]}', "it broke"),
        ('{"runs": []}', "never submitted"),
        ("", "never submitted"),
    ],
)
def test_a_run_that_fails_is_an_error_although_flwr_exits_with_0(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
    listed: str,
    named: str,
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    flwr = f"if [ \"$1\" = ls ]; then echo '{listed}'; fi; exit 0"
    serve = SERVE.format(python=sys.executable)
    tools(monkeypatch, bin_folder, flower_superlink=serve, flwr=flwr)
    with pytest.raises(EngineError, match=named):
        run(SCENARIO.with_(engine="ray"), tmp_path / "run", "sqlite://")
    assert all(group_is_gone(process) for process in started)


def test_a_process_that_does_not_listen_is_ended(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    ray_engine._end(process, patience=0.2)
    process.stdout.close()
    assert process.returncode == -9
    ray_engine._end(process)
