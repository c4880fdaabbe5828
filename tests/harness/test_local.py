"""The local transport: what is pushed is what was meant, and no process outlives its context."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.core.errors import DeviceError
from harness.core.types import Device
from harness.transports import local
from harness.transports.local import Local, Options

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Local:
    return local.connect(Device(name="here", transport="local", options={"workdir": str(tmp_path / "work")}))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"content")
    return path


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_options_know_their_keys_only() -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"pyhton": "x"})


def test_an_interpreter_that_does_not_exist_is_named() -> None:
    with pytest.raises(DeviceError, match="/no/python"):
        local.connect(Device(name="here", transport="local", options={"python": "/no/python"}))


def test_a_work_folder_that_cannot_be_made_is_named(source: Path) -> None:
    with pytest.raises(DeviceError, match="source/below"):
        local.connect(Device(name="here", transport="local", options={"workdir": str(source / "below")}))


def test_push_copies_and_does_not_copy_again(place: Local, source: Path) -> None:
    target = Path(place.push(source, "name"))
    assert target.read_bytes() == b"content"
    inode = target.stat().st_ino
    place.push(source, "name")
    assert target.stat().st_ino == inode
    assert [path.name for path in Path(place.workdir, "files").iterdir()] == [
        "name"
    ]  # and leaves nothing beside it


def test_push_mends_what_is_not_what_it_should_be(place: Local, source: Path) -> None:
    target = Path(place.push(source, "name"))
    target.write_bytes(b"cont")
    assert Path(place.push(source, "name")).read_bytes() == b"content"


def test_what_was_pushed_stays_when_its_source_changes(place: Local, source: Path) -> None:
    target = Path(place.push(source, "name"))
    with source.open("r+b") as file:
        file.write(b"CHANGED")
    assert target.read_bytes() == b"content"


def test_pull_brings_it_back(place: Local, source: Path, tmp_path: Path) -> None:
    place.push(source, "name")
    place.pull("name", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_file_that_cannot_be_pushed_or_pulled_is_a_device_error(place: Local, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nowhere"):
        place.push(tmp_path / "nowhere", "name")
    with pytest.raises(DeviceError, match="nothing"):
        place.pull("nothing", tmp_path / "back")


def test_lines_come_as_they_are_written(place: Local) -> None:
    code = "import sys, time; print('first', flush=True); time.sleep(60)"
    with place.stream(python(code), env={}, timeout_s=30) as stream:
        assert next(iter(stream)) == "first"
        assert stream.exit_code is None


def test_lines_are_whatever_was_written(place: Local) -> None:
    code = r"import os; os.write(1, b'a\r\n\xff\n\n' + b'x' * 3_000_000 + b'\nend without line end')"
    with place.stream(python(code), env={}, timeout_s=30) as stream:
        lines = list(stream)
    assert lines[:3] == ["a", "\ufffd", ""]
    assert "".join(lines[3:-1]) == "x" * 3_000_000
    assert lines[-1] == "end without line end"


def test_the_environment_is_exactly_the_given_one(place: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = "import os; print(sorted(k for k in os.environ if k != 'LC_CTYPE')); print(os.getcwd())"
    with place.stream(python(code), env={"A": "1"}, timeout_s=30) as stream:
        assert list(stream) == ["['A']", str(place.workdir)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_how_it_ended_is_known(place: Local, code: str, expected: int) -> None:
    with place.stream(python(code), env={}, timeout_s=30) as stream:
        assert list(stream) == []
        assert stream.exit_code == expected
        assert not stream.timed_out


def test_the_end_of_standard_error_is_kept(place: Local) -> None:
    code = "import sys; print('x' * 100_000 + 'last words', file=sys.stderr)"
    with place.stream(python(code), env={}, timeout_s=30) as stream:
        assert list(stream) == []
        assert stream.errors.endswith("xlast words")
        assert len(stream.errors) <= local.ERROR_BYTES


FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(20)"])
print(os.getpid(), child.pid, flush=True)
{rest}
"""


def test_when_its_time_is_over_it_and_its_children_are_ended(place: Local) -> None:
    argv = python(FAMILY.format(rest="time.sleep(20)"))
    with place.stream(argv, env={}, timeout_s=0.7) as stream:
        pids = [int(word) for line in stream for word in line.split()]
        assert stream.timed_out
        assert stream.exit_code is None
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_a_child_that_holds_the_output_open_does_not_hold_the_host(place: Local) -> None:
    argv = python(FAMILY.format(rest="raise SystemExit(0)"))
    with place.stream(argv, env={}, timeout_s=0.7) as stream:
        pids = [int(word) for line in stream for word in line.split()]
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_ends_it_and_its_children(place: Local, error: type[BaseException]) -> None:
    argv = python(FAMILY.format(rest="time.sleep(20)"))
    pids: list[int] = []

    def use() -> None:
        with place.stream(argv, env={}, timeout_s=60) as stream:
            pids.extend(int(word) for word in next(iter(stream)).split())
            raise error

    with pytest.raises(error):
        use()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_only_the_process_that_it_started_is_ended(place: Local) -> None:
    """A neighbour from the same transport lives on, and no watchdog is left behind."""
    sleep = python("import os, time; print(os.getpid(), flush=True); time.sleep(20)")
    with place.stream(sleep, env={}, timeout_s=60) as neighbour:
        pid = int(next(iter(neighbour)))
        with place.stream(sleep, env={}, timeout_s=0.3) as stream:
            list(stream)
            assert stream.timed_out
        assert alive(pid)
    assert gone(pid)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_what_cannot_be_started_is_a_device_error(place: Local) -> None:
    def use() -> None:
        with place.stream(["/no/such/program"], env={}, timeout_s=1):
            pass

    with pytest.raises(DeviceError, match="/no/such/program"):
        use()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="without setpriv the kernel is not asked")
def test_an_agent_does_not_outlive_a_killed_harness(tmp_path: Path) -> None:
    code = (
        "import sys; from harness.core.types import Device; from harness.transports import local\n"
        "there = local.connect(Device(name='here', transport='local', options={'workdir': sys.argv[1]}))\n"
        "with there.stream(['sh', '-c', 'echo $$; exec sleep 60'], env={}, timeout_s=60) as stream:\n"
        "    for line in stream: print(line, flush=True)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as host:
        assert host.stdout is not None
        agent = int(host.stdout.readline())
        assert Path(f"/proc/{agent}").exists()
        host.kill()
    for _ in range(500):
        state = Path(f"/proc/{agent}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(agent, signal.SIGKILL)
    pytest.fail("the agent went on after its harness was killed")


def test_its_supervisor_answers_and_leaves_with_it(place: Local, source: Path) -> None:
    pushed = place.push_all({"a": source, "below/b": source})
    assert (pushed.sent_files, pushed.sent_bytes) == (2, 14)
    assert place.push_all({"a": source, "below/b": source}).sent_files == 0
    assert place.call("have", files={"a": [hashlib.sha256(b"content").hexdigest(), 7]}) == {"missing": {}}
    facts = place.call("hello")
    assert facts["workdir"] == place.workdir
    place.close()
    assert gone(facts["pid"])
    assert place.incidents == ()


def test_it_uses_the_cpus_that_were_asked_for(place: Local) -> None:
    before = os.sched_getaffinity(0)
    code = "import os; print(os.sched_getaffinity(0))"
    with place.stream(python(code), env={}, timeout_s=30, cpus=[max(before)]) as stream:
        assert list(stream) == [f"{{{max(before)}}}"]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(DeviceError, match="4000"), place.stream(["true"], env={}, timeout_s=1, cpus=[4000]):
        pass
