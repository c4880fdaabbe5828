"""The fingerprint of devices that are not here: trees of files and programs as on a Pi, a Jetson, a VM."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness import probing
from harness.agent_process import ENVIRONMENT
from harness.core import events
from tests.agents.test_readings import sample

INA3221 = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


def put(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def programs(root: Path, scripts: dict[str, str]) -> None:
    for name, body in scripts.items():
        put(root, {f"bin/{name}": f"#!/bin/sh\n{body}"})
        (root / "bin" / name).chmod(0o755)


def told(root: Path, *arguments: str) -> dict[str, Any]:
    """What the archive says that is pushed to a device."""
    argv = [sys.executable, str(probing.program()), "mode=probe", f"root={root}", *arguments]
    env = {**ENVIRONMENT, "PATH": f"{root}/bin:/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return events.read_probe(done.stdout.splitlines())


@pytest.fixture
def pi5(tmp_path: Path) -> Path:
    put(
        tmp_path,
        {
            "proc/cpuinfo": sample("cpuinfo-rpi5-bcm2712-6.1.47"),
            "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "sys/firmware/devicetree/base/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
            "sys/firmware/devicetree/base/serial-number": "48343bbbe3ae743b\0",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"',
            "proc/meminfo": "MemTotal: 8245696 kB\nMemAvailable: 7000000 kB\nSwapTotal: 204784 kB\n"
            "SwapFree: 204528 kB",
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 204784 256 100",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 48300,
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": 1,
            "sys/class/hwmon/hwmon2/fan1_input": 2964,
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0,
            "sys/devices/system/cpu/online": "0-3",
            "sys/devices/system/cpu/isolated": "3",
            **{f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": 2400000 for n in range(4)},
            **{
                f"sys/devices/system/cpu/cpufreq/policy0/{name}": value
                for name, value in {
                    "related_cpus": "0 1 2 3",
                    "scaling_governor": "ondemand",
                    "scaling_available_governors": "ondemand performance",
                    "cpuinfo_min_freq": 1500000,
                    "cpuinfo_max_freq": 2400000,
                    "scaling_min_freq": 1500000,
                    "scaling_max_freq": 2000000,
                }.items()
            },
        },
    )
    (tmp_path / "pmic").write_text(sample("vcgencmd-pmic_read_adc-rpi5-idle"))
    programs(
        tmp_path,
        {
            "vcgencmd": f"""case "$1" in
get_throttled) echo throttled=0x50000;;
pmic_read_adc) cat {tmp_path}/pmic;;
version) echo "Mar 1 2024"; echo "Copyright (c) 2012 Broadcom"; echo "version 8a4e1c2b (release)";;
esac""",
        },
    )
    return tmp_path


def test_a_pi_5(pi5: Path) -> None:
    facts = told(pi5)
    assert facts["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["compatible"] == ["raspberrypi,5-model-b", "brcm,bcm2712"]
    assert facts["board_revision"] == "d04170"
    assert facts["firmware"] == "8a4e1c2b"
    assert facts["os_id"] == "debian 12"
    assert facts["cpu_ids"] == ["0x41/0xd0b"]
    assert facts["cpu_clusters"] == [
        {"cpus": "0-3", "id": "0x41/0xd0b", "name": "Cortex-A76", "revision": "r4p1", "max_khz": 2400000}
    ]
    assert facts["isa"] == ["asimd", "asimddp", "asimdhp", "asimdrdm", "fphp"]
    assert (facts["cpus_online"], facts["cpus_isolated"]) == ("0-3", "3")
    assert facts["governors"] == {"policy0": "ondemand"}
    assert facts["clocks"]["policy0"]["available"] == ["ondemand", "performance"]
    assert facts["clocks"]["policy0"]["max_khz"] == 2400000
    assert facts["clock_limits"]["policy0"] == {"min_khz": 1500000, "max_khz": 2000000, "writable": True}
    assert facts["memory_total_bytes"] == 8245696 * 1024
    assert (facts["swap_used_bytes"], facts["zram"]) == (256 * 1024, True)
    assert facts["temperatures_c"] == {"cpu-thermal": 48.3}
    assert facts["throttling"]["firmware"]["since_boot"] == ["under_voltage", "throttled"]
    assert facts["throttling"]["pwm-fan/cooling_device0/cur_state"] == 1
    assert facts["fans_rpm"] == {"/sys/class/hwmon/hwmon2/fan1_input": 2964}
    (source,) = facts["power_sources"]
    assert (source["id"], source["scope"], source["readable"]) == (
        "vcgencmd pmic_read_adc",
        "soc_rails",
        True,
    )
    assert len(source["rails"]) == 12
    assert (facts["l4t"], facts["power_mode"], facts["emulated"]) == (None, None, False)
    assert facts["reasons"]["power_mode"] == "there is no nvpmodel"


def test_the_packages_of_another_board_are_not_searched(pi5: Path) -> None:
    programs(pi5, {"dpkg-query": f"touch {pi5}/asked; echo nvidia-l4t-core 36.4.4-1"})
    assert told(pi5)["l4t"] is None
    assert not (pi5 / "asked").exists()


def test_a_serial_number_does_not_leave_the_device(pi5: Path) -> None:
    one, again, salted = told(pi5), told(pi5), told(pi5, "salt=other")
    assert "48343bbbe3ae743b" not in str(one)
    assert one["serial_hash"] == again["serial_hash"] != salted["serial_hash"]
    put(pi5, {"sys/firmware/devicetree/base/serial-number": "48343bbbe3ae743c\0"})
    assert told(pi5)["serial_hash"] != one["serial_hash"]


def test_a_pi_whose_user_may_not_ask_the_firmware(pi5: Path) -> None:
    programs(pi5, {"vcgencmd": 'echo "Can\'t open device file: /dev/vcio"'})
    facts = told(pi5)
    (source,) = facts["power_sources"]
    assert not source["readable"]
    assert "group video" in source["reason"]
    assert "group video" in facts["reasons"]["firmware"]


def test_a_pi_4_has_no_power_source(pi5: Path) -> None:
    programs(pi5, {"vcgencmd": "echo 'error=1 error_msg=\"Command not registered\"'"})
    facts = told(pi5)
    assert facts["power_sources"] is None
    assert facts["reasons"]["power_sources"]


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    cpu = "sys/devices/system/cpu"
    zones = [("cpu-thermal", 48781), ("cv0-thermal", -256000), ("PMIC-Die", 50000), ("gpu-thermal", 50718)]
    put(
        tmp_path,
        {
            "proc/cpuinfo": sample("cpuinfo-jetson-orin-nx-5.15.148"),
            "proc/device-tree/model": "NVIDIA Orin NX Developer Kit\0",
            "etc/nv_tegra_release": sample("nv_tegra_release-r36.4.4") + "# KERNEL_VARIANT: oot",
            **{f"{cpu}/cpu{n}/cpu_capacity": 1024 if n < 4 else 512 for n in range(6)},
            **{f"sys/class/thermal/thermal_zone{n}/type": kind for n, (kind, _) in enumerate(zones)},
            **{f"sys/class/thermal/thermal_zone{n}/temp": value for n, (_, value) in enumerate(zones)},
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "sys/class/thermal/cooling_device0/cur_state": 2,
            f"{INA3221}/name": "ina3221",
            f"{INA3221}/in1_label": "VDD_IN",
            f"{INA3221}/in2_label": "VDD_CPU_GPU_CV",
            f"{INA3221}/in3_label": "NC",
            f"{INA3221}/in7_label": "sum of shunt voltages",
            f"{INA3221}/curr1_input": 1189,
            f"{INA3221}/curr2_input": 377,
        },
    )
    for line in sample("oc-throttle-thor").splitlines()[:6]:
        name, _, value = line.partition(":")
        put(tmp_path, {f"sys/class/hwmon/hwmon4/{name}": value})
    (tmp_path / "sys/class/hwmon/hwmon3").symlink_to(tmp_path / INA3221)
    (tmp_path / "mode").write_text(sample("nvpmodel-q"))
    (tmp_path / "show").write_text(sample("jetson_clocks-show-tx2"))
    programs(tmp_path, {"nvpmodel": f"cat {tmp_path}/mode", "jetson_clocks": f"cat {tmp_path}/show"})
    return tmp_path


def test_a_jetson(orin: Path) -> None:
    facts = told(orin)
    assert facts["model"] == "NVIDIA Orin NX Developer Kit"
    assert (facts["l4t"], facts["jetpack"], facts["power_mode"]) == ("36.4.4", "6.2.1", "MAXN")
    assert facts["jetson_clocks"] == {"cpu": False, "gpu": False, "emc": False}
    assert [(group["cpus"], group["capacity"]) for group in facts["cpu_clusters"]] == [
        ("0-3", 1024),
        ("4-5", 512),
    ]
    assert facts["temperatures_c"] == {"cpu-thermal": 48.781, "gpu-thermal": 50.718}
    assert set(facts["temperatures_left_out"]) == {"cv0-thermal", "PMIC-Die"}
    assert facts["throttling"] == {
        "hwmon4/oc1_event_cnt": 0,
        "hwmon4/oc2_event_cnt": 0,
        "hwmon4/oc3_event_cnt": 1,
        "cpufreq-cpu0/cooling_device0/cur_state": 2,
    }
    (source,) = facts["power_sources"]  # found by two paths, it is one
    assert (source["scope"], source["readable"]) == ("module", True)
    assert source["rails"] == ["VDD_CPU_GPU_CV", "VDD_IN"]


def test_an_old_jetson_has_iio_and_the_package_alone(orin: Path) -> None:
    (orin / "etc/nv_tegra_release").unlink()
    (orin / "sys/class/hwmon/hwmon3").unlink()
    for path in (orin / INA3221).iterdir():
        path.unlink()
    iio = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    put(orin, {f"{iio}/rail_name_0": "POM_5V_IN", f"{iio}/in_current0_input": 400})
    (orin / "package").write_text("nvidia-l4t-core 32.7.1-20220219090432")
    programs(orin, {"dpkg-query": f"cat {orin}/package"})
    facts = told(orin)
    assert (facts["l4t"], facts["jetpack"]) == ("32.7.1", "4.6.1")
    assert [(s["scope"], s["rails"]) for s in facts["power_sources"]] == [("module", ["POM_5V_IN"])]


def test_a_jetson_of_a_release_that_nobody_knows(orin: Path) -> None:
    put(orin, {"etc/nv_tegra_release": "# R99 (release), REVISION: 1.2, GCID: 1, BOARD: generic"})
    facts = told(orin)
    assert (facts["l4t"], facts["jetpack"]) == ("99.1.2", None)
    assert facts["reasons"]["jetpack"] == "L4T 99.1.2 is not in the table"
    put(orin, {"etc/nv_tegra_release": "something else"})
    assert told(orin)["l4t"] == "something else"


def test_other_power_sensors(tmp_path: Path) -> None:
    """An INA219 of the samples; a RAPL counter that cannot be read, as for all but root."""
    names = ("in0_input", "in1_input", "power1_input", "curr1_input", "shunt_resistor")
    values = sample("ina219-hwmon").split()
    put(tmp_path, {f"sys/class/hwmon/hwmon0/{name}": v for name, v in zip(names, values, strict=True)})
    put(tmp_path, {"sys/class/hwmon/hwmon0/name": "ina219", "sys/class/hwmon/hwmon1/name": "coretemp"})
    put(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").symlink_to("/proc/self/mem")  # EIO at its start
    found = {source["id"]: source for source in told(tmp_path)["power_sources"]}
    assert found["ina219 /sys/class/hwmon/hwmon0"]["readable"]
    rapl = found["rapl package-0"]
    assert (rapl["scope"], rapl["readable"]) == ("package", False)
    assert "Input/output error" in rapl["reason"]


@pytest.mark.parametrize(
    ("files", "how"),
    [
        (
            {"proc/thread-self/cmdline": "/usr/libexec/qemu-binfmt/aarch64-binfmt-P\0/bin/sh\0sh"},
            "aarch64-binfmt-P",
        ),
        ({"proc/thread-self/cmdline": "/usr/bin/qemu-arm-static\0/usr/bin/python3"}, "qemu-arm-static"),
        ({f"proc/{os.getpid()}/cmdline": "qemu-aarch64\0python3"}, "qemu-aarch64"),
        (
            {"proc/sys/kernel/arch": "aarch64" if os.uname().machine == "x86_64" else "x86_64"},
            "the kernel is for",
        ),
        ({"sys/firmware/devicetree/base/compatible": "linux,dummy-virt\0"}, "linux,dummy-virt"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU"}, "DMI says QEMU"),
    ],
    ids=["binfmt", "qemu-user", "parent", "architecture", "device tree", "DMI"],
)
def test_an_emulator_is_found_out(files: dict[str, object], how: str, tmp_path: Path) -> None:
    put(tmp_path, files)
    facts = told(tmp_path)
    assert facts["emulated"] is True
    assert how in facts["emulated_how"]


def test_a_virtual_machine_on_a_real_processor_is_not_emulated(tmp_path: Path) -> None:
    clocks = "sys/devices/system/clocksource/clocksource0/available_clocksource"
    put(tmp_path, {"sys/class/dmi/id/sys_vendor": "QEMU", clocks: "kvm-clock tsc"})
    assert told(tmp_path)["emulated"] is False


def test_a_device_that_tells_nothing_has_a_reason_for_everything(tmp_path: Path) -> None:
    facts = told(tmp_path)
    absent = [name for name, value in facts.items() if value is None]
    assert {"model", "serial_hash", "temperatures_c", "power_sources", "clocks"} <= set(absent)
    for name in absent:
        assert facts["reasons"][name]


def test_a_file_that_hangs_costs_its_group_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(probing.FOLDER))
    probe = import_module("probe")
    monkeypatch.setattr(probe, "GROUP_S", 0.3)
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    os.mkfifo(zone / "type")
    tree, args = probe.Tree(str(tmp_path)), {"workdir": str(tmp_path), "salt": ""}
    facts = dict(probe.facts(tree, args))
    assert str(facts["heat"]) == "something did not answer within 0.3 s"
    assert "temperatures_c" not in facts
    assert {"model", "clocks", "power_sources", "boot_id", "free_disk_bytes"} <= set(facts)


def test_arguments_are_taken_exactly() -> None:
    for bad in ([], ["mode=latency"], ["mode=probe", "colour=red"]):
        argv = [sys.executable, str(probing.program()), *bad]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert '"event":"error"' in done.stdout


@pytest.mark.parametrize("name", ["probe.py", "readings.py", "settings.py"])
def test_it_is_python_3_8_and_its_standard_library(name: str) -> None:
    tree = ast.parse((probing.FOLDER / name).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in imported} - {"readings"} <= sys.stdlib_module_names
    later = {"removeprefix", "removesuffix", "pairwise", "file_digest", "bit_count", "batched"}
    assert not later & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_the_archive_is_made_once_and_named_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "one"))
    first = probing.program()
    stamp = first.stat().st_mtime_ns
    assert probing.program().stat().st_mtime_ns == stamp
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "two"))
    assert probing.program().read_bytes() == first.read_bytes()
    changed = tmp_path / "readings.py"
    changed.write_text("# another\n")
    monkeypatch.setitem(probing.MODULES, "readings.py", changed)
    assert probing.program().name != first.name
