"""Look at a device without measuring on it: can it be reached, what is it, is it fit, what to do about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from harness import agent_process, diagnosis, leasing, parts, provisioning, wheels
from harness.core import units
from harness.core.errors import DeviceError, EdgebenchError, SupervisorError
from harness.core.places import cache_dir
from harness.core.types import RUNTIMES, Device
from harness.diagnosis import Line
from harness.session import Conduct, Session
from harness.transports import Transport

TRIPS = 8
NOISE_TIMEOUT_S = 60.0
LEASE_S = NOISE_TIMEOUT_S + 10.0
ANSWER_BYTES = 1 << 16
HOST_PYTHON = (sys.version_info.major, sys.version_info.minor)
#: About 20 ms on a fast core, 0.1 s on a slow one; nothing but the processor takes part.
NOISE = """
import json, time
times = []
for _ in range(20):
    begin = time.perf_counter_ns()
    total = 0
    for i in range(200000):
        total += i * i % 7
    times.append(time.perf_counter_ns() - begin)
print(json.dumps(times))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that was found out about one device."""

    device: str
    transport: str
    lines: tuple[Line, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fit(self) -> bool:
        """Whether nothing is bad."""
        return all(line.level != "bad" for line in self.lines)


def examine(device: Device) -> Page:
    """
    The page of *device*; one that cannot be reached, or is lost meanwhile, has a page that says why.

    Nothing there is changed, and nothing is timed while somebody else holds it.
    """
    session = Session(device, Conduct(run="doctor"))
    found: list[Line] = []
    try:
        begin = time.monotonic()
        session.connect()
        connected_s = time.monotonic() - begin
    except EdgebenchError as error:
        return Page(device=device.name, transport=device.transport, lines=(_unreachable(device, error),))
    try:
        found += _link(device, session.transport, connected_s)
        found.append(_owner(device, session.transport))
        session.prepare()
        found += diagnosis.lines(device, session.facts, session.conditions)
        found += _runtimes(device, session)
        found.append(_noise(device, session.transport))
    except EdgebenchError as error:
        found.append(_trouble(error))
    finally:
        session.end(None)
    return Page(
        device=device.name,
        transport=device.transport,
        lines=tuple(found),
        facts=session.facts,
        conditions=session.conditions,
    )


def _trouble(error: EdgebenchError) -> Line:
    """Why the page of a device that answers ends here; that somebody else uses it is no fault of it."""
    if isinstance(error, SupervisorError) and error.kind == "held":
        return _undisturbed("device")
    return Line(name="device", level="bad", text=error.message, todo=error.hint)


def _undisturbed(name: str) -> Line:
    text = "not looked at: it would disturb who is using the device"
    return Line(name=name, level="warn", text=text, todo="Ask again when it is free.")


def _unreachable(device: Device, error: EdgebenchError) -> Line:
    host = device.options.get("host")
    user = device.options.get("user")
    address = f"{user}@{host}" if user else host
    todo = error.hint or (f"Is it on and in this network? Try: ssh {address}" if host else "")
    return Line(name="reachable", level="bad", text=error.message, todo=todo)


def _link(device: Device, transport: Transport, connected_s: float) -> Iterator[Line]:
    """The time to connect, the round trip, how the host is known, and its clock."""
    trips = []
    for _ in range(TRIPS):
        sent_s, begin = time.time(), time.perf_counter()
        told = transport.call("hello", workdir=transport.workdir)
        trip_s = time.perf_counter() - begin
        # The device read its clock at some time in the trip: in the middle, give or take half of it.
        trips.append((trip_s, sent_s + trip_s / 2 - float(told["clock_s"])))
    best_s, offset_s = min(trips)
    text = f"connected in {units.duration(connected_s * 1e9)}, round trip {units.duration(best_s * 1e9)}"
    yield Line(name="reachable", level="ok", text=f"{text} (best of {TRIPS})")
    key = getattr(transport, "host_key", None)
    if device.transport == "local":
        yield Line(name="host key", level="ok", text="this machine: none is needed")
    else:
        yield Line(name="host key", level="ok", text=f"{key or 'known'}; strictly checked")
    yield diagnosis.clock(offset_s, best_s / 2)


def _owner(device: Device, transport: Transport) -> Line:
    """Who holds the device: its lease is taken for a moment and dropped."""
    try:
        with _held(transport):
            return Line(name="in use", level="ok", text="by nobody")
    except SupervisorError as error:
        if error.kind != "held":
            raise
        told = leasing.in_use(device, error)
        return Line(name="in use", level="warn", text=told.message, todo="Wait until it is free.")


@contextmanager
def _held(transport: Transport) -> Iterator[None]:
    """Hold the device; SupervisorError ``held`` when somebody else does."""
    mine = {"owner": leasing.owner("doctor"), "period_s": LEASE_S}
    transport.call("lease", action="take", **mine)
    try:
        yield
    finally:
        transport.call("lease", action="release", **mine)


def _runtimes(device: Device, session: Session) -> list[Line]:
    """What is there by itself or by provisioning; for what is not, whether it could be."""
    manifest = provisioning.installed(session.transport)
    present = {name: version for name, version in (session.facts.get("runtimes") or {}).items() if version}
    missing: dict[str, str] = {}
    if manifest:
        present, missing = present | dict(manifest.runtimes), dict(manifest.missing)
    installable: dict[str, str] = {}
    asked = {"bits": "python_bits", "machine": "arch", "python": "python", "libc": "libc"}
    target_facts = {key: str(session.facts.get(name) or "") for key, name in asked.items()}
    for name in RUNTIMES.values():
        if name in present or name in missing:
            continue
        try:
            wheel = _wheel(name, wheels.parse_target(device.name, target_facts))
        except DeviceError as error:  # nothing can be put there
            missing[name] = str(error)
            continue
        if isinstance(wheel, wheels.Wheel):
            installable[name] = f"{wheel.package} {wheel.version}"
        elif wheel.final:
            missing[name] = wheel.reason
    return list(diagnosis.runtimes(device, present, missing, installable))


def _wheel(runtime: str, target: wheels.Target) -> wheels.Wheel | wheels.NoWheel:
    """What provisioning would take for *runtime*; it is fetched into the cache, which provisioning uses."""
    if runtime == parts.EXECUTORCH:  # the native runner needs the wheel's libraries, not its Python
        target = replace(target, python=HOST_PYTHON, glibc=parts.ANY_GLIBC)
    answers = []
    for package in parts.PACKAGES.get(runtime, (runtime,)):
        answer = wheels.resolve(package, target, cache_dir())
        if isinstance(answer, wheels.Wheel):
            return answer
        answers.append(answer)
    final = all(answer.final for answer in answers)
    return wheels.NoWheel(reason="; ".join(answer.reason for answer in answers), final=final)


def _noise(device: Device, transport: Transport) -> Line:
    """How equal work differs in time there, by one process; not while somebody measures."""
    argv, env = [transport.python, "-c", NOISE], dict(agent_process.ENVIRONMENT)
    try:
        with _held(transport):
            done = transport.call("run", argv=argv, env=env, timeout_s=NOISE_TIMEOUT_S, limit=ANSWER_BYTES)
    except SupervisorError as error:
        if error.kind != "held":
            raise
        return _undisturbed("noise")
    if done.get("exit_code") != 0:
        words = str(done.get("err") or "it said nothing").strip().splitlines()[-1]
        raise DeviceError(f"{device.name}: a short piece of work did not end there: {words}")
    return diagnosis.noise(json.loads(done["out"]))
