"""A session starts agents, and knows how each of them ended: programs that play the agent, really started."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness import provisioning, runners
from harness.agent_process import ENVIRONMENT
from harness.core import codec
from harness.core.errors import CellError, DeviceError, EdgebenchError
from harness.core.types import Device, Job
from harness.session import Conduct, Session, open_session
from harness.transports import local, ssh
from harness.trying import NativeRunner
from tests.harness import boards
from tests.harness.streams import END, HELLO, JOB, LATENCY_EVENTS, START, lines


def player(folder: Path, probe: str, run: str) -> str:
    """An interpreter that runs *probe* for mode=probe and *run* else, both of them shell commands."""
    path = folder / "player"
    path.write_text(f'#!/bin/sh\ncase "$*" in *mode=probe*) {probe};; *) {run};; esac\n')
    path.chmod(0o755)
    return str(path)


def says(told: Sequence[dict[str, Any]]) -> str:
    return "\n".join(["cat <<'EOT'", *lines(told), "EOT\n"])


def probed(**facts: Any) -> list[dict[str, Any]]:
    known = {
        "runtimes": {"onnxruntime": "1.2.3", "litert": None, "executorch": "1.5.1"},
        "oom_kills": 0,
    } | facts
    return [HELLO, *({"event": "fact", "name": k, "value": v} for k, v in known.items()), END]


@contextmanager
def playing(folder: Path, run: str, probe: str | None = None) -> Iterator[Session]:
    python = player(folder, says(probed()) if probe is None else probe, run)
    options = {"python": python, "workdir": str(folder / "work")}
    with open_session(Device(name="here", transport="local", options=options)) as session:
        yield session


def outcome(folder: Path, run: str, job: Job = JOB, probe: str | None = None) -> CellError:
    with playing(folder, run, probe) as session, pytest.raises(CellError) as caught:
        session.run(job, 0)
    return caught.value


def test_a_session_runs_an_agent(tmp_path: Path) -> None:
    with playing(tmp_path, says(LATENCY_EVENTS)) as session:
        block = session.run(JOB, 7)
        assert session.runtime("onnx").version == "1.2.3"
        assert "oom_kills" not in session.facts  # it changes; what identifies a device does not
    assert block.values_ns == (100, 101, 102)
    assert block.index == 7
    assert block.started_utc.endswith("Z")


def test_an_agent_gets_every_argument_and_a_fixed_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run = f'printf "%s\\n" "$@" > {tmp_path}/args; env > {tmp_path}/env; {says(LATENCY_EVENTS)}'
    with playing(tmp_path, run) as session:
        session.run(JOB, 0)
    given_args = (tmp_path / "args").read_text().split()[1:]
    expected = codec.to_json(JOB)
    del expected["kind"], expected["timeout_s"], expected["unpacked"]
    assert dict(arg.split("=", 1) for arg in given_args) == {
        "mode": "latency",
        **{key: str(value) for key, value in expected.items()},
    }
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {k: v for k, v in environment.items() if k not in ("PWD", "OLDPWD", "_", "SHLVL")} == ENVIRONMENT


def test_a_runtime_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with playing(tmp_path, "true") as session, pytest.raises(CellError) as caught:
        session.runtime("tflite")
    assert caught.value.status == "runtime_missing"
    assert "-m pip install ai-edge-litert" in caught.value.hint


def test_without_a_compiler_the_python_engine_runs_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "executorch", lambda _: runners.NoRunner(reason="no g++ here"))
    told = [event | ({"runtime": "executorch"} if event is HELLO else {}) for event in LATENCY_EVENTS]
    with playing(tmp_path, says(told)) as session:
        runtime = session.runtime("executorch")
        assert (runtime.engine, runtime.version, runtime.note) == ("python", "1.5.1", "no g++ here")
        assert session.run(replace(JOB, format="executorch"), 0).facts["agent"] == "python"


def test_a_runner_that_does_not_compile_fails_its_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> runners.NoRunner:
        raise EdgebenchError("It does not compile: boom.", hint="See all of it.")

    monkeypatch.setattr(runners, "executorch", fail)
    with playing(tmp_path, says(LATENCY_EVENTS)) as session:
        for _ in range(2):
            with pytest.raises(CellError, match="boom"):
                session.runtime("executorch")
        session.run(JOB, 0)


def test_a_timeout_is_typed(tmp_path: Path) -> None:
    error = outcome(tmp_path, f"{says(START)} exec sleep 600", replace(JOB, timeout_s=0.5))
    assert error.status == "timeout"
    assert "0.5 s" in error.message


def test_an_agent_that_exits_early_gives_its_last_words(tmp_path: Path) -> None:
    error = outcome(tmp_path, f"{says(START)} echo first >&2; echo it broke >&2; exit 3")
    assert error.status == "agent_failed"
    assert "after setting threads" in error.message
    assert "it broke" in error.message


def test_a_signal_is_named(tmp_path: Path) -> None:
    error = outcome(tmp_path, f"{says(START)} kill -SEGV $$")
    assert error.status == "agent_failed"
    assert "SIGSEGV (11)" in error.message


def test_a_kill_is_out_of_memory_when_the_device_counted_one(tmp_path: Path) -> None:
    kills = tmp_path / "kills"
    kills.write_text(says(probed()))
    more = says(probed(oom_kills=1)).replace("EOT", "TOE")
    run = f"cat > {kills} <<'XXX'\n{more}XXX\nkill -KILL $$"
    error = outcome(tmp_path, run, probe=f". {kills}")
    assert error.status == "out_of_memory"


def test_a_kill_by_somebody_else_is_not_called_out_of_memory(tmp_path: Path) -> None:
    error = outcome(tmp_path, f"{says(START)} kill -KILL $$")
    assert error.status == "agent_failed"
    assert "SIGKILL (9)" in error.message
    assert "no process killed for lack of memory" in error.message


def test_a_device_that_cannot_say_whether_it_killed_is_not_lost(tmp_path: Path) -> None:
    probing = tmp_path / "probing"
    probing.write_text(says(probed()))
    error = outcome(tmp_path, f"echo 'exit 1' > {probing}; {says(START)} kill -KILL $$", probe=f". {probing}")
    assert error.status == "agent_failed"
    assert "SIGKILL (9)" in error.message
    assert "for lack of memory" not in error.message


def test_the_agents_own_reason_wins_over_how_it_ended(tmp_path: Path) -> None:
    told = {"event": "error", "stage": "load", "status": "load_failed", "message": "It is damaged."}
    error = outcome(tmp_path, f"{says([HELLO, told])} kill -KILL $$")
    assert (error.status, error.message) == ("load_failed", "It is damaged.")


@pytest.mark.parametrize("probe", ["echo hi", "exit 127", says(probed())[:-40], "kill -9 $$"])
def test_a_device_whose_agent_does_not_answer_is_a_device_error(tmp_path: Path, probe: str) -> None:
    with (
        pytest.raises(DeviceError, match="here: the agent does not answer"),
        playing(tmp_path, "true", probe),
    ):
        pass


def test_an_interpreter_that_is_none_is_a_device_error(tmp_path: Path) -> None:
    options = {"python": str(tmp_path / "none"), "workdir": str(tmp_path)}
    with pytest.raises(DeviceError), open_session(Device(name="here", transport="local", options=options)):
        pass


def test_push_names_by_content(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"one")
    with playing(tmp_path, "true") as session:
        first = session.push(source)
        assert session.push(source) == first
        source.write_bytes(b"another")
        second = session.push(source)
    assert first != second
    assert Path(first).read_bytes() == b"one"
    assert Path(second).read_bytes() == b"another"
    assert second.endswith(".onnx")


def test_a_file_that_cannot_be_pushed_is_its_cells_reason(tmp_path: Path) -> None:
    with playing(tmp_path, "true") as session, pytest.raises(CellError, match="nowhere") as caught:
        session.push(tmp_path / "nowhere.onnx")
    assert caught.value.status == "push_failed"


def test_a_file_that_changed_since_it_was_checked_is_not_pushed(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"one")
    checked = hashlib.sha256(b"one").hexdigest()
    with playing(tmp_path, "true") as session:
        assert session.push(source, sha256=checked)
        source.write_bytes(b"another")
        with pytest.raises(CellError, match="was changed since it was checked"):
            session.push(source, sha256=checked)


def test_the_real_agent_answers(tmp_path: Path) -> None:
    options = {"python": sys.executable, "workdir": str(tmp_path)}
    with open_session(Device(name="here", transport="local", options=options)) as session:
        assert session.facts["cores"] >= 1
        assert set(session.facts["runtimes"]) == {"onnxruntime", "litert", "executorch"}
        assert session.facts["packages"] == {"numpy": metadata.version("numpy")}


class Quick(boards.Line):
    """Its link can be away."""

    def tell(self, say: Callable[[str], None]) -> None:
        say("the link is lost")


def test_a_transport_that_tells_of_its_link_tells_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(local, "connect", lambda _device: Quick(boards.Board()))
    with open_session(Device(name="pi5", transport="local"), Conduct(say=said.append)):
        assert said == ["the link is lost"]


class Provisioned(boards.Line):
    """A board that was provisioned."""

    def pull(self, name: str, target: Path) -> None:
        packages = {"numpy": "2.1", "flatbuffers": "25.2", "executorch": "1.5.1"}
        runner = NativeRunner(path="/r", library_dir="/l", version="1.5.1")
        manifest = provisioning.Manifest(
            schema=provisioning.SCHEMA,
            workdir=self.workdir,
            target="Python 3.11 x86_64",
            site=(),
            library_dirs=(),
            runner=runner,
            packages=packages,
            runtimes={},
            missing={},
            folders={},
        )
        assert name == provisioning.MANIFEST
        target.write_text(codec.dumps(manifest))


def test_the_facts_of_a_provisioned_device_tell_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [*boards.PROBED[:-1], {"event": "fact", "name": "packages", "value": {"numpy": "1.26"}}, END]
    monkeypatch.setattr(ssh, "connect", lambda _device: Provisioned(boards.Board(facts=facts)))
    device = Device(name="pi5", transport="ssh", options={"host": "pi5.example"})
    with open_session(device) as session:
        assert session.facts["runtimes"] == {"onnxruntime": "1.2.3", "executorch": "1.5.1"}
        # What Python there imports is what counts, whatever was put there.
        expected = {"numpy": "1.26", "flatbuffers": "25.2", "executorch": "1.5.1"}
        assert session.facts["packages"] == expected
