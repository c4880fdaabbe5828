"""Content-addressed storage of trained weights, step results and artifacts."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compressors import source
from harness.core import codec, plugins
from harness.core.errors import EdgebenchError, UsageError
from harness.core.types import SUFFIXES, Artifact, Failure, FormatName, Recipe, Status, digest

#: Failures that the same inputs give again; others are worth another try.
DETERMINISTIC: tuple[Status, ...] = ("unsupported_op", "export_failed", "wrong_output")
#: Libraries whose version decides what a step gives.
STEP_LIBRARIES = ("torch", "torchao", "torch-pruning", "executorch", "numpy", "scikit-learn", "optuna")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What is to be built; *model* is a task's name or the path of a task's file."""

    model: str
    recipe: Recipe
    formats: tuple[FormatName, ...]
    seed: int


def model_digest(request: BuildRequest) -> str:
    """Digest of what decides the trained weights: the task, the seed, the libraries, our own code."""
    path = source.locate(request.model)
    return digest(
        {
            "task": source.task_digest(path),
            "seed": request.seed,
            "libraries": source.versions(*STEP_LIBRARIES),
            "own": source.own_digest(),
        }
    )


def step_keys(request: BuildRequest) -> tuple[str, ...]:
    """A key per state of the model: after training, then after each step of the recipe."""
    keys = [model_digest(request)]
    known = plugins.names("compressors.passes")
    for step in request.recipe.steps:
        code = source.own_digest(f"passes/{step.name}") if step.name in known else ""
        files = source.option_digests(step.options, request.model)
        keys.append(digest([keys[-1], step.name, dict(step.options), code, *files]))
    return tuple(keys)


def artifact_key(last_step: str, format: FormatName) -> str:
    """The key of one exported file: the model's state, the exporter's versions and our own exporting code."""
    module = plugins.load("compressors.formats", format)
    return digest([last_step, format, module.versions(), source.own_digest(f"formats/{format}")])


def folder(root: Path, kind: str, key: str) -> Path:
    """Where the entry *key* of *kind* (``steps``, ``files``, ``opened``) is or will be."""
    return root / kind / key[:32]


def require_writable(root: Path) -> None:
    """Refuse a cache folder that cannot be made or written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UsageError(
            f"The cache folder {root} cannot be written: {error.strerror}.", hint="Choose another folder."
        ) from error


def is_full(error: OSError) -> bool:
    """Whether *error* says that the disk takes no more, and nothing about what was being written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def unwritable(root: Path, reason: str | None) -> EdgebenchError:
    """The error for a cache folder that a result cannot be written to."""
    return EdgebenchError(
        f"The cache folder {root} cannot be written: {reason}.",
        hint="Make room there or choose another folder.",
    )


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the system says about a write below *root* that fails into one sentence."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename
        if is_full(error) or (
            isinstance(name, str) and Path(name).absolute().is_relative_to(root.absolute())
        ):
            raise unwritable(root, error.strerror) from error
        raise


@contextlib.contextmanager
def filling(place: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes *place* at the end of the block, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=place.parent))
        with contextlib.suppress(FileNotFoundError):
            os.replace(place, old / "entry")  # noqa: PTH105 - a folder, moved in one step
        os.replace(fresh, place)  # noqa: PTH105
        shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def lock(place: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the entry *place*; calls *waiting* once if another process holds it."""
    import filelock

    place.parent.mkdir(parents=True, exist_ok=True)
    guard = filelock.FileLock(place.with_name(f".{place.name}.lock"))
    try:
        guard.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store(place: Path, result: Artifact | Failure) -> None:
    """Write *result* into the folder *place*; an artifact's paths are stored relative to it."""
    if isinstance(result, Artifact):
        relative = dataclasses.replace(placed(result, lambda path: Path(path).name), cached=False)
        (place / "artifact.json").write_text(codec.dumps(relative, indent=1) + "\n", encoding="utf-8")
    else:
        (place / "failure.json").write_text(codec.dumps(result, indent=1) + "\n", encoding="utf-8")


def fetch(place: Path) -> Artifact | Failure | None:
    """The stored result in *place*; None if there is none or it is damaged, so that it is built again."""
    try:
        failure = place / "failure.json"
        if failure.exists():
            return codec.from_json(Failure, json.loads(failure.read_text(encoding="utf-8")))
        data = json.loads((place / "artifact.json").read_text(encoding="utf-8"))
        artifact = codec.from_json(Artifact, data)
        path, check = place / artifact.path, place / artifact.check_path
        if sha256(path) != artifact.sha256 or not check.is_file():
            return None
        packed = artifact.container
        if packed is not None and sha256(place / packed.path) != packed.sha256:
            return None
    except (OSError, ValueError, EdgebenchError):
        return None
    return dataclasses.replace(
        placed(artifact, lambda path: str((place / path).resolve())),
        cached=True,
        steps=tuple(dataclasses.replace(step, cached=True) for step in artifact.steps),
    )


def placed(artifact: Artifact, where: Callable[[str], str]) -> Artifact:
    """*artifact* with every path as *where* says."""
    packed = artifact.container
    return dataclasses.replace(
        artifact,
        path=where(artifact.path),
        check_path=where(artifact.check_path),
        container=packed and dataclasses.replace(packed, path=where(packed.path)),
    )


def named(result: Artifact | Failure, request: BuildRequest) -> Artifact | Failure:
    """*result* under the names of *request*: recipes with the same steps share their files."""
    if isinstance(result, Failure):
        return result
    return dataclasses.replace(result, model=source.task_name(request.model), recipe=request.recipe.name)


def file_name(request: BuildRequest, format: FormatName) -> str:
    """What an exported file is called inside its entry."""
    return f"{source.task_name(request.model)}{SUFFIXES[format]}"
