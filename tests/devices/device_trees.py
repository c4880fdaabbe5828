"""What Raspberry Pis and a Jetson show in /proc, /sys and by their tools: values of real samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

GOVERNORS = "conservative ondemand userspace powersave performance schedutil"
FEATURES = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
PI5_MODEL = "Raspberry Pi 5 Model B Rev 1.0"
PI3_MODEL = "Raspberry Pi 3 Model B Plus Rev 1.3"
ORIN_MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def _core(number: int, *, part: str, variant: str, revision: int, features: str, bogomips: str) -> str:
    return (
        f"processor\t: {number}\nBogoMIPS\t: {bogomips}\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
    )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _sys(
    model: str, *, cores: int, now_khz: int, max_khz: int, zones: Sequence[tuple[str, int]]
) -> dict[str, str]:
    files = {"sys/firmware/devicetree/base/model": f"{model}\0"}
    for name in ("possible", "present", "online"):
        files[f"sys/devices/system/cpu/{name}"] = f"0-{cores - 1}\n"
    for core in range(cores):
        frequency = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {
            f"sys/devices/system/cpu/cpu{core}/online": "1\n",
            f"{frequency}/scaling_cur_freq": f"{now_khz}\n",
            f"{frequency}/scaling_min_freq": f"{max_khz * 5 // 8}\n",
            f"{frequency}/scaling_max_freq": f"{max_khz}\n",
            f"{frequency}/cpuinfo_max_freq": f"{max_khz}\n",
            f"{frequency}/scaling_governor": "ondemand\n",
            f"{frequency}/scaling_available_governors": f"{GOVERNORS}\n",
        }
    for number, (kind, millidegrees) in enumerate(zones):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": f"{kind}\n", f"{zone}/temp": f"{millidegrees}\n"}
    return files


def pi5(folder: Path) -> Path:
    """A Pi 5's /proc/cpuinfo and /sys."""
    core = {"part": "0xd0b", "variant": "0x4", "revision": 1, "features": FEATURES, "bogomips": "108.00"}
    tail = f"Hardware\t: BCM2835\nRevision\t: d04170\nSerial\t\t: 10000000deadbeef\nModel\t\t: {PI5_MODEL}\n"
    files = _sys(PI5_MODEL, cores=4, now_khz=1500000, max_khz=2400000, zones=[("cpu-thermal", 48300)])
    files["proc/cpuinfo"] = "".join(_core(i, **core) for i in range(4)) + tail  # type: ignore[arg-type]
    files["sys/class/hwmon/hwmon2/name"] = "rpi_volt\n"
    files["sys/class/hwmon/hwmon2/in0_lcrit_alarm"] = "0\n"
    _write(folder, files)
    return folder


def pi3_32bit(folder: Path) -> Path:
    """A Pi 3 under 32-bit Raspberry Pi OS."""
    features = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32"
    core = {"part": "0xd03", "variant": "0x0", "revision": 4, "features": features, "bogomips": "38.40"}
    tail = f"Hardware\t: BCM2835\nRevision\t: a020d3\nSerial\t\t: 00000000deadbeef\nModel\t\t: {PI3_MODEL}\n"
    files = _sys(PI3_MODEL, cores=4, now_khz=600000, max_khz=1400000, zones=[("cpu-thermal", 47236)])
    name = "model name\t: ARMv7 Processor rev 4 (v7l)\n"
    cores = (_core(i, **core).replace("BogoMIPS", f"{name}BogoMIPS", 1) for i in range(4))  # type: ignore[arg-type]
    files["proc/cpuinfo"] = "".join(cores) + tail
    _write(folder, files)
    return folder


def orin(folder: Path) -> Path:
    """A Jetson Orin Nano's, with the INA3221 tree and a thermal zone that is switched off."""
    features = f"{FEATURES} uscat ilrcpc flagm paca pacg"
    core = {"part": "0xd42", "variant": "0x0", "revision": 1, "features": features, "bogomips": "62.50"}
    zones = [("cpu-thermal", 48781), ("gpu-thermal", 50718), ("cv0-thermal", -256000)]
    zones += [("soc0-thermal", 48156), ("tj-thermal", 50718)]
    files = _sys(ORIN_MODEL, cores=6, now_khz=1344000, max_khz=1510400, zones=zones)
    files["proc/cpuinfo"] = "".join(_core(i, **core) for i in range(6))  # type: ignore[arg-type]
    sensor = "sys/class/hwmon/hwmon1"
    files[f"{sensor}/name"] = "ina3221\n"
    rails = (("VDD_IN", 5072, 1189), ("VDD_CPU_GPU_CV", 5072, 377), ("VDD_SOC", 5072, 307))
    for number, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{sensor}/in{number}_label": f"{label}\n",
            f"{sensor}/in{number}_input": f"{millivolts}\n",
            f"{sensor}/curr{number}_input": f"{milliamperes}\n",
            f"{sensor}/curr{number}_max": "32760\n",
        }
    files[f"{sensor}/in7_label"] = "sum of shunt voltages\n"
    files[f"{sensor}/in7_input"] = "9360\n"
    _write(folder, files)
    return folder


NVPMODEL_CONF = """< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""
TEGRA_RELEASE = (
    "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun 16 16:07:13 UTC 2025\n"
)


def _tool(name: str) -> str:
    return Path(__file__).with_name("tools").joinpath(name).read_text()


#: Files that such a device has besides Debian's.
PI_FILES = {"/usr/bin/vcgencmd": _tool("vcgencmd")}
ORIN_FILES = {
    "/etc/nv_tegra_release": TEGRA_RELEASE,
    "/etc/nvpmodel.conf": NVPMODEL_CONF,
    "/usr/sbin/nvpmodel": _tool("nvpmodel"),
    "/usr/bin/jetson_clocks": _tool("jetson_clocks"),
    "/usr/bin/tegrastats": _tool("tegrastats"),
}
