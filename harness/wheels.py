"""Find, fetch and slim the wheels that a device can run: all of it on this machine, cached by content."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import filelock
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename

from harness.core.errors import DeviceError
from harness.core.types import digest

PIP_TIMEOUT_S = 900.0
NO_WHEEL_S = 7 * 86400.0  # that there is none is believed for so long
#: The first glibc of an architecture's wheels; names of before PEP 600, which old wheels have.
FIRST_GLIBC = {"x86_64": 5, "i686": 5}
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
#: What pip says when it was not the index that lacks the wheel, but the way to the index.
NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Connection (?:broken|reset|refused)|ProxyError"
    r"|Temporary failure|Name or service not known|Network is unreachable|SSLError|\b5\d\d Server Error"
)
NO_WHEEL = re.compile(r"No matching distribution found|Could not find a version that satisfies")
#: Never needed to run a model. Of each package: what only develops, converts, trains or drives another unit.
UNUSED = ("*/tests/*", "*.pyi", "*.pxd", "*.pyx", "*.h", "*.hpp", "*.a", "*.lib", "*/__pycache__/*")
UNUSED_OF = {
    "numpy": (
        *("numpy/f2py/*", "numpy/distutils/*", "numpy/doc/*", "numpy/_pyinstaller/*"),
        "numpy/*/_simd.*",
    ),
    "onnxruntime": (
        *(
            f"onnxruntime/{name}/*"
            for name in ("backend", "datasets", "quantization", "tools", "transformers")
        ),
        *("onnxruntime/capi/libonnxruntime.so*", "onnxruntime/ThirdPartyNotices.txt"),
    ),
    "ai-edge-litert": (
        *(f"ai_edge_litert/{name}/*" for name in ("aot", "tools", "vendors")),
        *("ai_edge_litert/*WebGpu*", "ai_edge_litert/*_pb2.py", "ai_edge_litert/schema_py_generated.py"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The userland of a device: what decides which wheels run there."""

    machine: str  # x86_64, aarch64, armv7l: of the Python there, not of the kernel
    python: tuple[int, int]
    glibc: tuple[int, int]

    def __str__(self) -> str:
        return f"Python {_dotted(self.python)} on {self.machine} with glibc {_dotted(self.glibc)}"

    @property
    def platforms(self) -> list[str]:
        """The platform tags that run there, the newest first (PEP 600 and the names of before)."""
        first = FIRST_GLIBC.get(self.machine, 17)
        names = []
        for minor in range(self.glibc[1], first - 1, -1):
            names.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in LEGACY:
                names.append(f"{LEGACY[minor]}_{self.machine}")
        return [*names, f"linux_{self.machine}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel in the cache."""

    package: str
    version: str
    path: Path
    sha256: str
    downloaded_bytes: int = 0  # 0: it was in the cache
    note: str = ""  # why it is not the version that this machine has


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWheel:
    """Why a package cannot be had; *final* unless it is for want of a connection."""

    reason: str
    final: bool = True


def resolve(package: str, target: Target, cache: Path, *, allowed: str = "") -> Wheel | NoWheel:
    """
    The wheel of *package* for *target*: the version that this machine has, else the newest that there is.

    *allowed* is a version specifier (``">=1.23,<2"``). What was answered once is answered from the cache,
    without any connection, until this machine has another version of the package; that there is none is
    asked again after a week.
    """
    here = host_version(package)
    key = digest([package, allowed, here, target.machine, *target.python, *target.glibc])
    folder = cache / "wheels"
    answer = folder / "resolved" / f"{key[:32]}.json"
    answer.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{answer}.lock"):
        known = _known(answer, folder, package)
        if known is not None:
            return known
        found = _ask(package, target, folder, here=here, allowed=allowed)
        if isinstance(found, Wheel):
            fields = {"file": found.path.name, "sha256": found.sha256, "note": found.note}
            _write(answer, json.dumps(fields))
        elif found.final:
            _write(answer, json.dumps({"reason": found.reason}))
        return found


def host_version(package: str) -> str | None:
    """The version of *package* here; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def needs(wheel: Wheel, package: str, target: Target) -> str:
    """Which versions of *package* a wheel asks for on *target*, as a version specifier; empty for any."""
    with zipfile.ZipFile(wheel.path) as file:
        name = next(n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        lines = file.read(name).decode("utf-8").partition("\n\n")[0].splitlines()
    python = _dotted(target.python)
    facts = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    facts |= {"platform_machine": target.machine, "platform_system": "Linux", "sys_platform": "linux"}
    asked = [Requirement(line.partition(":")[2]) for line in lines if line.startswith("Requires-Dist:")]
    fits = [r for r in asked if r.name == package and (r.marker is None or r.marker.evaluate(facts))]
    return ",".join(str(requirement.specifier) for requirement in fits if requirement.specifier)


def slim(wheel: Wheel) -> Path:
    """
    A copy of *wheel* without what no inference needs; made once, its bytes depend on its content alone.

    It goes over the wire instead of the wheel: for onnxruntime and LiteRT about half of the bytes.
    """
    patterns = (*UNUSED, *UNUSED_OF.get(wheel.package, ()))
    path = wheel.path.parent / f"slim-{digest(patterns)[:16]}.zip"
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            with zipfile.ZipFile(wheel.path) as source:
                kept = [i for i in source.infolist() if not i.is_dir() and _used(i.filename, patterns)]
                pack(path, ((i.filename, source.read(i)) for i in kept))
    return path


def pack(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a zip of (name, content): equal content makes equal bytes. It is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pack-") as folder:
        beside = Path(folder, "zip")
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files:
                info = zipfile.ZipInfo(name)  # of 1980, whenever it is made
                info.external_attr = 0o755 << 16
                file.writestr(info, content, zipfile.ZIP_DEFLATED)
        beside.replace(path)


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _used(name: str, patterns: Sequence[str]) -> bool:
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _known(answer: Path, folder: Path, package: str) -> Wheel | NoWheel | None:
    """What an earlier call was answered; None if there was none, or its wheel is gone."""
    if not answer.exists():
        return None
    fields = json.loads(answer.read_text(encoding="utf-8"))
    if "reason" in fields:
        fresh = time.time() - answer.stat().st_mtime < NO_WHEEL_S
        return NoWheel(reason=fields["reason"]) if fresh else None
    path = folder / fields["sha256"][:16] / fields["file"]
    if not path.exists() or sha256_of(path) != fields["sha256"]:
        return None
    return _wheel(package, path, fields["sha256"], note=fields["note"])


def _wheel(package: str, path: Path, sha256: str, *, note: str = "") -> Wheel:
    version = str(parse_wheel_filename(path.name)[1])
    return Wheel(package=package, version=version, path=path, sha256=sha256, note=note)


def _ask(package: str, target: Target, folder: Path, *, here: str | None, allowed: str) -> Wheel | NoWheel:
    """Ask pip: for the version of this machine if that is allowed, then for any."""
    if here is not None and SpecifierSet(allowed).contains(here, prereleases=True):
        found = _download(package, f"=={here}", target, folder)
        if isinstance(found, Wheel) or not found.final:
            return found
    found = _download(package, allowed, target, folder)
    if isinstance(found, Wheel) and here is not None and found.version != here:
        why = f"the newest {package} that has a wheel for {target}; this machine has {here}"
        found = replace(found, note=why)
    return found


def _download(package: str, allowed: str, target: Target, folder: Path) -> Wheel | NoWheel:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as name:
        argv = pip_argv(f"{package}{allowed}", target, Path(name))
        try:
            done = subprocess.run(
                argv, check=False, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True,
                timeout=PIP_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return NoWheel(reason=f"{package}: pip did not end within {PIP_TIMEOUT_S:g} s", final=False)
        files = list(Path(name).glob("*.whl"))
        if done.returncode == 0 and files:
            return _keep(package, files[0], folder)
    if NETWORK.search(done.stderr) or not NO_WHEEL.search(done.stderr):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no message"]
        first = next((line for line in lines if NETWORK.search(line)), lines[-1])
        return NoWheel(reason=f"{package} could not be fetched: {first.strip()[:300]}", final=False)
    return NoWheel(reason=f"{package} has no wheel for {target}")


def _keep(package: str, found: Path, folder: Path) -> Wheel:
    """Put a wheel into the cache, under its hash."""
    sha256 = sha256_of(found)
    path = folder / sha256[:16] / found.name
    path.parent.mkdir(exist_ok=True)
    count = found.stat().st_size
    found.replace(path)
    return replace(_wheel(package, path, sha256), downloaded_bytes=count)


def pip_argv(requirement: str, target: Target, folder: Path) -> list[str]:
    """How pip is called: wheels alone, for the target's tags, without what they depend on."""
    version = "".join(map(str, target.python))
    argv = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    argv += ["--retries", "2", "--timeout", "30", "--no-deps", "--only-binary=:all:"]
    argv += ["--python-version", _dotted(target.python), "--implementation", "cp"]
    for abi in (f"cp{version}", "abi3", "none"):
        argv += ["--abi", abi]
    for platform in target.platforms:
        argv += ["--platform", platform]
    return [*argv, "--dest", str(folder), requirement]


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")  # the caller holds the lock
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def parse_target(name: str, facts: dict[str, str]) -> Target:
    """
    The target of a device from what its Python says: ``machine, bits, python, libc``.

    A 64-bit kernel may run a 32-bit userland (Raspberry Pi OS does): the Python decides. DeviceError where
    there is nothing to provision for, e.g. musl.
    """
    machine, bits = facts["machine"], facts["bits"]
    if bits == "32" and machine in {"aarch64", "armv8l"}:
        machine = "armv7l"
    libc = re.fullmatch(r"glibc (\d+)\.(\d+)\S*", facts["libc"])
    python = re.match(r"(\d+)\.(\d+)", facts["python"])
    if libc is None or python is None:
        raise DeviceError(
            f"{name} has the C library {facts['libc'] or 'unknown'!r}: wheels need glibc.",
            hint="Use a Debian, Ubuntu, Raspberry Pi OS or JetPack system.",
        )
    return Target(
        machine=machine,
        python=(int(python[1]), int(python[2])),
        glibc=(int(libc[1]), int(libc[2])),
    )
