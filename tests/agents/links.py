"""Links to supervisors on this machine that fail where a test wants them to."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.core.errors import TransientDeviceError
from harness.transports._pipe import Pipe
from harness.transports._supervisor import Supervisor, bootstrap_command
from harness.transports._wire import bootstrap_bytes

OWNER = {"user": "ann", "host": "desk", "pid": 7, "run": "night"}


class Bad:
    """
    A link that dies after so many bytes.

    Told as bytes beyond the bootstrap (written) or beyond the greeting (read). *silent*: as a pulled cable,
    it says nothing, nothing comes, and the supervisor lives on.
    """

    def __init__(
        self, *, write: int | None = None, read: int | None = None, silent: bool = False, piece: int = 1 << 20
    ) -> None:
        self.pipe = Pipe(bootstrap_command(sys.executable))
        self.silent, self.piece = silent, piece
        self.write_left = None if write is None else write + len(bootstrap_bytes())
        self.read_left = None if read is None else read + len("edgebench supervisor 1\n")
        self.dead = threading.Event()
        self.closed = threading.Event()

    def read(self, n: int, /) -> bytes:
        if self.dead.is_set() or self.read_left == 0:
            self.die()
        limit = min(n, self.piece, self.read_left if self.read_left is not None else n)
        data = self.pipe.read(limit)
        if self.read_left is not None:
            self.read_left -= len(data)
        return self.heard(data)

    def heard(self, data: bytes) -> bytes:
        return data

    def write(self, data: bytes, /) -> None:
        if self.dead.is_set():
            self.die()
        whole = len(data)
        if self.write_left is not None:
            data = data[: self.write_left]
            self.write_left -= len(data)
        for begin in range(0, len(data), self.piece):
            self.pipe.write(data[begin : begin + self.piece])
        if len(data) < whole:
            self.die()

    def die(self) -> None:
        self.dead.set()
        if self.silent:
            self.closed.wait()
        else:
            self.pipe.close()
        raise OSError("cut by the test")

    def close(self) -> None:
        self.closed.set()
        if not (
            self.silent and self.dead.is_set()
        ):  # then nobody tells the supervisor, as with a pulled cable
            self.pipe.close()


class Links:
    """Opens links: first those of *makers*, then good ones, or none when *then_dark*."""

    def __init__(self, *makers: Callable[[], Bad], then_dark: bool = False) -> None:
        self.makers = list(makers)
        self.then_dark = then_dark
        self.opened: list[Bad] = []

    def __call__(self) -> Bad:
        if self.makers:
            link = self.makers.pop(0)()
        elif self.then_dark:
            raise TransientDeviceError("no route to host")
        else:
            link = Bad()
        self.opened.append(link)
        return link

    def forget(self) -> None:
        """End supervisors that a silent link left behind."""
        for link in self.opened:
            link.pipe.close()


def supervisor(links: Callable[[], Bad], folder: Path, **options: float) -> Supervisor:
    """One whose patience fits a test."""
    wanted = {"patience_s": 30.0, "answer_s": 30.0, **options}
    return Supervisor(links, workdir=str(folder / "work"), name="pi5", **wanted)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def standing_in(folder: Path) -> list[int]:
    """Pids of the processes whose working directory is there: agents and what they started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                where = (entry / "cwd").readlink()
            except OSError:  # ended meanwhile
                continue
            if where == folder and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Whether it holds, now or soon."""
    deadline = time.monotonic() + limit_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()
