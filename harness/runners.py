"""Compile the native ExecuTorch runner for this host, once per source, libraries and compiler."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import filelock

import device_agents
from harness.core.errors import EdgebenchError

SOURCE = Path(device_agents.__file__).parent / "runners" / "run_executorch.cpp"
LIBRARIES = (
    "executorch",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
    "executorch_threadpool",
)
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-DC10_USING_CUSTOM_GENERATED_MACROS")


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
    The runner for this host, from *cache* or compiled now (about a second).

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
    built_by = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256()
    for part in (SOURCE.read_text(), version, str(wheel), built_by, *FLAGS, *LIBRARIES):
        key.update(part.encode() + b"\0")
    folder = cache / "runners"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"run_executorch-{key.hexdigest()[:16]}"
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _compile(compiler, wheel, target)
    return Runner(path=target, library_dir=wheel / "lib", version=version)


def _compile(compiler: str, wheel: Path, target: Path) -> None:
    include = wheel / "include"
    folders = (include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10")
    argv = [compiler, *FLAGS, *(f"-isystem{folder}" for folder in folders), str(SOURCE)]
    argv += [f"-L{wheel / 'lib'}", "-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES)]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        beside = Path(folder, "runner")
        argv += ["-o", str(beside)]
        plain = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(argv, check=False, env=plain, capture_output=True, text=True)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise EdgebenchError(
                f"The native ExecuTorch runner does not compile: {first}",
                hint=f"Compiler: {compiler}; source: {SOURCE}.",
            )
        beside.replace(target)
