"""A fleet in network namespaces: one bridge, and per device a namespace whose link can be cut and slowed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

SLOTS = 64  # sessions of tests that may run at the same time on one machine
LOCKS = Path("/run/edgebench-devices")


def sh(*command: str, check: bool = True) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 30.0) -> None:
    """Until *condition* is true; AssertionError naming *what* when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


class Net:
    """The network namespace of one device and its link to the host's bridge."""

    def __init__(self, *, slot: int, number: int) -> None:
        self.name = f"edgebench{slot}-{number}"
        self.address = f"10.213.{slot}.{10 + number}"
        self._host_end = f"eb{slot}v{number}"
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self._host_end, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "link", "set", self._host_end, "master", f"eb{slot}br", "up")
        sh("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        sh("ip", "-n", self.name, "link", "set", "eth0", "up")
        sh("ip", "-n", self.name, "link", "set", "lo", "up")

    @property
    def inside(self) -> list[str]:
        """What to put before a command that shall run in this namespace."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Pull the cable: packets of both directions are lost, nobody is told."""
        sh("ip", "link", "set", self._host_end, "down")

    def heal(self) -> None:
        """Put the cable back; loss, rate and resets end as well."""
        sh("ip", "link", "set", self._host_end, "up")
        sh(*self.inside, "iptables", "-F")
        sh("tc", "qdisc", "del", "dev", self._host_end, "root", check=False)  # there may be none
        sh("tc", "-n", self.name, "qdisc", "del", "dev", "eth0", "root", check=False)

    def reset(self) -> None:
        """Answer the next packet of every connection to sshd with a TCP reset; then all passes again."""
        rules = (("INPUT", "--dport"), ("OUTPUT", "--sport"))
        # the resets themselves must pass
        reject = ("!", "--tcp-flags", "RST", "RST", "-j", "REJECT", "--reject-with", "tcp-reset")
        doomed = self._connections()
        assert doomed, "there is no connection to be reset"
        for chain, port in rules:
            sh(*self.inside, "iptables", "-I", chain, "-p", "tcp", port, "22", *reject)
        try:
            wait_until(lambda: not doomed & self._connections(), "every connection is reset")
        finally:
            for chain, port in rules:
                sh(*self.inside, "iptables", "-D", chain, "-p", "tcp", port, "22", *reject)

    def _connections(self) -> set[str]:
        """The peers of established connections to sshd."""
        lines = sh(*self.inside, "ss", "-Htn", "state", "established", "sport", "=", ":22").splitlines()
        return {line.split()[-1] for line in lines}

    def refuse(self) -> None:
        """Answer every packet with a TCP reset until it is healed."""
        sh(*self.inside, "iptables", "-I", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")

    def loss(self, share: float) -> None:
        """Lose this share of the packets that come in."""
        rule = ("-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP")
        sh(*self.inside, "iptables", "-A", "INPUT", *rule)

    def rate(self, mbit: float) -> None:
        """Let no more than *mbit* Mbit/s pass, each way."""
        shape = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "32kb", "latency", "100ms")
        sh("tc", "qdisc", "replace", "dev", self._host_end, *shape)
        sh("tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", *shape)

    def pids(self) -> list[int]:
        """The processes in it, zombies too, numbered as on the host."""
        return [int(word) for word in sh("ip", "netns", "pids", self.name).split()]

    def remove(self) -> None:
        """End everything in it, then the namespace with its link."""
        _remove(self.name)


class Fleet:
    """The bridge and its namespaces."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._count = 0
        sh("ip", "link", "add", f"eb{slot}br", "type", "bridge")
        sh("ip", "address", "add", f"10.213.{slot}.1/24", "dev", f"eb{slot}br")
        sh("ip", "link", "set", f"eb{slot}br", "up")

    def net(self) -> Net:
        """A new namespace with an address of its own."""
        self._count += 1
        return Net(slot=self._slot, number=self._count)

    def dark_address(self) -> str:
        """An address of the fleet's network at which nobody is."""
        return f"10.213.{self._slot}.254"


@contextmanager
def fleet() -> Iterator[Fleet]:
    """A fleet of its own for this process; what sessions that died have left behind is removed first."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    mine: filelock.FileLock | None = None
    left = {int(number) for number in re.findall(r"(?m)^edgebench(\d+)-", _names())}
    for slot in range(SLOTS):
        if mine and slot not in left:
            continue
        lock = filelock.FileLock(LOCKS / f"{slot}.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            continue  # a session that lives
        _clear(slot)
        if mine:
            lock.release()
        else:
            mine, number = lock, slot
    assert mine, f"{SLOTS} sessions of test devices run already"
    try:
        yield Fleet(number)
    finally:
        _clear(number)
        mine.release()


def _names() -> str:
    return sh("ip", "netns", "list")


def _clear(slot: int) -> None:
    """Remove every namespace and link of a slot."""
    for line in _names().splitlines():
        if line.startswith(f"edgebench{slot}-"):
            _remove(line.split()[0])

    def left() -> list[str]:
        names = [link["ifname"] for link in json.loads(sh("ip", "-json", "link"))]
        return [name for name in names if re.fullmatch(rf"eb{slot}(br|v\d+)", name)]

    for name in left():
        sh("ip", "link", "del", name, check=False)  # a namespace takes its links along, a moment later
    wait_until(lambda: not left(), f"the links of slot {slot} are gone")


def _remove(namespace: str) -> None:
    def left() -> list[str]:
        return sh("ip", "netns", "pids", namespace).split()

    for pid in left():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not any(map(_alive, left())), f"{namespace} has no processes")
    sh("ip", "netns", "del", namespace)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
