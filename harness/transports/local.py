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
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from harness.core.errors import DeviceError, SupervisorError
from harness.core.places import cache_dir
from harness.core.types import Device
from harness.transports import Pushed
from harness.transports._pipe import Pipe
from harness.transports._supervisor import Supervisor, bootstrap_command

FILES = "files"  # where pushed files lie below the work folder, as on every device
MARKER = ".edgebench-folder"  # in a work folder that is ours, as on every device
ERROR_BYTES = 4000  # how much of a process's standard error is kept
PATIENCE_S = 10.0  # for a supervisor that was killed
LINE_BYTES = 1 << 20  # a longer line comes in pieces, none of which is an event


class Options(BaseModel):
    """What a device entry with ``transport: local`` may say."""

    model_config = ConfigDict(extra="forbid")

    python: str = Field("", description="interpreter that runs the agent; default: this one")
    workdir: str = Field("", description="folder for pushed files; default: edgebench/device in the cache")


def connect(device: Device) -> Local:
    """Make the work folder; DeviceError when that or the interpreter cannot be used, or it is not ours."""
    options = Options.model_validate(device.options)
    workdir = Path(options.workdir or cache_dir() / "device").expanduser().resolve()
    python = shutil.which(options.python or sys.executable)
    if python is None:
        raise DeviceError(
            f"{device.name}: there is no interpreter {options.python or sys.executable!r}.",
            hint=f"Set python of {device.name} to one that exists, or leave it out.",
        )
    supervisor = _supervisor(device, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not options.workdir:  # in our cache
            Path(workdir, MARKER).touch()
        if not Path(workdir, MARKER).exists():
            with contextlib.closing(_supervisor(device, workdir)) as first:
                first.call("hello")  # marks a new folder, refuses one that is somebody else's
        Path(workdir, FILES).mkdir(exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"{device.name}: the folder {workdir} cannot be made: {error.strerror}.",
            hint=f"Set workdir of {device.name} to a folder that can be written.",
        ) from error
    return Local(workdir=str(workdir), python=python, supervisor=supervisor)


def _supervisor(device: Device, workdir: Path) -> Supervisor:
    """A supervisor of this machine; its process starts when it is first asked."""
    return Supervisor(
        lambda: Pipe(bootstrap_command(sys.executable)),
        workdir=str(workdir),
        patience_s=PATIENCE_S,
        name=device.name,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A Transport to this machine. Its supervisor is a child process that starts when it is first asked."""

    workdir: str
    python: str
    supervisor: Supervisor

    @property
    def incidents(self) -> Sequence[str]:
        """One sentence for each time that the supervisor was lost."""
        return self.supervisor.incidents

    def call(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor; errors as in Supervisor.call."""
        return self.supervisor.call(method, **arguments)

    def push_all(self, files: Mapping[str, Path]) -> Pushed:
        """Copy many files, name → source; those that are there are left alone."""
        done = {name: self._put(source, name) for name, source in files.items()}
        sizes = [size for _, size in done.values() if size is not None]
        paths = {name: path for name, (path, _) in done.items()}
        return Pushed(paths=paths, sent_files=len(sizes), sent_bytes=sum(sizes))

    def push(self, source: Path, name: str) -> str:
        """
        Copy *source* to *name*, unless the same content is there.

        A copy and no link: a file that its owner rewrites during a run must not change under the agent.
        """
        return self._put(source, name)[0]

    def _put(self, source: Path, name: str) -> tuple[str, int | None]:
        """Its path there, and how many bytes were copied: None when it was there."""
        target = Path(self.workdir, FILES, name)
        try:
            wanted = _sha256(source)
            if target.is_file() and _sha256(target) == wanted:
                return str(target), None
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.workdir, prefix=".push-") as folder:
                beside = Path(folder, "file")
                shutil.copyfile(source, beside)
                if _sha256(beside) != wanted:
                    raise DeviceError(f"{source} changed while it was copied to {target}.")
                size = beside.stat().st_size
                beside.replace(target)
        except OSError as error:
            raise DeviceError(f"{source} cannot be copied to {target}: {error.strerror}.") from error
        return str(target), size

    def pull(self, name: str, target: Path) -> None:
        """Copy *name* out of the work folder."""
        try:
            shutil.copyfile(Path(self.workdir, FILES, name), target)
        except FileNotFoundError as error:
            raise SupervisorError("not_found", f"There is no {name} in {self.workdir}.") from error
        except OSError as error:
            raise DeviceError(f"{name} cannot be copied to {target}: {error.strerror}.") from error

    @contextlib.contextmanager
    def stream(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cpus: Sequence[int] = ()
    ) -> Iterator[Process]:
        """Run *argv* in a process group of its own, which ends with the context or when its time is over."""
        with tempfile.TemporaryFile() as errors:
            try:
                with _only_on(cpus):
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
        """End the supervisor."""
        self.supervisor.close()


class Process:
    """The Stream of one child process; it is not reaped before its context ends."""

    def __init__(self, child: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._child = child
        self._errors = errors
        self._late = threading.Event()
        self.cpus = tuple(sorted(os.sched_getaffinity(child.pid)))  # that it may use, read back

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


@contextlib.contextmanager
def _only_on(cpus: Sequence[int]) -> Iterator[None]:
    """What this thread starts may use these CPUs alone; none given: those that this thread may use."""
    before = os.sched_getaffinity(0)
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
    except (OSError, ValueError) as error:
        raise DeviceError(f"The CPUs {list(cpus)} cannot be used here: {error}.") from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
