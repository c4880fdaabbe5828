"""Take in a model file that was made elsewhere: identify it, try it in its runtime, make its check set."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from compressors import cache, check, sniff, source
from harness.core import codec, plugins
from harness.core.errors import EdgebenchError, UsageError
from harness.core.types import Artifact, FormatName, TensorSpec, digest

RECIPE = "as-is"
_NO_MODEL = "the file was made elsewhere: there is no model to compare it with"
_NO_DATA = "the file was made elsewhere: there is no labelled data for it"
_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the user gave."""

    path: Path
    format: FormatName
    sha256: str
    inputs: Path | None
    seed: int


def open_file(path: Path, root: Path, inputs: Path | None, seed: int) -> Artifact:
    """The file at *path* as an artifact; see compressors.build.open_file."""
    format = sniff.format_of(path)
    if inputs is not None and not inputs.is_file():
        raise UsageError(f"The inputs file {inputs} does not exist.")
    module = plugins.load("compressors.formats", format)
    given = _Given(path=path, format=format, sha256=cache.sha256(path), inputs=inputs, seed=seed)
    key = digest(
        [
            given.sha256,
            format,
            None if inputs is None else cache.sha256(inputs),
            seed,
            module.versions(),
            source.own_digest(f"formats/{format}"),
        ]
    )
    place = cache.folder(root, "opened", key)
    with cache.lock(place):
        artifact = _fetch(place) or _try(given, module, place)
    return dataclasses.replace(
        artifact,
        path=str(path.resolve()),
        model=path.stem,
        check_path=str((place / check.NAME).resolve()),
    )


def _fetch(place: Path) -> Artifact | None:
    try:
        data = json.loads((place / "artifact.json").read_text(encoding="utf-8"))
        artifact = codec.from_json(Artifact, data)
    except (OSError, ValueError, EdgebenchError):
        return None
    return dataclasses.replace(artifact, cached=True) if (place / check.NAME).is_file() else None


def _try(given: _Given, module: ModuleType, place: Path) -> Artifact:
    with cache.filling(place) as folder:
        found = _probe(given, module, folder)
        artifact = Artifact(
            path=given.path.name,
            format=given.format,
            sha256=given.sha256,
            bytes=given.path.stat().st_size,
            gzip_bytes=len(gzip.compress(given.path.read_bytes(), 9, mtime=0)),
            model=given.path.stem,
            recipe=RECIPE,
            seed=None,
            model_digest=None,
            recipe_digest=None,
            inputs=_specs(found["inputs"]),
            outputs=_specs(found["outputs"]),
            check_path=check.NAME,
            check_sets=found["sets"],
            # Whether its kernels are integer ones is not known, so the lower bound holds.
            check_min_sqnr_db=check.UNKNOWN_MIN_DB,
            exporter={},
            parity_reason=_NO_MODEL,
            score_reason=_NO_DATA,
        )
        cache.store(folder, artifact)
    return artifact


def _specs(found: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(codec.from_json(TensorSpec, spec) for spec in found)


def _probe(given: _Given, module: ModuleType, folder: Path) -> dict[str, Any]:
    """Load and run the file in a process of its own: some runtimes crash on a damaged file."""
    request = {
        "path": str(given.path.resolve()),
        "format": given.format,
        "inputs": None if given.inputs is None else str(given.inputs.resolve()),
        "seed": given.seed,
        "folder": str(folder),
    }
    search = [str(plugins.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "compressors.probing", json.dumps(request)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{given.path}: {module.RUNTIME} did not run it within {_TIMEOUT_S} s.") from error
    if done.returncode == os.EX_CANTCREAT:
        raise cache.unwritable(folder.parent.parent, done.stderr.strip().splitlines()[-1])
    result = folder / "probe.json"
    if not result.exists():
        raise UsageError(
            f"{given.path}: {module.RUNTIME} {_how_it_died(done)} while loading it; the file is damaged.",
            hint="Copy or export it again.",
        )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    if "missing" in found:
        raise plugins.missing_package(found["missing"], needed_by=f"Opening {given.path.name}")
    if "error" in found:
        raise UsageError(found["error"], hint=found["hint"])
    return found


def _how_it_died(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"crashed ({signal.Signals(-done.returncode).name})"
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return f"failed ({last[0][:200]})"
