#!/usr/bin/env python3
"""Tell the host what this device is and how it is now, in JSON lines (PROTOCOL.md); measures nothing."""

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import sysconfig
import time
from importlib import metadata

import readings
from readings import Absent, Tree, tool, vcgencmd

GROUP_S = 12.0  # how long one group of facts may take: a bus that hangs costs its facts, not the probe
CPU = "/sys/devices/system/cpu"
#: runtime -> modules of which one brings it; a wheel is called as its module
RUNTIMES = {"onnxruntime": ["onnxruntime"], "litert": ["ai_edge_litert", "tflite_runtime"]}
RUNTIMES["executorch"] = ["executorch"]
PACKAGES = ["numpy"]  # what else an agent imports
KERNELS_CHOOSE_BY = re.compile(r"sse4_2|avx|amx|fma|f16c|neon|asimd|fphp|i8mm|bf16|sve|sme2?$")
#: Zones that show a threshold or a constant and no temperature.
NO_SENSOR = re.compile(r"cpu-hw-trip-|pmh0104_tz|pmr735d_tz")


# A group of facts is a function of the tree and the arguments; a fact is a value or Absent.


def identity(tree, args):
    """Which board this is, one of a kind."""
    dmi = [tree.read("/sys/class/dmi/id/" + name) for name in ("sys_vendor", "product_name")]
    cpuinfo, plain = tree.read("/proc/cpuinfo"), " ".join(filter(None, dmi))
    told = re.search(r"^Model\s*: (.*)$", cpuinfo, re.M)
    revision = re.search(r"^Revision\s*: (\w+)$", cpuinfo, re.M)
    names, serial = tree.board("compatible"), tree.board("serial-number")
    model = tree.board("model") or plain or (told and told.group(1))
    found = re.search(r"^Serial\s*: (\w+)$", cpuinfo, re.M)
    serial = serial or (found.group(1) if found else "")
    return {
        "model": model or Absent("no device tree and no DMI"),
        "compatible": names.split("\0") if names else Absent("no device tree"),
        "board_revision": revision.group(1) if revision else Absent("/proc/cpuinfo gives none"),
        "serial_hash": hashed(serial, args["salt"])
        if serial.strip("0")
        else Absent("no serial number is visible"),
        "virtualization": (dmi[0] or "a hypervisor") if " hypervisor" in cpuinfo else Absent("none visible"),
    }


def hashed(serial, salt):
    """A serial number that is told apart from others and is slow to guess: a Pi has 32 unknown bits only."""
    return hashlib.pbkdf2_hmac("sha256", serial.encode("utf-8"), salt.encode("utf-8"), 20000).hex()[:16]


def emulation(tree, _args):
    """Whether the processor is played by a program, and how that was found out."""
    for who in ("thread-self", os.getppid()):  # what is below /proc/self is forged by qemu-user
        program = os.path.basename(tree.read("/proc/{}/cmdline".format(who)).split("\0")[0])
        if re.match(r"qemu-\w+|\w+-binfmt-P", program):
            return {"emulated": True, "emulated_how": "qemu-user: /proc/PID/cmdline is {}".format(program)}
    arch, machine = tree.read("/proc/sys/kernel/arch"), platform.machine()
    if arch and (arch[:3] == "x86") != (machine[:3] == "x86" or machine in ("i386", "i686")):
        how = "qemu-user: the kernel is for {}, programs see {}".format(arch, machine)
        return {"emulated": True, "emulated_how": how}
    if "linux,dummy-virt" in tree.board("compatible"):
        return {"emulated": True, "emulated_how": "virtual machine: the device tree says linux,dummy-virt"}
    dmi = tree.read("/sys/class/dmi/id/sys_vendor")
    clocks = tree.read("/sys/devices/system/clocksource/clocksource0/available_clocksource")
    if dmi == "QEMU" and "kvm-clock" not in clocks:
        return {"emulated": True, "emulated_how": "virtual machine: DMI says QEMU and there is no kvm-clock"}
    return {"emulated": False, "emulated_how": Absent("no sign of an emulator")}


def system(tree, _args):
    """Operating system, vendor releases, C library, Python."""
    os_release, text = tree.table("/etc/os-release", "="), tree.read("/etc/nv_tegra_release")
    words = [tree.board("model"), tree.board("compatible"), platform.release()]
    nvidia = re.search("nvidia|tegra", " ".join(words), re.I)
    ask = nvidia and not text  # the packages of another board need not be searched
    package = tool("dpkg-query", "--show", "nvidia-l4t-core") if ask else Absent("not asked")
    l4t = (
        readings.parse_tegra_release(text)
        or readings.parse_l4t_package(package)
        or (text and text.splitlines()[0])
    )
    version = vcgencmd("version")
    built = re.search(r"version (\w+)", version)
    return {
        "os": os_release.get("PRETTY_NAME", Absent("no /etc/os-release")),
        "os_id": " ".join(filter(None, map(os_release.get, ("ID", "VERSION_ID"))))
        or Absent("no /etc/os-release"),
        "kernel": platform.release(),
        "l4t": l4t or Absent("no Jetson: no /etc/nv_tegra_release and no package nvidia-l4t-core"),
        "jetpack": readings.jetpack(l4t) if l4t else Absent("no Jetson"),
        "firmware": (built.group(1) if built else version.splitlines()[-1]) if version else version,
        "libc": " ".join(platform.libc_ver()).strip() or Absent("this system does not tell"),
        "python": platform.python_version(),
        "python_platform": sysconfig.get_platform(),  # a 64-bit kernel may run 32-bit programs
        "python_bits": 64 if sys.maxsize > 2**32 else 32,
        "runtimes": {name: installed(modules) for name, modules in RUNTIMES.items()},
        "packages": {name: version for name in PACKAGES for version in [installed([name])] if version},
    }


def installed(modules):
    """The version of the first wheel that is there, else None; imports nothing."""
    for module in modules:
        try:
            return metadata.version(module)
        except metadata.PackageNotFoundError:
            continue
    return None


def processors(tree, _args):
    """Cores, what they are called, what they can."""
    cores = readings.parse_cpuinfo(tree.read("/proc/cpuinfo"))
    groups, ids = {}, set()
    for core in cores:
        arm, n = "CPU part" in core, core["processor"]
        keys = ["CPU implementer", "CPU part"] if arm else ["vendor_id", "cpu family", "model"]
        about = {"id": "/".join(core.get(key, "?") for key in keys)}
        ids |= {about["id"]} if all(key in core for key in keys) else set()
        known = readings.PARTS.get((core.get("CPU implementer"), core.get("CPU part", "")[2:].rjust(3, "0")))
        about["name"] = known or core.get("model name")
        if arm:
            about["revision"] = "r{}p{}".format(
                int(core.get("CPU variant", "0"), 16), core.get("CPU revision", "?")
            )
        for key, path in (("capacity", "cpu_capacity"), ("max_khz", "cpufreq/cpuinfo_max_freq")):
            value = tree.number("{}/cpu{}/{}".format(CPU, n, path))
            about.update({} if isinstance(value, Absent) else {key: value})
        groups.setdefault(json.dumps(about, sort_keys=True), []).append(int(n))
    first = cores[0] if cores else {}
    flags = (first.get("flags") or first.get("Features") or "").split()
    return {
        "cpu_model": first.get("model name") or Absent("/proc/cpuinfo gives no model name"),
        "cpu_ids": sorted(ids) or Absent("/proc/cpuinfo gives no ids"),
        "cpu_clusters": [dict(cpus=readings.ranges(n), **json.loads(key)) for key, n in groups.items()],
        "isa": sorted(filter(KERNELS_CHOOSE_BY.match, flags)),
        "arch": platform.machine(),
        "cores": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "cpus_online": tree.read(CPU + "/online"),
        "cpus_isolated": tree.read(CPU + "/isolated"),
    }


def clocks(tree, _args):
    """Who decides the clocks, within which bounds, and whether we may change that."""
    policies, limits = {}, {}
    for folder in tree.glob(CPU + "/cpufreq/policy*"):
        name, text = (
            os.path.basename(folder),
            {f: tree.read(folder + "/" + f) for f in ("related_cpus", "scaling_governor")},
        )
        policies[name] = {"cpus": text["related_cpus"] or None, "governor": text["scaling_governor"] or None}
        policies[name]["available"] = tree.read(folder + "/scaling_available_governors").split() or None
        for at in ("min", "max"):
            policies[name][at + "_khz"] = tree.number("{}/cpuinfo_{}_freq".format(folder, at)) or None
        limits[name] = {
            at + "_khz": tree.number("{}/scaling_{}_freq".format(folder, at)) or None for at in ("min", "max")
        }
        limits[name]["writable"] = os.access(tree.root + folder + "/scaling_governor", os.W_OK)
    mode, show = tool("nvpmodel", "-q"), tool("jetson_clocks", "--show")
    pinned = readings.parse_jetson_clocks(show) if show else {}
    told = any(value is not None for value in pinned.values())
    governors = {name: policy["governor"] or "" for name, policy in policies.items()}
    return {
        "governors": governors or Absent("no cpufreq"),
        "clocks": policies or Absent("no cpufreq"),
        "clock_limits": limits or Absent("no cpufreq"),
        "power_mode": readings.parse_power_mode(mode)
        or (Absent("nvpmodel -q says " + mode[:80]) if mode else mode),
        "jetson_clocks": pinned if told else Absent("jetson_clocks --show shows no clocks") if show else show,
    }


def memory(tree, args):
    """RAM, swap, where files are, and how full all that is."""
    info = {
        k: int(v.split()[0]) * 1024 for k, v in tree.table("/proc/meminfo").items() if v.split()[0].isdigit()
    }
    swaps = [line.split() for line in tree.read("/proc/swaps").splitlines()[1:]]
    device, kills = (
        os.stat(args["workdir"]).st_dev,
        re.search(r"^oom_kill (\d+)$", tree.read("/proc/vmstat"), re.M),
    )
    block = tree.root + "/sys/dev/block/{}:{}".format(os.major(device), os.minor(device))
    folder, absent = os.statvfs(args["workdir"]), Absent("/proc/meminfo does not tell")
    return {
        "memory_total_bytes": info.get("MemTotal", absent),
        "memory_available_bytes": info.get("MemAvailable", absent),
        "swap_total_bytes": info.get("SwapTotal", absent),
        "swap_used_bytes": info["SwapTotal"] - info["SwapFree"] if "SwapFree" in info else absent,
        "zram": any("/zram" in swap[0] for swap in swaps),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "storage": os.path.basename(os.path.realpath(block))
        if os.path.exists(block)
        else Absent("no block device"),
        "free_disk_bytes": folder.f_bavail * folder.f_frsize,
        "oom_kills": int(kills.group(1)) if kills else Absent("/proc/vmstat does not count them"),
    }


def heat(tree, _args):
    """Temperatures that are ones, and every sign that the clocks are held down."""
    zones, dropped = {}, {}
    for folder in tree.glob("/sys/class/thermal/thermal_zone*"):
        kind, raw = tree.read(folder + "/type") or os.path.basename(folder), tree.number(folder + "/temp")
        name = kind if kind not in zones else "{} ({})".format(kind, os.path.basename(folder))
        if isinstance(raw, Absent):
            dropped[name] = str(raw)
        elif (
            abs(raw) > 200000 or NO_SENSOR.match(kind) or (kind.startswith("PMIC") and raw in (50000, 100000))
        ):
            dropped[name] = "{:g} °C is no measurement".format(raw / 1000)
        else:
            zones[name] = raw / 1000
    pi = vcgencmd("get_throttled")
    signs = {"firmware": readings.parse_throttled(pi)} if readings.parse_throttled(pi) else {}
    patterns = ["hwmon/hwmon*/oc*_event_cnt", "hwmon/hwmon*/curr*_crit_alarm", "hwmon/hwmon*/in0_lcrit_alarm"]
    patterns += ["thermal/cooling_device*/cur_state"]
    paths = [path for pattern in patterns for path in tree.glob("/sys/class/" + pattern)]
    paths += tree.glob(CPU + "/cpu*/thermal_throttle/core_throttle_count")
    counts = {path: tree.number(path) for path in paths}
    for path, n in counts.items():
        kind = tree.read(os.path.dirname(path) + "/type") or ""  # a fan is a cooling device too
        name = "/".join(filter(None, [kind, *path.split("/")[-2:]]))
        signs.update({} if isinstance(n, Absent) else {name: n})
    return {
        "temperatures_c": zones or Absent("no thermal zone that measures"),
        "temperatures_left_out": dropped,
        "throttling": signs or Absent("{}; no sign in /sys".format(str(pi))),
        "fans_rpm": {p: tree.number(p) or 0 for p in tree.glob("/sys/class/hwmon/hwmon*/fan1_input")}
        or Absent("no fan"),
    }


def source(name, scope, readable, reason=None, **more):
    """One source of power readings."""
    return dict(
        id=name, scope=scope, readable=bool(readable), **({} if readable else {"reason": str(reason)}), **more
    )


def power(tree, _args):
    """Sources of power readings: which, of what (scope), and whether this user may read them."""
    found, seen = [], set()
    if shutil.which("vcgencmd", path=os.environ.get("PATH", "") + ":" + readings.PLACES):
        text = vcgencmd("pmic_read_adc")
        rails = readings.parse_pmic(text)
        if rails or text == readings.VIDEO:
            found.append(source("vcgencmd pmic_read_adc", "soc_rails", rails, text, rails=rails))
    folders = tree.glob("/sys/bus/i2c/drivers/ina3221*/*-00*/hwmon/hwmon*") + tree.glob(
        "/sys/class/hwmon/hwmon*"
    )
    for folder in tree.glob("/sys/bus/i2c/drivers/ina3221*/*-00*/iio:device*") + folders:
        iio, kind = (
            "iio:device" in folder,
            tree.read(folder + "/name") or ("ina3221" if "ina3221" in folder else ""),
        )
        real = os.path.realpath(tree.root + folder)
        if real in seen or not re.match(r"ina(3221|2\d\d)", kind):
            continue
        seen.add(real)
        labels = (
            ["rail_name_{}".format(n) for n in range(3)]
            if iio
            else ["in{}_label".format(n) for n in (1, 2, 3)]
        )
        rails = {label: tree.read(folder + "/" + label) for label in labels}
        rails = {label: name for label, name in rails.items() if name and "NC" not in name.split("_")}
        if not rails and kind == "ina3221":  # nothing is wired to it
            continue
        current = "in_current{}_input" if iio else "curr{}_input"
        files = [current.format(re.sub(r"\D", "", label)) for label in rails] or [
            "curr1_input",
            "power1_input",
        ]
        values = [tree.number(folder + "/" + name) for name in files]
        whole = {"VDD_IN": "module", "POM_5V_IN": "module", "VIN": "dc_in"}
        scope = next((whole[name] for name in rails.values() if name in whole), "rails")
        good = [value for value in values if not isinstance(value, Absent)]
        found.append(source(kind + " " + folder, scope, good, values[0], rails=sorted(rails.values())))
    for folder in tree.glob("/sys/class/powercap/intel-rapl:*"):
        name, value = tree.read(folder + "/name"), tree.number(folder + "/energy_uj")
        scope = "package" if name.startswith("package") else "rails"
        why = "{} (kernels let root alone read it)".format(value)
        found.append(source("rapl " + (name or folder), scope, not isinstance(value, Absent), why))
    for folder in tree.glob("/sys/class/power_supply/*"):
        if tree.read(folder + "/type") == "Battery":
            value = tree.number(folder + "/current_now")
            found.append(source(folder, "battery", not isinstance(value, Absent), value))
    return {"power_sources": found or Absent("this device has no sensor of power that we know")}


def moment(tree, _args):
    """Now: clocks, load, since when it runs."""
    uptime = tree.read("/proc/uptime").split()
    return {
        "boot_id": tree.read("/proc/sys/kernel/random/boot_id"),
        "uptime_s": float(uptime[0]) if uptime and uptime[0][0].isdigit() else Absent("no /proc/uptime"),
        "load_average_1min": os.getloadavg()[0],
        "clock_s": time.time(),
    }


GROUPS = [identity, emulation, system, processors, clocks, memory, heat, power, moment]


class Late(Exception):
    """The alarm of a group: no OSError, as those are caught where one file is read."""


def late(*_):
    """The alarm went off."""
    raise Late("something did not answer within {:g} s".format(GROUP_S))


def facts(tree, args):
    """Every (name, value): a group that fails or hangs is one absent fact and takes no other with it."""
    signal.signal(signal.SIGALRM, late)
    for group in GROUPS:
        signal.setitimer(signal.ITIMER_REAL, GROUP_S)
        try:
            found = group(tree, args)
        except Exception as error:  # a strange file must not cost the rest of the fingerprint
            sys.excepthook(*sys.exc_info())
            kind = "" if isinstance(error, Late) else type(error).__name__ + ": "
            found = {group.__name__: Absent("{}{}".format(kind, error))}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield from found.items()


def main(argv, out):
    """Events as in PROTOCOL.md; an argument that is not known is an error, not a default."""

    def send(event, **fields):
        out.write(json.dumps({"event": event, **fields}, separators=(",", ":"), allow_nan=False) + "\n")
        out.flush()

    args = {"mode": "probe", "root": "/", "workdir": ".", "salt": "edgebench"}
    given = dict(item.partition("=")[::2] for item in argv)
    if given.get("mode") != "probe" or set(given) - set(args):
        words = "expected mode=probe, and perhaps root=, workdir=, salt="
        send("error", stage="arguments", status="agent_failed", message=words)
        return 1
    args.update(given)
    send("hello", protocol=1, agent="probe", pid=os.getpid(), runtime=None, version=None)
    for name, value in facts(Tree(args["root"]), args):
        absent = isinstance(value, Absent)
        send("fact", name=name, value=None if absent else value, **({"reason": str(value)} if absent else {}))
    send("end", status="ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
