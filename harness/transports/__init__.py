"""
Ways to reach a device, one file each: ``connect(device) -> Transport``.

A transport also says how its devices are started with ``Options`` (a pydantic model, extra="forbid"):
the keys that an entry of devices.yaml may have besides ``transport`` and ``tags``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push had to do."""

    paths: Mapping[str, str]  # name → path on the device
    sent_files: int
    sent_bytes: int


class Stream(Protocol):
    """The standard output of one process, line by line; how it ended is known after the last line."""

    def __iter__(self) -> Iterator[str]:
        """The lines, without their line ends."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, -N when signal N ended it; None while it runs or when it timed out."""

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because its time was over."""

    @property
    def errors(self) -> str:
        """The last lines of its standard error."""

    @property
    def cpus(self) -> Sequence[int]:
        """The CPUs that it may use, as read back after its start."""


class Transport(Protocol):
    """A connection to one device. Every failure is a DeviceError; those worth a retry are transient."""

    @property
    def python(self) -> str:
        """The interpreter that runs the agent there."""

    @property
    def workdir(self) -> str:
        """The absolute path of the folder there that is ours: files, jobs, lease."""

    def push(self, source: Path, name: str) -> str:
        """Put *source* into the device's work folder as *name*, unless it is there; its path there."""

    def push_all(self, files: Mapping[str, Path]) -> Pushed:
        """Put many files there, name → source, in one go; only what is missing is sent."""

    def pull(self, name: str, target: Path) -> None:
        """Fetch *name* from the device's work folder into *target*."""

    def call(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        """
        Ask the supervisor on the device (device_agents/SUPERVISOR.md).

        Raises SupervisorError with the supervisor's kind of error; TransientDeviceError when the link was
        lost for longer than the device's patience.
        """

    def stream(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cpus: Sequence[int] = ()
    ) -> AbstractContextManager[Stream]:
        """
        Run *argv* there, in the work folder, with exactly *env*; leaving the context ends the process.

        A link that is cut and comes back is no failure: the output is fetched then. Rebooted raises
        DeviceRebooted, lost for good TransientDeviceError.
        """

    @property
    def incidents(self) -> Sequence[str]:
        """One sentence for each time that the link was lost and came back, in order."""

    def close(self) -> None:
        """Let go of the device."""


@runtime_checkable
class Telling(Protocol):
    """What a transport may have besides, whose link can be away for long: it tells of that at once."""

    def tell(self, say: Callable[[str], None]) -> None:
        """From now on *say* gets one line when the link is lost, and one when it is back."""
