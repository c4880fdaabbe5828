"""Every judge of a block: what it finds, what it cannot see, and that none of them can be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.judging import JUDGES, Evidence, Level, Limits, Unseen, judge

QUIET: dict[str, Any] = {
    "clock_s": 100.0,
    "cpu_s": 1.0,
    "all_cpu_s": 500.0,
    "steal_s": 0.0,
    "swap_bytes": 0,
    "major_faults": 3,
    "involuntary_switches": 10,
    "throttle_counts": {"cpu0": 4, "cpu1": 0},
    "over_current_counts": {"oc1": 0},
    "cooling_states": {"cooling_device0": 0},
    "throttled_flags": 0x50000,  # it was throttled at some time since boot
    "frequencies_hz": {"policy0": 2_400_000_000, "policy4": 1_800_000_000},
    "speed_probe_ns": 1_000_000,
}
AFTER = QUIET | {"clock_s": 101.0, "cpu_s": 2.0, "all_cpu_s": 501.02, "involuntary_switches": 15}
CLEAN = Evidence(
    values_ns=[10_000_000] * 99,
    wall_ns=1_000_000_000,
    cpu_ns=990_000_000,
    threads=1,
    cores=4,
    before=QUIET,
    after=AFTER,
)


def after(**changes: object) -> Evidence:
    return replace(CLEAN, after=AFTER | changes)


def slower_by(share: float) -> Evidence:
    values = [10_000_000] * 66 + [int(10_000_000 * (1 + share))] * 33
    return replace(CLEAN, values_ns=values)


#: judge -> (evidence against the block, its level, words of the reason)
CASES: list[tuple[str, Evidence, Level, str]] = [
    ("throttle", after(throttle_counts={"cpu0": 5, "cpu1": 0}), "invalid", "the CPU throttled (cpu0)"),
    ("throttle", after(over_current_counts={"oc1": 1}), "invalid", "over-current"),
    ("throttle", after(cooling_states={"cooling_device0": 2}), "invalid", "a cooling device"),
    ("throttle", after(throttled_flags=0x50005), "invalid", "flags 0x5"),
    ("throttle", after(throttled_flags=0xD0000), "invalid", "flags 0x80000"),
    ("clock", after(frequencies_hz={"policy0": 2_200_000_000}), "suspect", "from 2.40 to 2.20 GHz"),
    ("clock", after(frequencies_hz={"policy0": 1_500_000_000}), "invalid", "from 2.40 to 1.50 GHz"),
    ("swap", after(swap_bytes=4096), "invalid", "4096 B were swapped out"),
    (
        "swap",
        replace(CLEAN, before=QUIET | {"swap_bytes": 9}, after=AFTER | {"swap_bytes": 9}),
        "suspect",
        "9 B",
    ),
    ("major_faults", after(major_faults=4), "suspect", "1 page faults"),
    ("major_faults", after(major_faults=13), "invalid", "10 page faults"),
    ("switches", after(involuntary_switches=160), "suspect", "150 times a second"),
    ("steal", after(steal_s=0.12), "suspect", "took 3.0%"),
    ("steal", after(steal_s=0.4), "invalid", "took 10.0%"),
    ("speed_probe", after(speed_probe_ns=1_050_000), "suspect", "1000 µs before and 1050 µs after"),
    ("speed_probe", after(speed_probe_ns=700_000), "invalid", "1000 µs before and 700 µs after"),
    ("cpu_time", replace(CLEAN, cpu_ns=900_000_000), "suspect", "got 90% of a CPU"),
    ("cpu_time", replace(CLEAN, cpu_ns=500_000_000), "invalid", "got 50% of a CPU"),
    ("cpu_time", replace(CLEAN, cpu_ns=1_900_000_000), "suspect", "1.90 CPUs were busy, 1 threads"),
    ("other_processes", after(all_cpu_s=501.8), "suspect", "used 20% of the CPUs"),
    ("other_processes", after(all_cpu_s=503.0), "invalid", "used 50% of the CPUs"),
    ("trend", slower_by(0.10), "suspect", "took +10% against its first"),
    ("trend", slower_by(0.50), "invalid", "took +50% against its first"),
]
NAMES = [f"{name}-{level}-{i}" for i, (name, _, level, _) in enumerate(CASES)]


def test_a_quiet_block_is_valid() -> None:
    found = judge(CLEAN, Limits())
    assert (found.level, found.findings, found.unseen, found.reason) == ("valid", (), (), "")


@pytest.mark.parametrize(("name", "evidence", "level", "words"), CASES, ids=NAMES)
def test_what_each_judge_finds(name: str, evidence: Evidence, level: Level, words: str) -> None:
    found = judge(evidence, Limits())
    assert [one.judge for one in found.findings] == [name]
    assert found.level == level
    assert words in found.reason


@pytest.mark.parametrize("left_out", JUDGES)
def test_without_a_judge_its_evidence_goes_unseen(left_out: str) -> None:
    """Each judge is the only one to see its case: none is there twice, and none for nothing."""
    rest = {name: each for name, each in JUDGES.items() if name != left_out}
    cases = [evidence for name, evidence, _, _ in CASES if name == left_out]
    assert cases
    for evidence in cases:
        assert judge(evidence, Limits(), rest).level == "valid"


@pytest.mark.parametrize("fact", sorted(set(QUIET) - {"clock_s"}))
def test_a_watcher_that_died_never_certifies(fact: str) -> None:
    found = judge(replace(CLEAN, after={k: v for k, v in AFTER.items() if k != fact}), Limits())
    assert found.level == "suspect"
    assert f"{fact} could be read before the loop and not after it" in found.reason


@pytest.mark.parametrize(
    ("facts", "judge_name"),
    [
        (("frequencies_hz",), "clock"),
        (("swap_bytes",), "swap"),
        (("steal_s",), "steal"),
        (("throttle_counts", "over_current_counts", "cooling_states", "throttled_flags"), "throttle"),
        (("major_faults",), "major_faults"),
        (("involuntary_switches",), "switches"),
        (("speed_probe_ns",), "speed_probe"),
        (("all_cpu_s",), "other_processes"),
    ],
)
def test_what_a_device_does_not_tell_is_said(facts: tuple[str, ...], judge_name: str) -> None:
    blind = {k: v for k, v in QUIET.items() if k not in facts} | {f"{facts[0]}_reason": "no such file"}
    rest = {k: v for k, v in AFTER.items() if k not in facts}
    found = judge(replace(CLEAN, before=blind, after=rest), Limits())
    assert found.level == "valid"
    assert [one.judge for one in found.unseen] == [judge_name]


def test_few_values_have_no_trend() -> None:
    found = judge(replace(CLEAN, values_ns=[1, 2, 3] * 9), Limits())
    assert found.unseen == (Unseen(judge="trend", reason="27 values are too few, 30 are needed"),)


def test_a_block_that_nothing_watched_is_suspect() -> None:
    found = judge(replace(CLEAN, before={}, after={}), Limits())
    assert found.level == "suspect"
    assert found.reason == "nothing watched whether others disturbed this block."


def test_limits_are_values() -> None:
    assert judge(slower_by(0.10), Limits(trend=0.15)).level == "valid"
