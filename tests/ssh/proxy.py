"""A TCP proxy on loopback whose links can be cut, stalled, reset and slowed down; no root is needed."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE_BYTES = 1 << 16


class Proxy:
    """Forwards 127.0.0.1:port to another port, as it is told to."""

    def __init__(self, to_port: int, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        self.to_port = to_port
        self.delay_s = delay_s  # of each piece, in both directions
        self.bytes_per_s = bytes_per_s  # 0: as fast as it goes
        self.sent_bytes = 0  # from the host to the device
        self.links = 0  # accepted so far
        self._cut_at: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stall(self) -> None:
        """From now on nothing goes through, and nobody is told: a pulled cable."""
        self._flowing.clear()

    def heal(self) -> None:
        """What waited goes on."""
        self._flowing.set()

    def reset(self) -> None:
        """End every link with a TCP reset."""
        for sock in list(self._open):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RD)
                sock.close()
            self._open.discard(sock)

    def reset_after(self, sent_bytes: int) -> None:
        """Reset every link, once, when that much more was sent to the device."""
        self._cut_at = self.sent_bytes + sent_bytes

    def refuse(self) -> None:
        """Close the port as well: the next connection is refused."""
        self._over.set()
        self._listener.close()
        self.reset()

    def close(self) -> None:
        self.refuse()
        self.heal()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to_port))
            except OSError:
                continue  # the device is not up, or this is the end
            self.links += 1
            self._open |= {here, there}
            for pair in ((here, there, True), (there, here, False)):
                thread = threading.Thread(target=self._forward, args=pair, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError, ValueError), selectors.DefaultSelector() as ready:
            ready.register(source, selectors.EVENT_READ)
            while not self._over.is_set():
                if not ready.select(0.2):
                    if source.fileno() < 0:
                        break
                    continue
                self._flowing.wait()
                data = source.recv(PIECE_BYTES)
                if not data:
                    break
                if self.bytes_per_s or self.delay_s:
                    rate = self.bytes_per_s or float("inf")
                    time.sleep(self.delay_s + len(data) / rate)
                self._flowing.wait()
                sink.sendall(data)
                if up:
                    self.sent_bytes += len(data)
                    if self._cut_at is not None and self.sent_bytes >= self._cut_at:
                        self._cut_at = None
                        self.reset()
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            self._open.discard(sock)


@contextmanager
def proxy(to_port: int, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> Iterator[Proxy]:
    """A Proxy that ends with the context."""
    link = Proxy(to_port, bytes_per_s=bytes_per_s, delay_s=delay_s)
    try:
        yield link
    finally:
        link.close()
