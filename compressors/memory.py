"""Peak memory of a step: how far it raised the resident memory of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

METHOD = "VmHWM of the building process, reset before the step, less VmRSS at its start"
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Peak:
    """What was measured, once the block is over."""

    bytes: int | None = None  # None: *method* says why
    method: str = ""


@contextlib.contextmanager
def peak() -> Iterator[Peak]:
    """Measure the block; the system is Linux or the result says that there is none."""
    found = Peak()
    try:
        _CLEAR.write_text("5")  # the high-water mark starts again at what is used now
        start = _field("VmRSS")
    except (OSError, ValueError) as error:
        found.method = f"not measured: {type(error).__name__} from /proc/self"
        yield found
        return
    yield found
    found.bytes, found.method = max(_field("VmHWM") - start, 0), METHOD


def _field(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)
