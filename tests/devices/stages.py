"""How long each stage of the set-up took; the table is printed when the tests end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_ROWS: list[tuple[str, float]] = []
_FIGURES: list[str] = []


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time what is inside."""
    begin = time.monotonic()
    try:
        yield
    finally:
        _ROWS.append((name, time.monotonic() - begin))


def figure(text: str) -> None:
    """A measured figure that is to be printed at the end."""
    _FIGURES.append(text)


def table() -> list[str]:
    """The stages in the order in which they ended, then the figures."""
    return [*(f"{seconds:8.1f} s  {name}" for name, seconds in _ROWS), *_FIGURES]
