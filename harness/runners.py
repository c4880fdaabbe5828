"""
Compile the native ExecuTorch runner for this host or for a device, once per source, libraries and compiler.

A device's one is built here where a compiler for it is here. It must start on a C library that is older than
the compiler's: ``device_agents/runners/old_glibc.cpp`` does that, and :func:`glibc_needed` proves it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import filelock

import device_agents
from harness.core.errors import EdgebenchError

SOURCES = Path(device_agents.__file__).parent / "runners"
#: Of the kernels and the delegate nothing is called by name: being loaded is what registers them, hence
#: --no-as-needed.
LIBRARIES = (
    "executorch",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
    "executorch_threadpool",
)
#: -O1, as the work is done in the libraries. The definitions are those of the wheel's CMake configuration:
#: without the first its headers look for a file of a PyTorch build, with the second the libraries were built.
FLAGS = (
    "-std=c++17",
    "-O1",
    "-Wall",
    "-Wextra",
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
    "-DET_EVENT_TRACER_ENABLED",
)
#: What makes a runner start on older systems than the compiler's, and small.
PORTABLE = ("-s", "-Wl,--wrap=__libc_start_main")
#: Debian's and Ubuntu's compilers for other machines: the prefix of the program, the package.
CROSS = {
    "aarch64": ("aarch64-linux-gnu-", "g++-aarch64-linux-gnu"),
    "x86_64": ("x86_64-linux-gnu-", "g++-x86-64-linux-gnu"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A compiled runner and the folder of the shared libraries that it needs at run time."""

    path: Path
    library_dir: Path
    version: str  # of the executorch wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRunner:
    """Why there is no native runner here."""

    reason: str


def executorch(cache: Path) -> Runner | NoRunner:
    """
    The runner for this host, from *cache* or compiled now (2 to 3 seconds); imports no executorch, no torch.

    Raises EdgebenchError with the compiler's first error when there is a compiler and it fails.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        return NoRunner(reason="no g++ here: the slower Python engine runs instead (apt install g++)")
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        return NoRunner(reason="the package executorch is not installed")
    wheel = Path(next(iter(spec.submodule_search_locations)))
    version = metadata.version("executorch")
    for name in LIBRARIES:
        if not (wheel / "lib" / f"lib{name}.so").exists():
            return NoRunner(reason=f"executorch {version} comes without lib{name}.so")
    folder = cache / "runners"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"run_executorch-{_key(compiler, wheel, version)[:16]}"
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _compile(compiler, wheel, version, target)
    return Runner(path=target, library_dir=wheel / "lib", version=version)


def compiler_for(machine: str) -> str | NoRunner:
    """The g++ on this machine that makes programs for *machine*."""
    if machine == platform.machine():
        found = shutil.which("g++")
        return found or NoRunner(reason="no g++ on this machine: sudo apt install g++")
    if machine not in CROSS:
        return NoRunner(reason=f"no compiler for {machine} is known")
    prefix, package = CROSS[machine]
    found = shutil.which(f"{prefix}g++")
    return found or NoRunner(reason=f"no {prefix}g++ on this machine: sudo apt install {package}")


def extract(wheel: Path) -> Path:
    """The ``executorch`` folder of a wheel, headers and libraries alone, unpacked beside it; made once."""
    target = wheel.parent / "executorch"
    with filelock.FileLock(wheel.parent / "executorch.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".unpack-") as folder:
                with zipfile.ZipFile(wheel) as file:
                    file.extractall(folder, headers_and_libraries(file.namelist()))
                Path(folder, "executorch").replace(target)
    return target


def headers_and_libraries(names: Iterable[str]) -> list[str]:
    """What of an executorch wheel a runner is built from."""
    libraries = {f"executorch/lib/lib{name}.so" for name in LIBRARIES}
    return [n for n in names if n.startswith("executorch/include/") or n in libraries]


def cross(machine: str, wheel: Path, version: str, cache: Path) -> Runner | NoRunner:
    """
    The runner for *machine* from the executorch *wheel* of that machine, from *cache* or compiled now.

    It starts on old systems too. Raises EdgebenchError with the compiler's first error when it fails.
    """
    compiler = compiler_for(machine)
    if isinstance(compiler, NoRunner):
        return compiler
    unpacked = extract(wheel)
    for name in LIBRARIES:
        if not (unpacked / "lib" / f"lib{name}.so").exists():
            return NoRunner(reason=f"executorch {version} for {machine} comes without lib{name}.so")
    folder = cache / "runners" / machine
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"run_executorch-{_key(compiler, unpacked, version, PORTABLE)[:16]}"
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _compile(compiler, unpacked, version, target, PORTABLE)
    return Runner(path=target, library_dir=unpacked / "lib", version=version)


def glibc_needed(files: Iterable[Path]) -> tuple[int, ...]:
    """The oldest glibc that has everything which programs and libraries of any machine ask of it."""
    newest: tuple[int, ...] = (0,)
    for path in files:
        argv = ["readelf", "--wide", "--version-info", str(path)]
        text = subprocess.run(
            argv, check=True, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True
        ).stdout
        for version in re.findall(r"Name: GLIBC_([0-9.]+)", text):
            newest = max(newest, tuple(map(int, version.split("."))))
    return newest


def command(
    compiler: str, wheel: str, version: str, *, sources: str, output: str, more: Sequence[str] = ()
) -> list[str]:
    """How the runner is compiled, here or on a device: *wheel* is the ``executorch`` folder."""
    portable = [f"{sources}/old_glibc.cpp"] if more else []
    return [
        compiler,
        *FLAGS,
        f'-DEXECUTORCH_VERSION="{version}"',
        f"-isystem{wheel}/include",
        f"-isystem{wheel}/include/executorch/runtime/core/portable_type/c10",
        f"{sources}/run_executorch.cpp",
        *portable,
        *("-o", output),
        f"-L{wheel}/lib",
        "-Wl,--no-as-needed",
        *(f"-l{name}" for name in LIBRARIES),
        *more,
    ]


def _key(compiler: str, wheel: Path, version: str, more: Sequence[str] = ()) -> str:
    """What decides the content of a compiled runner."""
    built_by = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [version, str(wheel), built_by, *FLAGS, *LIBRARIES, *more]
    parts += [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def _compile(compiler: str, wheel: Path, version: str, target: Path, more: Sequence[str] = ()) -> None:
    """Compile beside *target*, then rename: it is whole or not there."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        beside = Path(folder, "runner")
        argv = command(compiler, str(wheel), version, sources=str(SOURCES), output=str(beside), more=more)
        done = subprocess.run(
            argv, check=False, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True
        )
        if done.returncode != 0:
            lines = done.stderr.splitlines() or ["it gave no message"]
            first = next((line for line in lines if "error" in line.lower()), lines[0])
            raise EdgebenchError(
                f"The native ExecuTorch runner does not compile: {first}",
                hint=f"To see all of it: {shlex.join(argv)}",
            )
        beside.replace(target)
