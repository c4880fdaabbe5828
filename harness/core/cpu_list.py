"""Lists of CPUs as Linux writes them: ``0-3,6``."""

from __future__ import annotations

import re
from collections.abc import Iterable

LARGEST = 4095  # more CPUs than any kernel is built for


def parse(text: str) -> tuple[int, ...]:
    """The CPUs of *text*, ascending, each once; ValueError when it is no such list."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"{part!r} is no CPU and no range of CPUs; write it like 0-3 or 0,2")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= LARGEST:
            raise ValueError(f"{part!r} is no range of CPUs; write it like 0-3 or 0,2")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def text(cpus: Iterable[int]) -> str:
    """*cpus* as one list, neighbours joined."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
