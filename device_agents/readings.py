"""What a device's own files and programs say, as values: reading them safely, parsing what they print."""

import glob
import os
import re
import shutil
import signal
import subprocess

TOOL_S = 5.0  # how long a program of the vendor may take
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/vc/bin"
PARTS = {
    "0x41": "b76 ARM1176|c07 Cortex-A7|c0f Cortex-A15|d03 Cortex-A53|d04 Cortex-A35|d05 Cortex-A55"
    "|d07 Cortex-A57|d08 Cortex-A72|d09 Cortex-A73|d0a Cortex-A75|d0b Cortex-A76|d0c Neoverse-N1"
    "|d0d Cortex-A77|d40 Neoverse-V1|d41 Cortex-A78|d42 Cortex-A78AE|d44 Cortex-X1|d46 Cortex-A510"
    "|d47 Cortex-A710|d48 Cortex-X2|d49 Neoverse-N2|d4d Cortex-A715|d4e Cortex-X3|d4f Neoverse-V2"
    "|d80 Cortex-A520|d81 Cortex-A720|d82 Cortex-X4|d83 Neoverse-V3AE",
    "0x4e": "000 Denver|003 Denver 2|004 Carmel",
    "0x51": "001 Oryon|804 Kryo 485 Gold|805 Kryo 485 Silver",
}
#: (implementer, part) as in /proc/cpuinfo, without 0x of the part -> name
PARTS = {(maker, w[:3]): w[4:] for maker, words in PARTS.items() for w in words.split("|")}
#: L4T release -> JetPack; one that is not here keeps its L4T number
JETPACK = "32.6.1=4.6 32.7.1=4.6.1 35.1=5.0.2 35.3.1=5.1.1 35.4.1=5.1.2 35.5=5.1.3 35.6.4=5.1.6 36.3=6.0"
JETPACK += " 36.4=6.1 36.4.3=6.2 36.4.4=6.2.1 36.4.7=6.2.1 36.5=6.2.2 38.2=7.0 38.4=7.1 39.2=7.2"
JETPACK = dict(pair.split("=") for pair in JETPACK.split())
THROTTLE_BITS = ["under_voltage", "frequency_capped", "throttled", "soft_temperature_limit"]
VIDEO = "no permission for /dev/vcio: add the user to the group video (sudo usermod -aG video $USER)"


class Absent(str):
    """Why there is no value. It is false, so that ``a or b`` goes on to the next source."""

    def __bool__(self):
        return False


class Tree:
    """The files of a device below *root*: / on a device, a folder in tests."""

    def __init__(self, root="/"):
        self.root = root.rstrip("/")

    def read(self, path):
        """A small text file, or why it cannot be read."""
        try:
            with open(self.root + path, "rb") as file:
                text = file.read(1 << 20).decode("utf-8", "replace").strip("\0\n\t ")
        except OSError as error:
            return Absent("{}: {}".format(path, error.strerror))
        return text or Absent(path + " is empty")

    def number(self, path):
        """A whole number in a file of its own, or why there is none."""
        text = self.read(path)
        if text and not re.match(r"-?\d+$", text):
            return Absent("{} holds {!r}".format(path, text[:40]))
        return int(text) if text else text

    def board(self, name):
        """A property of the device tree, by either of its paths."""
        known = self.read("/sys/firmware/devicetree/base/" + name)
        return known or self.read("/proc/device-tree/" + name)

    def glob(self, pattern):
        """Paths that match, as a program on the device writes them."""
        return [path[len(self.root) :] for path in sorted(glob.glob(self.root + pattern))]

    def table(self, path, mark=":"):
        """Lines of ``key: value`` as a dict; the first of equal keys counts."""
        pairs = [line.split(mark, 1) for line in self.read(path).splitlines() if mark in line]
        return {key.strip(): value.strip(' \t"') for key, value in reversed(pairs)}


def tool(name, *arguments):
    """What a program prints, or why it prints nothing. One that hangs is left: it may not be killable."""
    search = os.environ.get("PATH", "") + ":" + PLACES
    path = shutil.which(name, path=search.lstrip(":"))
    if path is None:
        return Absent("there is no " + name)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = dict(os.environ, PATH=search.lstrip(":"), LC_ALL="C")
    child = subprocess.Popen([path, *arguments], start_new_session=True, env=env, **streams)
    try:
        out = child.communicate(timeout=TOOL_S)[0].decode("utf-8", "replace").strip()
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return Absent("{} did not answer within {:g} s".format(name, TOOL_S))
    if child.returncode or not out:
        last = out.splitlines()[-1][:120] if out else "it said nothing"
        return Absent(
            "{} ended with exit code {}: {}".format(" ".join([name, *arguments]), child.returncode, last)
        )
    return out


def vcgencmd(*arguments):
    """An answer of the Pi's firmware; without permission the program says so, often with exit code 0."""
    text = tool("vcgencmd", *arguments)
    if re.search(r"Can't open device|VCHI init|[Pp]ermission denied", text):
        return Absent(VIDEO)
    return Absent("vcgencmd {}: {}".format(" ".join(arguments), text)) if text and "error=" in text else text


# Parsers take text, so that recorded samples of real devices can be given to them.


def parse_cpuinfo(text):
    """One dict per processor of /proc/cpuinfo, in order, its keys as there."""
    blocks = [
        dict(re.findall(r"^([^:\n]*?)\s*:[ \t]*(.*?)\s*$", part, re.M)) for part in re.split(r"\n\s*\n", text)
    ]
    return [block for block in blocks if block.get("processor", "").isdigit()]


def parse_tegra_release(text):
    """``R36 (release), REVISION: 4.4`` as "36.4.4"; None if it is something else."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return ".".join(found.groups()) if found else None


def parse_l4t_package(text):
    """The same from ``dpkg-query --show nvidia-l4t-core``."""
    found = re.search(r"nvidia-l4t-core\s+(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else None


def jetpack(l4t):
    """The JetPack of an L4T release, or why it is not known."""
    known = JETPACK.get(re.sub(r"(\.0)+$", "", l4t))
    return known or Absent("L4T {} is not in the table".format(l4t))


def parse_power_mode(text):
    """The name of the mode of ``nvpmodel -q``: ids differ between modules."""
    found = re.search(r"NV Power Mode: *(\S.*?)\s*$", text, re.M)
    return found.group(1) if found else None


def parse_jetson_clocks(text):
    """Which clocks ``jetson_clocks --show`` shows as pinned (smallest = largest); None: it does not say."""
    rows = [
        (line.split()[0], dict(re.findall(r"(\w+)=(\S+)", line))) for line in text.splitlines() if "=" in line
    ]
    cpus = [row for name, row in rows if re.match(r"cpu\d", name) and row.get("Online") == "1"]
    gpus = [row for name, row in rows if name.startswith("GPU")]
    emc = [row.get("FreqOverride") for name, row in rows if name == "EMC"]
    pinned = lambda found: all(r.get("MinFreq") == r.get("MaxFreq") for r in found) if found else None  # noqa: E731
    return {"cpu": pinned(cpus), "gpu": pinned(gpus), "emc": emc[0] == "1" if emc else None}


def parse_throttled(text):
    """``throttled=0x50005`` as {raw, now, since_boot}; 0x may be missing. None if it is no such answer."""
    found = re.search(r"throttled=(?:0x)?([0-9a-fA-F]+)", text)
    if not found:
        return None
    bits = int(found.group(1), 16)
    now, since = ([n for i, n in enumerate(THROTTLE_BITS) if bits >> (i + at) & 1] for at in (0, 16))
    return {"raw": hex(bits), "now": now, "since_boot": since}


def parse_pmic(text):
    """Rails of ``vcgencmd pmic_read_adc`` that have both a current and a voltage, by name."""
    found = re.findall(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=-?[0-9.]+[AV]\s*$", text, re.M)
    kinds = {kind: {name for name, k in found if k == kind} for kind in "AV"}
    return sorted(kinds["A"] & kinds["V"])


def ranges(numbers):
    """[0, 1, 2, 5] as "0-2,5"."""
    runs = []
    for n in sorted(numbers):
        runs = [*runs[:-1], (runs[-1][0], n)] if runs and runs[-1][1] == n - 1 else [*runs, (n, n)]
    return ",".join(str(a) if a == b else "{}-{}".format(a, b) for a, b in runs)
