"""Numbers with units to text, for people."""

from __future__ import annotations


def duration(ns: float) -> str:
    """Nanoseconds as ``12.3 µs``, ``1.23 ms`` or ``1.23 s``, three significant digits."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if abs(ns) >= factor:
            return f"{_three(ns / factor)} {unit}"
    return f"{_three(ns)} ns"


def size(count: float) -> str:
    """Bytes as ``512 B``, ``36.1 KiB`` or ``13.4 MiB``, three significant digits."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= factor:
            return f"{_three(count / factor)} {unit}"
    return f"{count:.0f} B"


def count(number: float) -> str:
    """A count as ``930``, ``93.3 k`` or ``3.5 M``."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{_three(number / factor)} {unit}"
    return f"{number:.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.9912 as ``99.1 %``."""
    return f"{share * 100:.{digits}f} %"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
