"""This machine as a device: files are copied into a folder of its own, agents are child processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from harness.core.errors import DeviceError
from harness.core.places import cache_dir
from harness.core.types import Device

ERROR_BYTES = 4000  # how much of a process's standard error is kept
LINE_BYTES = 1 << 20  # a longer line comes in pieces, none of which is an event


class Options(BaseModel):
    """What a device entry with ``transport: local`` may say."""

    model_config = ConfigDict(extra="forbid")

    python: str = Field("", description="interpreter that runs the agent; default: this one")
    workdir: str = Field("", description="folder for pushed files; default: edgebench/device in the cache")


def connect(device: Device) -> Local:
    """Make the work folder; DeviceError when that or the interpreter cannot be used."""
    options = Options.model_validate(device.options)
    workdir = Path(options.workdir or cache_dir() / "device").expanduser().resolve()
    python = shutil.which(options.python or sys.executable)
    if python is None:
        raise DeviceError(
            f"{device.name}: there is no interpreter {options.python or sys.executable!r}.",
            hint=f"Set python of {device.name} to one that exists, or leave it out.",
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"{device.name}: the folder {workdir} cannot be made: {error.strerror}.",
            hint=f"Set workdir of {device.name} to a folder that can be written.",
        ) from error
    return Local(workdir=workdir, python=python)


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A Transport to this machine."""

    workdir: Path
    python: str

    def push(self, source: Path, name: str) -> str:
        """
        Copy *source* to *name*, unless the same content is there.

        A copy and no link: a file that its owner rewrites during a run must not change under the agent.
        """
        target = self.workdir / name
        try:
            wanted = _sha256(source)
            if target.is_file() and _sha256(target) == wanted:
                return str(target)
            with tempfile.TemporaryDirectory(dir=self.workdir, prefix=".push-") as folder:
                beside = Path(folder, "file")
                shutil.copyfile(source, beside)
                if _sha256(beside) != wanted:
                    raise DeviceError(f"{source} changed while it was copied to {target}.")
                beside.replace(target)
        except OSError as error:
            raise DeviceError(f"{source} cannot be copied to {target}: {error.strerror}.") from error
        return str(target)

    def pull(self, name: str, target: Path) -> None:
        """Copy *name* out of the work folder."""
        try:
            shutil.copyfile(self.workdir / name, target)
        except OSError as error:
            raise DeviceError(
                f"{self.workdir / name} cannot be copied to {target}: {error.strerror}."
            ) from error

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> Iterator[Process]:
        """Run *argv* in a process group of its own, which ends with the context or when its time is over."""
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    [*_ends_with_us(argv[0]), *argv],
                    cwd=self.workdir,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,  # Ctrl-C is for the harness, which then ends this group
                )
            except OSError as error:
                raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}.") from error
            process = Process(child, errors)
            watchdog = threading.Timer(timeout_s, process.time_is_over)
            watchdog.daemon = True
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                watchdog.join()
                _end_group(child)
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()

    def close(self) -> None:
        """Nothing stays open between processes."""


class Process:
    """The Stream of one child process; it is not reaped before its context ends."""

    def __init__(self, child: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._child = child
        self._errors = errors
        self._late = threading.Event()

    def __iter__(self) -> Iterator[str]:
        """The lines; ends when the process has ended."""
        if self._child.stdout is not None:
            while line := self._child.stdout.readline(LINE_BYTES):
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        _state(self._child, os.WEXITED)

    @property
    def timed_out(self) -> bool:
        """Whether the watchdog ended it."""
        return self._late.is_set()

    @property
    def exit_code(self) -> int | None:
        """The exit code, -N for signal N; None when it timed out or still runs."""
        state = _state(self._child, os.WEXITED | os.WNOHANG)
        if state is None or self.timed_out:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    @property
    def errors(self) -> str:
        """The end of its standard error."""
        handle = self._errors.fileno()
        begin = max(0, os.fstat(handle).st_size - ERROR_BYTES)
        return os.pread(handle, ERROR_BYTES, begin).decode("utf-8", "replace").strip()

    def time_is_over(self) -> None:
        """End it, if it has not ended."""
        if _state(self._child, os.WEXITED | os.WNOHANG) is None:
            self._late.set()
        _end_group(self._child)


def _state(child: subprocess.Popen[bytes], options: int) -> os.waitid_result | None:
    """How a child ended. WNOWAIT leaves it a zombie, so that its number is nobody else's until the end."""
    return os.waitid(os.P_PID, child.pid, options | os.WNOWAIT)


def _ends_with_us(program: str) -> list[str]:
    """What to put before an argv so that the kernel ends it with this process, killed or not."""
    if shutil.which(program) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    setpriv = shutil.which("setpriv")  # part of every Debian and Ubuntu
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that is not reaped yet, and every process that it left behind in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
