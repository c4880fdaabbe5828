"""A device behind ssh: strict host keys, your ~/.ssh/config, agent and jump hosts; it needs Python only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from harness.core.errors import DeviceError
from harness.core.types import Device
from harness.transports import Pushed, Stream, _ssh_config, _ssh_known
from harness.transports._ssh_auth import SECRETS
from harness.transports._ssh_config import HOPS, Target, own_options, route, with_hops
from harness.transports._ssh_link import Link, open_way, start
from harness.transports._ssh_trust import Finding, look
from harness.transports._supervisor import Supervisor
from harness.transports._wire import READER

__all__ = ["Options", "connect", "findings", "with_hops"]

Options = _ssh_config.Options


def connect(device: Device) -> Ssh:
    """
    Connect to *device* and start its supervisor; the connection stays until close().

    A device with ``via`` must have come through with_hops(). Raises UsageError for options that make no
    sense, TransientDeviceError when the device does not answer, DeviceError when trying again is no help.
    """
    options = own_options(device)
    if options.via and HOPS not in device.options:
        raise DeviceError(f"{device.name}: the device {options.via!r} that it is behind was not looked up.")
    opener = _Opener(route(device), options)
    supervisor = Supervisor(
        opener.open, workdir=options.workdir, patience_s=options.patience_s, name=device.name
    )
    transport = Ssh(supervisor, opener)
    try:
        _ = transport.workdir  # connects
    except BaseException:
        transport.close()
        raise
    return transport


def findings(device: Device) -> Iterator[Finding]:
    """
    What each host on the way to *device* shows, outermost first; the device is the last one.

    A host is looked at when it is asked for: by then those before it must be trusted. Raises as connect().
    """
    targets = route(device)
    for count in range(1, len(targets) + 1):
        yield look(targets[:count], SECRETS, own_options(device).connect_timeout_s)


class _Opener:
    """Opens the link to a device's supervisor, the first time and after every loss."""

    def __init__(self, targets: Sequence[Target], options: Options) -> None:
        self.targets = targets
        self.options = options
        self.python = options.python
        self.host_key = ""  # that the device showed, and that is known for it
        self._again = False

    def open(self) -> Link:
        """A new connection, with a Python that reads the supervisor from it."""
        limit_s = self.options.connect_timeout_s
        way = open_way(self.targets, SECRETS, limit_s, again=self._again)
        try:
            link, found = start(way, self.options.python, READER, limit_s)
        except BaseException:
            way.close()
            raise
        self.python, self._again = found.path, True
        if way.last is not None:
            self.host_key = str(_ssh_known.of_paramiko(way.last.get_remote_server_key()))
        return link


class Ssh:
    """A Transport over ssh; everything goes through the supervisor on the device."""

    def __init__(self, supervisor: Supervisor, opener: _Opener) -> None:
        self._supervisor = supervisor
        self._opener = opener

    @property
    def python(self) -> str:
        """The absolute path of the interpreter there."""
        return self._opener.python

    @property
    def host_key(self) -> str:
        """The device's key, as ``ssh-keygen -l`` prints it; it was checked, or we would not be here."""
        return self._opener.host_key

    @property
    def workdir(self) -> str:
        """The absolute path of our folder there."""
        return self._supervisor.workdir

    @property
    def incidents(self) -> Sequence[str]:
        """One sentence for each time that the link was lost and came back, in order."""
        return self._supervisor.incidents

    def tell(self, say: Callable[[str], None]) -> None:
        """From now on *say* gets one line when the link is lost, and one when it is back."""
        self._supervisor.say = say

    def push(self, source: Path, name: str) -> str:
        """Put *source* there as *name*, unless it is there; its path there."""
        return self._supervisor.push(source, name)

    def push_all(self, files: Mapping[str, Path]) -> Pushed:
        """Put many files there; only what is missing is sent."""
        return self._supervisor.push_all(files)

    def pull(self, name: str, target: Path) -> None:
        """Fetch *name* into *target*."""
        self._supervisor.pull(name, target)

    def call(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor there (device_agents/SUPERVISOR.md)."""
        return self._supervisor.call(method, **arguments)

    def stream(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cpus: Sequence[int] = ()
    ) -> AbstractContextManager[Stream]:
        """Run *argv* there, in the work folder; leaving the context ends it."""
        return self._supervisor.stream(argv, env=env, timeout_s=timeout_s, cpus=cpus)

    def close(self) -> None:
        """Let go of the device."""
        self._supervisor.close()
