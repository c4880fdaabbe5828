"""
Real OpenSSH servers on loopback with throwaway keys, a link that can be cut, and an ssh-agent.

No root is needed, and the user's own ~/.ssh is never touched: a test has a HOME of its own. As root, a
server can also let an ordinary user in, who exists only inside that server's mount namespace.
"""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.core.types import Device

START_S = 20.0
SFTP = "/usr/lib/openssh/sftp-server"  # as Debian's own sshd_config says
PACKAGES = ("openssh-server", "openssh-sftp-server")
ROOT = os.geteuid() == 0


@functools.cache
def sshd() -> str:
    """The path of sshd: installed, or unpacked from Debian's package into the cache; else skip."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found:
        return found
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgebench-tests" / "openssh"
    unpacked = folder / "usr/sbin/sshd"
    if not unpacked.exists():
        _unpack(folder)
    return str(unpacked)


def _unpack(folder: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("there is no sshd, and no apt-get to download one")
    folder.mkdir(parents=True, exist_ok=True)
    got = subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"there is no sshd, and apt-get cannot download it: {got.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)


def need(*programs: str) -> None:
    """Skip the test when one of the *programs* is not installed."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "", comment: str = "test") -> Path:
    """A new key pair: *path* and *path*.pub."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def public(path: Path) -> str:
    """``type base64`` of a key pair."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


@dataclass(kw_only=True)
class Server:
    """One sshd. Its host key, its authorized keys and its log are files in its *folder*."""

    folder: Path
    port: int
    user: str
    config: Sequence[str] = ()
    passwd: Sequence[str] = ()  # more lines of /etc/passwd, for this server only; needs root
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def host_key(self) -> Path:
        return self.folder / "host_key"

    @property
    def known_line(self) -> str:
        """What known_hosts says about it."""
        return f"[127.0.0.1]:{self.port} {public(self.host_key)}\n"

    def authorize(self, key: Path) -> None:
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(public(key) + "\n")

    def start(self) -> None:
        lines = [
            f"ListenAddress 127.0.0.1:{self.port}",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'pid'}",
            *self.config,
            *(
                "UsePAM no",
                "StrictModes no",
                "UseDNS no",
                "PrintMotd no",
                "PermitRootLogin prohibit-password",
            ),
            *("PasswordAuthentication no", "KbdInteractiveAuthentication no"),
            *("MaxStartups 100:30:200", "MaxSessions 100", "LogLevel VERBOSE"),
            f"Subsystem sftp {SFTP if Path(SFTP).exists() else 'internal-sftp'}",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if ROOT:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [sshd(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        if self.passwd:
            ours = self.folder / "passwd"
            ours.write_text(Path("/etc/passwd").read_text() + "".join(f"{line}\n" for line in self.passwd))
            inside = 'mount --bind "$0" /etc/passwd && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", inside, str(ours), *command]
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not (self.folder / "pid").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd did not start: {self.log()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, with every session that it serves."""
        if self._process is None:
            return
        for pid in (*self.sessions(), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def sessions(self) -> list[int]:
        """The processes of sshd that serve a connection, at any depth, without what they started."""
        if self._process is None:
            return []
        found, new = [], [self._process.pid]
        while new:
            children = Path(f"/proc/{new[0]}/task/{new[0]}/children")
            pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
            new = [*new[1:], *(pid for pid in pids if _name(pid).startswith("sshd"))]
            found += [pid for pid in pids if _name(pid).startswith("sshd")]
        return found

    def signal_sessions(self, number: int) -> None:
        """SIGSTOP makes a device that hangs: its kernel still confirms what comes."""
        for pid in self.sessions():
            os.kill(pid, number)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


@dataclass(kw_only=True)
class Lab:
    """A HOME of its own with one key, and servers that let that key in."""

    folder: Path
    home: Path
    key: Path
    servers: list[Server] = field(default_factory=list)

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    def server(
        self, *config: str, trusted: bool = True, user: str = "", passwd: Sequence[str] = ()
    ) -> Server:
        """Start one more sshd; *trusted*: its host key is in known_hosts."""
        folder = self.folder / f"server{len(self.servers)}"
        folder.mkdir()
        user = user or getpass.getuser()
        server = Server(folder=folder, port=free_port(), user=user, config=config, passwd=passwd)
        new_key(server.host_key)
        server.authorize(self.key)
        server.start()
        self.servers.append(server)
        if trusted:
            self.trust(server)
        return server

    def ordinary(self, shell: str = "/bin/sh", password: str = "*", *config: str) -> Server:
        """An sshd that lets in an ordinary user with that login shell; only root can make one."""
        if not ROOT:
            pytest.skip("only root can make an sshd with a user of its own")
        home = self.folder / f"home{len(self.servers)}"
        home.mkdir()
        os.chown(home, 4242, 4242)
        return self.server(*config, user="tester", passwd=[f"tester:{password}:4242:4242::{home}:{shell}"])

    def trust(self, server: Server, port: int | None = None) -> None:
        line = server.known_line if port is None else f"[127.0.0.1]:{port} {public(server.host_key)}\n"
        with self.known_hosts.open("a") as file:
            file.write(line)

    def device(self, server: Server, name: str = "pi5", **more: Any) -> Device:
        """An entry of devices.yaml for *server*; its workdir is below the server's folder."""
        workdir = str(self.folder / "work" / name)
        options: Mapping[str, Any] = {"host": "127.0.0.1", "port": server.port, "user": server.user}
        options = {**options, "workdir": workdir, "connect_timeout_s": 10.0, "patience_s": 20.0, **more}
        return Device(name=name, transport="ssh", options=options)

    def close(self) -> None:
        for server in self.servers:
            server.stop()


@contextmanager
def agent(folder: Path, *keys: Path) -> Iterator[str]:
    """An ssh-agent that holds *keys*; the path of its socket."""
    path = folder / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for key in keys:
            env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
            subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, stdin=subprocess.DEVNULL)
        yield str(path)
    finally:
        process.kill()
        process.wait()
