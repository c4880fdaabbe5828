"""Agents under a keeper: what they print is kept, how they ended is known, nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core.errors import DeviceError, SupervisorError
from harness.transports._supervisor import Supervisor
from tests.agents.links import OWNER, Links, alive, eventually, python, standing_in, supervisor
from tests.agents.test_supervisor import small_disk  # noqa: F401

#: An agent with a child, a grandchild whose parent ended, and one that left its session; none heeds SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
pids = [os.getpid(), subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
get, put = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.write(put, b"%d" % os.getpid())
        time.sleep(600)
    os._exit(0)
os.wait()
pids.append(int(os.read(get, 99)))
with open(sys.argv[1], "w") as file:
    file.write(" ".join(map(str, pids)))
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Supervisor]:
    device = supervisor(Links(), tmp_path)
    yield device
    assert standing_in(Path(device.workdir)) == []
    device.close()


def pids_in(path: Path) -> list[int]:
    assert eventually(lambda: path.exists() and len(path.read_text().split()) == 4)
    return [int(word) for word in path.read_text().split()]


def test_lines_are_whatever_was_written(there: Supervisor) -> None:
    code = r"import os; os.write(1, b'a\r\n\xff\n\n' + b'x' * 3_000_000 + b'\nend without line end')"
    with there.stream(python(code), env={}, timeout_s=60) as stream:
        lines = list(stream)
    assert lines[:3] == ["a", "\ufffd", ""]
    assert "".join(lines[3:-1]) == "x" * 3_000_000
    assert lines[-1] == "end without line end"


def test_what_it_finds_is_exactly_what_was_asked(there: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = (
        "import os, signal, sys; print(sorted(k for k in os.environ if k != 'LC_CTYPE')); print(os.getcwd());"
        "print(sys.stdin.read() == '', sorted(os.listdir('/proc/self/fd'))[:3]);"
        "print(open('/proc/self/status').read().split('SigIgn:\\t')[1].split()[0], len(sys.argv[1:]));"
        "print(os.sched_getaffinity(0))"
    )
    cpu = max(os.sched_getaffinity(0))
    argv = [*python(code), "x; touch owned", "a'b\"\n"]
    with there.stream(argv, env={"A": "1"}, timeout_s=60, cpus=[cpu]) as stream:
        lines = list(stream)
    assert lines[:3] == ["['A']", there.workdir, "True ['0', '1', '2']"]
    ignored, arguments = lines[3].split()
    assert not int(ignored, 16) & (1 << (signal.SIGHUP - 1) | 1 << (signal.SIGTERM - 1))
    assert arguments == "2"
    assert lines[4] == f"{{{cpu}}}"
    assert stream.cpus == (cpu,)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
    ],
)
def test_how_it_ended_is_known(there: Supervisor, code: str, expected: int) -> None:
    with there.stream(python(code), env={}, timeout_s=60) as stream:
        assert list(stream) == []
        assert stream.exit_code == expected
        assert not stream.timed_out


def test_the_end_of_standard_error_is_kept(there: Supervisor) -> None:
    code = "import sys; print('x' * 100_000 + 'last words', file=sys.stderr)"
    with there.stream(python(code), env={}, timeout_s=60) as stream:
        assert list(stream) == []
        assert stream.errors.endswith("xlast words")
        assert len(stream.errors) <= 4000


def test_when_its_time_is_over_all_of_it_is_ended(there: Supervisor, tmp_path: Path) -> None:
    argv = [*python(FAMILY + "print('ready', flush=True); time.sleep(600)"), str(tmp_path / "pids")]
    with there.stream(argv, env={}, timeout_s=3) as stream:
        assert list(stream) == ["ready"]
        assert stream.timed_out
        assert stream.exit_code is None
        assert "did not end within 3 s" in stream.errors
        assert not [pid for pid in pids_in(tmp_path / "pids") if alive(pid)]


def test_what_it_leaves_behind_is_ended(there: Supervisor, tmp_path: Path) -> None:
    """Its children hold its output open; that does not hold us."""
    argv = [*python(FAMILY + "print('done', flush=True); os._exit(0)"), str(tmp_path / "pids")]
    with there.stream(argv, env={}, timeout_s=600) as stream:
        assert list(stream) == ["done"]
        assert stream.exit_code == 0
        assert not [pid for pid in pids_in(tmp_path / "pids") if alive(pid)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_ends_all_of_it(there: Supervisor, tmp_path: Path, error: type[BaseException]) -> None:
    argv = [*python(FAMILY + "time.sleep(600)"), str(tmp_path / "pids")]
    pids: list[int] = []

    def use() -> None:
        with there.stream(argv, env={}, timeout_s=600):
            pids.extend(pids_in(tmp_path / "pids"))
            raise error

    with pytest.raises(error):
        use()
    assert len(pids) == 4
    assert not [pid for pid in pids if alive(pid)]
    assert not list(Path(there.workdir, "jobs").iterdir())


def test_printing_without_end_is_ended(there: Supervisor) -> None:
    with there.stream(["yes"], env={}, timeout_s=600, max_output_bytes=100_000) as stream:
        assert sum(len(line) + 1 for line in stream) in (100_000, 100_001)
        assert stream.exit_code == -signal.SIGKILL
        assert stream.errors == "It printed more than 100000 bytes."
    with there.stream(["printf", "x" * 1000], env={}, timeout_s=60, max_output_bytes=1000) as stream:
        assert list(stream) == ["x" * 1000]
        assert (stream.exit_code, stream.errors) == (0, "")


def test_what_cannot_be_started_is_a_device_error(there: Supervisor) -> None:
    for argv, cpus, words in (
        (["/no/such/program"], [], "/no/such/program cannot be started: No such file"),
        (["true"], [4000], "CPUs .4000. cannot be used"),
        (["nul\0"], [], "without NUL"),
        ([], [], "argv"),
    ):
        with pytest.raises(DeviceError, match=words), there.stream(argv, env={}, timeout_s=1, cpus=cpus):
            pass
    assert not list(Path(there.workdir, "jobs").iterdir())


def test_the_same_job_is_started_once(there: Supervisor) -> None:
    asked = {"job": "once", "argv": ["sleep", "600"], "env": {}, "timeout_s": 600}
    first = there.call("start", **asked)
    assert there.call("start", **asked) == first
    assert there.call("wait", job="once", for_s=0) == {"running": True}
    assert there.call("stop", job="once") == {"ended": [first["pid"]]}
    assert there.call("stop", job="once") == {"ended": []}
    with pytest.raises(SupervisorError, match="There is no job once"):
        there.call("wait", job="once", for_s=0)


def test_an_agent_outlives_its_connection(tmp_path: Path) -> None:
    first = supervisor(Links(), tmp_path)
    code = "import time, sys; sys.stdin.read(); time.sleep(0.5); print('went on')"
    first.call("start", job="j", argv=python(code), env={}, timeout_s=600)
    first.close()
    second = supervisor(Links(), tmp_path)
    end = second.call("wait", job="j", for_s=20)
    assert (end["exit_code"], end["output_bytes"]) == (0, len("went on\n"))
    second.call("stop", job="j")
    second.close()


def test_a_killed_keeper_is_noticed_and_its_agent_ended(there: Supervisor) -> None:
    there.call("start", job="j", argv=["sleep", "600"], env={}, timeout_s=600)
    job = json.loads(Path(there.workdir, "jobs/j/pid").read_text())
    os.kill(job["keeper"]["pid"], signal.SIGKILL)
    end = there.call("wait", job="j", for_s=20)
    assert (end["running"], end["exit_code"]) == (False, None)
    assert "keeper was killed" in end["why"]
    assert not alive(job["agent"]["pid"])


def test_a_keeper_that_hangs_is_ended(there: Supervisor) -> None:
    there.call("start", job="j", argv=["sleep", "600"], env={}, timeout_s=600)
    job = json.loads(Path(there.workdir, "jobs/j/pid").read_text())
    os.kill(job["keeper"]["pid"], signal.SIGSTOP)
    assert there.call("stop", job="j") == {"ended": [job["agent"]["pid"]]}
    assert not alive(job["agent"]["pid"])
    assert eventually(lambda: not alive(job["keeper"]["pid"]))


def test_what_an_earlier_session_left_is_swept(tmp_path: Path) -> None:
    first = supervisor(Links(), tmp_path)
    pids = [
        first.call("start", job=f"j{i}", argv=["sleep", "600"], env={}, timeout_s=600)["pid"] for i in (0, 1)
    ]
    first.call("start", job="ended", argv=["true"], env={}, timeout_s=600)
    first.call("wait", job="ended", for_s=20)
    first.close()
    second = supervisor(Links(), tmp_path)
    assert second.call("sweep") == {"ended": pids}
    assert not any(map(alive, pids))
    assert second.call("sweep") == {"ended": []}
    second.close()


@pytest.mark.parametrize("change", ["start", "boot_id"])
def test_a_number_that_was_given_away_is_left_alone(there: Supervisor, change: str) -> None:
    """The pid file names a process that is not the one that it was written for: here, a stranger."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        try:
            there.call("start", job="j", argv=["sleep", "600"], env={}, timeout_s=600)
            path = Path(there.workdir, "jobs/j/pid")
            job = json.loads(path.read_text())
            there.call("stop", job="j")
            for who in ("keeper", "agent"):
                job[who]["pid"] = stranger.pid
                job[who][change] = {"start": 1, "boot_id": "another"}[change]
            path.parent.mkdir()
            path.write_text(json.dumps(job))
            os.mkfifo(path.parent / "done")
            assert not there.call("wait", job="j", for_s=0)["running"]
            assert there.call("sweep") == {"ended": []}
            assert alive(stranger.pid)
        finally:
            stranger.kill()


def test_an_agent_that_fills_the_disk_ends_with_a_reason(small_disk: Path) -> None:  # noqa: F811
    device = supervisor(Links(), small_disk)
    device.call("lease", action="take", owner=OWNER, period_s=600)
    code = (
        "import os\n"
        "try: open('full', 'wb').write(bytes(8 << 20))\n"
        "except OSError: pass\n"
        "os.write(1, b'x' * 200_000)\n"
        "import time; time.sleep(600)"
    )
    with device.stream(python(code), env={}, timeout_s=600) as stream:
        assert stream.pid
        list(stream)
        assert "cannot be kept: No space left on device" in stream.errors
        assert device.call("lease", action="renew", owner=OWNER, period_s=600)["held"]
        device._connection.close()  # type: ignore[union-attr]
        assert stream.exit_code == -signal.SIGKILL
        assert device.call("hello")["free_bytes"] == 0  # with a new supervisor
    (small_disk / "work" / "full").unlink()
    device.call("lease", action="release")
    device.close()


HOST = """
import sys
from pathlib import Path
from tests.agents.links import Links, OWNER, python, supervisor
device = supervisor(Links(), Path(sys.argv[1]))
device.call("lease", action="take", owner=OWNER, period_s=float(sys.argv[3]))
argv = [*python(sys.argv[2] + "time.sleep(600)"), sys.argv[1] + "/pids"]
with device.stream(argv, env={}, timeout_s=600) as stream:
    list(stream)
"""


def test_a_killed_host_leaves_nothing_running(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), FAMILY, "2"], cwd=root) as host:
        pids = pids_in(tmp_path / "pids")
        host.kill()
    work = tmp_path / "work"
    janitor = json.loads((work / "janitor.json").read_text())["pid"]
    assert eventually(lambda: not any(map(alive, pids)) and not alive(janitor))
    assert not (work / "lease.json").exists()
    assert not list((work / "links").iterdir())
    job = next((work / "jobs").iterdir())
    assert "away for longer than its lease" in json.loads((job / "end").read_text())["why"]


def test_while_its_host_lives_a_short_lease_holds(tmp_path: Path) -> None:
    device = supervisor(Links(), tmp_path)
    device.call("lease", action="take", owner=OWNER, period_s=1.5)
    with device.stream(python("import time; time.sleep(5); print('whole')"), env={}, timeout_s=600) as stream:
        assert list(stream) == ["whole"]
        assert stream.exit_code == 0
    device.call("lease", action="release")
    device.close()
