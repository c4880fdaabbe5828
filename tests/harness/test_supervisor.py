"""The host's side: whatever the link does, what was asked happens once and is reported whole."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import DeviceError, DeviceRebooted, TransientDeviceError
from harness.transports._supervisor import Supervisor
from tests.agents.links import OWNER, Bad, Links, alive, eventually, python, standing_in, supervisor

CONTENT = random.Random(0).randbytes(3_000_000)
FILES = {"big": 2_400_000, "small": 700, "empty": 0, "middle": 90_000}
OFTEN = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
#: It says that it ran, then prints lines that no other run prints.
AGENT = """
import os, random, sys
with open(sys.argv[1], "a") as file:
    file.write("ran ")
for i in range(3000):
    print(i, random.Random(i).random())
"""
EXPECTED = [f"{i} {random.Random(i).random()}" for i in range(3000)]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, size in FILES.items():
        (folder / name).write_bytes(CONTENT[:size])
    return {name: folder / name for name in FILES}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A new folder for each example."""
    count = iter(range(10_000))
    yield lambda: tmp_path / f"device{next(count)}"


cuts = st.tuples(st.sampled_from(["write", "read"]), st.integers(0, 2_600_000), st.booleans())


def bad(cut: tuple[str, int, bool]) -> Bad:
    side, count, silent = cut
    return Bad(**{side: count}, silent=silent)


@OFTEN
@given(cut=cuts)
def test_a_push_that_is_cut_anywhere_ends_whole(
    cut: tuple[str, int, bool], sources: dict[str, Path], folders: Callable[[], Path]
) -> None:
    links = Links(Bad, functools.partial(bad, cut))
    device = supervisor(links, folders(), answer_s=1.0)
    device.call("hello")
    assert device._connection is not None
    device._connection.close()  # the next one is cut in the push
    pushed = device.push_all(sources)
    for name, path in pushed.paths.items():
        assert Path(path).read_bytes() == CONTENT[: FILES[name]]
    assert pushed.sent_files == len(FILES)
    assert not list(Path(device.workdir, "parts").iterdir())
    assert device.incidents
    device.close()
    links.forget()


def test_a_push_goes_on_where_it_was_cut(tmp_path: Path, sources: dict[str, Path]) -> None:
    links = Links(functools.partial(Bad, write=2_000_000))
    device = supervisor(links, tmp_path)
    pushed = device.push_all({"big": sources["big"]})
    assert Path(pushed.paths["big"]).read_bytes() == CONTENT[: FILES["big"]]
    assert pushed.sent_bytes < FILES["big"] + 1_500_000  # and not all of it twice
    assert len(device.incidents) == 1
    assert "push of big" in device.incidents[0]
    device.close()


@OFTEN
@given(cut=st.tuples(st.sampled_from(["write", "read"]), st.integers(300, 40_000), st.booleans()))
def test_a_stream_that_is_cut_anywhere_runs_once_and_comes_whole(
    cut: tuple[str, int, bool], folders: Callable[[], Path]
) -> None:
    folder = folders()
    folder.mkdir()
    links = Links(Bad, functools.partial(bad, cut))
    device = supervisor(links, folder, answer_s=1.0)
    device.call("hello")
    assert device._connection is not None
    device._connection.close()
    device.call("lease", action="take", owner=OWNER, period_s=6)  # and so a wait is 2 s, not 20
    with device.stream([*python(AGENT), str(folder / "ran")], env={}, timeout_s=60) as stream:
        assert list(stream) == EXPECTED
        assert stream.exit_code == 0
    assert (folder / "ran").read_text() == "ran "
    assert standing_in(Path(device.workdir)) == []
    device.call("lease", action="release")
    device.close()
    links.forget()


def test_an_agent_that_the_janitor_ended_is_a_lost_device(tmp_path: Path) -> None:
    device = supervisor(Links(), tmp_path)
    device.call("lease", action="take", owner=OWNER, period_s=1)
    device._lease = None  # nothing renews it: as if we were away

    def use() -> None:
        with device.stream(["sleep", "600"], env={}, timeout_s=600) as stream:
            list(stream)

    with pytest.raises(TransientDeviceError, match="away for too long"):
        use()
    assert standing_in(Path(device.workdir)) == []
    device.close()


class Garbled(Bad):
    """In the middle of an answer it says something else."""

    def heard(self, data: bytes) -> bytes:
        return data.replace(b'"free_bytes"', b"\xff\x00no")


class Dribbling(Bad):
    """It gives and takes a few bytes at a time."""

    def __init__(self) -> None:
        super().__init__(piece=7)


def test_a_slow_link_is_no_dead_link(tmp_path: Path, sources: dict[str, Path]) -> None:
    device = supervisor(Links(Dribbling), tmp_path)
    assert device.push_all({"small": sources["small"]}).sent_bytes == FILES["small"]
    assert device.incidents == ()
    device.close()


def test_garbage_in_an_answer_is_a_lost_link(tmp_path: Path) -> None:
    device = supervisor(Links(Bad, Garbled), tmp_path)
    device.call("hello")
    assert device._connection is not None
    device._connection.close()
    assert device.call("run", argv=["echo", "x"])["out"] == "x\n"
    assert len(device.incidents) == 1
    device.close()


class Noisy(Bad):
    """Its login prints something first."""

    noise = b"Welcome to pi5\n\xff\n"

    def heard(self, data: bytes) -> bytes:
        noise, self.noise = self.noise, b""
        return noise + data


class Endless(Noisy):
    noise = b"Welcome to pi5\n" * 10_000


def test_a_login_may_print_something(tmp_path: Path) -> None:
    device = supervisor(Links(Noisy), tmp_path)
    assert device.call("hello")["protocol"] == 1
    device.close()


def test_a_login_that_prints_without_end_is_told(tmp_path: Path) -> None:
    device = supervisor(Links(Endless), tmp_path)
    with pytest.raises(DeviceError, match="Welcome to pi5"):
        device.call("hello")
    device.close()


def test_a_python_that_cannot_run_it_is_told(tmp_path: Path) -> None:
    device = supervisor(Links(functools.partial(Bad, read=-23)), tmp_path)
    with pytest.raises(TransientDeviceError, match="did not answer"):
        device.call("hello")
    device.close()


def test_the_first_connection_is_tried_once(tmp_path: Path) -> None:
    links = Links(then_dark=True)
    with pytest.raises(TransientDeviceError, match="no route to host"):
        supervisor(links, tmp_path).call("hello")


@pytest.mark.parametrize("what", ["push", "stream", "call"])
def test_a_link_that_stays_dead_is_told_after_patience(
    tmp_path: Path, sources: dict[str, Path], what: str
) -> None:
    links = Links(functools.partial(Bad, write=1500), then_dark=True)
    device = supervisor(links, tmp_path, patience_s=0.5)
    device.call("hello")

    def use() -> None:
        if what == "push":
            device.push_all(sources)
        elif what == "call":
            for _ in range(100):
                device.call("run", argv=["true"])
        else:
            with device.stream(["sleep", "0.2"], env={"A": "x" * 2000}, timeout_s=60) as stream:
                list(stream)

    with pytest.raises(TransientDeviceError, match=r"pi5: the link was lost .* tried \d+ times.*no route"):
        use()
    device.close()


def test_a_link_that_comes_back_only_to_die_is_given_up(tmp_path: Path) -> None:
    """Connecting is no progress."""
    makers = [functools.partial(Bad, write=400) for _ in range(100)]
    device = supervisor(Links(*makers), tmp_path, patience_s=1.0)
    device.call("hello")
    with pytest.raises(TransientDeviceError, match="tried"):
        device.call("run", argv=["echo", "x" * 3000])
    device.close()


def cut(device: Supervisor) -> None:
    assert device._connection is not None
    device._connection.close()


def test_a_lost_link_is_told_at_once_and_when_it_is_back(tmp_path: Path) -> None:
    device = supervisor(Links(), tmp_path)
    said: list[str] = []
    device.say = said.append
    device.call("hello")
    assert said == []
    cut(device)
    device.call("hello")
    assert said == [
        "pi5: the link is lost; waiting up to 30 s for it to come back",
        "pi5: the link is back after 0 s",
    ]
    device.close()


def test_a_link_that_is_lost_for_good_is_no_healed_one(tmp_path: Path) -> None:
    device = supervisor(Links(Bad, then_dark=True), tmp_path, patience_s=0.5)
    said: list[str] = []
    device.say = said.append
    device.call("hello")

    def use() -> None:
        with device.stream(["sleep", "600"], env={}, timeout_s=1) as stream:
            cut(device)
            list(stream)

    with pytest.raises(TransientDeviceError, match=r"did not come back .* times"):
        use()
    assert device.incidents == ()
    assert len(said) == 1
    device.close()
    assert eventually(lambda: standing_in(Path(tmp_path, "work")) == [])


def test_no_time_and_one_try_are_told_in_words(tmp_path: Path) -> None:
    device = supervisor(Links(Bad, then_dark=True), tmp_path, patience_s=0.0)
    device.call("hello")
    cut(device)
    with pytest.raises(TransientDeviceError, match="did not come back at once, tried once"):
        device.call("hello")
    device.close()


def test_a_device_that_hangs_is_a_lost_link(tmp_path: Path) -> None:
    """Nothing comes any more and nobody says so: the watchdog frees the reader."""
    links = Links(functools.partial(Bad, read=600, silent=True))
    device = supervisor(links, tmp_path, answer_s=0.5)
    for _ in range(20):
        assert device.call("run", argv=["echo", "x"])["out"] == "x\n"
    assert len(device.incidents) == 1
    assert "did not answer within 0.5 s" in device.incidents[0]
    hung = links.opened[0].pipe.pid
    assert eventually(lambda: not alive(hung))  # the new supervisor ended the one that hung
    device.close()
    links.forget()


class Reborn(Bad):
    """What it tells of the boot is another one."""

    def heard(self, data: bytes) -> bytes:
        real = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        return data.replace(real, b"00000000-0000-0000-0000-000000000000")


def test_a_restart_is_told_to_a_running_stream(tmp_path: Path) -> None:
    links = Links(Bad, Reborn)
    device = supervisor(links, tmp_path)
    device.call("hello")

    def use() -> None:
        with device.stream(["sleep", "600"], env={}, timeout_s=600) as stream:
            assert device._connection is not None
            device._connection.close()
            list(stream)

    with pytest.raises(DeviceRebooted, match="pi5 restarted"):
        use()
    assert standing_in(Path(device.workdir)) == []
    assert not list(Path(device.workdir, "jobs").iterdir())
    assert device.call("run", argv=["echo", "x"])["out"] == "x\n"
    with device.stream(["echo", "again"], env={}, timeout_s=60) as stream:
        assert list(stream) == ["again"]
    device.close()


def test_an_interrupt_in_a_wait_ends_the_agent(tmp_path: Path) -> None:
    """The answer to the wait is still under way when the end is asked for."""
    device = supervisor(Links(), tmp_path)
    device.call("hello")
    assert device._connection is not None
    ask = device._connection.answer

    def use() -> None:
        with device.stream(["sleep", "600"], env={}, timeout_s=600) as stream:
            assert device._connection is not None
            device._connection.answer = interrupted  # type: ignore[method-assign]
            list(stream)

    def interrupted(number: int, within_s: float = 0.0) -> tuple[dict[str, object], bytes]:
        assert device._connection is not None
        device._connection.answer = ask  # type: ignore[method-assign]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert standing_in(Path(device.workdir)) == []
    assert device.incidents == ()  # on the same connection
    assert device.call("run", argv=["echo", "x"])["out"] == "x\n"
    device.close()


def test_a_lease_is_renewed_while_the_host_is_busy(tmp_path: Path) -> None:
    device = supervisor(Links(), tmp_path)
    device.call("lease", action="take", owner=OWNER, period_s=0.6)
    path = Path(device.workdir, "lease.json")
    first = json.loads(path.read_text())["expires_s"]
    assert eventually(lambda: json.loads(path.read_text())["expires_s"] > first + 2)
    device.call("lease", action="release")
    device.close()
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name == "lease"])


def test_a_file_that_changes_under_a_push_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.transports import _push

    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    wrong = _push.Source(source, hashlib.sha256(b"before").hexdigest(), 1000)
    monkeypatch.setattr(_push, "sources", lambda files: dict.fromkeys(files, wrong))
    device = supervisor(Links(), tmp_path)
    with pytest.raises(DeviceError, match="other than it was sent, twice"):
        device.push(source, "name")
    assert not list(Path(device.workdir, "files").iterdir())
    device.close()


def test_a_pull_is_whole_or_not_there(tmp_path: Path, sources: dict[str, Path]) -> None:
    device = supervisor(Links(functools.partial(Bad, read=1_000_000)), tmp_path)
    device.push_all(sources)
    device.pull("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT[: FILES["big"]]
    assert len(device.incidents) == 1
    with pytest.raises(DeviceError, match="nothing"):
        device.pull("nothing", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    device.close()


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    device: Supervisor = supervisor(Links(), tmp_path)
    device.call("hello")
    device.close()
    with pytest.raises(DeviceError, match="was closed"):
        device.call("hello")
