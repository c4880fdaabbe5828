"""One device: push, probe, run each job in a fresh agent process, read its events."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import device_agents
from harness import runners
from harness.core import plugins
from harness.core.errors import CellError, DeviceError
from harness.core.places import cache_dir
from harness.core.types import (
    RUNTIMES,
    STATUSES,
    Block,
    Device,
    FormatName,
    Job,
    MemoryMark,
    Runtime,
    Setting,
    Status,
)
from harness.transports import Transport

PROTOCOL = 1
AGENT = Path(device_agents.__file__).parent / "agent.py"
PROBE_TIMEOUT_S = 60.0
#: Everything that an agent may know of the host's environment; the rest would make runs differ.
ENVIRONMENT = {"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}


@dataclass(slots=True)
class Session:
    """A device that answered, with the agent on it."""

    device: Device
    transport: Transport
    agent: str  # path of agent.py on the device
    facts: Mapping[str, Any]
    _pushed: dict[Path, str] = field(default_factory=dict)
    _native: runners.Runner | runners.NoRunner | None = None

    def push(self, path: Path) -> str:
        """Put a file on the device under a name that holds its hash; its path there."""
        if path not in self._pushed:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                self._pushed[path] = self.transport.push(path, f"{content[:16]}-{path.name}")
            except OSError as error:
                raise CellError(
                    "push_failed", f"{path} cannot be put on {self.device.name}: {error}."
                ) from error
        return self._pushed[path]

    def runtime(self, format_name: FormatName) -> Runtime:
        """What will run files of this format; CellError ``runtime_missing`` with the install command."""
        name = RUNTIMES[format_name]
        version = self.facts.get("runtimes", {}).get(name)
        note = ""
        if format_name == "executorch":
            native = self._native_runner()
            if isinstance(native, runners.Runner):
                return Runtime(name=name, version=native.version, engine="native")
            note = native.reason
        if version is None:
            raise CellError(
                "runtime_missing",
                f"{self.device.name} has no {name}.",
                hint=f"Install it there: {self.transport.python} -m pip install {_wheel(name)}",
            )
        return Runtime(name=name, version=version, engine="python", note=note)

    def run(self, job: Job, index: int) -> Block:
        """Run *job* in a fresh process; CellError with a typed status when it does not come to its end."""
        argv, env = self._command(job)
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.transport.stream(argv, env=env, timeout_s=job.timeout_s) as stream:
            try:
                events = list(read_events(stream))
            except CellError as error:
                if stream.timed_out:
                    raise CellError("timeout", f"The agent took more than {job.timeout_s:g} s.") from error
                if error.status == "agent_failed":
                    raise _died(error, stream.exit_code, stream.errors) from error
                raise
        return block_of(events, job, index, started)

    def _native_runner(self) -> runners.Runner | runners.NoRunner:
        if self._native is None:
            if self.device.transport == "local":
                self._native = runners.executorch(cache_dir())
            else:
                self._native = runners.NoRunner(reason="there is no native runner for this device")
        return self._native

    def _command(self, job: Job) -> tuple[list[str], dict[str, str]]:
        env = dict(ENVIRONMENT)
        native = self._native_runner() if job.format == "executorch" else None
        if isinstance(native, runners.Runner):
            argv = [str(native.path)]
            env["LD_LIBRARY_PATH"] = str(native.library_dir)
        else:
            argv = [self.transport.python, "-s", self.agent]
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
        argv = [transport.python, "-s", agent, "mode=probe"]
        with transport.stream(argv, env=ENVIRONMENT, timeout_s=PROBE_TIMEOUT_S) as stream:
            try:
                facts = facts_of(read_events(stream))
            except CellError as error:
                message = f"{device.name}: the agent does not answer: {error.message} {stream.errors[-300:]}"
                raise DeviceError(message.strip()) from error
        yield Session(device=device, transport=transport, agent=agent, facts=facts)
    finally:
        transport.close()


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """
    The events between ``hello`` and ``end``; strict.

    CellError: the agent's own status for an ``error`` event, ``agent_failed`` for a foreign line, another
    protocol or a stream that stops without ``end``.
    """
    expected = "hello"
    for line in lines:
        event = _parse(line)
        kind = event.get("event")
        if expected == "nothing":
            raise CellError("agent_failed", f"The agent went on after its end: {line[:200]!r}.")
        if expected == "hello":
            if kind != "hello" or event.get("protocol") != PROTOCOL:
                raise CellError(
                    "agent_failed", f"Expected hello with protocol {PROTOCOL}, found {line[:200]!r}."
                )
            expected = "end"
        elif kind == "error":
            raise _reported(event)
        elif kind == "end":
            expected = "nothing"
            continue
        yield event
    if expected != "nothing":
        raise CellError("agent_failed", f"The agent's output stopped before {expected!r}.")


def _parse(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise CellError("agent_failed", f"The agent printed a line that is no event: {line[:200]!r}.")
    return event


def _reported(event: Mapping[str, Any]) -> CellError:
    status = event.get("status")
    known = cast("Status", status) if status in STATUSES else "agent_failed"
    return CellError(known, f"{event.get('stage')}: {event.get('message')}")


def facts_of(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts by name; an absent one is None, with its reason under ``reasons``."""
    facts: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for event in events:
        if event.get("event") == "fact":
            name = str(event.get("name"))
            facts[name] = event.get("value")
            if facts[name] is None:
                reasons[name] = str(event.get("reason", "not said"))
    return facts | {"reasons": reasons} if reasons else facts


def block_of(events: Iterable[Mapping[str, Any]], job: Job, index: int, started_utc: str) -> Block:
    """The block that the events of a finished agent tell of; CellError when something is missing."""
    events = list(events)
    spans = {e["name"]: e for e in events if e.get("event") == "span" and "name" in e}
    steady = spans.get("steady", {})
    try:
        block = Block(
            kind=job.kind,
            index=index,
            started_utc=started_utc,
            load_ns=_int(spans["load"]["ns"]),
            first_inference_ns=_int(spans["first_inference"]["ns"]),
            warmup_ns=_values(events, "warmup"),
            values_ns=_values(events, "value"),
            cpu_ns=_int(steady.get("cpu_ns", 0)),
            wall_ns=_int(steady.get("ns", 0)),
            marks=tuple(_mark(e) for e in events if e.get("event") == "mark"),
            settings={str(e["name"]): _setting(e) for e in events if e.get("event") == "setting"},
            facts=facts_of(events) | {"check": _check(events)},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CellError("agent_failed", f"The agent's events are not complete: {error!r}.") from error
    if job.kind == "latency" and (len(block.values_ns) < job.min_iterations or block.wall_ns <= 0):
        raise CellError(
            "agent_failed", f"The agent timed {len(block.values_ns)} of {job.min_iterations} inferences."
        )
    if job.kind == "memory" and not block.marks:
        raise CellError("agent_failed", "The agent sent no memory marks.")
    return block


def _values(events: Iterable[Mapping[str, Any]], kind: str) -> tuple[int, ...]:
    return tuple(_int(v) for e in events if e.get("event") == kind for v in e["ns"])


def _int(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number of nanoseconds or bytes")
    return value


def _mark(event: Mapping[str, Any]) -> MemoryMark:
    names = ("peak_rss_bytes", "rss_bytes", "anon_bytes", "file_bytes", "swap_bytes")
    return MemoryMark(name=str(event["name"]), **{name: _int(event[name]) for name in names})


def _setting(event: Mapping[str, Any]) -> Setting:
    return Setting(requested=event["requested"], observed=event["observed"])


def _check(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found = next(e for e in events if e.get("event") == "check")
    return {key: found[key] for key in ("sqnr_db", "max_abs", "sets")}


def _died(error: CellError, exit_code: int | None, errors: str) -> CellError:
    """The same failure with what is known of the process's end; a kill out of the blue is likely memory."""
    last = re.sub(r"\s+", " ", errors.strip().splitlines()[-1])[:300] if errors.strip() else ""
    if exit_code is not None and exit_code < 0:
        status: Status = "out_of_memory" if exit_code == -9 else "agent_failed"
        why = " (often: no memory left)" if exit_code == -9 else ""
        return CellError(status, f"Signal {-exit_code} ended the agent{why}. {last}".strip())
    return CellError(error.status, f"{error.message} {last}".strip())


def _wheel(runtime: str) -> str:
    return {"litert": "ai-edge-litert"}.get(runtime, runtime)
