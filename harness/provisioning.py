"""Make a device ready: put the runtimes into our folder there, see that they work, or take all away."""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import parts, trying
from harness.core import codec, units
from harness.core.errors import DeviceError, SupervisorError, UsageError
from harness.core.types import Device
from harness.parts import Part, Plan, System
from harness.transports import Pushed, Transport
from harness.trying import NativeRunner
from harness.wheels import Target, parse_target

MANIFEST = "provision.json"
SCHEMA = 1
#: Says what the probe does not: which userland runs this Python, and which release the system is.
QUESTION = """
import json, platform, sys
release = {}
try:
    with open("/etc/os-release", encoding="utf-8") as file:
        release = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
except OSError:
    pass
print(json.dumps({
    "bits": "64" if sys.maxsize > 2**32 else "32", "implementation": platform.python_implementation(),
    "codename": release.get("VERSION_CODENAME", "").strip('"'),
}))
"""
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What we put on a device: ``provision.json`` in its work folder. Paths are absolute."""

    schema: int
    workdir: str
    target: str
    site: tuple[str, ...]  # folders on PYTHONPATH
    library_dirs: tuple[str, ...]  # folders on LD_LIBRARY_PATH of Python
    runner: NativeRunner | None
    runtimes: Mapping[str, str]  # runtime → version, as it said itself on the device
    missing: Mapping[str, str]  # runtime → reason
    packages: Mapping[str, str]  # package → version
    folders: Mapping[str, int]  # folder below the work folder → bytes in it
    notes: Mapping[str, str] = field(default_factory=dict)

    def python_env(self) -> dict[str, str]:
        """The variables with which a Python there finds the runtimes."""
        env = {"PYTHONPATH": ":".join(self.site), "LD_LIBRARY_PATH": ":".join(self.library_dirs)}
        return {name: value for name, value in env.items() if value}

    def completed(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """*facts* of a probe with what no Python there can tell: the native runner, every package we put."""
        runtimes, packages = dict(facts.get("runtimes") or {}), facts.get("packages") or {}
        if self.runner:
            runtimes[parts.EXECUTORCH] = self.runner.version
        return {**facts, "runtimes": runtimes, "packages": {**self.packages, **packages}}

    def made_for(self, python: str) -> bool:
        """Whether it was made for that Python (``"3.11.2"``): the system may be another one by now."""
        return self.target.startswith(f"Python {'.'.join(python.split('.')[:2])} ")

    def runner_argv(self) -> list[str]:
        """How the native runner is started; empty if there is none."""
        return [self.runner.path] if self.runner else []

    def runner_env(self) -> dict[str, str]:
        """The variables with which the native runner finds its libraries."""
        return {"LD_LIBRARY_PATH": self.runner.library_dir} if self.runner else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What one call did."""

    resolved: Mapping[str, str]  # package → version
    downloaded_bytes: int
    pushed_bytes: int
    pushed_files: int
    wall_s: float
    runtimes: Mapping[str, str]
    missing: Mapping[str, str]
    notes: Mapping[str, str]
    manifest: Manifest


def installed(transport: Transport) -> Manifest | None:
    """What an earlier call put there; None if nothing, or something that this version does not understand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MANIFEST)
        try:
            transport.pull(MANIFEST, path)
        except SupervisorError as error:
            if error.kind == "not_found":
                return None
            raise
        try:
            found = codec.from_json(Manifest, json.loads(path.read_text(encoding="utf-8")))
        except (UsageError, ValueError):
            return None
    return found if found.schema == SCHEMA and found.workdir == transport.workdir else None


def provision(
    device: Device,
    transport: Transport,
    facts: Mapping[str, Any],
    cache: Path,
    report: Report,
    *,
    runtimes: Sequence[str] = parts.RUNTIMES,
) -> Provisioned:
    """
    Put *runtimes*, and nothing else, on a device; *facts* are its probe's ``arch, python, libc``.

    What cannot be had, or does not work there, is missing with a reason. Raises DeviceError where the device
    cannot be provisioned at all: no glibc, no space, no connection.
    """
    begin = time.monotonic()
    target, system = _look(device, transport, facts)
    report(f"{target}")
    plan = parts.plan(target, system, runtimes, cache)
    every = _parts(plan)
    downloaded = sum(part.downloaded_bytes for part in every)
    names = ", ".join(f"{part.package} {part.version}" for part in every) or "nothing"
    report(f"resolved {names}; {units.size(downloaded)} downloaded, {_seconds(begin)}")
    before = installed(transport)
    known = dict(before.folders) if before else {}
    pushed = _put(device, transport, every, known, report)
    manifest = _verified(transport, plan, target, known, report)
    if before and set(manifest.missing) & set(before.runtimes) - set(plan.missing):
        report("what was there is damaged: putting it there again")
        known = {}
        again = _put(device, transport, every, known, report)
        pushed = _sum(pushed, again)
        manifest = _verified(transport, plan, target, known, report)
    pushed = _sum(pushed, _write(transport, manifest))
    _tidy(transport, every, before, manifest)
    return Provisioned(
        resolved={part.package: part.version for part in every},
        downloaded_bytes=downloaded,
        pushed_bytes=pushed.sent_bytes,
        pushed_files=pushed.sent_files,
        wall_s=time.monotonic() - begin,
        runtimes=manifest.runtimes,
        missing=manifest.missing,
        notes=manifest.notes,
        manifest=manifest,
    )


def remove(transport: Transport) -> tuple[int, tuple[str, ...]]:
    """Remove all that is ours from a device: how many bytes, and foreign names that stay there."""
    done = transport.call("remove", everything=True)
    return int(done["removed_bytes"]), tuple(done["stay"])


def _look(device: Device, transport: Transport, facts: Mapping[str, Any]) -> tuple[Target, System]:
    """What decides which files run there. A 64-bit kernel may have a 32-bit Python: so it is asked."""
    if separator := next((one for one in ":;" if one in transport.workdir), ""):
        text = f"the work folder {transport.workdir} has a {separator!r} in it, which separates folders"
        raise DeviceError(
            f"{device.name}: {text}.",
            hint=f"Set workdir of {device.name} to another folder.",
        )
    done = trying.run(transport, [transport.python, "-c", QUESTION])
    if done.exit_code != 0:
        raise DeviceError(f"{device.name}: {transport.python} does not run there: {done.why}")
    answer = json.loads(done.out)
    if answer["implementation"] != "CPython":
        raise DeviceError(
            f"{device.name}: {transport.python} is {answer['implementation']}, and wheels need CPython.",
            hint=f"Set python of {device.name} to a CPython, e.g. /usr/bin/python3.",
        )
    texts = {"machine": facts.get("arch"), "python": facts.get("python"), "libc": facts.get("libc")}
    target = parse_target(device.name, {k: str(v or "") for k, v in texts.items()} | {"bits": answer["bits"]})

    def own_numpy() -> str | None:
        asked = trying.run(transport, [transport.python, "-c", "import numpy; print(numpy.__version__)"])
        return asked.out.strip() if asked.exit_code == 0 else None

    def has_compiler() -> bool:
        return trying.run(transport, ["g++", "--version"]).exit_code == 0

    return target, System(codename=answer["codename"], own_numpy=own_numpy, has_compiler=has_compiler)


def _put(
    device: Device, transport: Transport, every: Sequence[Part], known: dict[str, int], report: Report
) -> Pushed:
    """Send and unpack the parts that are not *known* to be there; they are *known* then."""
    new = [part for part in every if part.folder not in known]
    if not new:
        report("all of it is there: 0 bytes sent")
        return Pushed(paths={}, sent_files=0, sent_bytes=0)
    _check_space(device, transport, new)
    begin = time.monotonic()
    pushed = transport.push_all({_archive_name(part): part.archive for part in new})
    count = units.counted(pushed.sent_files, "file")
    report(f"sent {count}, {units.size(pushed.sent_bytes)}, {_seconds(begin)}")
    begin = time.monotonic()
    for part in new:
        done = transport.call("unpack", name=_archive_name(part), into=part.folder, skip=[])
        known[part.folder] = int(done["bytes"])
    total = sum(known[part.folder] for part in new)
    report(f"unpacked {units.size(total)}, {_seconds(begin)}")
    return pushed


def _check_space(device: Device, transport: Transport, new: Sequence[Part]) -> None:
    need = 0
    for part in new:
        with zipfile.ZipFile(part.archive) as file:
            need += part.archive.stat().st_size + sum(info.file_size for info in file.infolist())
    free = int(transport.call("hello", workdir=transport.workdir)["free_bytes"])
    if need > free:
        raise DeviceError(
            f"{device.name} has {units.size(free)} free in {transport.workdir}; it needs {units.size(need)}.",
            hint=f"Make room, set workdir of {device.name} to another disk, or ask for less: --runtime.",
        )


def _verified(
    transport: Transport, plan: Plan, target: Target, known: Mapping[str, int], report: Report
) -> Manifest:
    """Start every runtime on the device; what does not work is missing, and is on no path."""
    every = _parts(plan)
    draft = Manifest(
        schema=SCHEMA,
        workdir=transport.workdir,
        target=str(target),
        **_paths(transport, plan.parts),
        runner=None,
        runtimes={},
        missing={},
        packages={part.package: part.version for part in every},
        folders={part.folder: known[part.folder] for part in every},
        notes=plan.notes,
    )
    works: dict[str, str] = {}
    missing = dict(plan.missing)
    for runtime, package in plan.packages.items():
        found = trying.import_package(transport, package, draft.python_env())
        if found.exit_code == 0:
            works[runtime] = found.out.strip()
            report(f"{package} {works[runtime]} works there")
        else:
            missing[runtime] = f"{package} does not import on the device: {found.why}"
    runner = trying.start_native(transport, plan.native) if plan.native else None
    if isinstance(runner, NativeRunner):
        works[parts.EXECUTORCH] = runner.version
        report(f"the native executorch {runner.version} runner works there")
    elif runner is not None:
        missing[parts.EXECUTORCH] = runner
    for runtime, reason in missing.items():
        report(f"no {runtime}: {reason}")
    broken = {package for runtime, package in plan.packages.items() if runtime in missing}
    return replace(
        draft,
        **_paths(transport, [part for part in plan.parts if part.package not in broken]),
        runner=runner if isinstance(runner, NativeRunner) else None,
        runtimes=works,
        missing=missing,
    )


def _parts(plan: Plan) -> list[Part]:
    return [*plan.parts, *([plan.native.part] if plan.native else [])]


def _paths(transport: Transport, found: Sequence[Part]) -> dict[str, Any]:
    """The fields of a manifest that say where Python finds *found*."""
    root = transport.workdir.rstrip("/")
    libraries = [f"{root}/{part.folder}/{part.library_dir}" for part in found if part.library_dir]
    return {"site": tuple(f"{root}/{part.folder}" for part in found), "library_dirs": tuple(libraries)}


def _write(transport: Transport, manifest: Manifest) -> Pushed:
    """The manifest comes last: what it names is there and works. A push is whole or not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MANIFEST)
        path.write_text(codec.dumps(manifest, indent=1), encoding="utf-8")
        return transport.push_all({MANIFEST: path})


def _tidy(transport: Transport, every: Sequence[Part], before: Manifest | None, manifest: Manifest) -> None:
    """Remove the archives, which are unpacked, and folders that no manifest names any more."""
    old = sorted(set(before.folders) - set(manifest.folders)) if before else []
    transport.call("remove", names=[*map(_archive_name, every), *old])


def _archive_name(part: Part) -> str:
    return f"{part.sha256[:16]}.zip"


def _sum(one: Pushed, other: Pushed) -> Pushed:
    return Pushed(
        paths={**one.paths, **other.paths},
        sent_files=one.sent_files + other.sent_files,
        sent_bytes=one.sent_bytes + other.sent_bytes,
    )


def _seconds(begin: float) -> str:
    return f"{time.monotonic() - begin:.1f} s"
