"""
The lease of a device: taken before anything is done there, dropped at the end; who else may have it.

A lease whose owner was a process of this very host that is no longer alive is taken over at once.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import CellError, SupervisorError
from harness.core.types import Device
from harness.transports import Transport

PERIOD_S = 60.0  # where the device's entry does not say how patient it is
ASK_AGAIN_S = 2.0
SAY_AGAIN_S = 30.0


def owner(run: str) -> dict[str, Any]:
    """Who we are, for another host that wants the device."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name for this number, as in many containers
        user = str(os.getuid())
    mine = {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "run": run}
    return mine | _where() | {"start_ticks": _start_ticks(os.getpid())}


def _where() -> dict[str, str]:
    """Among which processes a pid counts: one start of the system, one pid namespace (of a container)."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot_id": boot_id, "pid_namespace": str(Path("/proc/self/ns/pid").readlink())}
    except OSError:  # no Linux, or no /proc
        return {}


def _start_ticks(pid: int) -> int | None:
    """When a process began, which tells it from a later one of its number; None if that is not to be read."""
    with contextlib.suppress(OSError):
        return int(_stat(pid)[19])
    return None


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def is_dead(told: Mapping[str, Any]) -> bool:
    """
    Whether an owner was a process of this host that no longer lives.

    False wherever that is not certain: another host, container or start of the system, or absent facts.
    """
    here, pid = _where(), told.get("pid")
    if not here or told.get("host") != socket.gethostname() or any(told.get(k) != here[k] for k in here):
        return False
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and is another user's
    try:
        found = _stat(pid)
    except OSError:  # it is hidden from us, or ended just now: the next try tells
        return False
    started = told.get("start_ticks")
    return found[0] in "ZX" or (isinstance(started, int) and int(found[19]) != started)


def period_s(device: Device) -> float:
    """How long a lease holds without being renewed: as long as the device's link may be away."""
    return float(device.options.get("patience_s") or PERIOD_S)


def take(
    device: Device,
    transport: Transport,
    mine: Mapping[str, Any],
    *,
    wait_s: float,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    """
    Take the lease for *mine*, waiting up to *wait_s* for another owner; the transport renews it.

    That of a dead process of this host is taken over. CellError ``not_ready`` says who has it. *check* is
    called while it waits, and may raise.
    """
    deadline = time.monotonic() + wait_s
    next_word = time.monotonic()
    wanted: dict[str, Any] = {"action": "take", "owner": dict(mine), "period_s": period_s(device)}
    while True:
        try:
            transport.call("lease", **wanted)
        except SupervisorError as error:
            if error.kind != "held":
                raise
            told = _owner_in(error)
            if wanted.get("replaces") != told and is_dead(told):
                wanted["replaces"] = told
                run, pid = told.get("run") or "?", told.get("pid")
                dead = f"run {run} of this host: its process {pid} is dead"
                say(f"{device.name}: taking over the lease of {dead}.")
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise in_use(device, error) from error
            if time.monotonic() >= next_word:
                next_word = time.monotonic() + SAY_AGAIN_S
                say(f"{in_use(device, error).message} Waiting for it up to {left_s:.0f} s more.")
            check()
            time.sleep(min(ASK_AGAIN_S, left_s))
        else:
            return


def release(transport: Transport) -> None:
    """Drop it."""
    transport.call("lease", action="release")


def in_use(device: Device, error: SupervisorError) -> CellError:
    """``pi5 is in use by ann@desk (pid 7, run night) for another 41 s.``"""
    facts = error.facts if isinstance(error.facts, Mapping) else {}
    who = {key: str(value) for key, value in _owner_in(error).items() if value}
    user, host, pid, run = (who.get(key, "?") for key in ("user", "host", "pid", "run"))
    left = facts.get("left_s")
    until = f" for another {max(left, 0):.0f} s" if isinstance(left, (int, float)) else ""
    return CellError(
        "not_ready",
        f"{device.name} is in use by {user}@{host} (pid {pid}, run {run}){until}.",
        hint="Wait for it with --wait-for-device SECONDS, or measure when it is free.",
    )


def _owner_in(error: SupervisorError) -> dict[str, Any]:
    """Who holds the lease, as it was told; empty if it was not."""
    told = error.facts.get("owner") if isinstance(error.facts, Mapping) else None
    return dict(told) if isinstance(told, Mapping) else {}
