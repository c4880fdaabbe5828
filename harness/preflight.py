"""Every device is contacted once before anything is built: what is wrong is said while somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from harness.core import plugins, prompting
from harness.core.errors import DeviceError, TransientDeviceError
from harness.core.types import Device


def check(devices: Sequence[Device], say: Callable[[str], None]) -> None:
    """
    Say which of *devices* cannot be reached; DeviceError when for none of them trying again may help.

    Passphrases and passwords are asked for here, in the foreground; later connections know them.
    """
    failed = failures(devices)
    stable = [error for error in failed.values() if not isinstance(error, TransientDeviceError)]
    if len(devices) == len(stable) == 1:
        raise stable[0]
    for name, error in failed.items():
        say(_sentence(name, error))
    if devices and len(stable) == len(devices):
        raise DeviceError(
            f"None of the {len(devices)} devices can be measured on; nothing was built.",
            hint="Mend what is said above; edgebench doctor NAME looks again.",
        )


def failures(devices: Sequence[Device]) -> Mapping[str, DeviceError]:
    """Device name → why it cannot be reached; this machine is not asked. Nobody is kept from using one."""
    remote = [device for device in devices if device.transport != "local"]
    found = zip(remote, prompting.in_parallel(_failure, remote), strict=True)
    return {device.name: error for device, error in found if error is not None}


def _failure(device: Device) -> DeviceError | None:
    try:
        transport = plugins.load("harness.transports", device.transport).connect(device)
        try:
            transport.call("hello", workdir=transport.workdir)
        finally:
            transport.close()
    except DeviceError as error:
        return error
    return None


def _sentence(name: str, error: DeviceError) -> str:
    text = str(error) if name in error.message else f"{name}: {error}"
    return f"{text} It is tried again after building." if isinstance(error, TransientDeviceError) else text
