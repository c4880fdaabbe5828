"""The evidence behind the figures, as plain lines for the HTML report's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from harness.core import units
from harness.core.types import SUFFIXES, Plan, Record, Setting
from harness.reports import _wording

Pairs = list[tuple[str, str]]
#: Facts that only count up: their differences tell something, their values do not.
COUNTERS = ("clock_s", "cpu_s", "all_cpu_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingLine:
    """One setting as it was asked for and as it was read back, over all blocks that have it."""

    name: str
    requested: str
    observed: str
    blocks: int
    agrees: bool | None  # None: could not be read back


def text(name: str, value: Any) -> str:
    """A fact for people: bytes and seconds with units, lists joined, anything else as it is."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(name, value)
    if isinstance(value, (list, tuple)):
        return ", ".join(text("", v) for v in value) or "none"
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False, sort_keys=True, default=str)
    return str(value)


def _number(name: str, value: float) -> str:
    if name.endswith("_hz"):
        return f"{value / 1e6:.0f} MHz"
    if name.endswith("_c"):
        return f"{value:.1f} °C"
    if name.endswith("_bytes"):
        return units.size(value)
    if name.endswith("_ns"):
        return units.duration(value)
    if name.endswith("_s"):
        return f"{value:g} s"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def readable(name: str) -> str:
    """``memory_total_bytes`` as ``memory total``."""
    for unit in ("_bytes", "_ns", "_s", "_utc", "_hz", "_c"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def pairs(facts: Mapping[str, Any]) -> Pairs:
    """Facts by name, with their units; one level of nesting is unfolded, an absent fact has its reason."""
    lines: Pairs = []
    reasons = facts.get("reasons", {})
    for name in sorted(facts.keys() - {"reasons"}):
        value = facts[name]
        if isinstance(value, Mapping) and value:
            lines += [(f"{readable(name)}: {key}", text(key, value[key])) for key in sorted(value)]
        else:
            why = f": {reasons[name]}" if value is None and name in reasons else ""
            lines.append((readable(name), text(name, value) + why))
    return lines


def plan(settings: Plan) -> Pairs:
    """How cells were measured."""
    return [(readable(f.name), text(f.name, getattr(settings, f.name))) for f in fields(settings)]


def request(asked: Mapping[str, Any]) -> Pairs:
    """The options that were given; the plan has a table of its own."""
    return pairs({name: value for name, value in asked.items() if name != "plan" and value not in (None, [])})


def headline(device: Mapping[str, Any]) -> str:
    """The handful of facts by which people know a machine."""
    known = [
        device.get("model"),
        device.get("cpu_model"),
        units.counted(cores, "core") if isinstance(cores := device.get("cores"), int) else None,
        device.get("arch"),
        units.size(ram) if isinstance(ram := device.get("memory_total_bytes"), int) else None,
        device.get("os"),
    ]
    return " · ".join(str(fact) for fact in known if fact)


def settings(records: Iterable[Record]) -> list[SettingLine]:
    """Every setting that was asked for; those that did not take come first."""
    counts: dict[tuple[str, str, str, bool | None], int] = {}
    for record in records:
        for block in record.blocks:
            for name, setting in block.settings.items():
                key = (
                    readable(name),
                    text(name, setting.requested),
                    _observed(name, setting),
                    _agrees(setting),
                )
                counts[key] = counts.get(key, 0) + 1
    lines = [
        SettingLine(name=name, requested=requested, observed=observed, agrees=agrees, blocks=count)
        for (name, requested, observed, agrees), count in counts.items()
    ]
    return sorted(lines, key=lambda line: (line.agrees is True, line.name, line.requested))


def _observed(name: str, setting: Setting) -> str:
    return "could not be read back" if setting.observed is None else text(name, setting.observed)


def _agrees(setting: Setting) -> bool | None:
    return None if setting.observed is None else setting.observed == setting.requested


def conditions(records: Iterable[Record]) -> Pairs:
    """The device's state before and after every block: smallest to largest, or why it is not known."""
    numbers: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    shares: list[float] = []  # of the CPU time, taken by other processes
    for record in records:
        for block in record.blocks:
            share = _wording.taken_by_others(block, _wording.cores_of(record))
            shares += [] if share is None else [share]
            for moment in ("state_before", "state_after"):
                state = block.facts.get(moment) or {}
                for name, value in state.items():
                    numbers.setdefault(name, []).extend(_numbers(value))
                    if value is None:
                        reasons[name] = str(state.get(f"{name}_reason", "not said"))
    lines: Pairs = []
    if shares:
        ends = list(dict.fromkeys(units.percent(end) for end in (min(shares), max(shares))))
        lines.append(("CPU time of other processes", units.joined(*ends) if len(ends) == 2 else ends[0]))
    for name in sorted(name for name in numbers if name not in COUNTERS and not name.endswith("_reason")):
        found = numbers[name]
        why = f"not known: {reasons[name]}" if name in reasons else "none"
        ends = list(dict.fromkeys(text(name, end) for end in (min(found), max(found)))) if found else []
        lines.append((readable(name), units.joined(*ends) if len(ends) == 2 else ends[0] if ends else why))
    return lines


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def versions(records: Sequence[Record]) -> Pairs:
    """What exported and what ran, with versions; several versions of one thing are all named."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record.runtime:
            engine = f"{record.runtime.version} ({record.runtime.engine} engine)"
            note = f": {record.runtime.note}" if record.runtime.note else ""
            found.setdefault(f"runtime {record.runtime.name}", {})[engine + note] = None
        for package, version in record.artifact.exporter.items() if record.artifact else ():
            found.setdefault(f"exporter {package}", {})[version] = None
    return [(name, "; ".join(kinds)) for name, kinds in sorted(found.items())]


def steps(records: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    """Recipe -> what each of its steps did; formats of one recipe share their steps."""
    found: dict[str, list[Any]] = {}
    for record in records:
        if record.artifact and record.artifact.steps:
            found.setdefault(record.cell.recipe, list(record.artifact.steps))
    return list(found.items())


def _device_check(record: Record) -> str:
    checks = [block.facts.get("check") for block in record.blocks]
    found = [check["sqnr_db"] for check in checks if isinstance(check, Mapping) and "sqnr_db" in check]
    return f"{min(found):.1f} dB" if found else "–"


def proofs(records: Sequence[Record]) -> list[dict[str, str]]:
    """Per cell: which file it was, how near its outputs are to the model's, and what ran it."""
    lines = []
    for record in records:
        made, ran = record.artifact, record.runtime
        parity = made.parity if made else None
        agreement = parity.top1_agreement if parity else None
        lines.append(
            {
                "cell": f"{record.cell.recipe} {SUFFIXES[record.cell.format]}",
                "threads": str(record.cell.threads),
                "backend": record.cell.backend,
                "runtime": f"{ran.name} {ran.version}, {ran.engine}" if ran else "–",
                "bytes": f"{made.bytes:,}" if made else "–",
                "sha256": made.sha256 if made else "–",
                "sqnr": f"{parity.sqnr_db:.1f} dB" if parity else "–",
                "device": _device_check(record),
                "top1": units.percent(agreement) if agreement is not None else "–",
                "why": (made.parity_reason or "") if made and not parity else "",
                "macs": units.count(made.macs) if made and made.macs is not None else "–",
                "parameters": units.count(made.parameters) if made and made.parameters is not None else "–",
                "nonzeros": units.count(made.nonzeros) if made and made.nonzeros is not None else "–",
            }
        )
    return lines
