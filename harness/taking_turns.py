"""Two entries of devices.yaml may lead to one machine: what is measured there takes turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from harness.core.types import Device, digest

POLL_S = 0.2

_guard = threading.Lock()
_turns: dict[Hashable, threading.Lock] = {}


def address(device: Device) -> Hashable:
    """By what two entries are known to lead to the same machine before it is asked."""
    if device.transport == "local":
        return "local"
    way = {key: device.options.get(key) for key in ("host", "port", "user", "jump", "hops", "serial")}
    return digest([device.transport, way])


@contextmanager
def turn(key: Hashable, check: Callable[[], None]) -> Iterator[None]:
    """Hold *key* in this process; *check* is called while another thread has it, and may raise."""
    with _guard:
        lock = _turns.setdefault(key, threading.Lock())
    while not lock.acquire(timeout=POLL_S):
        check()
    try:
        yield
    finally:
        lock.release()
