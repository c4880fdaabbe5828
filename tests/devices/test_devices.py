"""The test devices are what they claim to be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.devices import device_trees, networks
from tests.devices.conftest import StartNode
from tests.devices.machines import Machine
from tests.devices.networks import sh, wait_until
from tests.devices.nodes import Node, Userland


def ssh_command(device: Node) -> list[str]:
    known = device.folder / "known_hosts"
    known.write_text(f"{device.address} {device.host_key}\n")
    options = ["-i", str(device.user_key), "-o", f"UserKnownHostsFile={known}", "-F", "/dev/null"]
    return ["ssh", *options, "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=1"]


def ssh(device: Node, command: str, *, user: str = "root", timeout_s: float = 60) -> str:
    done = subprocess.run(
        [*ssh_command(device), f"{user}@{device.address}", command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    return done.stdout


def test_a_native_device_has_homes_processes_and_a_boot_id_of_its_own(start: StartNode) -> None:
    one, two = start("one"), start("two")
    assert ssh(one, "cd; pwd").strip() != ssh(two, "cd; pwd").strip()
    assert ssh(one, "id -un; hostname", user="pi").split() == ["pi", "one"]
    assert ssh(one, "cat /proc/sys/kernel/random/boot_id").strip() == one.boot_id != two.boot_id
    assert one.processes() == []
    child = subprocess.Popen(
        [*ssh_command(one), f"root@{one.address}", "exec sleep 54321"],
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: one.processes("sleep", "54321"), "the process is seen")
        assert two.processes() == []
        before = one.boot_id
        one.reboot()
        assert child.wait(10) != 0
        one.wait_for_sshd()
        assert one.processes() == []
        assert ssh(one, "cat /proc/sys/kernel/random/boot_id").strip() == one.boot_id != before
    finally:
        child.kill()
        child.wait()


def test_sshd_restarts_and_what_it_started_goes_on(start: StartNode) -> None:
    device = start("one")
    ssh(device, "setsid sleep 54321 >/dev/null 2>&1 & echo started")
    device.restart_sshd()
    device.wait_for_sshd()
    assert len(device.processes("sleep")) == 1


def test_a_cut_link_is_silent_and_a_reset_is_not(start: StartNode) -> None:
    device = start("one")
    with socket.create_connection((device.address, 22), timeout=5) as connection:
        assert connection.recv(100).startswith(b"SSH-")
        connection.settimeout(0.5)
        device.net.cut()
        connection.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        device.net.heal()
        connection.settimeout(20)
        assert connection.recv(100)  # the same connection goes on
    with ThreadPoolExecutor() as pool:
        session = pool.submit(ssh, device, "exec sleep 30")
        wait_until(lambda: device.processes("sleep"), "the session works")
        device.net.reset()  # waits for its next keep-alive
        with pytest.raises(AssertionError, match="exit code 255"):
            session.result()
    device.net.loss(1.0)
    with pytest.raises(TimeoutError):
        socket.create_connection((device.address, 22), timeout=0.5)
    device.net.heal()
    device.net.rate(8)
    assert ssh(device, "echo slow") == "slow\n"
    device.net.heal()
    assert ssh(device, "echo fast") == "fast\n"


def test_what_a_killed_session_left_behind_is_removed(place: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from tests.devices.networks import fleet\n"
        "with fleet() as made:\n"
        "    net = made.net()\n"
        "    os.system(f'ip netns exec {net.name} sleep 54321 >/dev/null & echo {net.name}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    left = done.stdout.strip()
    wait_until(lambda: sh("ip", "netns", "pids", left), "what it had started runs")
    pids = sh("ip", "netns", "pids", left).split()
    with networks.fleet():
        assert left not in sh("ip", "netns", "list").split()
        wait_until(lambda: not os.path.exists(f"/proc/{pids[0]}"), "its process ended")  # noqa: PTH110


@pytest.mark.parametrize("user", ["root", "pi"])
def test_a_pi5_is_one_to_those_who_ask(start: StartNode, pi5: Userland, user: str) -> None:
    device = start("pi5", userland=pi5)
    said = ssh(device, "uname -m; getconf LONG_BIT; vcgencmd get_throttled", user=user).split()
    assert said == ["aarch64", "64", "throttled=0x0"]
    assert device_trees.PI5_MODEL in ssh(
        device, "cat /proc/cpuinfo /sys/firmware/devicetree/base/model", user=user
    )
    assert "3.11" in ssh(device, "python3 --version", user=user)
    flags = ssh(device, "env -i LD_SHOW_AUXV=1 /bin/true", user=user)
    assert "ilrcpc" not in flags  # not qemu's "max", whose int8 kernels are wrong
    missing = ssh(device, "python3 -c 'import numpy' 2>&1 || true", user=user)
    assert "ModuleNotFoundError" in missing
    assert ssh(device, "echo x > ~/file; cat ~/file; head -c2 /dev/urandom | wc -c", user=user).split() == [
        "x",
        "2",
    ]


def test_two_of_one_userland_share_nothing_that_is_written(
    start: StartNode, pi5: Userland, orin: Userland
) -> None:
    one, two = start("one", userland=pi5), start("two", userland=orin)
    ssh(one, "echo x > /root/file")
    assert ssh(two, "ls /root") == ""
    assert one.path("/root/file").read_text() == "x\n"
    said = ssh(
        two, "nvpmodel -m 2; nvpmodel -q; jetson_clocks --show | tail -1; timeout 1 tegrastats || true"
    )
    assert "NV Power Mode: MAXN_SUPER\n2\n" in said
    assert "VDD_IN 6030mW/6030mW" in said
    assert not Path(f"/proc/self/root{one.root}/usr").exists()  # mounted in its own namespace only


def test_a_32_bit_pi_is_one(start: StartNode, pi3: Userland) -> None:
    device = start("pi3", userland=pi3)
    code = "import numpy, platform; print(platform.machine(), numpy.dot([1, 2], [3, 4]))"
    assert ssh(device, f'getconf LONG_BIT; python3 -c "{code}"', user="pi").split() == ["32", "armv7l", "11"]
    assert device_trees.PI3_MODEL in ssh(device, "cat /proc/cpuinfo")


def test_a_machine_has_its_own_kernel_and_survives_a_reset(vm: Machine) -> None:
    assert vm.run("uname -rm").split()[1] == "aarch64"
    before = vm.boot_id
    vm.run("echo kept > /root/kept; sync")
    vm.monitor("system_reset")
    wait_until(lambda: answers_with_another(vm, before), "the machine booted again", timeout_s=120)
    assert vm.run("cat /root/kept") == "kept\n"
    vm.monitor("set_link n0 off")
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        vm.run("true", timeout_s=3)
    vm.monitor("set_link n0 on")
    vm.wait_for_sshd()
    assert vm.processes() == []


def answers_with_another(vm: Machine, boot_id: str) -> bool:
    try:
        return vm.boot_id != boot_id
    except (AssertionError, subprocess.TimeoutExpired):
        return False
