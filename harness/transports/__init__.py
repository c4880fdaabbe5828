"""
Ways to reach a device, one file each: ``connect(device) -> Transport``.

A transport also says how its devices are started with ``Options`` (a pydantic model, extra="forbid"):
the keys that an entry of devices.yaml may have besides ``transport`` and ``tags``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Transport(Protocol):
    """A connection to one device. Every failure is a DeviceError; those worth a retry are transient."""

    def push(self, source: Path, name: str) -> str:
        """Put *source* into the device's work folder as *name*, unless it is there; its path there."""

    def pull(self, name: str, target: Path) -> None:
        """Fetch *name* from the device's work folder into *target*."""

    def stream(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float
    ) -> AbstractContextManager[Iterator[str]]:
        """Run *argv* there; the lines of its standard output as they come. Leaving ends the process."""

    def close(self) -> None:
        """Let go of the device."""
