"""From a task and a recipe to verified model files: the one entry to this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compressors import cache
from compressors.cache import BuildRequest
from harness.core import plugins
from harness.core.types import Artifact, Failure, FormatName, Progress

__all__ = ["BuildRequest", "build", "lookup", "open_file"]


def build(
    request: BuildRequest, cache_root: Path, report: Callable[[Progress], None]
) -> dict[FormatName, Artifact | Failure]:
    """
    Every format of *request* as a verified file, or the reason why not.

    What an earlier build left under *cache_root* is used. Two processes may build the same thing at
    once: one works, the other waits and takes the result. Raises UsageError for a task or recipe that
    cannot be used.
    """
    found = lookup(request, cache_root)
    if found is not None:
        return found
    cache.require_writable(cache_root)
    try:
        from compressors import produce
    except ModuleNotFoundError as error:
        raise plugins.missing_package(
            (error.name or "torch").split(".")[0], needed_by="Building a model"
        ) from error
    with cache.writing(cache_root):
        return produce.produce(request, cache_root, report)


def lookup(request: BuildRequest, cache_root: Path) -> dict[FormatName, Artifact | Failure] | None:
    """What the cache has of *request*, None unless every format is there; imports no torch or numpy."""
    last = cache.step_keys(request)[-1]
    results: dict[FormatName, Artifact | Failure] = {}
    for format in request.formats:
        found = cache.fetch(cache.folder(cache_root, "files", cache.artifact_key(last, format)))
        if found is None:
            return None
        results[format] = cache.named(found, request)
    return results


def open_file(path: Path, cache_root: Path, inputs: Path | None, seed: int = 0) -> Artifact:
    """
    A model file that was made elsewhere, with a check set of its own.

    Its inputs are generated from its signature with *seed*, or read from *inputs* (``.npz``).
    Raises UsageError if the file or the inputs cannot be used.
    """
    from compressors import opened

    cache.require_writable(cache_root)
    with cache.writing(cache_root):
        return opened.open_file(path, cache_root, inputs, seed)
