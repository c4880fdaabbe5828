"""Numbers with units to text, for people."""

from __future__ import annotations

from collections.abc import Iterable


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


def counted(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


def counts(numbers: Iterable[int], noun: str) -> str:
    """``6 blocks`` where all agree, else ``5 to 6 blocks``."""
    known = list(numbers)
    low, high = min(known), max(known)
    return counted(low, noun) if low == high else f"{low} to {counted(high, noun)}"


def times(value: float) -> str:
    """A factor with three or so digits: ``0.98``, ``8.41``, ``10.4``."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def joined(low: str, high: str) -> str:
    """Two written values with one unit where they share it: ``12.1–12.5 µs``."""
    number, _, unit = low.partition(" ")
    return f"{number}–{high}" if unit and high.endswith(f" {unit}") else f"{low}–{high}"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
