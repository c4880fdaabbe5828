"""What can go wrong with a device, its link and its host: each waits for its point, then does the harm."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from tests.devices.nodes import keygen
from tests.devices.scenes import Scene

BLINK_S = 2.0  # how long a cut lasts that TCP itself gets over


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
