"""
Every exception of edgebench, and the exit code each one ends a command with.

::

    EdgebenchError                 exit 2   harness or device failure
    ├── UsageError                 exit 4   bad input: a key, a file, an option, a task file
    ├── MissingPackage             exit 2   a library is not installed; the hint is the command
    ├── DeviceError                exit 2   a device does not answer as it should
    │   ├── TransientDeviceError   exit 2   the same, and trying again may help
    │   │   └── DeviceRebooted     exit 2   it restarted: what ran there is gone
    │   └── SupervisorError        exit 2   our program on the device refused a call
    └── CellError                  (none)   one cell cannot be measured; becomes that cell's row
        ├── NotApplicable          (none)   a pass finds nothing in this model that it works on
        └── AgentTrouble           (none)   the same, and a fresh agent process may do better

Exit 0 is fine, 1 regressed, 3 nothing trustworthy was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.core.types import Status


class EdgebenchError(Exception):
    """A sentence for the person who can mend it; *hint* says what to try."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole, hint and status included."""
        return _rebuild, (type(self), self.__dict__, self.args)


class UsageError(EdgebenchError):
    """What the user gave cannot be used: names what, where and what was expected."""

    exit_code = 4


class MissingPackage(EdgebenchError):
    """A library that this work needs is not installed; the hint is the install command."""


class DeviceError(EdgebenchError):
    """A device does not answer as it should."""


class TransientDeviceError(DeviceError):
    """A device does not answer as it should, and trying again may help."""


class DeviceRebooted(TransientDeviceError):
    """The device restarted: what ran there is gone, what was pushed is still there."""


class SupervisorError(DeviceError):
    """The supervisor on the device refused a call; *kind* as in device_agents/SUPERVISOR.md."""

    def __init__(self, kind: str, message: str, *, hint: str = "", facts: object = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.facts = facts  # what came with the refusal, e.g. who holds the lease


class CellError(EdgebenchError):
    """One cell cannot be measured; *status* is the type that its row gets."""

    def __init__(self, status: Status, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class NotApplicable(CellError):
    """A pass finds nothing in this model that it works on: says what it looked for."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__("build_failed", message, hint=hint)


class AgentTrouble(CellError):
    """An agent died, hung or spoke nonsense; a fresh one may do better, in at most *tries* tries in all."""

    def __init__(self, status: Status, message: str, *, hint: str = "", tries: int) -> None:
        super().__init__(status, message, hint=hint)
        self.tries = tries


def _rebuild(cls: type[EdgebenchError], state: dict[str, object], args: tuple[object, ...]) -> EdgebenchError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
