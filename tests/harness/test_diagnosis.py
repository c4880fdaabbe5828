"""What facts mean: each line's level and what to do, for devices that are well and for each trouble."""

from __future__ import annotations

from typing import Any

import pytest

from harness import diagnosis
from harness.core.types import Device
from harness.diagnosis import Line

PI = Device(name="pi5", transport="ssh", options={"host": "pi5.local"})
FACTS: dict[str, Any] = {
    "model": "Raspberry Pi 5 Model B Rev 1.0",
    "board_revision": "d04170",
    "emulated": False,
    "emulated_how": None,
    "cpu_clusters": [{"cpus": "0-3", "id": "0x41/0xd0b", "name": "Cortex-A76", "max_khz": 2400000}],
    "arch": "aarch64",
    "cpus_allowed": 4,
    "cores": 4,
    "isa": ["asimd", "asimddp"],
    "memory_total_bytes": 8 << 30,
    "page_bytes": 16384,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.6.20",
    "libc": "glibc 2.36",
    "python": "3.11.2",
    "python_bits": 64,
    "firmware": "8a4e1c2b",
    "storage": "mmcblk0p2",
    "clocks": {"policy0": {"cpus": "0 1 2 3", "governor": "performance", "max_khz": 2400000}},
}
CONDITIONS: dict[str, Any] = {
    "memory_available_bytes": 7 << 30,
    "swap_used_bytes": 0,
    "clock_limits": {"policy0": {"min_khz": 1500000, "max_khz": 2400000, "writable": True}},
    "temperatures_c": {"cpu-thermal": 48.3},
    "throttling": {"firmware": {"raw": "0x0", "now": [], "since_boot": []}, "pwm-fan/x/cur_state": 2},
    "power_sources": [
        {"id": "vcgencmd pmic_read_adc", "scope": "soc_rails", "readable": True, "rails": ["A", "B"]}
    ],
    "free_disk_bytes": 20 << 30,
    "load_average_1min": 0.05,
    "uptime_s": 7200.0,
}


def page(device: Device = PI, *, conditions: dict[str, Any] | None = None, **facts: Any) -> dict[str, Line]:
    found = diagnosis.lines(device, FACTS | facts, CONDITIONS | (conditions or {}))
    return {line.name: line for line in found}


def test_a_device_that_is_well() -> None:
    lines = page()
    assert {line.level for line in lines.values()} == {"ok"}
    assert not [line for line in lines.values() if line.todo]
    assert lines["model"].text == "Raspberry Pi 5 Model B Rev 1.0, revision d04170"
    assert lines["cpu"].text == "Cortex-A76 (CPU 0-3) up to 2.40 GHz; aarch64; 4 usable"
    assert lines["memory"].text == "8.00 GiB, 7.00 GiB available; pages of 16.0 KiB"
    assert lines["clocks"].text == "CPU 0 1 2 3: performance, 1.50 to 2.40 GHz; settable"
    assert lines["power"].text == "vcgencmd pmic_read_adc, scope soc_rails, 2 rails"
    assert lines["disk"].text == "20.0 GiB free on mmcblk0p2"
    assert lines["load"].text == "0.05 of 4 cores busy in the last minute; up for 2.0 h"


@pytest.mark.parametrize(
    ("conditions", "name", "level", "words"),
    [
        ({"memory_available_bytes": 100 << 20}, "memory", "warn", "End programs"),
        ({"swap_used_bytes": 1 << 20}, "memory", "warn", "swapoff"),
        ({"temperatures_c": {"cpu": 74.0, "gpu": 40.0}}, "temperature", "warn", "cool"),
        ({"temperatures_c": {"cpu": 86.0}}, "temperature", "bad", "cool"),
        ({"temperatures_c": None}, "temperature", "warn", "cannot be watched"),
        ({"throttling": {"firmware": {"now": ["under_voltage"]}}}, "throttling", "bad", "5 V at 5 A"),
        ({"throttling": {"firmware": {"now": ["throttled"]}}}, "throttling", "bad", "Let it cool"),
        ({"throttling": {"firmware": {"since_boot": ["under_voltage"]}}}, "throttling", "warn", "Reboot"),
        ({"throttling": {"hwmon1/in0_lcrit_alarm": 1}}, "throttling", "bad", "5 V at 5 A"),
        ({"throttling": {"cpufreq-cpu0/cooling_device0/cur_state": 2}}, "throttling", "bad", "cool"),
        ({"throttling": {"hwmon4/oc3_event_cnt": 1}}, "throttling", "warn", "Reboot"),
        ({"throttling": None}, "throttling", "warn", "trend"),
        ({"power_sources": None}, "power", "warn", "external meter"),
        ({"free_disk_bytes": 500 << 20}, "disk", "warn", "workdir"),
        ({"free_disk_bytes": 50 << 20}, "disk", "bad", "workdir"),
        ({"load_average_1min": 1.7}, "load", "warn", "End what else runs"),
    ],
)
def test_each_trouble_has_a_level_and_a_remedy(
    conditions: dict[str, Any], name: str, level: str, words: str
) -> None:
    lines = page(conditions=conditions)
    assert lines[name].level == level
    assert words in lines[name].todo
    assert {line.name for line in lines.values() if line.level != "ok"} == {name}


def test_a_power_source_that_may_not_be_read_says_why() -> None:
    source = {"id": "rapl package-0", "scope": "package", "readable": False, "reason": "Permission denied"}
    line = page(conditions={"power_sources": [source]})["power"]
    assert line.level == "warn"
    assert line.text == "rapl package-0, scope package; cannot be read: Permission denied"


def test_an_absent_fact_gives_its_reason() -> None:
    line = page(clocks=None, reasons={"clocks": "no cpufreq"})["clocks"]
    assert (line.level, line.text) == ("warn", "cannot be read or set: no cpufreq")


def test_clocks_that_move_ask_for_a_governor() -> None:
    moving = {"policy0": {"cpus": "0-3", "governor": "ondemand", "max_khz": 2400000}}
    locked = {"clock_limits": {"policy0": {"writable": False}}}
    assert "governor: performance below pi5" in page(clocks=moving)["clocks"].todo
    line = page(clocks=moving, conditions=locked)["clocks"]
    assert "not settable by this user" in line.text
    assert "sudo: true" in line.todo
    asked = Device(name="pi5", transport="ssh", settings={"governor": "performance", "sudo": True})
    line = page(asked, clocks=moving, conditions=locked)["clocks"]
    assert (line.level, line.todo) == ("ok", "")
    assert "settable with sudo" in line.text


def test_a_jetson() -> None:
    lines = page(
        l4t="36.4.4",
        jetpack="6.2.1",
        power_mode="MAXN",
        jetson_clocks={"cpu": True, "gpu": False, "emc": None},
    )
    assert lines["power mode"].text == "MAXN; cpu pinned, gpu free"
    assert "L4T 36.4.4, JetPack 6.2.1" in lines["system"].text
    assert "JetPack not known" in page(l4t="99.1", jetpack=None)["system"].text


def test_an_emulated_device_must_say_so() -> None:
    line = page(emulated=True, emulated_how="qemu-user: …")["emulated"]
    assert line.level == "warn"
    assert "emulated: true below pi5" in line.todo
    known = Device(name="pi5", transport="ssh", emulated=True)
    assert page(known, emulated_how="qemu-user: …")["emulated"].todo == ""


def test_runtimes() -> None:
    present = {"onnxruntime": "1.31.1", "litert": None, "executorch": None}
    missing = {"litert": "there is no wheel for armv7l"}
    found = {
        line.name: line
        for line in diagnosis.runtimes(PI, present, missing, {"executorch": "executorch 1.5.1"})
    }
    assert (found["onnxruntime"].level, found["onnxruntime"].text) == ("ok", "1.31.1, runs onnx")
    assert (found["litert"].level, found["litert"].todo) == ("warn", "")
    assert "there is no wheel for armv7l" in found["litert"].text
    assert "executorch 1.5.1 fits" in found["executorch"].text
    assert found["executorch"].todo == "edgebench provision pi5"


def test_no_runtime_at_all_is_bad() -> None:
    assert [line.level for line in diagnosis.runtimes(PI, {}, {}, {})] == ["bad"] * 3


def test_a_name_that_a_shell_would_split_is_quoted() -> None:
    device = Device(name="x; touch owned", transport="ssh")
    (line, *_) = diagnosis.runtimes(device, {}, {}, {})
    assert line.todo == "edgebench provision 'x; touch owned'"


def test_clock() -> None:
    assert diagnosis.clock(0.0123, 0.0005) == Line(
        name="clock", level="ok", text="host − device +12.3 ms ± 0.5 ms"
    )
    assert diagnosis.clock(-3600.0, 0.5).level == "warn"
    assert diagnosis.clock(3.0, 1.5).level == "ok"  # it may be less


def test_noise() -> None:
    """Of 20 values the 10th percentile is the third, the 90th the nineteenth."""
    quiet = [1_000_000 + 100 * n for n in range(20)]
    line = diagnosis.noise(quiet)
    assert line.level == "ok"
    assert line.text == (
        "equal work, 20 times: 0.2 % apart (10th to 90th percentile), slowest 0.1 % above the median 1.00 ms"
    )
    noisy = [1_000_000] * 15 + [1_500_000] * 5
    assert diagnosis.noise(noisy).level == "warn"
    assert "50.0 % apart" in diagnosis.noise(noisy).text
    assert "Small differences" in diagnosis.noise(noisy).todo
