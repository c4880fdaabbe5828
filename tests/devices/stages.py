"""How long each stage of the set-up took; the table is printed when the tests end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LINES: list[str] = []


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time what is inside."""
    begin = time.monotonic()
    try:
        yield
    finally:
        figure(f"{time.monotonic() - begin:8.1f} s  {name}")


def figure(line: str) -> None:
    """A measured figure that is to be printed at the end."""
    _LINES.append(line)


def add(lines: Iterable[str]) -> None:
    """What another process has measured."""
    _LINES.extend(lines)


def table() -> list[str]:
    """Stages and figures, in the order in which they came."""
    return list(_LINES)
