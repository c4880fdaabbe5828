"""One connection to a supervisor: its source goes over, then requests and answers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import device_agents
from harness.core.errors import DeviceError, SupervisorError

GREETING = b"edgebench supervisor 1\n"
MODULES = (
    "keeper",
    "files",
    "lease",
    "settings",
    "supervisor",
)  # in the order in which they import each other
NOISE_BYTES = 1 << 16  # what a login may print before the supervisor speaks
LINE_BYTES = 1 << 24
READ_BYTES = 1 << 18
BOOT_S = 60.0

#: The first line that a device reads. No quotes, no line ends: any login shell passes it on.
READER = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
#: What READER gets: makes modules of the sources that follow, and starts the last one.
LOADER = """
import json, sys, types
source = sys.stdin.buffer
for name, size in json.loads(source.readline()):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source.read(size), name + ".py", "exec"), module.__dict__)
sys.modules["supervisor"].main()
"""


class LinkLost(Exception):
    """The link died; what was asked may or may not have happened."""


class Link(Protocol):
    """
    Two pipes to a process on the device. OSError or EOFError when it is dead.

    ``close`` may come from another thread, and frees one that is blocked in read or write.
    """

    def read(self, n: int, /) -> bytes:
        """Between 1 and n bytes, as soon as there are any; none at the end."""

    def write(self, data: bytes, /) -> None:
        """All of it."""

    def close(self) -> None:
        """For good."""


def bootstrap_command(python: str) -> list[str]:
    """The argv of the process that a Link talks to."""
    return [python, "-I", "-S", "-c", READER]


def bootstrap_bytes() -> bytes:
    """What that process reads first."""
    folder = Path(device_agents.__file__).parent
    found = [(name, folder / f"{name}.py") for name in MODULES]
    sources = [(name, path.read_bytes()) for name, path in found if path.exists()]
    loader = LOADER.encode()
    table = json.dumps([(name, len(source)) for name, source in sources]).encode() + b"\n"
    return b"%d\n" % len(loader) + loader + table + b"".join(source for _, source in sources)


class Connection:
    """Requests over one link. Every failure of the link is a LinkLost, and the link is closed then."""

    def __init__(self, link: Link, *, answer_s: float) -> None:
        self._link = link
        self._answer_s = answer_s
        self._buffer = bytearray()
        self._last = 0
        self._broken = ""
        self._half_said = False  # an interrupt left it in the middle of a request
        self.unanswered: deque[int] = deque()  # ids, in order
        with self._deadline(max(BOOT_S, answer_s)):
            self._write(bootstrap_bytes())
            self._greeting()

    def close(self) -> None:
        """Let go of the link; the supervisor at its other end leaves."""
        self._broken = self._broken or "it was closed"
        self._link.close()

    def send(self, call: str, arguments: dict[str, Any], body: bytes = b"") -> int:
        """Ask without waiting; gives the id of the request."""
        self._last += 1
        head = {"id": self._last, "call": call, **arguments}
        if body:
            head["bytes"] = len(body)
        self.unanswered.append(self._last)
        piece = json.dumps(head).encode("ascii") + b"\n" + body[:READ_BYTES]
        for end in range(READ_BYTES, len(body) + READ_BYTES + 1, READ_BYTES):
            if piece:
                with self._deadline(self._answer_s):  # for each piece: a slow link is no dead link
                    self._write(piece)
            piece = body[end : end + READ_BYTES]
        return self._last

    def answer(self, number: int, within_s: float = 0.0) -> tuple[dict[str, Any], bytes]:
        """
        The answer to a request, and its bytes; older answers that nobody fetched are passed over.

        *within_s* is what the work itself may take, besides the way there and back. SupervisorError when
        it was refused.
        """
        with self._deadline(self._answer_s + within_s):
            while True:
                head = self._head()
                raw = self._read(int(head.get("bytes", 0)))
                while self.unanswered and self.unanswered[0] <= int(head["id"]):
                    self.unanswered.popleft()
                if head["id"] == number:
                    break
        if "error" in head:
            facts = dict(head["error"])
            raise SupervisorError(facts.pop("kind"), facts.pop("message"), facts=facts)
        return head["ok"], raw

    def ask(
        self, call: str, arguments: dict[str, Any], within_s: float = 0.0
    ) -> tuple[dict[str, Any], bytes]:
        """Send and wait for the answer."""
        return self.answer(self.send(call, arguments), within_s)

    def drain(self) -> None:
        """Wait for every answer that is still under way, whatever it says."""
        while self.unanswered:
            try:
                self.answer(self.unanswered[-1])
            except SupervisorError:
                continue

    def _head(self) -> dict[str, Any]:
        line = self._line(LINE_BYTES)
        try:
            head = json.loads(line)
            if (
                isinstance(head, dict)
                and isinstance(head.get("id"), int)
                and ("ok" in head) != ("error" in head)
            ):
                return head
        except ValueError:
            pass
        raise self._lost(f"the device answered what is no answer: {line[:80]!r}")

    def _greeting(self) -> None:
        noise = b""
        while (line := self._line(NOISE_BYTES)) + b"\n" != GREETING:
            noise += line + b"\n"
            if len(noise) > NOISE_BYTES:
                self.close()
                raise DeviceError(
                    f"The device prints {noise[:80]!r}… instead of running what it was asked to.",
                    hint="Does its shell print that for every login? It must not, without a terminal.",
                )

    def _line(self, limit: int) -> bytes:
        begin = 0
        while (end := self._buffer.find(b"\n", begin)) < 0:
            begin = len(self._buffer)
            if begin > limit:
                raise self._lost("the device sends a line without end")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _fill(self) -> None:
        if self._broken:
            raise self._lost(self._broken)
        try:
            data = self._link.read(READ_BYTES)
        except (OSError, EOFError, ValueError) as error:  # ValueError: of a file that was closed meanwhile
            raise self._lost(str(error) or type(error).__name__) from error
        if not data:
            raise self._lost("the other end closed it")
        self._buffer += data

    def _write(self, data: bytes) -> None:
        if self._broken:
            raise self._lost(self._broken)
        if self._half_said:
            raise self._lost("it was left in the middle of a request")
        self._half_said = True
        try:
            self._link.write(data)
        except (OSError, EOFError, ValueError) as error:
            raise self._lost(str(error) or type(error).__name__) from error
        self._half_said = False

    def _lost(self, why: str) -> LinkLost:
        self._broken = self._broken or why
        self._link.close()
        return LinkLost(self._broken)

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Close the link when the work takes longer; whoever is blocked in it is freed by that."""

        def bark() -> None:
            self._broken = f"it did not answer within {seconds:g} s"
            self._link.close()

        timer = threading.Timer(seconds, bark)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
