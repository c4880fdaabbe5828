"""
Every fault ends as a typed cell or a whole run: nothing lost, nothing counted twice, nothing left running.

Each fault happens at a defined point: while a file is sent, or in the second block. After it the record, the
device's processes, its lease and its jobs are looked at; where the run could not end, the fault is mended and
``--resume`` must finish it, with the blocks from before the fault as they were.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.devices.conftest import StartNode
from tests.devices.hosts import Host
from tests.devices.nodes import keygen
from tests.devices.scenes import RUN, Scene, tiny_model

BLINK_S = 2.0  # how long a cut lasts that TCP itself gets over
Act = Callable[[Scene], object]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table."""

    name: str
    act: Act  # waits for its point, then does the harm
    mend: Act | None = None  # what a person would do before --resume; None: the run must be whole as it is
    status: str = "measured"  # of the cell when the command has ended
    reason: str = ""  # pattern in the reason, where it is not measured
    incidents: tuple[str, ...] = ()  # kinds of incidents, where it is measured
    before: Act | None = None  # prepares device and host before the run
    options: dict[str, Any] = field(default_factory=dict)  # of the device's entry
    big: bool = False  # a file that takes seconds to be sent
    timeout_s: float = 60.0  # of a block


def nothing(_: Scene) -> None:
    return


# --- the harm ---------------------------------------------------------------------------------------


def cut_in_push(scene: Scene) -> None:
    scene.in_push()
    scene.device.net.cut()


def cut_in_push_and_heal(scene: Scene) -> None:
    cut_in_push(scene)
    scene.wait_until_noticed()
    scene.device.net.heal()


def blink_in_push(scene: Scene) -> None:
    cut_in_push(scene)
    time.sleep(BLINK_S)
    scene.device.net.heal()


def cut_in_block(scene: Scene) -> None:
    scene.in_block()
    scene.device.net.cut()


def cut_in_block_and_heal(scene: Scene) -> None:
    cut_in_block(scene)
    scene.wait_until_noticed()
    assert not scene.agents(), "the block came to its end in the dark"
    scene.device.net.heal()


def blink_in_block(scene: Scene) -> None:
    cut_in_block(scene)
    time.sleep(BLINK_S)
    scene.device.net.heal()


def reset_in_push(scene: Scene) -> None:
    scene.in_push()
    scene.device.net.reset()


def reset_in_block(scene: Scene) -> None:
    scene.in_block()
    scene.device.net.reset()


def reboot_in_block(scene: Scene) -> None:
    scene.in_block()
    scene.device.reboot()


def restart_sshd_in_block(scene: Scene) -> None:
    scene.in_block()
    scene.device.restart_sshd()


def kill_agent(scene: Scene) -> None:
    os.kill(scene.in_block().pid, signal.SIGKILL)


def kill_agent_every_time(scene: Scene) -> None:
    pid = scene.in_block().pid
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):  # a block is tried three times
        pid = scene.next_agent(pid).pid
        os.kill(pid, signal.SIGKILL)


def hang_agent(scene: Scene) -> None:
    os.kill(scene.in_block().pid, signal.SIGSTOP)


def hang_agent_every_time(scene: Scene) -> None:
    pid = scene.in_block().pid
    os.kill(pid, signal.SIGSTOP)
    os.kill(scene.next_agent(pid).pid, signal.SIGSTOP)


def rubbish(scene: Scene) -> None:
    """The agent's file on the device becomes another program while block 1 runs."""
    scene.in_block(1)
    (agent,) = scene.workdir.glob("files/agent-*.py")
    agent.write_text(
        "import os, sys\nsys.stdout.buffer.write(b'{\"event\": ' + os.urandom(99_999) + b'\\n')\n"
    )


def kill_supervisor(scene: Scene) -> None:
    scene.in_block()
    (link,) = scene.workdir.glob("links/*")
    inner = json.loads(link.read_text())["pid"]
    (outer,) = (pid for pid in scene.device.net.pids() if inner_pid(pid) == inner)
    os.kill(outer, signal.SIGKILL)


def inner_pid(pid: int) -> int:
    """The number that a process has on the device."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


def fill_disk_in_block(scene: Scene) -> None:
    scene.in_block()
    fill(scene)


def host_dies_in_block(scene: Scene) -> None:
    scene.in_block()
    scene.interrupt(signal.SIGKILL)


def host_dies_in_push(scene: Scene) -> None:
    scene.in_push()
    scene.interrupt(signal.SIGKILL)


def ctrl_c(scene: Scene) -> None:
    scene.in_block()
    scene.interrupt()


def ctrl_c_twice(scene: Scene) -> None:
    scene.in_block()
    scene.interrupt()
    time.sleep(0.2)  # as fast as a hand can
    scene.interrupt()


def ctrl_c_while_dark(scene: Scene) -> None:
    cut_in_block(scene)
    scene.interrupt()


def change_host_key(scene: Scene) -> None:
    scene.in_block()
    scene.device.new_host_key()


# --- before the run, and after it -------------------------------------------------------------------


def slow(scene: Scene) -> None:
    scene.device.net.rate(40)


def slow_and_lossy(scene: Scene) -> None:
    scene.device.net.rate(40)
    scene.device.net.loss(0.03)


def small_disk(scene: Scene) -> None:
    """A disk of its own below the work folder."""
    scene.workdir.mkdir()
    scene.device.run("mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(scene.workdir))
    scene.options["python"] = scene.entry()["python"]


def read_only_disk(scene: Scene) -> None:
    small_disk(scene)
    scene.device.run("mount", "-o", "remount,ro", str(scene.workdir))


def fill(scene: Scene) -> None:
    target = scene.device.path(str(scene.workdir)) / "other"
    with target.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            return
    raise AssertionError("the disk never became full")


def make_room(scene: Scene) -> None:
    scene.device.run("mount", "-o", "remount,size=200m", str(scene.workdir))


def make_writable(scene: Scene) -> None:
    scene.device.run("mount", "-o", "remount,rw", str(scene.workdir))


def heal(scene: Scene) -> None:
    scene.device.net.heal()


def wrong_host_key(scene: Scene) -> None:
    keygen(scene.host.home / "other")
    other = (scene.host.home / "other.pub").read_text().split()
    scene.host.knows([f"{scene.device.address} {other[0]} {other[1]}"])


def no_host_key(scene: Scene) -> None:
    scene.host.knows([])


def wrong_user_key(scene: Scene) -> None:
    keygen(scene.host.home / "stranger")
    scene.options["identity"] = str(scene.host.home / "stranger")


def right_user_key(scene: Scene) -> None:
    scene.options["identity"] = str(scene.device.user_key)
    scene.host.has_devices({"device": scene.entry()})


def trust(scene: Scene) -> None:
    scene.host.knows([f"{scene.device.address} {scene.device.host_key}"])


def dark(scene: Scene) -> None:
    scene.device.net.loss(1.0)


def refusing(scene: Scene) -> None:
    scene.device.net.refuse()


DISK = {"workdir": "DEVICE/disk"}
FAULTS = (
    Fault(name="no fault", act=nothing),
    Fault(name="slow link that loses 3 % in push", act=nothing, before=slow_and_lossy, big=True),
    Fault(name="link cut in push for a moment", act=blink_in_push, before=slow, big=True),
    Fault(
        name="link cut in push, healed",
        act=cut_in_push_and_heal,
        before=slow,
        options={"patience_s": 60},
        big=True,
        incidents=("reconnected",),
    ),
    Fault(
        name="link cut in push, for good",
        act=cut_in_push,
        before=slow,
        big=True,
        status="lost_device",
        reason="did not come back|cannot be reached|does not answer",
        mend=heal,
    ),
    Fault(name="link cut in a block for a moment", act=blink_in_block),
    Fault(
        name="link cut in a block, healed",
        act=cut_in_block_and_heal,
        options={"patience_s": 60},
        incidents=("reconnected",),
    ),
    Fault(
        name="link cut in a block, for good",
        act=cut_in_block,
        status="lost_device",
        reason="did not come back|cannot be reached|does not answer",
        mend=heal,
    ),
    Fault(name="TCP reset in push", act=reset_in_push, before=slow, big=True, incidents=("reconnected",)),
    Fault(name="TCP reset in a block", act=reset_in_block, incidents=("reconnected",)),
    Fault(name="device reboots in a block", act=reboot_in_block, incidents=("rebooted",)),
    Fault(name="sshd restarts in a block", act=restart_sshd_in_block, incidents=("reconnected",)),
    Fault(name="supervisor killed", act=kill_supervisor, incidents=("reconnected",)),
    Fault(name="agent killed", act=kill_agent, incidents=("retried",)),
    Fault(
        name="agent killed every time",
        act=kill_agent_every_time,
        status="agent_failed",
        reason="SIGKILL",
        mend=nothing,
    ),
    Fault(name="agent hangs", act=hang_agent, timeout_s=8, incidents=("retried",)),
    Fault(
        name="agent hangs every time",
        act=hang_agent_every_time,
        timeout_s=8,
        status="timeout",
        reason="did not end within 8 s",
        mend=nothing,
    ),
    Fault(name="agent prints rubbish", act=rubbish, status="agent_failed", mend=nothing),
    Fault(
        name="disk full in push",
        act=nothing,
        before=small_disk,
        options=DISK,
        big=True,
        status="push_failed",
        reason="No space left",
        mend=make_room,
    ),
    Fault(
        name="disk full in a block",
        act=fill_disk_in_block,
        before=small_disk,
        options=DISK,
        status="lost_device",
        reason="No space left",
        mend=make_room,
    ),
    Fault(
        name="read-only workdir",
        act=nothing,
        before=read_only_disk,
        options=DISK,
        status="not_ready",
        reason="Read-only file system",
        mend=make_writable,
    ),
    Fault(
        name="wrong host key",
        act=nothing,
        before=wrong_host_key,
        status="lost_device",
        reason="host key",
        mend=trust,
    ),
    Fault(
        name="unknown host key",
        act=nothing,
        before=no_host_key,
        status="lost_device",
        reason="devices trust device",
        mend=trust,
    ),
    Fault(
        name="host key changed",
        act=change_host_key,
        status="lost_device",
        reason="host key",
        mend=trust,
    ),
    Fault(
        name="wrong user key",
        act=nothing,
        before=wrong_user_key,
        status="lost_device",
        reason="key",
        mend=right_user_key,
    ),
    Fault(
        name="dark host", act=nothing, before=dark, status="lost_device", reason="does not answer", mend=heal
    ),
    Fault(
        name="host that refuses",
        act=nothing,
        before=refusing,
        status="lost_device",
        reason="refuses",
        mend=heal,
    ),
    Fault(name="host process killed in a block", act=host_dies_in_block, status="interrupted", mend=nothing),
    Fault(
        name="host process killed in push",
        act=host_dies_in_push,
        before=slow,
        big=True,
        status="interrupted",
        mend=nothing,
    ),
    Fault(name="Ctrl-C", act=ctrl_c, status="interrupted", mend=nothing),
    Fault(name="Ctrl-C twice", act=ctrl_c_twice, status="interrupted", mend=nothing),
    Fault(name="Ctrl-C while the device is dark", act=ctrl_c_while_dark, status="interrupted", mend=heal),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """big → an .onnx file."""
    folder = tmp_path_factory.mktemp("models")
    return {
        False: tiny_model(folder / "small.onnx", parameters=64_000),
        True: tiny_model(folder / "big.onnx", parameters=4_000_000),
    }


@pytest.fixture
def scene(start: StartNode, tmp_path: Path, models: dict[bool, Path]) -> Iterator[Scene]:
    made = Scene(device=start("device"), host=Host(tmp_path), model=models[False])
    yield made
    made.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_ends_as_a_typed_cell_or_a_whole_run(
    fault: Fault, scene: Scene, models: dict[bool, Path]
) -> None:
    scene.model = models[fault.big]
    scene.timeout_s = fault.timeout_s
    scene.options |= {
        key: value.replace("DEVICE", str(scene.device.folder)) if key == "workdir" else value
        for key, value in fault.options.items()
    }
    if fault.before:
        fault.before(scene)
    scene.begin()
    fault.act(scene)
    ended = scene.end()
    record = scene.record()
    print(f"{fault.name}: {record.status}: {record.reason} {[i.text for i in record.incidents]}")  # noqa: T201
    assert record.status == fault.status, ended
    if fault.status == "measured":
        assert ended.exit_code == 0, ended
        scene.is_complete()
        kinds = {incident.kind for incident in record.incidents}
        assert set(fault.incidents) <= kinds if fault.incidents else not kinds, record.incidents
    else:
        assert re.search(fault.reason, str(record.reason), re.IGNORECASE), record.reason
    scene.is_clean()
    if fault.mend:
        fault.mend(scene)
        resumed = scene.resume()
        assert resumed.exit_code == 0, resumed
        scene.is_complete()
        scene.is_clean()


def test_two_hosts_at_once(scene: Scene, tmp_path: Path) -> None:
    """The second one is told who has the device; when it waits, both runs are whole."""
    second = Scene(device=scene.device, host=Host(tmp_path / "second"), model=scene.model)
    second.host.home.mkdir()
    scene.begin()
    scene.in_block(1)
    second.begin()
    assert second.end().exit_code == 3
    record = second.record()
    assert record.status == "not_ready"
    assert f"pid {scene.child.pid if scene.child else 0}, run {RUN}" in str(record.reason)
    assert record.blocks == ()
    assert second.host.run("bench", "--resume", RUN, "--wait-for-device", "60").exit_code == 0
    assert scene.end().exit_code == 0
    scene.is_complete()
    second.is_complete()
    scene.is_clean()
