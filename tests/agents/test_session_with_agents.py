"""The whole way from a session to a block, with every runtime and both engines of ExecuTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import runners
from harness.core.errors import CellError
from harness.core.types import RUNTIMES, SUFFIXES, Device, Job
from harness.session import Session, open_session
from tests.agents.conftest import FAST, Agent, each


@pytest.fixture
def session(tmp_path: Path, native: runners.Runner) -> Iterator[Session]:
    del native  # compiled already
    with open_session(Device(name="local", transport="local", options={"workdir": str(tmp_path)})) as opened:
        yield opened


def pushed(session: Session, agent: Agent, name: str) -> Job:
    job = agent.job(name)
    return replace(job, model=session.push(Path(job.model)), check=session.push(Path(job.check)))


@each(*FAST)
def test_files_are_pushed_and_run(agent: Agent, session: Session) -> None:
    runtime = session.runtime(agent.format)
    assert runtime.name == RUNTIMES[agent.format]
    job = pushed(session, agent, "net")
    assert Path(job.model).name.endswith(SUFFIXES[agent.format])
    for kind in ("latency", "memory"):
        block = session.run(replace(job, kind=kind), 3)
        assert block.facts["agent"] == runtime.engine
        assert block.facts["runtime_version"] == runtime.version
        assert block.index == 3
        assert len(block.values_ns or block.marks) >= 4


def test_executorch_runs_without_a_compiler_and_says_so(
    session: Session,
    make_agent: Callable[[str], Agent],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = pushed(session, make_agent("executorch-python"), "net")
    runtime = session.runtime("executorch")
    assert runtime.engine == "python"
    assert "g++" in runtime.note
    assert session.run(job, 0).facts["agent"] == "python"


@each("litert")
def test_a_slow_block_is_a_timeout_and_its_process_is_gone(agent: Agent, session: Session) -> None:
    job = replace(pushed(session, agent, "net"), min_time_s=60.0, timeout_s=1.5)
    with pytest.raises(CellError, match=r"1\.5 s") as caught:
        session.run(job, 0)
    assert caught.value.status == "timeout"
    mapped = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if job.model in _text(path)]
    assert not mapped


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return ""
