"""A device that fails on command, and the transport to it; it remembers what was done to it, in order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import DeviceError, DeviceRebooted, SupervisorError, TransientDeviceError
from harness.transports import Pushed
from tests.harness import streams

PROBED: list[dict[str, Any]] = [
    streams.HELLO,
    {"event": "fact", "name": "model", "value": "a board"},
    {"event": "fact", "name": "runtimes", "value": {"onnxruntime": "1.2.3"}},
    {"event": "fact", "name": "oom_kills", "value": 0},
    streams.END,
]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one agent process does."""

    lines: Sequence[str] = tuple(streams.lines(streams.LATENCY_EVENTS))
    exit_code: int | None = 0
    timed_out: bool = False
    errors: str = ""
    cpus: Sequence[int] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)


@dataclass
class Board:
    """The state that outlives a connection; *faults*: number of the agent process → what happens to it."""

    faults: dict[int, Said | BaseException] = field(default_factory=dict)
    boot_id: str = "first"
    holder: dict[str, Any] | None = None  # another owner of the lease
    holder_leaves_after: int = 10**9  # ... tries to take it
    settings: dict[str, str] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=lambda: list(PROBED))
    dark_from: int = 10**9  # number of the agent process from which on it does not answer
    dark: bool = False
    did: list[str] = field(default_factory=list)
    ran: list[list[str]] = field(default_factory=list)
    cpus: list[tuple[int, ...]] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)  # setting → why it is not taken
    in_use: int = 0
    most_in_use: int = 0
    hold_s: float = 0.0  # how long a process runs

    def connect(self, _device: object) -> Line:
        if self.dark:
            raise TransientDeviceError("The board does not answer.")
        self.did.append("connect")
        return Line(self)

    def reboot(self) -> DeviceRebooted:
        self.boot_id += " again"
        self.settings = dict(self.before) or self.settings
        return DeviceRebooted("The board restarted.")


class Line:
    """A Transport to a Board."""

    python = "/usr/bin/python3"
    workdir = "/home/pi/edgebench"

    def __init__(self, board: Board) -> None:
        self.board = board
        self.incidents: list[str] = []
        self._closing = threading.Event()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def call(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        assert not self.closed
        if self.board.dark:
            raise TransientDeviceError("The board does not answer.")
        action = arguments.get("action", "")
        self.board.did.append(f"{method} {action}".strip())
        return getattr(self, f"_{method}")(**arguments)  # type: ignore[no-any-return]

    def _hello(self, workdir: str) -> dict[str, Any]:
        return {"boot_id": self.board.boot_id, "workdir": workdir}

    def _sweep(self) -> dict[str, Any]:
        return {"ended": []}

    def _lease(self, action: str, **asked: Any) -> dict[str, Any]:
        if action == "take":
            assert {"user", "host", "pid", "run"} <= set(asked["owner"])
            assert asked["period_s"] > 0
        replaced = self.board.holder is not None and asked.get("replaces") == self.board.holder
        if action == "take" and self.board.holder and not replaced:
            self.board.holder_leaves_after -= 1
            if self.board.holder_leaves_after >= 0:
                facts = {"owner": self.board.holder, "left_s": 41.4}
                raise SupervisorError("held", "The lease is held.", facts=facts)
            self.board.holder = None
        if replaced:
            self.board.holder = None
        return {"held": action != "release"}

    def _settings(
        self, action: str, wanted: Mapping[str, Any] | None = None, sudo: bool = False
    ) -> dict[str, Any]:
        board = self.board
        if action == "restore":
            board.settings |= board.before
            board.before = {}
            return {}
        answers = {}
        for name, value in (wanted or {}).items():
            if action == "apply" and name not in board.refuse:
                board.before.setdefault(name, board.settings.get(name, ""))
                board.settings[name] = value
            answers[name] = {
                "requested": value,
                "observed": board.settings.get(name),
                "before": board.before.get(name),
                "reason": board.refuse.get(name),
            }
        return answers

    def push(self, source: Path, name: str) -> str:
        assert not self.closed
        self.board.did.append(f"push {source.suffix}")
        return f"{self.workdir}/{name}"

    def push_all(self, files: Mapping[str, Path]) -> Pushed:
        return Pushed(paths={n: self.push(p, n) for n, p in files.items()}, sent_files=0, sent_bytes=0)

    def pull(self, name: str, target: Path) -> None:
        raise AssertionError((name, target))

    @contextmanager
    def stream(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cpus: Sequence[int] = ()
    ) -> Iterator[Said]:
        assert not self.closed
        if self.board.dark:
            raise TransientDeviceError("The board does not answer.")
        if "mode=probe" in argv:
            self.board.did.append("probe")
            yield Said(lines=streams.lines(self.board.facts))
            return
        number = len(self.board.ran)
        self.board.ran.append(list(argv))
        self.board.cpus.append(tuple(cpus))
        if number >= self.board.dark_from:
            self.board.dark = True
            raise TransientDeviceError("The board does not answer.")
        self.incidents += [self.board.incidents.pop(0)] if self.board.incidents else []
        self.board.in_use += 1
        self.board.most_in_use = max(self.board.most_in_use, self.board.in_use)
        try:
            if self._closing.wait(self.board.hold_s):
                raise DeviceError("The connection was closed.")
            fault = self.board.faults.get(number, Said())
            if isinstance(fault, DeviceRebooted):
                raise self.board.reboot()
            if isinstance(fault, BaseException):
                raise fault
            # The board has three CPUs: a fourth is silently left out, as by Linux.
            allowed = tuple(cpu for cpu in cpus if cpu < 3)
            yield fault if number in self.board.faults else Said(lines=answer(argv), cpus=allowed)
        finally:
            self.board.in_use -= 1

    def close(self) -> None:
        self._closing.set()
        self.board.did.append("close")


def answer(argv: Sequence[str]) -> list[str]:
    """What a well-behaved agent says to *argv*."""
    told = streams.MEMORY_EVENTS if "mode=memory" in argv else streams.LATENCY_EVENTS
    return streams.lines(told)


def fails_from(first: int, fault: Callable[[], BaseException]) -> dict[int, Said | BaseException]:
    """*fault* for every process from number *first* on."""
    return {number: fault() for number in itertools.islice(itertools.count(first), 200)}
