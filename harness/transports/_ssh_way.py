"""The open ssh connections on the way to a device, and the threads that notice when one is dead."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paramiko

PING_S = 10.0  # how often a device is asked for a sign of life
SILENCE_S = 30.0  # a link that says nothing for this long is closed
WINDOW_BYTES = 4 << 20  # what may come in before it is read
PACKET_BYTES = 32768  # what OpenSSH takes at most


class Heard:
    """When something came from the other end; on the monotonic clock."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def now(self) -> None:
        """Something came."""
        self.at = time.monotonic()

    @property
    def silence_s(self) -> float:
        """How long nothing came."""
        return time.monotonic() - self.at


def listening(heard: Heard) -> type[paramiko.packet.Packetizer]:
    """A packet reader that tells *heard* of every packet."""
    import paramiko

    class Listening(paramiko.packet.Packetizer):
        def read_message(self) -> Any:
            message = super().read_message()
            heard.now()
            return message

    return Listening


class Way:
    """Connections, outermost first. Closing frees whoever waits for one of them."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the device
        self.heard = Heard()
        self._transports: list[paramiko.Transport] = []
        self._over = threading.Event()
        self._why = ""

    @property
    def last(self) -> paramiko.Transport | None:
        """The innermost connection so far; None before the first."""
        return self._transports[-1] if self._transports else None

    def add(self, transport: paramiko.Transport) -> None:
        """One more, inside the last one."""
        self._transports.append(transport)

    def watch(self) -> None:
        """
        Close the link when it is silent for SILENCE_S, asking for a sign of life every PING_S.

        TCP alone does not notice: a cut link takes data into its buffers for minutes, and a proxy or a
        jump host in between confirms what the device never saw.
        """
        self.heard.now()
        for work in (self._ping, self._guard):
            threading.Thread(target=work, name=f"{work.__name__} {self.name}", daemon=True).start()

    def why_lost(self) -> str:
        """Why the way is no more; empty while it is open."""
        if self._why:
            return self._why
        dead = [transport for transport in self._transports if not transport.is_active()]
        if not dead:
            return ""
        reasons = (transport.get_exception() for transport in dead)
        return next((str(e) or "it was cut off" for e in reasons if e is not None), "it was closed")

    def close(self) -> None:
        """Close every connection, the outermost first: it may be the one that hangs."""
        self._over.set()
        for transport in self._transports:
            transport.close()

    def _ping(self) -> None:
        import paramiko

        last = self._transports[-1]
        with suppress(OSError, EOFError, paramiko.SSHException):  # closed meanwhile, which is what ends this
            while not self._over.wait(PING_S) and last.is_active():
                last.global_request("keepalive@openssh.com", wait=True)

    def _guard(self) -> None:
        last = self._transports[-1]
        while not self._over.wait(min(1.0, SILENCE_S / 4)) and last.is_active():
            if self.heard.silence_s > SILENCE_S:
                self._why = f"nothing was heard for {SILENCE_S:g} s"
                self.close()
