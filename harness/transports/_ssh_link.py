"""One connection to an ssh device: the way there, the host keys on it, and a program at its end."""

from __future__ import annotations

import ast
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.errors import DeviceError, TransientDeviceError
from harness.transports import _ssh_known, _ssh_socket
from harness.transports._ssh_auth import Secrets, log_in
from harness.transports._ssh_config import Target
from harness.transports._ssh_way import PACKET_BYTES, WINDOW_BYTES, Heard, Way, listening

if TYPE_CHECKING:
    import paramiko

NOISE_BYTES = 1 << 20  # what a login shell may print before our program speaks
ERROR_BYTES = 4000
EXIT_S = 5.0
#: Fast first: AES-GCM needs no second pass for a checksum. Old and broken ones are not offered.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
MIN_PYTHON = (3, 8)
_SILENCE = logging.NullHandler()
#: Says that the interpreter runs, and which it is. It stands inside single quotes and has no character that
#: sh, bash, dash, zsh, fish or csh treats specially there.
HERE = (
    'import os,sys;os.write(1,("\\n%s %d %d %r\\n"%("{mark}",sys.version_info[0],sys.version_info[1],'
    'sys.executable)).encode("utf-8","replace"));'
)


@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter that answered."""

    path: str  # absolute, as it says itself
    version: tuple[int, int]


class Link:
    """A Link to a program on the device: its standard input and output. OSError when it is dead."""

    def __init__(self, channel: paramiko.Channel, way: Way) -> None:
        self._channel = channel
        self._way = way
        self._early = b""  # was read together with what came before it

    def read(self, n: int, /) -> bytes:
        """Between 1 and *n* bytes, as soon as there are any; none at the end."""
        if self._early:
            data, self._early = self._early[:n], self._early[n:]
            return data
        data = self._channel.recv(n)
        if not data and (why := self._way.why_lost()):
            raise ConnectionError(why)
        return data

    def write(self, data: bytes, /) -> None:
        """All of it."""
        import paramiko

        view = memoryview(data)
        try:
            while view:
                # A slice of a view is no copy; a whole packet at a time is what the server takes.
                sent = self._channel.send(view[:PACKET_BYTES])  # type: ignore[arg-type]
                if not sent:
                    raise ConnectionError(self._way.why_lost() or "the program at the other end has ended")
                view = view[sent:]
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise ConnectionError(self._way.why_lost() or str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Let go of the whole way; frees who is blocked in read or write, and never blocks itself."""
        self._way.close()

    def pushed_back(self, data: bytes) -> None:
        """Give *data* to the next read."""
        self._early = data + self._early

    def wait_for_answer(self, timeout_s: float | None) -> None:
        """How long a read may take; None: for ever (a lost link ends it all the same)."""
        self._channel.settimeout(timeout_s)

    def ended(self) -> tuple[int, str]:
        """Exit code (-1: unknown) and the last words of a program that is over."""
        self._channel.status_event.wait(EXIT_S)  # a server says the code after the end of the output
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else -1
        words = bytearray()
        while len(words) < NOISE_BYTES and self._channel.recv_stderr_ready():
            words += self._channel.recv_stderr(ERROR_BYTES)
        return code, words[-ERROR_BYTES:].decode("utf-8", "replace").strip()


def open_way(targets: Sequence[Target], secrets_: Secrets, timeout_s: float, *, again: bool = False) -> Way:
    """
    Connect and log in through every target in turn.

    *again*: it worked before with the same keys, so a name that does not resolve and a log-in that is
    refused are the device starting up, and transient. Else DeviceError is stable: name, host key, log-in.
    """
    way = Way(targets[-1].name)
    try:
        for target in targets:
            with sentences(target, again=again):
                transport = handshake(target, way.last, way.heard, timeout_s)
                way.add(transport)
                _ssh_known.check(target, _ssh_known.of_paramiko(transport.get_remote_server_key()))
                transport.auth_timeout = timeout_s
                log_in(transport, target, secrets_)
        way.watch()
    except BaseException:
        way.close()
        raise
    return way


def handshake(
    target: Target,
    before: paramiko.Transport | None,
    heard: Heard,
    timeout_s: float,
    key_types: Sequence[str] = (),
) -> paramiko.Transport:
    """
    A connection up to the point where the server has proved that it owns the key that it shows.

    *before* leads to the host in front of it. Raises what paramiko and sockets raise.
    """
    import paramiko

    logging.getLogger("paramiko").addHandler(_SILENCE)  # what fails is ours to tell
    sock = _ssh_socket.dial(target, before, timeout_s)
    try:
        transport = paramiko.Transport(
            sock, default_window_size=WINDOW_BYTES, packetizer_class=listening(heard)
        )
    except BaseException:
        sock.close()
        raise
    try:
        transport.banner_timeout = transport.handshake_timeout = transport.channel_timeout = timeout_s
        options = transport.get_security_options()
        options.ciphers = CIPHERS
        options.digests = DIGESTS
        options.key_types = key_types or _preferred(target, options.key_types)
        # Greeting and handshake have a limit each, and say which one it was that took too long.
        transport.start_client(timeout=2 * timeout_s)
        if transport.host_key is None:  # start_client() returns when its time is over
            raise TimeoutError
    except BaseException:
        transport.close()
        raise
    return transport


def _preferred(target: Target, offered: Sequence[str]) -> tuple[str, ...]:
    """Host key types with the known ones first, so that the server shows the key that we know."""
    types = {entry.key.type for entry in _ssh_known.known(target) if not entry.revoked}
    known = [t for t in offered if t in types or ("ssh-rsa" in types and t.startswith("rsa-sha2"))]
    return (*known, *(t for t in offered if t not in known))


@contextmanager
def sentences(target: Target, *, again: bool = False) -> Iterator[None]:
    """Turn what a connection can fail with into one sentence each."""
    import paramiko

    try:
        yield
    except (TransientDeviceError, _ssh_known.HostKeyError):
        raise
    except DeviceError as error:  # no address, or not let in
        if again:
            raise TransientDeviceError(error.message, hint=error.hint) from error
        raise
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise DeviceError(
            f"{target.name}: {target.where} speaks no algorithm that is still safe: {error}.",
            hint="Update its ssh server.",
        ) from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise TransientDeviceError(
            f"{target.name}: {target.where} {_ssh_socket.reason(error)}.", hint=_ssh_socket.advice(error)
        ) from error


def start(way: Way, python: str, program: str, timeout_s: float) -> tuple[Link, Python]:
    """
    Run ``python -c program`` on the device; the link to it and which interpreter it is.

    *program* is one line without quotes. What the login shell prints before is passed over. Raises
    DeviceError when there is no such interpreter, it is too old, or the shell prints without end.
    """
    import paramiko

    if "'" in program or "\n" in program:
        raise ValueError("the program must be one line without single quotes")
    mark = secrets.token_hex(8)
    command = f"exec {python} -I -S -c '{HERE.format(mark=mark)}{program}'"
    try:
        transport = way.last
        if transport is None:
            raise EOFError("it was closed")
        channel = transport.open_session(timeout=timeout_s)
        link = Link(channel, way)
        link.wait_for_answer(timeout_s)
        channel.exec_command(command)
        found = _wait_for(link, mark.encode(), way.name, python, timeout_s)
        link.wait_for_answer(None)
    except (OSError, EOFError, paramiko.SSHException) as error:
        why = way.why_lost() or _ssh_socket.reason(error)
        raise TransientDeviceError(f"{way.name}: {python} could not be started: {why}.") from error
    if found.version < MIN_PYTHON:
        version = ".".join(map(str, found.version))
        raise DeviceError(
            f"{way.name}: {found.path} is Python {version}; it must be 3.8 or newer.",
            hint=f"Set python of {way.name} to a newer one.",
        )
    return link, found


def _wait_for(link: Link, mark: bytes, name: str, python: str, timeout_s: float) -> Python:
    """Read up to the line with *mark*; DeviceError says why it does not come."""
    seen = bytearray()
    deadline = time.monotonic() + timeout_s
    while True:
        begin = seen.find(b"\n" + mark + b" ")
        end = seen.find(b"\n", begin + 1) if begin >= 0 else -1
        if end > 0:
            _, major, minor, path = seen[begin + 1 : end].decode("utf-8", "replace").split(" ", 3)
            link.pushed_back(bytes(seen[end + 1 :]))
            return Python(str(ast.literal_eval(path)) or python, (int(major), int(minor)))
        data = link.read(1 << 16) if time.monotonic() < deadline else None
        if data is None or len(seen) > NOISE_BYTES:
            raise DeviceError(
                f"{name}: its login shell prints without end instead of running {python}: "
                f"{bytes(seen[:60])!r}…",
                hint="Does its .profile or .bashrc do that? It must not, without a terminal.",
            )
        if not data:
            raise _not_started(link, name, python, bytes(seen))
        seen += data


def _not_started(link: Link, name: str, python: str, seen: bytes) -> DeviceError:
    code, words = link.ended()
    said = (words or seen.decode("utf-8", "replace").strip())[-300:]
    quoted = f" ({said.splitlines()[-1]})" if said else ""
    if code in {126, 127}:
        return DeviceError(
            f"{name}: there is no {python} that can be run{quoted}.",
            hint=f"Install Python 3.8 or newer there (apt install python3), or set python of {name}.",
        )
    if "nknown option" in said:
        return DeviceError(f"{name}: {python} is older than Python 3.4{quoted}; 3.8 or newer is needed.")
    return DeviceError(
        f"{name}: {python} did not start; the login ended with code {code}{quoted}.",
        hint=f"Try it by hand: ssh … {python} --version",
    )
