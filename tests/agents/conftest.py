"""Model files and the engines that run them, made once for all tests of agents."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import pytest

from harness import agent_process, runners, session
from harness.core import events
from harness.core.types import BACKENDS, SUFFIXES, Block, FormatName, Job
from tests.agents.models import SETS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that parallel test workers share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if folder.name.startswith("popen-") else folder


@pytest.fixture(scope="session")
def models(shared: Path) -> Path:
    """The files of tests/agents/models.py."""
    folder = shared / "models"
    with filelock.FileLock(shared / "models.lock"):
        if not (folder / "unknown.pte").exists():
            folder.mkdir(exist_ok=True)
            argv = [sys.executable, "-m", "tests.agents.models", str(folder)]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def native(shared: Path) -> runners.Runner:
    """The native ExecuTorch runner."""
    runner = runners.executorch(shared / "cache")
    assert isinstance(runner, runners.Runner), runner.reason
    return runner


@pytest.fixture(autouse=True)
def own_cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's cache alone."""
    monkeypatch.setenv("EDGEBENCH_CACHE", str(shared / "cache"))


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One engine: the command of its agent, and the format that it runs."""

    name: str
    format: FormatName
    argv: tuple[str, ...]
    env: Mapping[str, str]
    models: Path

    def job(self, name: str, **changes: Any) -> Job:
        """A short latency block of one of the test models."""
        values: dict[str, Any] = {
            "kind": "latency",
            "format": self.format,
            "backend": BACKENDS[self.format],
            "model": str(self.models / f"{name}{SUFFIXES[self.format]}"),
            "check": str(self.models / f"{name}.ebt"),
            "check_sets": SETS,
            "check_min_sqnr_db": 60.0,
            "threads": 1,
            "warmup_iterations": 2,
            "warmup_time_s": 0.0,
            "min_iterations": 20,
            "min_time_s": 0.0,
            "timeout_s": 60.0,
        }
        return Job(**values | changes)

    def command(self, job: Job) -> list[str]:
        keys = ["format", "backend", "model", "check", "check_sets", "check_min_sqnr_db", "threads"]
        keys += ["warmup_iterations", "warmup_time_s", "min_iterations", "min_time_s"]
        return [*self.argv, f"mode={job.kind}", *(f"{key}={getattr(job, key)}" for key in keys)]

    def raw(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The process as it is; its standard output must be UTF-8, its standard error may be anything."""
        environment = agent_process.ENVIRONMENT | dict(self.env) | dict(env or {})
        done = subprocess.run([*self.argv, *arguments], env=environment, capture_output=True, timeout=120)
        errors = done.stderr.decode("utf-8", "replace")
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode("utf-8"), errors)

    def lines(self, job: Job) -> list[str]:
        return self.raw(*self.command(job)[len(self.argv) :]).stdout.splitlines()

    def events(self, job: Job) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines(job)]

    def run(self, job: Job) -> Block:
        return events.read_block(self.lines(job), job, index=0, started_utc="")


ENGINES = ("onnxruntime", "litert", "executorch-native", "executorch-python")
#: Without the one that imports torch for seconds: for tests of what all agents share.
FAST = ENGINES[:3]


@pytest.fixture(scope="session")
def agent_module() -> ModuleType:
    """agent.py, imported; it does nothing then."""
    spec = importlib.util.spec_from_file_location("agent", session.AGENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_agent(models: Path, native: runners.Runner) -> Callable[[str], Agent]:
    """An engine by name."""

    def make(name: str) -> Agent:
        formats: dict[str, FormatName] = {"onnxruntime": "onnx", "litert": "tflite"}
        python = (sys.executable, str(session.AGENT))
        is_native = name == "executorch-native"
        return Agent(
            name=name,
            format=formats.get(name, "executorch"),
            argv=(str(native.path),) if is_native else python,
            env={"LD_LIBRARY_PATH": str(native.library_dir)} if is_native else {},
            models=models,
        )

    return make


@pytest.fixture
def agent(request: pytest.FixtureRequest, make_agent: Callable[[str], Agent]) -> Agent:
    """The engine that a test is parametrized with."""
    return make_agent(request.param)


def each(*names: str) -> pytest.MarkDecorator:
    """Run a test once per engine."""
    return pytest.mark.parametrize("agent", names, indirect=True)
