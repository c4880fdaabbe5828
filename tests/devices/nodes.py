"""A device of the fleet: namespaces of its own, a real sshd, this machine's file system or an arm one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.devices.networks import Net, sh, wait_until

INIT = Path(__file__).with_name("device_init.py")
SFTP = "/usr/lib/openssh/sftp-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Userland:
    """A file system of another architecture and what its kernel is made to say."""

    lower: Path  # the extracted packages, never written to
    fake: Path | None = None  # a folder with proc/cpuinfo and sys: what such a device shows there
    overlay: Mapping[str, str] = field(
        default_factory=dict
    )  # path → text of files of its own (scripts: 0755)


@dataclass(frozen=True, slots=True)
class Process:
    """A live process of a device, numbered as on the host."""

    pid: int
    argv: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A running device."""

    name: str
    net: Net
    folder: Path  # on the host: keys, logs and what the device has written
    root: Path  # the device's / as the host sees it from within its mount namespace
    user_key: Path
    _unshare: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Its IP address; sshd listens on port 22."""
        return self.net.address

    @property
    def host_key(self) -> str:
        """Type and key as in known_hosts."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def init(self) -> int:
        """The device's PID 1, numbered as on the host."""
        return int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())

    @property
    def boot_id(self) -> str:
        """What the device's kernel says."""
        return (self.folder / "boot_id").read_text().strip()

    def processes(self, *words: str) -> list[Process]:
        """What lives there besides init and sshd, and has all *words* in its command line."""
        found = []
        for pid in self.net.pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                argv = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended just now
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            inner = facts["NSpid"].split()
            is_ours = len(inner) < 2 or inner[-1] == "1" or "sshd" in argv
            if not is_ours and not facts["State"].startswith(("Z", "X")) and all(w in argv for w in words):
                found.append(Process(pid, argv))
        return found

    def path(self, inner: str) -> Path:
        """A path of the device, reachable from the host while it runs."""
        return Path(f"/proc/{self.init}/root{self.root}") / inner.lstrip("/")

    def run(self, *command: str) -> str:
        """Run a program of the host in the device's namespaces, e.g. to mount something."""
        return sh("nsenter", "-t", str(self.init), "-m", "-p", "-n", "-u", *command)

    def restart_sshd(self) -> None:
        """Sshd ends with all its connections and starts again."""
        os.kill(self.init, signal.SIGUSR1)

    def reboot(self) -> None:
        """Everything ends, the boot id changes, sshd starts again; returns when the boot id has changed."""
        before = self.boot_id
        os.kill(self.init, signal.SIGUSR2)
        wait_until(lambda: self.boot_id not in {"", before}, f"{self.name} reboots")

    def new_host_key(self) -> None:
        """The device gets another host key, as after a new SD card."""
        for path in (self.folder / "host_key", self.folder / "host_key.pub"):
            path.unlink()
        keygen(self.folder / "host_key")
        (self.folder / "etc/host_key").write_bytes((self.folder / "host_key").read_bytes())
        self.restart_sshd()

    def wait_for_sshd(self, *, timeout_s: float = 60.0) -> None:
        """Until sshd greets."""

        def greets() -> bool:
            try:
                with socket.create_connection((self.address, 22), timeout=5) as connection:
                    return connection.recv(4) == b"SSH-"
            except OSError:
                assert self._unshare.poll() is None, (self.folder / "log").read_text()[-2000:]
                return False

        wait_until(greets, f"sshd of {self.name}", timeout_s=timeout_s)


def keygen(path: Path) -> None:
    """A new ed25519 key without passphrase."""
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


@contextmanager
def node(
    net: Net, folder: Path, user_key: Path, *, name: str, userland: Userland | None = None
) -> Iterator[Node]:
    """
    A device called *name* in *net*, ended with everything it ran.

    *folder* must be reachable by an ordinary user of the device. Users: root and pi, both with *user_key*.
    """
    folder.mkdir(mode=0o755, parents=True)
    keygen(folder / "host_key")
    etc = folder / "etc"
    etc.mkdir()
    shutil.copy(folder / "host_key", etc / "host_key")
    (etc / "authorized_keys").write_text(user_key.with_suffix(".pub").read_text())
    (folder / "run").mkdir()
    if userland:
        root, mounts = _arm(folder, userland)
    else:
        root, mounts = Path("/"), _native(folder)
    inner = "/etc/edgebench" if userland else str(etc)
    (etc / "sshd_config").write_text(_sshd_config(net.address, inner))
    config = {
        "hostname": name,
        "boot_id": str(folder / "boot_id"),
        "mounts": mounts,
        "run": str(folder / "run"),
        "enter": ["/usr/sbin/chroot", str(root)] if userland else [],
        "sshd": ["/usr/sbin/sshd", "-D", "-e", "-f", f"{inner}/sshd_config"],
        "down_s": 0.5,
    }
    (folder / "init.json").write_text(json.dumps(config))
    alone = ["unshare", "-m", "-p", "-u", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
    ends_with_us = ["setpriv", "--pdeathsig", "KILL"]
    init = [sys.executable, str(INIT), str(folder / "init.json")]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [*ends_with_us, *net.inside, *alone, *init],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is not for the device
        )
    try:
        device = Node(name=name, net=net, folder=folder, root=root, user_key=user_key, _unshare=child)
        device.wait_for_sshd()
        yield device
    finally:
        child.kill()  # and with it PID 1, and with that everything in its namespace
        child.wait()
        net.remove()


def _sshd_config(address: str, folder: str) -> str:
    lines = [
        f"ListenAddress {address}:22",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "PidFile none",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "UsePAM no",
        "UseDNS no",
        "StrictModes no",
        "PrintMotd no",
        "MaxStartups 100:30:200",
        "MaxSessions 100",
        "ClientAliveInterval 5",  # a dead host's session ends, as distributions configure it
        "ClientAliveCountMax 3",
        f"Subsystem sftp {SFTP}",
    ]
    return "\n".join(lines) + "\n"


def _native(folder: Path) -> list[list[str]]:
    """This machine's file system with homes, /run and a boot id of its own."""
    (folder / "root").mkdir(mode=0o700)
    (folder / "pi").mkdir(mode=0o700)
    os.chown(folder / "pi", 1000, 1000)
    lines = [
        line
        for line in Path("/etc/passwd").read_text().splitlines()
        if line.split(":")[2] not in {"0", "1000"}
    ]
    lines += [f"root:x:0:0:root:{folder}/root:/bin/bash", f"pi:x:1000:1000:pi:{folder}/pi:/bin/bash"]
    if not any(line.startswith("sshd:") for line in lines):
        lines.append("sshd:x:100:65534::/run/sshd:/usr/sbin/nologin")
    (folder / "passwd").write_text("\n".join(lines) + "\n")
    (folder / "shadow").write_text("root:*:19000::::::\npi:*:19000::::::\n")
    return [
        ["mount", "-t", "proc", "proc", "/proc"],
        ["mount", "--bind", str(folder / "boot_id"), "/proc/sys/kernel/random/boot_id"],
        ["mount", "--bind", str(folder / "passwd"), "/etc/passwd"],
        ["mount", "--bind", str(folder / "shadow"), "/etc/shadow"],
        ["mount", "--bind", str(folder / "run"), "/run"],
    ]


def _arm(folder: Path, userland: Userland) -> tuple[Path, list[list[str]]]:
    """(where its / is, how it is mounted): an overlay over the packages, its own /proc and /sys."""
    upper, work, root = folder / "upper", folder / "work", folder / "rootfs"
    for path in (upper, work, root):
        path.mkdir(mode=0o755)
    for inner, text in userland.overlay.items():
        path = upper / inner.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    (upper / "etc" / "edgebench").mkdir(parents=True, exist_ok=True)
    over = f"lowerdir={userland.lower},upperdir={upper},workdir={work}"
    mounts = [
        ["mount", "-t", "proc", "proc", "/proc"],  # for PID 1 itself
        ["mount", "-t", "overlay", "overlay", "-o", over, str(root)],
        ["mount", "-t", "proc", "proc", f"{root}/proc"],
        ["mount", "--bind", str(folder / "boot_id"), f"{root}/proc/sys/kernel/random/boot_id"],
        ["mount", "--rbind", "/dev", f"{root}/dev"],
        ["mount", "--bind", str(folder / "run"), f"{root}/run"],
        ["mount", "--bind", str(folder / "etc"), f"{root}/etc/edgebench"],
    ]
    if userland.fake:
        mounts.append(["mount", "--bind", str(userland.fake / "sys"), f"{root}/sys"])
        mounts.append(["mount", "--bind", str(userland.fake / "proc/cpuinfo"), f"{root}/proc/cpuinfo"])
    return root, mounts


def live(devices: Sequence[Node]) -> list[str]:
    """What still runs on any of the devices, one line each."""
    return [f"{device.name}: {process.argv}" for device in devices for process in device.processes()]
