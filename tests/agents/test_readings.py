"""Every parser of readings.py with every recorded sample of its family; values worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from harness import probing

SAMPLES = Path(__file__).resolve().parents[1] / "fixtures" / "device_samples"


def sample(name: str) -> str:
    """What the device said: line 1 of the file is where it comes from."""
    origin, _, text = (SAMPLES / f"{name}.txt").read_text(encoding="utf-8").partition("\n")
    assert origin.startswith("# origin: ")
    return text


@pytest.fixture(scope="module")
def readings() -> Iterator[ModuleType]:
    sys.path.insert(0, str(probing.FOLDER))
    yield import_module("readings")
    sys.path.remove(str(probing.FOLDER))


A53 = ("0x41", "0xd03", "Cortex-A53")
A78AE = ("0x41", "0xd42", "Cortex-A78AE")
#: sample → runs of (how many cores, (implementer, part, name), variant, revision)
CPUS = {
    "cpuinfo-rpi3-bcm2837-4.1.19-v7": [(4, A53, "0x0", "4")],
    "cpuinfo-rpi3-bcm2837b0-5.16.7": [(4, A53, "0x0", "4")],
    "cpuinfo-rpi5-bcm2712-6.1.47": [(4, ("0x41", "0xd0b", "Cortex-A76"), "0x4", "1")],
    "cpuinfo-jetson-nano-4.9.253": [(4, ("0x41", "0xd07", "Cortex-A57"), "0x1", "1")],
    "cpuinfo-jetson-xavier-4.9.253": [(6, ("0x4e", "0x004", "Carmel"), "0x0", "0")],
    "cpuinfo-jetson-orin-nx-5.15.148": [(6, A78AE, "0x0", "1")],
    "cpuinfo-jetson-agx-orin-5.10.65": [(12, A78AE, "0x0", "1")],
    "cpuinfo-sm8150": [
        (4, ("0x51", "0x805", "Kryo 485 Silver"), "0xd", "14"),
        (4, ("0x51", "0x804", "Kryo 485 Gold"), "0xd", "14"),
    ],
    "cpuinfo-sm8750": [
        (6, ("0x51", "0x001", "Oryon"), "0x4", "4"),
        (2, ("0x51", "0x001", "Oryon"), "0x3", "4"),
    ],
    "cpuinfo-snapdragon-8gen1-5.10.136": [
        (4, ("0x41", "0xd46", "Cortex-A510"), "0x0", "2"),
        (3, ("0x41", "0xd47", "Cortex-A710"), "0x2", "0"),
        (1, ("0x41", "0xd48", "Cortex-X2"), "0x2", "0"),
    ],
    "cpuinfo-snapdragon-8gen3": [
        (2, ("0x41", "0xd80", "Cortex-A520"), "0x0", "1"),
        (5, ("0x41", "0xd81", "Cortex-A720"), "0x0", "1"),
        (1, ("0x41", "0xd82", "Cortex-X4"), "0x0", "1"),
    ],
}


@pytest.mark.parametrize("name", CPUS)
def test_cpuinfo(name: str, readings: ModuleType) -> None:
    cores = readings.parse_cpuinfo(sample(name))
    expected = [core for count, *core in CPUS[name] for _ in range(count)]
    assert [core["processor"] for core in cores] == [str(n) for n in range(len(expected))]
    for core, ((maker, part, known), variant, revision) in zip(cores, expected, strict=True):
        assert (core["CPU implementer"], core["CPU part"]) == (maker, part)
        assert (core["CPU variant"], core["CPU revision"]) == (variant, revision)
        assert readings.PARTS[maker, part[2:]] == known


def test_every_sample_of_a_cpu_is_tested() -> None:
    assert {path.stem for path in SAMPLES.glob("cpuinfo-*")} == set(CPUS)


def test_tegra_release(readings: ModuleType) -> None:
    assert readings.parse_tegra_release(sample("nv_tegra_release-r36.4.4")) == "36.4.4"
    assert readings.parse_tegra_release("# KERNEL_VARIANT: oot") is None


def test_the_package_of_a_tegra_release(readings: ModuleType) -> None:
    spaced, tabbed = sample("dpkg-query-nvidia-l4t-core").splitlines()
    assert readings.parse_l4t_package(spaced) == "36.4.4"
    assert readings.parse_l4t_package(tabbed) == "38.4.0"
    assert readings.parse_l4t_package("dpkg-query: no packages found matching nvidia-l4t-core") is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"), [("36.4.4", "6.2.1"), ("38.4.0", "7.1"), ("35.1.0", "5.0.2"), ("32.7.1", "4.6.1")]
)
def test_jetpack(l4t: str, jetpack: str, readings: ModuleType) -> None:
    assert readings.jetpack(l4t) == jetpack


def test_an_unknown_release_is_no_failure(readings: ModuleType) -> None:
    assert not readings.jetpack("40.1.0")
    assert str(readings.jetpack("40.1.0")) == "L4T 40.1.0 is not in the table"


def test_power_mode(readings: ModuleType) -> None:
    assert readings.parse_power_mode(sample("nvpmodel-q")) == "MAXN"
    assert readings.parse_power_mode("NV Fan Mode:quiet\nNV Power Mode: MODE_30W\n2") == "MODE_30W"
    assert readings.parse_power_mode("NVPM ERROR: no such file") is None


def test_jetson_clocks(readings: ModuleType) -> None:
    """On this board MinFreq is 345600 and MaxFreq 2035200, the GPU's 114750000 and 1134750000."""
    text = sample("jetson_clocks-show-tx2")
    assert readings.parse_jetson_clocks(text) == {"cpu": False, "gpu": False, "emc": False}
    pinned = text.replace("MinFreq=345600", "MinFreq=2035200").replace("FreqOverride=0", "FreqOverride=1")
    assert readings.parse_jetson_clocks(pinned) == {"cpu": True, "gpu": False, "emc": True}
    assert readings.parse_jetson_clocks("nothing") == {"cpu": None, "gpu": None, "emc": None}


def test_throttled(readings: ModuleType) -> None:
    """0x50005 has bits 0, 2, 16 and 18; 0x4 has bit 2; 50000 is hexadecimal without saying so."""
    found = [readings.parse_throttled(line) for line in sample("vcgencmd-get_throttled-cases").splitlines()]
    both = ["under_voltage", "throttled"]
    assert found == [
        {"raw": "0x0", "now": [], "since_boot": []},
        {"raw": "0x50005", "now": both, "since_boot": both},
        {"raw": "0x4", "now": ["throttled"], "since_boot": []},
        {"raw": "0x50000", "now": [], "since_boot": both},
        None,
    ]


def test_pmic_rails(readings: ModuleType) -> None:
    """Twelve rails have a current and a voltage; EXT5V and BATT have a voltage alone."""
    rails = readings.parse_pmic(sample("vcgencmd-pmic_read_adc-rpi5-idle"))
    known = ["3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS", "0V8_SW", "VDD_CORE"]
    assert rails == sorted([*known, "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"])
    assert readings.parse_pmic("Can't open device file: /dev/vcio") == []


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5], "0-2,5"), ([7, 4, 5], "4-5,7")]
)
def test_ranges(numbers: list[int], text: str, readings: ModuleType) -> None:
    assert readings.ranges(numbers) == text


def test_a_program_that_hangs_or_fails_is_a_reason(
    readings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {"hangs": "sleep 600", "fails": "echo it broke; exit 3", "silent": "true", "says": "echo hello"}
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(readings, "TOOL_S", 0.2)
    told = {name: readings.tool(name) for name in [*scripts, "absent"]}
    assert told["says"] == "hello"
    assert [bool(told[name]) for name in ("hangs", "fails", "silent", "absent")] == [False] * 4
    assert str(told["hangs"]) == "hangs did not answer within 0.2 s"
    assert str(told["fails"]) == "fails ended with exit code 3: it broke"
    assert "it said nothing" in str(told["silent"])
    assert str(told["absent"]) == "there is no absent"


def test_the_firmware_without_permission_says_what_to_do(
    readings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code is 0 then."""
    refusal = sample("vcgencmd-get_throttled-cases").splitlines()[-1]
    (tmp_path / "vcgencmd").write_text(f'#!/bin/sh\necho "{refusal}"\n')
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not readings.vcgencmd("get_throttled")
    assert "group video" in str(readings.vcgencmd("get_throttled"))
