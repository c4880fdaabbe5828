"""The lease of a device: taken before anything is done there, dropped at the end; who else may have it."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
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
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "run": run}


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

    CellError ``not_ready`` says who has it. *check* is called while it waits, and may raise.
    """
    deadline = time.monotonic() + wait_s
    next_word = time.monotonic()
    while True:
        try:
            transport.call("lease", action="take", owner=dict(mine), period_s=period_s(device))
        except SupervisorError as error:
            if error.kind != "held":
                raise
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
    told = facts.get("owner")
    who = {key: str(value) for key, value in told.items() if value} if isinstance(told, Mapping) else {}
    user, host, pid, run = (who.get(key, "?") for key in ("user", "host", "pid", "run"))
    left = facts.get("left_s")
    until = f" for another {max(left, 0):.0f} s" if isinstance(left, (int, float)) else ""
    return CellError(
        "not_ready",
        f"{device.name} is in use by {user}@{host} (pid {pid}, run {run}){until}.",
        hint="Wait for it with --wait-for-device SECONDS, or measure when it is free.",
    )
