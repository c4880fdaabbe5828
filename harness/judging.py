"""
Judge a block by the evidence it carries: valid, suspect or invalid, with the reasons.

Each judge looks at one kind of evidence and says what it found, or what it could not see and why. A watcher
that saw something before the loop and nothing after it is itself a finding: it never certifies a clean
block. The limits are values, stored with the verdict, so that a report can be judged again with others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.core.types import Block

Level = Literal["valid", "suspect", "invalid"]
_ORDER: tuple[Level, ...] = ("valid", "suspect", "invalid")
TREND_VALUES = 30  # a trend of fewer values is noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on a block is suspect, and from where on invalid."""

    clock_drop: float = 0.05  # share of the clock from before the loop
    clock_drop_invalid: float = 0.15
    probe_drift: float = 0.03  # change of the speed probe; quiet machines repeat it within about 1 %
    probe_drift_invalid: float = 0.10
    steal: float = 0.01  # share of the loop's CPU time that the hypervisor gave to others
    steal_invalid: float = 0.05
    cpu_share: float = 0.95  # of one CPU that a single-threaded loop gets
    cpu_share_invalid: float = 0.85
    cpu_excess: float = 1.10  # of the threads asked for
    others: float = 0.10  # share of all CPUs that other processes used
    others_invalid: float = 0.40
    switches_per_s: float = 100.0  # involuntary context switches
    trend: float = 0.05  # last third of the loop against its first
    trend_invalid: float = 0.20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that speaks against a block."""

    judge: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """A judge that had nothing to look at."""

    judge: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The worst of all findings, what they are, and who could not see."""

    level: Level
    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]

    @property
    def reason(self) -> str:
        """The findings of the verdict's level as one sentence; empty for a valid block."""
        return " ".join(f"{found.text}." for found in self.findings if found.level == self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a latency block carries: raw values and the state before and after its loop."""

    values_ns: Sequence[int]
    wall_ns: int
    cpu_ns: int
    threads: int
    cores: int  # that the agent may use; 0: not known
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @classmethod
    def of(cls, block: Block, *, threads: int, cores: int) -> Evidence:
        """The evidence in *block*."""
        before, after = (block.facts.get(name) or {} for name in ("state_before", "state_after"))
        return cls(
            values_ns=block.values_ns,
            wall_ns=block.wall_ns,
            cpu_ns=block.cpu_ns,
            threads=threads,
            cores=cores,
            before=before,
            after=after,
        )

    def pair(self, name: str) -> tuple[Any, Any] | str:
        """The fact before and after, or why it is not there."""
        if self.before.get(name) is None:
            return str(self.before.get(f"{name}_reason") or f"the agent sent no {name}")
        return self.before[name], self.after.get(name)


Said = Finding | Unseen | None
Judge = Callable[[Evidence, Limits], Said]


def judge(evidence: Evidence, limits: Limits, judges: Mapping[str, Judge] | None = None) -> Verdict:
    """What all judges say together."""
    said = [each(evidence, limits) for each in (JUDGES if judges is None else judges).values()]
    findings = [one for one in said if isinstance(one, Finding)]
    unseen = tuple(one for one in said if isinstance(one, Unseen))
    blind = {one.judge for one in unseen}
    if {"speed_probe", "other_processes"} <= blind:
        text = "nothing watched whether others disturbed this block"
        findings.append(Finding(judge="watchers", level="suspect", text=text))
    level = max((one.level for one in findings), key=_ORDER.index, default=_ORDER[0])
    return Verdict(level=level, findings=tuple(findings), unseen=unseen)


def throttle(evidence: Evidence, _limits: Limits) -> Said:
    """Throttle counters, cooling devices, over-current events and firmware flags: any that moved."""
    seen, moved = [], []
    for name, what in (
        ("throttle_counts", "the CPU throttled"),
        ("over_current_counts", "an over-current event throttled"),
        ("cooling_states", "a cooling device slowed the CPU"),
    ):
        pair = evidence.pair(name)
        if isinstance(pair, str):
            continue
        before, after = pair
        if after is None:
            return _died("throttle", name)
        seen.append(name)
        if up := [key for key, value in after.items() if value > before.get(key, 0)]:
            moved.append(f"{what} ({', '.join(sorted(up))})")
    flags = evidence.pair("throttled_flags")
    if not isinstance(flags, str):
        before, after = flags
        if after is None:
            return _died("throttle", "throttled_flags")
        seen.append("throttled_flags")
        if new := (after & ~before) | (after & 0xF):
            moved.append(f"the firmware limited the board (flags {new:#x})")
    if moved:
        return Finding(judge="throttle", level="invalid", text="; ".join(moved))
    return None if seen else Unseen(judge="throttle", reason="no throttle counter or flag is readable here")


def clock(evidence: Evidence, limits: Limits) -> Said:
    """The fastest core's clock after the loop against before it."""
    pair = evidence.pair("frequencies_hz")
    if isinstance(pair, str):
        return Unseen(judge="clock", reason=pair)
    before, after = pair
    if not after:
        return _died("clock", "frequencies_hz")
    drop = 1 - max(after.values()) / max(before.values())
    text = f"the clock fell from {max(before.values()) / 1e9:.2f} to {max(after.values()) / 1e9:.2f} GHz"
    return _graded("clock", drop, limits.clock_drop, limits.clock_drop_invalid, text)


def swap(evidence: Evidence, _limits: Limits) -> Said:
    """Swap or zram of the agent: none may be used, and none may come."""
    pair = evidence.pair("swap_bytes")
    if isinstance(pair, str):
        return Unseen(judge="swap", reason=pair)
    before, after = pair
    if after is None:
        return _died("swap", "swap_bytes")
    if after > before:
        return Finding(judge="swap", level="invalid", text=f"{after - before} B were swapped out")
    text = f"{after} B of the agent are in swap"
    return Finding(judge="swap", level="suspect", text=text) if after else None


def major_faults(evidence: Evidence, _limits: Limits) -> Said:
    """Page faults that read from storage: the loop waited for a disk."""
    count = _difference(evidence, "major_faults")
    if isinstance(count, Unseen | Finding):
        return count
    level: Level = "invalid" if count >= max(1, len(evidence.values_ns) // 10) else "suspect"
    text = f"{count:.0f} page faults read from storage"
    return Finding(judge="major_faults", level=level, text=text) if count else None


def switches(evidence: Evidence, limits: Limits) -> Said:
    """Involuntary context switches: others wanted the CPU."""
    count = _difference(evidence, "involuntary_switches")
    if isinstance(count, Unseen | Finding):
        return count
    wall_s = _wall_s(evidence)
    if count / wall_s <= limits.switches_per_s:
        return None
    text = f"the agent lost the CPU {count / wall_s:.0f} times a second"
    return Finding(judge="switches", level="suspect", text=text)


def steal(evidence: Evidence, limits: Limits) -> Said:
    """Steal time of a virtual machine: what its host gave to others."""
    stolen_s = _difference(evidence, "steal_s")
    if isinstance(stolen_s, Unseen | Finding):
        return stolen_s
    share = stolen_s / (_wall_s(evidence) * max(evidence.cores, 1))
    text = f"the hypervisor took {share:.1%} of the CPU time"
    return _graded("steal", share, limits.steal, limits.steal_invalid, text)


def speed_probe(evidence: Evidence, limits: Limits) -> Said:
    """A fixed piece of work, timed before and after the loop: did the machine's speed change?"""
    pair = evidence.pair("speed_probe_ns")
    if isinstance(pair, str):
        return Unseen(judge="speed_probe", reason=pair)
    before, after = pair
    if after is None:
        return _died("speed_probe", "speed_probe_ns")
    change = max(before, after) / min(before, after) - 1
    text = f"a fixed piece of work took {before / 1e3:.0f} µs before and {after / 1e3:.0f} µs after the loop"
    return _graded("speed_probe", change, limits.probe_drift, limits.probe_drift_invalid, text)


def cpu_time(evidence: Evidence, limits: Limits) -> Said:
    """CPU time over wall time: less than one CPU means waiting, more than the threads means more threads."""
    if not evidence.wall_ns:
        return Unseen(judge="cpu_time", reason="the loop has no wall time")
    share = evidence.cpu_ns / evidence.wall_ns
    if share > evidence.threads * limits.cpu_excess:
        text = f"{share:.2f} CPUs were busy, {evidence.threads} threads were asked for"
        return Finding(judge="cpu_time", level="suspect", text=text)
    text = f"the loop got {share:.0%} of a CPU"
    return _graded("cpu_time", 1 - share, 1 - limits.cpu_share, 1 - limits.cpu_share_invalid, text)


def other_processes(evidence: Evidence, limits: Limits) -> Said:
    """CPU time of all other processes while the block ran."""
    everyone, own = _difference(evidence, "all_cpu_s"), _difference(evidence, "cpu_s")
    if isinstance(everyone, Unseen | Finding):
        return everyone
    if isinstance(own, Unseen | Finding):
        return own
    if not evidence.cores:
        return Unseen(judge="other_processes", reason="how many cores the agent may use is not known")
    share = max(0.0, everyone - own) / (_wall_s(evidence) * evidence.cores)
    text = f"other processes used {share:.0%} of the CPUs"
    return _graded("other_processes", share, limits.others, limits.others_invalid, text)


def trend(evidence: Evidence, limits: Limits) -> Said:
    """The median of the loop's last third against that of its first: a drift needs no sensor."""
    third = len(evidence.values_ns) // 3
    if len(evidence.values_ns) < TREND_VALUES:
        reason = f"{len(evidence.values_ns)} values are too few, {TREND_VALUES} are needed"
        return Unseen(judge="trend", reason=reason)
    first = statistics.median(evidence.values_ns[:third])
    last = statistics.median(evidence.values_ns[-third:])
    change = max(first, last) / max(min(first, last), 1) - 1
    text = f"the loop's last third took {last / max(first, 1) - 1:+.0%} against its first"
    return _graded("trend", change, limits.trend, limits.trend_invalid, text)


JUDGES: Mapping[str, Judge] = {
    each.__name__: each
    for each in (
        throttle,
        clock,
        swap,
        major_faults,
        switches,
        steal,
        speed_probe,
        cpu_time,
        other_processes,
        trend,
    )
}


def _graded(judge_name: str, value: float, suspect: float, invalid: float, text: str) -> Finding | None:
    """A finding whose level says which limit *value* is above; None if it is above neither."""
    if value <= suspect:
        return None
    return Finding(judge=judge_name, level="invalid" if value > invalid else "suspect", text=text)


def _died(judge_name: str, fact: str) -> Finding:
    text = f"{fact} could be read before the loop and not after it"
    return Finding(judge=judge_name, level="suspect", text=text)


#: Which judge a plain counter belongs to.
_OF = {
    "major_faults": "major_faults",
    "involuntary_switches": "switches",
    "steal_s": "steal",
    "all_cpu_s": "other_processes",
    "cpu_s": "other_processes",
    "clock_s": "other_processes",
}


def _difference(evidence: Evidence, name: str) -> float | Unseen | Finding:
    """How far a counter went from before to after the loop."""
    pair = evidence.pair(name)
    if isinstance(pair, str):
        return Unseen(judge=_OF[name], reason=pair)
    before, after = pair
    return _died(_OF[name], name) if after is None else float(after - before)


def _wall_s(evidence: Evidence) -> float:
    """Seconds between the two states; the loop's own wall time where they carry no clock."""
    passed = _difference(evidence, "clock_s")
    seconds = passed if isinstance(passed, float) else 0.0
    return max(seconds, evidence.wall_ns / 1e9, 1e-9)
