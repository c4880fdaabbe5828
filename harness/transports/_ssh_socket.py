"""The byte stream below an ssh connection: TCP, a tunnel through a jump host, or the user's ProxyCommand."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from typing import TYPE_CHECKING

from harness.core.errors import DeviceError
from harness.transports._ssh_config import Target

if TYPE_CHECKING:
    import paramiko

UNACKNOWLEDGED_S = 20.0  # TCP gives up when the other side confirms nothing for this long
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


def dial(
    target: Target, before: paramiko.Transport | None, timeout_s: float
) -> socket.socket | paramiko.Channel:
    """
    Something with send, recv, settimeout and close that leads to the target's port.

    *before* is the open connection to the host in front of it. Raises DeviceError (no address, or not let
    through), OSError and paramiko's errors.
    """
    if before is not None:
        return _tunnel(target, before, timeout_s)
    if target.proxy_command:
        return _command(target.proxy_command)
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise DeviceError(
            f"{target.name}: the name {target.host} leads to no address ({reason}).",
            hint="Is it spelt right, and is the device on? Try its IP address as host.",
        ) from error
    first: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            _tune(sock)
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            first = first or error
        else:
            return sock
    raise first or OSError("no address")


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the watch over silence has to do
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_S * 1000))


def _tunnel(target: Target, before: paramiko.Transport, timeout_s: float) -> paramiko.Channel:
    import paramiko

    try:
        return before.open_channel(
            "direct-tcpip", (target.host, target.port), ("127.0.0.1", 0), timeout=timeout_s
        )
    except paramiko.ChannelException as error:
        if error.code == 1:  # administratively prohibited
            raise DeviceError(
                f"{target.name}: the host before it does not let us through to {target.host}:{target.port}.",
                hint="Allow AllowTcpForwarding in its sshd_config.",
            ) from error
        raise


def _command(command: str) -> socket.socket:
    """The user's ProxyCommand, run by a shell as ssh does; it ends when its end of the socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        shell = os.environ.get("SHELL") or "/bin/sh"
        subprocess.Popen(
            [shell, "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
    return ours


def reason(error: BaseException) -> str:
    """What went wrong with a connection, as the end of a sentence."""
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection"
    if isinstance(error, ConnectionResetError):
        return "reset the connection"
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        return "cannot be reached: there is no way to it"
    text = str(error)
    if "banner" in text:
        return "did not greet as an ssh server does"
    if isinstance(error, EOFError) or not text:
        return "cut the connection off"
    return f"could not be connected to: {text.rstrip('.')}"


def advice(error: BaseException) -> str:
    """What to try."""
    if isinstance(error, ConnectionRefusedError):
        return "Does its ssh server run, and is the port right?"
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in UNREACHABLE):
        return "Is it on and in this network?"
    return ""
