"""What the facts of a device mean for measuring on it: one line each, with what to do about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.core import units
from harness.core.types import RUNTIMES, Device

Level = Literal["ok", "warn", "bad"]
Facts = Mapping[str, Any]

HOT_C, TOO_HOT_C = 70.0, 85.0  # Raspberry Pis throttle from 80 to 85 °C, Jetsons from about 85 °C
LITTLE_DISK_BYTES, NO_DISK_BYTES = 1 << 30, 100 << 20
LITTLE_MEMORY_BYTES = 256 << 20
BUSY_LOAD = 0.5
CLOCK_APART_S = 2.0
NOISY, VERY_NOISY = 0.03, 0.10
COOLERS_OF_CLOCKS = re.compile(r"cpufreq|devfreq|Processor|thermal-cpu", re.I)
UNDER_VOLTAGE = "Use a supply that gives enough current (a Pi 5 needs 5 V at 5 A) and a short, thick cable."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that was looked at; *todo* is what mends it, empty where nothing needs to be done."""

    name: str
    level: Level
    text: str
    todo: str = ""


def lines(device: Device, facts: Facts, conditions: Facts) -> list[Line]:
    """Everything that the facts and the conditions of *device* tell, in the order of the page."""
    return [
        _model(facts),
        *_emulated(device, facts),
        _cpu(facts),
        _isa(facts),
        _memory(facts, conditions),
        _system(facts),
        *_clocks(device, facts, conditions),
        _temperatures(conditions),
        _throttling(conditions),
        *_power(conditions),
        _disk(facts, conditions),
        _load(facts, conditions),
    ]


def runtimes(device: Device, present: Facts, missing: Facts, installable: Facts) -> Iterator[Line]:
    """
    One line per runtime: what is there, or whether it can be put there.

    *present* name → version or None, *missing* name → why it cannot run there, *installable* name → what
    ``edgebench provision`` would put there.
    """
    nothing = not any(present.get(name) for name in RUNTIMES.values())
    for format_name, name in RUNTIMES.items():
        if version := present.get(name):
            yield Line(name=name, level="ok", text=f"{version}, runs {format_name}")
            continue
        level: Level = "bad" if nothing else "warn"
        if name in missing:
            yield Line(name=name, level=level, text=f"cannot be had: {missing[name]}")
            continue
        text = f"not there, so no {format_name} cell can be measured"
        text += f"; {installable[name]} fits" if name in installable else ""
        yield Line(name=name, level=level, text=text, todo=f"edgebench provision {shlex.quote(device.name)}")


def clock(offset_s: float, uncertainty_s: float) -> Line:
    """The device's wall clock against this one."""
    text = f"host − device {offset_s * 1e3:+.1f} ms ± {uncertainty_s * 1e3:.1f} ms"
    if abs(offset_s) - uncertainty_s <= CLOCK_APART_S:
        return Line(name="clock", level="ok", text=text)
    todo = "Switch time synchronisation on there: sudo timedatectl set-ntp true"
    return Line(name="clock", level="warn", text=text, todo=todo)


def noise(times_ns: Sequence[int]) -> Line:
    """How much equal work differs in time: an indication of how noisy cells will be, and no benchmark."""
    ordered = sorted(times_ns)
    middle = ordered[len(ordered) // 2]
    spread = (ordered[(9 * len(ordered)) // 10] - ordered[len(ordered) // 10]) / middle
    text = (
        f"equal work, {len(ordered)} times: {units.percent(spread)} apart (10th to 90th percentile), "
        f"slowest {units.percent(ordered[-1] / middle - 1)} above the median {units.duration(middle)}"
    )
    level: Level = "ok" if spread < NOISY else "warn"
    todo = "End other programs and fix the clocks; take more blocks." if level == "warn" else ""
    if spread >= VERY_NOISY:
        todo = "Small differences will not be seen here. " + todo
    return Line(name="noise", level=level, text=text, todo=todo)


def _why(facts: Facts, name: str, otherwise: str = "not known") -> str:
    return str(facts.get("reasons", {}).get(name, otherwise))


def _model(facts: Facts) -> Line:
    told = [facts.get("model") or facts.get("cpu_model"), facts.get("board_revision")]
    text = ", revision ".join(str(word) for word in told if word)
    return Line(name="model", level="ok", text=text or f"unnamed: {_why(facts, 'model')}")


def _emulated(device: Device, facts: Facts) -> Iterator[Line]:
    how = facts.get("emulated_how")
    if not how and not device.emulated:
        return
    todo = "" if device.emulated else f"Say so in devices.yaml: emulated: true below {device.name}."
    text = f"{how or 'devices.yaml says so'}. Its times are the emulator's and are not ranked."
    yield Line(name="emulated", level="warn", text=text, todo=todo)


def _cpu(facts: Facts) -> Line:
    parts = []
    for group in facts.get("cpu_clusters") or []:
        clock_text = f" up to {group['max_khz'] / 1e6:.2f} GHz" if group.get("max_khz") else ""
        parts.append(f"{group.get('name') or group.get('id')} (CPU {group['cpus']}){clock_text}")
    text = f"{', '.join(parts) or facts.get('cpu_model') or 'unnamed'}; {facts.get('arch')}"
    if facts.get("cpus_isolated"):
        text += f"; isolated from the scheduler: {facts['cpus_isolated']}"
    return Line(name="cpu", level="ok", text=f"{text}; {facts.get('cpus_allowed')} usable")


def _isa(facts: Facts) -> Line:
    isa = list(facts.get("isa") or [])
    text = ", ".join(isa) or "nothing beyond the base"
    if facts.get("arch") == "aarch64" and "asimddp" not in isa:
        text += "; no dot product (asimddp): int8 gains little here"
    return Line(name="isa", level="ok", text=text)


def _memory(facts: Facts, conditions: Facts) -> Line:
    total, free = facts.get("memory_total_bytes"), conditions.get("memory_available_bytes")
    used = conditions.get("swap_used_bytes") or 0
    text = f"{_size(total)}, {_size(free)} available; pages of {_size(facts.get('page_bytes'))}"
    text += "; zram" if facts.get("zram") else ""
    if isinstance(free, int) and free < LITTLE_MEMORY_BYTES:
        return Line(name="memory", level="warn", text=text, todo="End programs there before you measure.")
    if used:
        text += f"; {_size(used)} swapped out"
        todo = "Memory figures may miss what is swapped: end programs there, or sudo swapoff -a."
        return Line(name="memory", level="warn", text=text, todo=todo)
    return Line(name="memory", level="ok", text=text)


def _system(facts: Facts) -> Line:
    words = [facts.get("os"), f"kernel {facts.get('kernel')}"]
    if facts.get("l4t"):
        words.append(f"L4T {facts['l4t']}")
        words.append(f"JetPack {facts['jetpack']}" if facts.get("jetpack") else "JetPack not known")
    if facts.get("firmware"):
        words.append(f"firmware {facts['firmware']}")
    words += [facts.get("libc"), f"Python {facts.get('python')} ({facts.get('python_bits')} bit)"]
    return Line(name="system", level="ok", text=", ".join(str(word) for word in words if word))


def _clocks(device: Device, facts: Facts, conditions: Facts) -> Iterator[Line]:
    if facts.get("power_mode"):
        pinned = facts.get("jetson_clocks") or {}
        shown = ", ".join(
            f"{unit} {'pinned' if on else 'free'}" for unit, on in pinned.items() if on is not None
        )
        text = f"{facts['power_mode']}; {shown or _why(facts, 'jetson_clocks')}"
        yield Line(name="power mode", level="ok", text=text)
    policies, limits = facts.get("clocks"), conditions.get("clock_limits") or {}
    if not policies:
        text = f"cannot be read or set: {_why(facts, 'clocks')}"
        yield Line(name="clocks", level="warn", text=text, todo="Watch the noise: clocks may move unseen.")
        return
    texts = []
    for name, policy in sorted(policies.items()):
        now = limits.get(name) or {}
        low, high = (_ghz(now.get(k) or policy.get(k)) for k in ("min_khz", "max_khz"))
        texts.append(f"CPU {policy.get('cpus') or name}: {policy.get('governor')}, {low} to {high} GHz")
    settable = bool(limits) and all(now.get("writable") for now in limits.values())
    sudo = bool(device.settings.get("sudo"))
    how = "settable" if settable else "settable with sudo" if sudo else "not settable by this user"
    steady = all(policy.get("governor") == "performance" for policy in policies.values())
    asked = "governor" in device.settings or "clocks" in device.settings
    todo = ""
    if not settable and not sudo and (asked or not steady):
        todo = (
            f"Add sudo: true and governor: performance below {device.name}, if sudo there asks no password."
        )
    elif not steady and not asked:
        todo = f"Steadier times: governor: performance below {device.name} in devices.yaml."
    yield Line(name="clocks", level="warn" if todo else "ok", text=f"{'; '.join(texts)}; {how}", todo=todo)


def _temperatures(conditions: Facts) -> Line:
    zones: Mapping[str, float] = conditions.get("temperatures_c") or {}
    if not zones:
        why = _why(conditions, "temperatures_c")
        return Line(name="temperature", level="warn", text=why, todo="Heat cannot be watched here.")
    name, hottest = max(zones.items(), key=lambda item: item[1])
    others = f" of {units.counted(len(zones), 'zone')}" if len(zones) > 1 else ""
    level: Level = "bad" if hottest >= TOO_HOT_C else "warn" if hottest >= HOT_C else "ok"
    todo = "" if level == "ok" else "Let it cool; give it a heat sink or a fan."
    text = f"{hottest:.1f} °C, the hottest{others} ({name})" if others else f"{hottest:.1f} °C ({name})"
    return Line(name="temperature", level=level, text=text, todo=todo)


def _throttling(conditions: Facts) -> Line:
    signs: Mapping[str, Any] = conditions.get("throttling") or {}
    if not signs:
        text = f"no sign can be read: {_why(conditions, 'throttling')}"
        return Line(name="throttling", level="warn", text=text, todo="Watch the trend of latency instead.")
    firmware = signs.get("firmware") or {}
    alarms = [name for name, value in signs.items() if name.endswith("_alarm") and value]
    coolers = [name for name, value in signs.items() if COOLERS_OF_CLOCKS.search(name) and value]
    events = [f"{name} {value}" for name, value in signs.items() if name.endswith("_event_cnt") and value]
    now, since = _plain(firmware.get("now", ())), _plain(firmware.get("since_boot", ()))
    if now or alarms or coolers:
        held = ", ".join([*now, *alarms, *coolers])
        weak = any("voltage" in word or "lcrit" in word for word in [*now, *alarms])
        todo = UNDER_VOLTAGE if weak else "Let it cool and measure again."
        return Line(name="throttling", level="bad", text=f"now: {held}", todo=todo)
    if since or events:
        todo = UNDER_VOLTAGE if any("voltage" in word for word in since) else "Cool it better."
        text = f"since boot: {', '.join([*since, *events])}; not now"
        return Line(name="throttling", level="warn", text=text, todo=f"{todo} Reboot to clear it.")
    counted = sum(value for name, value in signs.items() if name.endswith("throttle_count"))
    text = f"none now; {counted} events counted by the CPU since boot" if counted else "none"
    return Line(name="throttling", level="ok", text=text)


def _power(conditions: Facts) -> Iterator[Line]:
    sources = conditions.get("power_sources") or []
    if not sources:
        text = f"no energy figures: {_why(conditions, 'power_sources')}"
        yield Line(name="power", level="warn", text=text, todo="An external meter would give them.")
    for source in sources:
        scope, rails = source["scope"], source.get("rails") or []
        text = f"{source['id']}, scope {scope}" + (f", {units.counted(len(rails), 'rail')}" if rails else "")
        if source["readable"]:
            yield Line(name="power", level="ok", text=text)
        else:
            why = f"{text}; cannot be read: {source.get('reason')}"
            yield Line(
                name="power", level="warn", text=why, todo="Let this user read it, or measure outside."
            )


def _disk(facts: Facts, conditions: Facts) -> Line:
    free = conditions.get("free_disk_bytes")
    text = f"{_size(free)} free" + (f" on {facts['storage']}" if facts.get("storage") else "")
    level: Level = "ok"
    if isinstance(free, int) and free < LITTLE_DISK_BYTES:
        level = "bad" if free < NO_DISK_BYTES else "warn"
    todo = "" if level == "ok" else "Make room, or set workdir to a larger disk."
    return Line(name="disk", level=level, text=text, todo=todo)


def _load(facts: Facts, conditions: Facts) -> Line:
    load, up_s = conditions.get("load_average_1min"), conditions.get("uptime_s")
    text = f"{load} of {facts.get('cores')} cores busy in the last minute"
    if isinstance(load, (int, float)):
        text = f"{load:.2f} of {facts.get('cores')} cores busy in the last minute"
    text += f"; up for {up_s / 3600:.1f} h" if isinstance(up_s, (int, float)) else ""
    busy = isinstance(load, (int, float)) and load > BUSY_LOAD
    todo = "End what else runs there: it takes time from what is measured." if busy else ""
    return Line(name="load", level="warn" if busy else "ok", text=text, todo=todo)


def _plain(names: Iterable[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _size(count: object) -> str:
    return units.size(count) if isinstance(count, int) else "an unknown amount"


def _ghz(khz: object) -> str:
    return f"{khz / 1e6:.2f}" if isinstance(khz, (int, float)) else "?"
