"""A TCP proxy on loopback whose links can be cut, stalled, reset and slowed down; no root is needed."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE_BYTES = 1 << 16
FLYING_BYTES = 1 << 24  # under way at most, where no rate limits that


class Proxy:
    """Forwards 127.0.0.1:port to another port, as it is told to."""

    def __init__(self, to_port: int, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        self.to_port = to_port
        self.delay_s = (
            delay_s  # of every byte, in both directions; as on a long line many are under way at once
        )
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
            rate = self.bytes_per_s or float("inf")
            most = PIECE_BYTES + (int(rate * self.delay_s) if self.bytes_per_s else FLYING_BYTES)
            flying: deque[tuple[float, bytes]] = deque()  # when it arrives, and what
            flying_bytes, sent_s, ended = 0, 0.0, False
            while not self._over.is_set() and not (ended and not flying):
                left_s = max(0.0, flying[0][0] - time.monotonic()) if flying else 0.2
                if ended or flying_bytes >= most:
                    time.sleep(left_s)
                elif ready.select(min(0.2, left_s)):
                    self._flowing.wait()
                    data = source.recv(PIECE_BYTES)
                    ended = not data
                    sent_s = max(sent_s, time.monotonic()) + len(data) / rate
                    flying.append((sent_s + self.delay_s, data))
                    flying_bytes += len(data)
                elif source.fileno() < 0:
                    break
                while flying and flying[0][0] <= time.monotonic():
                    _, data = flying.popleft()
                    flying_bytes -= len(data)
                    self._flowing.wait()
                    sink.sendall(data)
                    self._count(len(data) if up else 0)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            self._open.discard(sock)

    def _count(self, sent_bytes: int) -> None:
        self.sent_bytes += sent_bytes
        if self._cut_at is not None and self.sent_bytes >= self._cut_at:
            self._cut_at = None
            self.reset()


@contextmanager
def proxy(to_port: int, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> Iterator[Proxy]:
    """A Proxy that ends with the context."""
    link = Proxy(to_port, bytes_per_s=bytes_per_s, delay_s=delay_s)
    try:
        yield link
    finally:
        link.close()
