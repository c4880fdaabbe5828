"""One device: push, probe, run each job in a fresh agent process, turn what it says into a block."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import device_agents
from harness import probing, runners
from harness.core import events, fingerprint, plugins
from harness.core.errors import CellError, DeviceError, EdgebenchError, TransientDeviceError
from harness.core.places import cache_dir
from harness.core.types import RUNTIMES, Block, Device, FormatName, Job, Runtime
from harness.transports import Stream, Transport

AGENT = Path(device_agents.__file__).parent / "agent.py"
PROBE_TIMEOUT_S = 60.0
#: All that an agent knows of the host's environment; a user's OMP_NUM_THREADS would change what is measured.
#: numpy gets no threads of its own: it only compares outputs, and idle threads of its BLAS spin.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PYTHONDONTWRITEBYTECODE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
#: What installs a runtime, where the wheel has another name.
WHEELS: Mapping[str, str] = {"litert": "ai-edge-litert"}


@dataclass(slots=True)
class Session:
    """A device that answered, with the agent on it."""

    device: Device
    transport: Transport
    agent: str  # path of agent.py on the device
    probe: str  # path of the fingerprint program on the device
    facts: Mapping[str, Any]  # what it is: equal for two records that may be compared
    conditions: Mapping[str, Any]  # how it was when the session began: temperatures, free disk, ...
    _oom_kills: object  # how often the device had run out of memory when it was last asked
    _pushed: dict[tuple[Path, int, int], str] = field(default_factory=dict)
    _native: runners.Runner | runners.NoRunner | CellError | None = None

    def push(self, path: Path, *, sha256: str | None = None) -> str:
        """Put a file on the device, named by its hash (which must be *sha256*, if given); its path there."""
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns, stat.st_size)
            if key not in self._pushed:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                if sha256 is not None and content != sha256:
                    raise CellError("push_failed", f"{path} was changed since it was checked.")
                self._pushed[key] = self.transport.push(path, f"{content[:16]}{path.suffix}")
        except TransientDeviceError:
            raise
        except (OSError, DeviceError) as error:
            why = f"{path} cannot be put on {self.device.name}: {error}"
            raise CellError("push_failed", why) from error
        return self._pushed[key]

    def runtime(self, format_name: FormatName) -> Runtime:
        """What will run files of this format; CellError ``runtime_missing`` with the install command."""
        name = RUNTIMES[format_name]
        note = ""
        if format_name == "executorch":
            native = self._native_runner()
            if isinstance(native, runners.Runner):
                return Runtime(name=name, version=native.version, engine="native")
            note = native.reason
        version = self.facts.get("runtimes", {}).get(name)
        if version is None:
            raise CellError(
                "runtime_missing",
                f"{self.device.name} has no {name}.",
                hint=f"Install it there: {self.transport.python} -m pip install {WHEELS.get(name, name)}",
            )
        return Runtime(name=name, version=version, engine="python", note=note)

    def run(self, job: Job, index: int) -> Block:
        """Run *job* in a fresh process; CellError with a typed status when it does not come to its end."""
        argv, env = self._command(job)
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.transport.stream(argv, env=env, timeout_s=job.timeout_s) as stream:
            try:
                return events.read_block(stream, job, index=index, started_utc=started)
            except CellError as error:
                failure, ended = error, _ended(stream)
        if ended.timed_out:
            raise CellError(
                "timeout",
                f"The agent did not end within {job.timeout_s:g} s.",
                hint="Give it more time, or fewer iterations.",
            ) from failure
        if failure.status != "agent_failed":
            raise failure
        raise self._died(failure, ended) from failure

    def _died(self, error: CellError, ended: _End) -> CellError:
        """An agent that did not speak to its end, with what is known of it."""
        words = f" Its last words: {ended.last_words}" if ended.last_words else ""
        if ended.exit_code is None or ended.exit_code >= 0:
            return CellError("agent_failed", f"{error.message}{words}")
        name = _signal_name(-ended.exit_code)
        if ended.exit_code == -signal.SIGKILL:
            before, self._oom_kills = (
                self._oom_kills,
                _probe(self.device, self.transport, self.probe).get("oom_kills"),
            )
            if before != self._oom_kills:
                return CellError(
                    "out_of_memory",
                    f"{name} ended the agent, and the device counted a process killed for memory.",
                )
            words = f" The device counted no process killed for lack of memory.{words}"
        return CellError("agent_failed", f"{name} ended the agent: {error.message}{words}")

    def _native_runner(self) -> runners.Runner | runners.NoRunner:
        """The runner for this device, made once; CellError if there is a compiler and it fails."""
        if self._native is None:
            self._native = self._make_runner()
        if isinstance(self._native, CellError):
            raise self._native
        return self._native

    def _make_runner(self) -> runners.Runner | runners.NoRunner | CellError:
        if self.device.transport != "local":
            return runners.NoRunner(reason="there is no native runner for this device")
        try:
            return runners.executorch(cache_dir())
        except EdgebenchError as error:
            return CellError("agent_failed", error.message, hint=error.hint)

    def _command(self, job: Job) -> tuple[list[str], dict[str, str]]:
        env = dict(ENVIRONMENT)
        native = self._native_runner() if job.format == "executorch" else None
        if isinstance(native, runners.Runner):
            argv = [str(native.path)]
            env["LD_LIBRARY_PATH"] = str(native.library_dir)
        else:
            argv = [self.transport.python, self.agent]
        options = {
            "mode": job.kind,
            "format": job.format,
            "backend": job.backend,
            "model": job.model,
            "check": job.check,
            "check_sets": job.check_sets,
            "check_min_sqnr_db": job.check_min_sqnr_db,
            "threads": job.threads,
            "warmup_iterations": job.warmup_iterations,
            "warmup_time_s": job.warmup_time_s,
            "min_iterations": job.min_iterations,
            "min_time_s": job.min_time_s,
        }
        return argv + [f"{key}={value}" for key, value in options.items()], env


@contextmanager
def open_session(device: Device) -> Iterator[Session]:
    """Connect, push the agent and probe; DeviceError when the device does not answer as it should."""
    transport: Transport = plugins.load("harness.transports", device.transport).connect(device)
    try:
        content = hashlib.sha256(AGENT.read_bytes()).hexdigest()
        agent = transport.push(AGENT, f"agent-{content[:16]}.py")
        program = probing.program()
        probe = transport.push(program, program.name)
        facts, conditions = fingerprint.split(_probe(device, transport, probe))
        yield Session(
            device=device,
            transport=transport,
            agent=agent,
            probe=probe,
            facts=facts,
            conditions=conditions,
            _oom_kills=conditions.get("oom_kills"),
        )
    finally:
        transport.close()


def _probe(device: Device, transport: Transport, probe: str) -> dict[str, Any]:
    """What the device is and how it is now, by the program *probe* on it."""
    argv: Sequence[str] = [transport.python, probe, "mode=probe"]
    with transport.stream(argv, env=ENVIRONMENT, timeout_s=PROBE_TIMEOUT_S) as stream:
        try:
            return events.read_probe(stream)
        except CellError as error:
            ended = _ended(stream)
            words = f"It did not end within {PROBE_TIMEOUT_S:g} s." if ended.timed_out else ended.last_words
            raise DeviceError(
                f"{device.name}: the agent does not answer: {error.message} {words}".strip(),
                hint=f"It was started with {transport.python}.",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How an agent process ended."""

    exit_code: int | None  # -N for signal N
    timed_out: bool
    last_words: str  # the last line of its standard error


def _ended(stream: Stream) -> _End:
    lines = [line.strip() for line in stream.errors.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    return _End(exit_code=stream.exit_code, timed_out=stream.timed_out, last_words=last)


def _signal_name(number: int) -> str:
    known = {member.value: member.name for member in signal.Signals}
    return f"{known.get(number, 'Signal')} ({number})"
