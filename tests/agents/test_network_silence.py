"""Nothing that measures opens a network connection: onnxruntime's wheel, for one, carries telemetry."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import probing
from tests.agents.conftest import ENGINES, Agent, each

ROOT = Path(__file__).resolve().parents[2]
CALLS = {
    "connect": "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('127.0.0.1', 9))",
    "sendto": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "getaddrinfo": "import socket; socket.getaddrinfo('localhost', 9)",
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of silence.cpp."""
    target = tmp_path_factory.mktemp("silence") / "silence.so"
    source = Path(__file__).parent / "silence.cpp"
    argv = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", str(source), "-o", str(target)]
    subprocess.run([*argv, "-ldl"], check=True)
    return target


@pytest.mark.parametrize("call", CALLS)
def test_the_watcher_sees_what_it_watches_for(call: str, shim: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = {"LD_PRELOAD": str(shim), "SILENCE_LOG": str(log)}
    subprocess.run([sys.executable, "-c", CALLS[call]], env=env, check=True)
    assert call in log.read_text()


@pytest.mark.parametrize("mode", ["probe", "latency"])
@each(*ENGINES)
def test_no_agent_speaks_to_the_network(agent: Agent, mode: str, shim: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = {"LD_PRELOAD": str(shim), "SILENCE_LOG": str(log)}
    arguments = agent.command(agent.job("chain"))[len(agent.argv) :]
    if mode == "probe":
        arguments = ["mode=probe"]
        if agent.name != "executorch-native":
            agent = replace(agent, argv=(sys.executable, str(probing.PROBE)))
    done = agent.raw(*arguments, env=env)
    assert done.stdout.splitlines()[-1] == '{"event":"end","status":"ok"}', done.stderr
    maps = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/maps').read())"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert shim.name in maps.stdout  # the watcher was really loaded with this environment
    assert not log.exists(), log.read_text()


@each("onnxruntime")
def test_the_agent_itself_switches_telemetry_off(agent: Agent, shim: Path, tmp_path: Path) -> None:
    """Also where nobody sets ORT_DISABLE_TELEMETRY for it: no identifier is left in the home folder."""
    log, home = tmp_path / "log", tmp_path / "home"
    home.mkdir()
    env = {"LD_PRELOAD": str(shim), "SILENCE_LOG": str(log), "HOME": str(home)}
    job = agent.job("net", min_time_s=2.0)
    done = subprocess.run(agent.command(job), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    assert not list(home.rglob("*"))


def test_no_exporter_and_no_runtime_of_the_host_speaks_to_the_network(shim: Path, tmp_path: Path) -> None:
    """Training, quantising, exporting, verifying and scoring in all three formats."""
    log, home = tmp_path / "log", tmp_path / "home"
    home.mkdir()
    env = {"LD_PRELOAD": str(shim), "SILENCE_LOG": str(log), "HOME": str(home), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "harness", "build", "--model", str(ROOT / "docs" / "own_task.py")]
    argv += ["--recipe", "int8", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    assert not [path for path in home.rglob("*") if "onnxruntime" in path.name]
