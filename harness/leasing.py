"""The lease of a device: taken before anything is done there, renewed during use, dropped at the end."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.core.errors import CellError, DeviceError, SupervisorError, TransientDeviceError
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


class Lease:
    """A lease that is held; a thread renews it, so that a long block does not lose it."""

    def __init__(self, device: Device, transport: Transport, mine: Mapping[str, Any]) -> None:
        self._device = device
        self._transport = transport
        self._period_s = period_s(device)
        self._asked: dict[str, Any] = {"owner": dict(mine), "period_s": self._period_s}
        self._over = threading.Event()
        self._lost: CellError | None = None
        self._thread = threading.Thread(target=self._renew, name=f"lease of {device.name}", daemon=True)

    def take(self, *, wait_s: float, say: Callable[[str], None], check: Callable[[], None]) -> None:
        """
        Take it, waiting up to *wait_s* for another owner; CellError ``not_ready`` says who has it.

        *check* is called while it waits, and may raise.
        """
        deadline = time.monotonic() + wait_s
        said = -SAY_AGAIN_S
        while True:
            try:
                self._transport.call("lease", action="take", **self._asked)
                break
            except SupervisorError as error:
                if error.kind != "held":
                    raise
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise in_use(self._device, error) from error
                if time.monotonic() - said >= SAY_AGAIN_S:
                    said = time.monotonic()
                    say(f"{in_use(self._device, error).message} Waiting for it up to {left_s:.0f} s more.")
                check()
                self._over.wait(min(ASK_AGAIN_S, left_s))
        self._thread.start()

    def check(self) -> None:
        """CellError ``not_ready`` when somebody else has got it meanwhile."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Drop it."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._transport.call("lease", action="release", **self._asked)

    def stop(self) -> None:
        """Renew it no more: it ends by itself then."""
        self._over.set()

    def _renew(self) -> None:
        while not self._over.wait(self._period_s / 3):
            try:
                self._transport.call("lease", action="renew", **self._asked)
            except SupervisorError as error:
                if error.kind == "held":
                    self._lost = in_use(self._device, error)
                    return
            except TransientDeviceError:
                continue  # the block that runs sees the same, and says it
            except DeviceError:
                return


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
