"""
Every fault ends as a typed cell or a whole run: nothing lost, nothing counted twice, nothing left running.

Each fault happens at a defined point: while a file is sent, or in the second block. After it the record, the
device's processes, its lease and its jobs are looked at; where the run could not end, the fault is mended and
``--resume`` must finish it, with the blocks from before the fault as they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.devices import harms
from tests.devices.conftest import StartNode
from tests.devices.hosts import Host
from tests.devices.scenes import RUN, Scene, tiny_model

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


DISK = {"workdir": "DEVICE/disk"}
FAULTS = (
    Fault(name="no fault", act=harms.nothing),
    Fault(name="slow link that loses 3 % in push", act=harms.nothing, before=harms.slow_and_lossy, big=True),
    Fault(name="link cut in push for a moment", act=harms.blink_in_push, before=harms.slow, big=True),
    Fault(
        name="link cut in push, healed",
        act=harms.cut_in_push_and_heal,
        before=harms.slow,
        options={"patience_s": 60},
        big=True,
        incidents=("reconnected",),
    ),
    Fault(
        name="link cut in push, for good",
        act=harms.cut_in_push,
        before=harms.slow,
        big=True,
        status="lost_device",
        reason="did not come back|cannot be reached|does not answer",
        mend=harms.heal,
    ),
    Fault(name="link cut in a block for a moment", act=harms.blink_in_block),
    Fault(
        name="link cut in a block, healed",
        act=harms.cut_in_block_and_heal,
        options={"patience_s": 60},
        incidents=("reconnected",),
    ),
    Fault(
        name="link cut in a block, for good",
        act=harms.cut_in_block,
        status="lost_device",
        reason="did not come back|cannot be reached|does not answer",
        mend=harms.heal,
    ),
    Fault(
        name="TCP reset in push",
        act=harms.reset_in_push,
        before=harms.slow,
        big=True,
        incidents=("reconnected",),
    ),
    Fault(name="TCP reset in a block", act=harms.reset_in_block, incidents=("reconnected",)),
    Fault(name="device reboots in a block", act=harms.reboot_in_block, incidents=("rebooted",)),
    Fault(name="sshd restarts in a block", act=harms.restart_sshd_in_block, incidents=("reconnected",)),
    Fault(name="supervisor killed", act=harms.kill_supervisor, incidents=("reconnected",)),
    Fault(name="agent killed", act=harms.kill_agent, incidents=("retried",)),
    Fault(
        name="agent killed every time",
        act=harms.kill_agent_every_time,
        status="agent_failed",
        reason="SIGKILL",
        mend=harms.nothing,
    ),
    Fault(name="agent hangs", act=harms.hang_agent, timeout_s=8, incidents=("retried",)),
    Fault(
        name="agent hangs every time",
        act=harms.hang_agent_every_time,
        timeout_s=8,
        status="timeout",
        reason="did not end within 8 s",
        mend=harms.nothing,
    ),
    Fault(name="agent prints rubbish", act=harms.rubbish, status="agent_failed", mend=harms.nothing),
    Fault(
        name="disk full in push",
        act=harms.nothing,
        before=harms.small_disk,
        options=DISK,
        big=True,
        status="push_failed",
        reason="No space left",
        mend=harms.make_room,
    ),
    Fault(
        name="disk full in a block",
        act=harms.fill_disk_in_block,
        before=harms.small_disk,
        options=DISK,
        status="agent_failed",
        reason="No space left",
        mend=harms.make_room,
    ),
    Fault(
        name="read-only workdir",
        act=harms.nothing,
        before=harms.read_only_disk,
        options=DISK,
        status="not_ready",
        reason="Read-only file system",
        mend=harms.make_writable,
    ),
    Fault(
        name="wrong host key",
        act=harms.nothing,
        before=harms.wrong_host_key,
        status="lost_device",
        reason="host key",
        mend=harms.trust,
    ),
    Fault(
        name="unknown host key",
        act=harms.nothing,
        before=harms.no_host_key,
        status="lost_device",
        reason="devices trust device",
        mend=harms.trust,
    ),
    Fault(
        name="host key changed",
        act=harms.change_host_key,
        status="lost_device",
        reason="host key",
        mend=harms.trust,
    ),
    Fault(
        name="wrong user key",
        act=harms.nothing,
        before=harms.wrong_user_key,
        status="lost_device",
        reason="key",
        mend=harms.right_user_key,
    ),
    Fault(
        name="dark host",
        act=harms.nothing,
        before=harms.dark,
        status="lost_device",
        reason="does not answer",
        mend=harms.heal,
    ),
    Fault(
        name="host that refuses",
        act=harms.nothing,
        before=harms.refusing,
        status="lost_device",
        reason="refuses",
        mend=harms.heal,
    ),
    Fault(
        name="host process killed in a block",
        act=harms.host_dies_in_block,
        status="interrupted",
        mend=harms.nothing,
    ),
    Fault(
        name="host process killed in push",
        act=harms.host_dies_in_push,
        before=harms.slow,
        big=True,
        status="interrupted",
        mend=harms.nothing,
    ),
    Fault(name="Ctrl-C", act=harms.ctrl_c, status="interrupted", mend=harms.nothing),
    Fault(name="Ctrl-C twice", act=harms.ctrl_c_twice, status="interrupted", mend=harms.nothing),
    Fault(
        name="Ctrl-C while the device is dark",
        act=harms.ctrl_c_while_dark,
        status="interrupted",
        mend=harms.heal,
    ),
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
