"""
What a device is, told apart from how it is right now (device_agents/PROTOCOL.md, "A probe").

Two records are compared, and a run is resumed, only where the stable facts are equal. Temperatures, free
disk or the load change from second to second: they are conditions, stored beside and never hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.types import digest

#: Facts that change while the device stays the same. Clock limits are among them: an older kernel writes
#: its cooling into them.
VOLATILE = frozenset(
    {
        "boot_id",
        "clock_limits",
        "clock_s",
        "fans_rpm",
        "free_disk_bytes",
        "load_average_1min",
        "memory_available_bytes",
        "oom_kills",
        "power_sources",
        "swap_used_bytes",
        "temperatures_c",
        "temperatures_left_out",
        "throttling",
        "uptime_s",
    }
)
#: Not facts of the device: words about absent ones, and what is derived from the others.
DERIVED = frozenset({"reasons", "fingerprint"})
#: Earlier versions did not know these versions everywhere: of what only one side tells, nothing is said.
TOLD_LATER: Mapping[str, tuple[str, ...]] = {"runtimes": ("executorch",)}
#: A kernel that is loaded elsewhere in memory after a reboot has some KiB more or less.
MEMORY_STEP_BYTES = 64 << 20


def split(facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(stable facts with their ``fingerprint``, volatile ones), each with its own ``reasons``."""
    stable = _part(facts, facts.keys() - VOLATILE - DERIVED)
    return stable | {"fingerprint": fingerprint(facts)}, _part(facts, facts.keys() & VOLATILE)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """sha256 (hex) over the stable facts; equal for a device before and after a reboot."""
    names = facts.keys() - VOLATILE - DERIVED
    return digest({name: _comparable(name, facts[name]) for name in names})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the stable facts that are not equal, sorted; no words about absent facts are among them."""
    names = (before.keys() | now.keys()) - VOLATILE - DERIVED
    return sorted(name for name in names if not _equal(name, before.get(name), now.get(name)))


def _equal(name: str, before: object, now: object) -> bool:
    if name == "packages":  # only those that both tell of
        left, right = _versions(before), _versions(now)
        return all(left[package] == right[package] for package in left.keys() & right.keys())
    if name in TOLD_LATER and before and now:
        left, right = _versions(before), _versions(now)
        silent = {key for key in TOLD_LATER[name] if left.get(key) is None or right.get(key) is None}
        return all(left.get(key) == right.get(key) for key in (left.keys() | right.keys()) - silent)
    return _comparable(name, before) == _comparable(name, now)


def _versions(told: object) -> Mapping[str, object]:
    return told if isinstance(told, Mapping) else {}


def _part(facts: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    reasons = {name: why for name, why in facts.get("reasons", {}).items() if name in names}
    return {name: facts[name] for name in facts if name in names} | ({"reasons": reasons} if reasons else {})


def _comparable(name: str, value: object) -> object:
    if name == "memory_total_bytes" and isinstance(value, int):
        return round(value / MEMORY_STEP_BYTES)
    return value
