"""Compile the native ExecuTorch runner for this host, once per source, libraries and compiler."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import tempfile
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


def _key(compiler: str, wheel: Path, version: str) -> str:
    """What decides the content of a compiled runner."""
    built_by = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [version, str(wheel), built_by, *FLAGS, *LIBRARIES]
    parts += [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def _compile(compiler: str, wheel: Path, version: str, target: Path) -> None:
    """Compile beside *target*, then rename: it is whole or not there."""
    include = wheel / "include"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        beside = Path(folder, "runner")
        argv = [
            compiler,
            *FLAGS,
            f'-DEXECUTORCH_VERSION="{version}"',
            f"-isystem{include}",
            f"-isystem{include / 'executorch' / 'runtime' / 'core' / 'portable_type' / 'c10'}",
            str(SOURCES / "run_executorch.cpp"),
            *("-o", str(beside)),
            f"-L{wheel / 'lib'}",
            "-Wl,--no-as-needed",
            *(f"-l{name}" for name in LIBRARIES),
        ]
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
