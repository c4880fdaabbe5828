"""What a device needs for each runtime: archives to unpack there, or why there are none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet

from harness import debian, runners, wheels
from harness.core.errors import EdgebenchError
from harness.core.types import digest
from harness.wheels import NoWheel, Target, Wheel

#: runtime → the packages that bring it, the first that can be had is taken.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
}
EXECUTORCH = "executorch"
RUNTIMES = (*PACKAGES, EXECUTORCH)
#: What must be imported to know that a package works, and what it does not say of its needs.
MODULES = {
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
ALSO_NEEDS = {"tflite-runtime": "<2"}  # it was compiled for the binary interface of numpy 1
#: Wheels of any age are looked at for the native runner: what it really needs is read from it.
ANY_GLIBC = (2, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One archive that is unpacked into a folder of its own on the device."""

    package: str
    version: str
    archive: Path
    sha256: str
    downloaded_bytes: int = 0  # 0: all of it was in the cache
    library_dir: str = ""  # folder inside whose libraries the linker must find

    @property
    def folder(self) -> str:
        """Where it is on the device, below the work folder."""
        return f"site/{self.sha256[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """The native runner: its archive, which is the program, or (*build*) what a device makes it from."""

    part: Part
    build: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be on a device."""

    packages: Mapping[str, str]  # runtime → package that brings it
    parts: tuple[Part, ...]  # on the path of the device's Python
    native: Native | None
    missing: Mapping[str, str]  # runtime → reason
    notes: Mapping[str, str] = field(default_factory=dict)  # package → what is worth knowing


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What the plan needs to know of a device besides its target."""

    codename: str  # of its Debian or Ubuntu release; empty: unknown
    own_numpy: Callable[[], str | None]  # version of the numpy that it has; None: it has none
    has_compiler: Callable[[], bool]  # a g++


def plan(target: Target, system: System, chosen: Iterable[str], cache: Path) -> Plan:
    """Everything that *chosen* runtimes need on *target*, fetched; a runtime that cannot be has a reason."""
    names = tuple(chosen)

    def ask(runtime: str) -> Wheel | Native | NoWheel:
        if runtime == EXECUTORCH:
            return _native(target, system, cache)
        return _first(PACKAGES[runtime], target, cache)

    with ThreadPoolExecutor(max_workers=len(RUNTIMES)) as pool:  # each waits for the network
        answers = dict(zip(names, pool.map(ask, names), strict=True))
    found = {runtime: answer for runtime, answer in answers.items() if isinstance(answer, Wheel)}
    native = next((answer for answer in answers.values() if isinstance(answer, Native)), None)
    missing = {runtime: answer.reason for runtime, answer in answers.items() if isinstance(answer, NoWheel)}
    notes = {wheel.package: wheel.note for wheel in found.values() if wheel.note}
    parts = [_part(wheel) for wheel in found.values()]
    if found:
        numpy = _numpy(found.values(), target, system, cache)
        if isinstance(numpy, Part):
            parts.append(numpy)
        elif isinstance(numpy, NoWheel):
            missing |= dict.fromkeys(found, numpy.reason)
            parts, found = [], {}
        else:
            notes["numpy"] = f"the device's own {numpy} is used"
    packages = {runtime: wheel.package for runtime, wheel in found.items()}
    return Plan(packages=packages, parts=tuple(parts), native=native, missing=missing, notes=notes)


def _first(packages: Iterable[str], target: Target, cache: Path) -> Wheel | NoWheel:
    reasons = []
    for package in packages:
        answer = wheels.resolve(package, target, cache)
        if isinstance(answer, Wheel):
            return answer
        reasons.append(answer.reason)
    return NoWheel(reason="; ".join(reasons))


def _part(wheel: Wheel) -> Part:
    archive = wheels.slim(wheel)
    return Part(
        package=wheel.package,
        version=wheel.version,
        archive=archive,
        sha256=wheels.sha256_of(archive),
        downloaded_bytes=wheel.downloaded_bytes,
    )


def _numpy(found: Iterable[Wheel], target: Target, system: System, cache: Path) -> Part | str | NoWheel:
    """A numpy that all the runtimes take: a wheel, the device's own (its version), or Debian's."""
    asked = [wheels.needs(wheel, "numpy", target) for wheel in found]
    asked += [ALSO_NEEDS.get(wheel.package, "") for wheel in found]
    allowed = ",".join(sorted({text for text in asked if text}))
    wheel = wheels.resolve("numpy", target, cache, allowed=allowed)
    if isinstance(wheel, Wheel):
        return _part(wheel)
    own = system.own_numpy()
    if own is not None and SpecifierSet(allowed).contains(own, prereleases=True):
        return own
    deb = debian.numpy(target.machine, system.codename, cache)
    if isinstance(deb, NoWheel):
        install = "install it there: sudo apt install python3-numpy"
        return NoWheel(reason=f"{wheel.reason}; Debian's cannot be fetched either ({deb.reason}); {install}")
    if not SpecifierSet(allowed).contains(deb.version):
        return NoWheel(reason=f"it needs numpy{allowed}; {system.codename} has {deb.version}")
    return Part(
        package="numpy",
        version=deb.version,
        archive=deb.path,
        sha256=wheels.sha256_of(deb.path),
        downloaded_bytes=deb.downloaded_bytes,
        library_dir="lib",
    )


def _native(target: Target, system: System, cache: Path) -> Native | NoWheel:
    """The native runner for a device; no Python runs there, so the wheel of any Python version serves."""
    python = (sys.version_info.major, sys.version_info.minor)
    wanted = Target(machine=target.machine, python=python, glibc=ANY_GLIBC)
    wheel = wheels.resolve(EXECUTORCH, wanted, cache)
    if isinstance(wheel, NoWheel):
        return NoWheel(reason=f"executorch has no wheel for {target.machine}") if wheel.final else wheel
    unpacked = runners.extract(wheel.path)
    try:
        runner = runners.cross(target.machine, wheel.path, wheel.version, cache)
    except EdgebenchError as error:  # the other runtimes are none the worse for it
        return NoWheel(reason=str(error), final=False)
    if isinstance(runner, runners.NoRunner):
        if not system.has_compiler():
            return NoWheel(reason=f"{runner.reason}; nor has the device a g++")
        return Native(part=_sources(wheel, unpacked), build=True)
    libraries = [unpacked / "lib" / f"lib{name}.so" for name in runners.LIBRARIES]
    needed = runners.glibc_needed([runner.path, *libraries])
    if needed > target.glibc:
        text = ".".join(map(str, needed))
        return NoWheel(
            reason=f"executorch {wheel.version} needs glibc {text}, the device has {_glibc(target)}"
        )
    files = [("run_executorch", runner.path), *((f"lib/{path.name}", path) for path in libraries)]
    archive = runner.path.with_suffix(".zip")
    return Native(part=_packed(wheel, archive, files))


def _sources(wheel: Wheel, unpacked: Path) -> Part:
    """Headers, libraries and our sources, for a device that compiles the runner itself."""
    files = [(f"executorch/{path.relative_to(unpacked)}", path) for path in sorted(unpacked.rglob("*"))]
    files += [(f"runners/{path.name}", path) for path in sorted(runners.SOURCES.iterdir())]
    content = [(name, path) for name, path in files if path.is_file()]
    return _packed(wheel, wheel.path.parent / f"sources-{_key(content)}.zip", content)


def _key(files: Iterable[tuple[str, Path]]) -> str:
    return digest([[name, wheels.sha256_of(path)] for name, path in files])[:16]


def _packed(wheel: Wheel, archive: Path, files: Iterable[tuple[str, Path]]) -> Part:
    if not archive.exists():  # its name says what it is made of
        wheels.pack(archive, ((name, path.read_bytes()) for name, path in files))
    return Part(
        package=EXECUTORCH,
        version=wheel.version,
        archive=archive,
        sha256=wheels.sha256_of(archive),
        downloaded_bytes=wheel.downloaded_bytes,
    )


def _glibc(target: Target) -> str:
    return ".".join(map(str, target.glibc))
