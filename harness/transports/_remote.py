"""The Stream of an agent that runs under a keeper on a device."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from harness.core.errors import TransientDeviceError

READ_BYTES = 1 << 22
LINE_BYTES = 1 << 20  # a longer line comes in pieces, none of which is an event
ERROR_BYTES = 4000
MAX_OUTPUT_BYTES = 1 << 26
GRACE_S = 60.0  # beyond its time: for the keeper to end it, and to say so

#: (boot id, call, arguments, seconds that the device may take) → (facts, bytes)
Ask = Callable[[str, str, dict[str, Any], float], tuple[dict[str, Any], bytes]]


class RemoteProcess:
    """What it printed comes when it ended, or after each *slice_s()* while it runs."""

    def __init__(self, ask: Ask, job: str, timeout_s: float, slice_s: Callable[[], float]) -> None:
        self._ask = ask
        self._job = job
        self._slice_s = slice_s
        self._boot_id = ""
        self._deadline_s = time.monotonic() + timeout_s + GRACE_S
        self._end: dict[str, Any] | None = None
        self._offset = 0
        self._words: str | None = None
        self.cpus: tuple[int, ...] = ()
        self.pid = 0

    def started(self, facts: dict[str, Any], boot_id: str) -> None:
        """What the device said about the start: its pid, and the CPUs that it may use, read back."""
        self.pid, self.cpus, self._boot_id = facts["pid"], tuple(facts["cpus"]), boot_id

    def __iter__(self) -> Iterator[str]:
        """The lines; ends when the process has ended."""
        rest = b""
        while True:
            ended = self._wait(self._slice_s())
            while data := self._read("out", self._offset, READ_BYTES):
                self._offset += len(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield from _pieces(line)
                while len(rest) >= LINE_BYTES:
                    yield _text(rest[:LINE_BYTES])
                    rest = rest[LINE_BYTES:]
            if ended:
                break
        if rest:
            yield _text(rest)
        _ = self.errors  # now, while the device still knows

    @property
    def timed_out(self) -> bool:
        """Whether the keeper ended it because its time was over."""
        return bool(self._end and self._end["timed_out"])

    @property
    def exit_code(self) -> int | None:
        """The exit code, -N for signal N; None when it timed out, runs, or nobody knows."""
        if self._end is None and not self._wait(0.0):
            return None
        return None if self.timed_out or self._end is None else self._end["exit_code"]

    @property
    def errors(self) -> str:
        """The end of its standard error, and why it was ended, if somebody did that."""
        if self._words is not None:
            return self._words
        words = self._read("err", -ERROR_BYTES, ERROR_BYTES).decode("utf-8", "replace").strip()
        if self._end is not None:
            words = f"{words}\n{self._end['why'] or ''}".strip()[-ERROR_BYTES:]
            self._words = words
        return words

    def _wait(self, for_s: float) -> bool:
        if self._end is None:
            facts, _ = self._ask(self._boot_id, "wait", {"job": self._job, "for_s": for_s}, for_s)
            if not facts["running"]:
                self._end = facts
                if facts.get("abandoned"):
                    raise TransientDeviceError("An agent was ended on the device: we were away for too long.")
            elif time.monotonic() > self._deadline_s:
                raise TransientDeviceError("An agent goes on after its time on the device: its keeper hangs.")
        return self._end is not None

    def _read(self, stream: str, offset: int, limit: int) -> bytes:
        arguments = {"job": self._job, "stream": stream, "offset": offset, "limit": limit}
        return zlib.decompress(self._ask(self._boot_id, "read", arguments, 10.0)[1])


def _pieces(line: bytes) -> Iterator[str]:
    for begin in range(0, max(1, len(line)), LINE_BYTES):
        yield _text(line[begin : begin + LINE_BYTES])


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")
