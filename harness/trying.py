"""Short commands on a device: does what was put there work?"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import parts, runners
from harness.core.errors import SupervisorError
from harness.parts import Native
from harness.transports import Transport

RUN_TIMEOUT_S = 180.0  # an import on a slow card, or emulated
BUILD_TIMEOUT_S = 600.0
OUTPUT_BYTES = 20_000
ENVIRONMENT = {
    "LC_ALL": "C",
    "PYTHONDONTWRITEBYTECODE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PATH": "/usr/bin:/bin",
}


IMPORT = """
import sys
try:
    import {module}
    from importlib import metadata
    print(metadata.version("{package}"))
except Exception as error:  # what a package says of a failed import is long: the first cause is what helps
    while error.__cause__ or (error.__context__ and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    print(type(error).__name__ + ": " + (str(error).strip().splitlines() or [""])[0], file=sys.stderr)
    sys.exit(1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRunner:
    """The native runner on a device."""

    path: str
    library_dir: str
    version: str  # of the executorch wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a short command on the device ended."""

    exit_code: int | None
    timed_out: bool
    out: str
    err: str

    @property
    def why(self) -> str:
        """The last thing that it said, or how it ended."""
        if self.timed_out:
            return f"it did not end within {RUN_TIMEOUT_S:g} s"
        if self.exit_code is not None and self.exit_code < 0:
            names = {member.value: member.name for member in signal.Signals}
            return f"{names.get(-self.exit_code, 'signal')} ({-self.exit_code}) ended it"
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self.exit_code}"


def run(
    transport: Transport,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    timeout_s: float = RUN_TIMEOUT_S,
) -> Done:
    """Run a short command there; one that does not exist is one that failed."""
    fields = {"argv": list(argv), "env": ENVIRONMENT | dict(env or {}), "timeout_s": timeout_s}
    try:
        done = transport.call("run", **fields, limit=OUTPUT_BYTES)
    except SupervisorError as error:
        if error.kind not in {"not_found", "failed", "not_permitted"}:
            raise
        return Done(exit_code=None, timed_out=False, out="", err=error.message)
    return Done(
        exit_code=done["exit_code"],
        timed_out=bool(done["timed_out"]),
        out=str(done["out"]),
        err=str(done["err"]),
    )


def import_package(transport: Transport, package: str, env: Mapping[str, str]) -> Done:
    """
    Import a package there; its output is the version, or the first cause of the failure.

    Python may keep the bytecode of what it imports, so that no agent has to compile it in every block.
    """
    code = IMPORT.format(module=parts.MODULES[package], package=package)
    return run(transport, [transport.python, "-c", code], {**env, "PYTHONDONTWRITEBYTECODE": ""})


def start_native(transport: Transport, native: Native) -> NativeRunner | str:
    """The runner that answers there, compiled there before if it must be; or why not."""
    folder = f"{transport.workdir.rstrip('/')}/{native.part.folder}"
    program, libraries = f"{folder}/run_executorch", f"{folder}/lib"
    if native.build:
        libraries = f"{folder}/executorch/lib"
        if failure := _build(transport, folder, program, native.part.version):
            return failure
    else:
        run(transport, ["chmod", "755", program])
    done = run(transport, [program, "mode=probe"], {"LD_LIBRARY_PATH": libraries})
    if done.exit_code != 0 or '"status":"ok"' not in done.out:
        return f"the native runner does not start on the device: {done.why}"
    return NativeRunner(path=program, library_dir=libraries, version=native.part.version)


def _build(transport: Transport, folder: str, program: str, version: str) -> str:
    """Compile the runner there, unless it is there; why not, or nothing."""
    if run(transport, ["test", "-x", program]).exit_code == 0:
        return ""
    argv = runners.command(
        "g++", f"{folder}/executorch", version, sources=f"{folder}/runners", output=f"{program}.new"
    )
    done = run(transport, argv, timeout_s=BUILD_TIMEOUT_S)
    if done.exit_code != 0:
        lines = done.err.splitlines()
        return f"g++ on the device failed: {next((x for x in lines if 'error' in x.lower()), done.why)}"
    return "" if run(transport, ["mv", f"{program}.new", program]).exit_code == 0 else "mv failed there"
