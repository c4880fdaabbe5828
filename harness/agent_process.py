"""One fresh agent process on a device: how it is started, what it says, and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from harness.core import cpu_list, events
from harness.core.errors import AgentTrouble, CellError, DeviceError
from harness.core.types import Block, Job, Setting
from harness.transports import Stream, Transport

PROBE_TIMEOUT_S = 60.0
#: All that an agent knows of the host's environment; a user's OMP_NUM_THREADS would change what is measured.
#: numpy gets no threads of its own: it only compares outputs, and idle threads of its BLAS spin.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PYTHONDONTWRITEBYTECODE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def arguments(job: Job) -> list[str]:
    """*job* as an agent takes it (device_agents/PROTOCOL.md)."""
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
    return [f"{key}={value}" for key, value in options.items()]


def run(
    transport: Transport,
    argv: Sequence[str],
    env: Mapping[str, str],
    job: Job,
    *,
    index: int,
    cpus: Sequence[int],
    out_of_memory: Callable[[], bool],
) -> Block:
    """
    The block that one process of *argv* measures.

    CellError with a typed status when it does not come to its end; AgentTrouble where a fresh process may.
    *out_of_memory* says whether the device has killed for memory since it was last asked.
    """
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with transport.stream(argv, env=env, timeout_s=job.timeout_s, cpus=cpus) as stream:
        try:
            block = events.read_block(stream, job, index=index, started_utc=started)
            return _with_affinity(block, cpus, stream.cpus) if cpus else block
        except CellError as error:
            failure, ended = error, _ended(stream)
    if ended.timed_out:
        raise AgentTrouble(
            "timeout",
            f"The agent did not end within {job.timeout_s:g} s.",
            hint="Give it more time, or fewer iterations.",
            tries=2,
        ) from failure
    if failure.status != "agent_failed":
        raise failure
    raise _died(failure, ended, out_of_memory) from failure


def _with_affinity(block: Block, asked: Sequence[int], found: Sequence[int]) -> Block:
    setting = Setting(requested=cpu_list.text(asked), observed=cpu_list.text(found) or None)
    return replace(block, settings={**block.settings, "affinity": setting})


def probe(transport: Transport, argv: Sequence[str], env: Mapping[str, str], *, name: str) -> dict[str, Any]:
    """The facts of the device *name*; DeviceError when the program that tells them does not."""
    with transport.stream(argv, env=env, timeout_s=PROBE_TIMEOUT_S) as stream:
        try:
            return events.read_probe(stream)
        except CellError as error:
            ended = _ended(stream)
            words = f"It did not end within {PROBE_TIMEOUT_S:g} s." if ended.timed_out else ended.last_words
            raise DeviceError(
                f"{name}: the agent does not answer: {error.message} {words}".strip(),
                hint=f"It was started with {transport.python}.",
            ) from error


def _died(error: CellError, ended: _End, out_of_memory: Callable[[], bool]) -> CellError:
    """An agent that did not speak to its end, with what is known of it."""
    words = f" Its last words: {ended.last_words}" if ended.last_words else ""
    if ended.exit_code is None or ended.exit_code >= 0:
        return AgentTrouble("agent_failed", f"{error.message}{words}", tries=2)
    name = _signal_name(-ended.exit_code)
    if ended.exit_code == -signal.SIGKILL:
        if out_of_memory():
            return CellError(
                "out_of_memory",
                f"{name} ended the agent, and the device counted a process killed for memory.",
            )
        words = f" The device counted no process killed for lack of memory.{words}"
    return AgentTrouble("agent_failed", f"{name} ended the agent: {error.message}{words}", tries=3)


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
