"""Flower's own simulation runtime (Ray), driven through ``flwr run``.

Everything is private to one run: Flower's home, the app folder, the port, the SuperLink. Nothing
is installed at run time, nothing is reported home, and every process started here is ended here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_shield.errors import EngineError
from fl_shield.simulations.federation import OUTCOME_FILE
from fl_shield.simulations.outcome import OnRound, Outcome
from fl_shield.simulations.round_log import RoundFollower, start_log
from fl_shield.simulations.scenario import Scenario

LOG_FILE = "flower.log"
_APP_MODULE = '''\
"""A Flower app that runs the scenario named in its run config."""

from fl_shield.simulations.federation import client_app, server_app

__all__ = ["client_app", "server_app"]
'''
_PYPROJECT = """\
[project]
name = "fl-shield-simulation"
version = "1.0.0"
description = "One simulated federation"
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fl-shield"

[tool.flwr.app.components]
serverapp = "federation_app:server_app"
clientapp = "federation_app:client_app"

[tool.flwr.app.config]
folder = {folder}
audit = {audit}
"""


def run_ray(
    scenario: Scenario, folder: Path, audit_url: str, on_round: OnRound | None = None
) -> Outcome:
    """Run one federation, whose ``scenario.json`` stands in ``folder``, on Flower's runtime.

    Raises
    ------
    EngineError
        If Flower's processes do not come up, or the run does not end as completed.
    """
    home, app = folder / "flower", folder / "app"
    _write_app(app, folder, audit_url)
    port = _free_port()
    environment = _environment(home)
    _write_connection(home, port)
    with (folder / LOG_FILE).open("wb") as log, _superlink(port, environment, log.fileno()):
        _flwr_run(scenario, folder, environment, log.fileno(), on_round)
        _check_status(environment, folder)
    return Outcome.from_dict(json.loads((folder / OUTCOME_FILE).read_text()))


def _write_app(app: Path, folder: Path, audit_url: str) -> None:
    app.mkdir(parents=True, exist_ok=True)
    (app / "federation_app.py").write_text(_APP_MODULE)
    config = _PYPROJECT.format(folder=json.dumps(str(folder)), audit=json.dumps(audit_url))
    (app / "pyproject.toml").write_text(config)


def _write_connection(home: Path, port: int) -> None:
    home.mkdir(parents=True, exist_ok=True)
    connection = f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "private"\n\n[superlink.private]\n{connection}'
    )


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: the tools beside this Python, no network."""
    tools = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "NO_COLOR": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _superlink(port: int, environment: dict[str, str], log: int) -> Iterator[None]:
    """Keep a SuperLink up for the length of the block, and end it and its children after."""
    command = ["flower-superlink", "--insecure", "--simulation", "--port", str(port)]
    process = _start([*command, "--disable-runtime-dependency-installation"], environment, log)
    try:
        _wait_until_healthy(process, port)
        yield
    finally:
        _end(process)


def _start(command: list[str], environment: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    """Start a tool in a process group of its own."""
    path = Path(sys.executable).parent / command[0]
    if not path.exists():
        raise EngineError(
            f"engine ray needs {command[0]}, which is not beside {sys.executable}; "
            "install flwr[simulation] into this environment"
        )
    return subprocess.Popen(
        [str(path), *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """Ask a process group to end, and make it end if it does not listen."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"flower-superlink ended with code {process.returncode}; see its log")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise EngineError("flower-superlink did not come up within 60 s; see its log")


def _flwr_run(
    scenario: Scenario,
    folder: Path,
    environment: dict[str, str],
    log: int,
    on_round: OnRound | None,
) -> None:
    """Submit the app and follow the rounds that it writes until ``flwr run`` ends."""
    federation = f"num-supernodes={scenario.n_clients} client-resources-num-cpus=1"
    command = ["flwr", "run", str(folder / "app"), "--stream", "--federation-config", federation]
    start_log(folder)
    follower = RoundFollower(folder, on_round)
    process = _start(command, environment, log)
    try:
        while process.poll() is None:
            follower.poll()
            time.sleep(0.2)
        follower.poll()
    finally:
        _end(process)


def _check_status(environment: dict[str, str], folder: Path) -> None:
    """Ask Flower how the run ended: the exit code of ``flwr run`` does not say."""
    flwr = Path(sys.executable).parent / "flwr"
    answer = subprocess.run(
        [str(flwr), "ls", "--format", "json"], env=environment, capture_output=True, check=False
    )
    try:
        runs = json.loads(answer.stdout).get("runs", [])
    except json.JSONDecodeError:
        runs = []
    status = runs[0]["status"] if runs else "never submitted"
    if status != "finished:completed":
        details = runs[0].get("status-details", "") if runs else ""
        raise EngineError(
            f"Flower's run is {status!r} instead of 'finished:completed' {details}; "
            f"see {folder / LOG_FILE}"
        )
