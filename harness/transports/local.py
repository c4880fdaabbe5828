"""This machine: the agent is a subprocess, files are hard links or copies in a folder of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from harness.core.errors import DeviceError
from harness.core.places import cache_dir
from harness.core.types import Device

ERROR_BYTES = 4000  # how much of a process's standard error is kept


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
        raise DeviceError(f"{device.name}: there is no interpreter {options.python or sys.executable!r}.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{device.name}: the folder {workdir} cannot be made: {error.strerror}.") from error
    return Local(workdir=workdir, python=python)


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A Transport to this machine."""

    workdir: Path
    python: str

    def push(self, source: Path, name: str) -> str:
        """Hard-link or copy *source* as *name*; a file with the same content is left as it is."""
        target = self.workdir / name
        if target.exists() and _sha256(target) == _sha256(source):
            return str(target)
        with tempfile.TemporaryDirectory(dir=self.workdir, prefix=".push-") as folder:
            beside = Path(folder, "file")
            try:
                os.link(source, beside)
            except OSError:  # another file system, or links are not allowed
                shutil.copyfile(source, beside)
            if _sha256(beside) != _sha256(source):
                raise DeviceError(f"{target} does not have the content of {source} after the copy.")
            beside.replace(target)
        return str(target)

    def pull(self, name: str, target: Path) -> None:
        """Copy *name* out of the work folder."""
        shutil.copyfile(self.workdir / name, target)

    @contextmanager
    def stream(self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> Iterator[Process]:
        """Run *argv* in a process group of its own, which ends with the context or its time."""
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    argv,
                    cwd=self.workdir,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is for the harness, which then ends this group
                )
            except OSError as error:
                raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}.") from error
            with child, _ended(child), Process.watched(child, errors, timeout_s) as process:
                yield process

    def close(self) -> None:
        """Nothing stays open between processes."""


class Process:
    """The Stream of one local process."""

    def __init__(self, child: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._child = child
        self._errors = errors
        self.timed_out = False

    @classmethod
    @contextmanager
    def watched(cls, child: subprocess.Popen[str], errors: IO[bytes], timeout_s: float) -> Iterator[Process]:
        """The process, killed when *timeout_s* is over."""
        process = cls(child, errors)
        timer = threading.Timer(timeout_s, process._time_is_over)
        timer.daemon = True
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()

    def __iter__(self) -> Iterator[str]:
        """The lines; ends when the process has ended."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            yield line.rstrip("\n")
        self._child.wait()

    @property
    def exit_code(self) -> int | None:
        """The exit code; None when it timed out or still runs."""
        return None if self.timed_out else self._child.poll()

    @property
    def errors(self) -> str:
        """The end of its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - ERROR_BYTES))
        return self._errors.read().decode("utf-8", "replace").strip()

    def _time_is_over(self) -> None:
        if self._child.poll() is None:
            self.timed_out = True
            _kill(self._child)


@contextmanager
def _ended(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        _kill(child)


def _kill(child: subprocess.Popen[str]) -> None:
    """End the process group of *child*, unless it was waited for: its number may be another's then."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
