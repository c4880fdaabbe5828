"""Recipes to model files: looks into the cache first, builds the rest in worker processes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from compressors.build import BuildRequest, build, lookup
from harness.core.types import Artifact, Failure, FormatName, Progress, Recipe

Built = dict[FormatName, Artifact | Failure]
#: A worker takes about 1.5 GB with all three exporters loaded, so more would not fit small machines.
MOST_WORKERS = 4

_events: Queue[Progress] | None = None  # in a worker: the way back to the process that waits


def build_all(
    *,
    models: Sequence[str],
    recipes: Sequence[Recipe],
    formats: Sequence[FormatName],
    seeds: Sequence[int],
    cache: Path,
    report: Callable[[Progress], None],
) -> dict[tuple[str, str], Built]:
    """
    The files of every (model, recipe name), in every format.

    Each is built once per seed. The file of the first seed is the one that is timed; its score carries
    the values of all seeds.
    """
    pairs = [(model, recipe) for model in models for recipe in recipes]
    requests = [
        BuildRequest(model=model, recipe=recipe, formats=tuple(formats), seed=seed)
        for seed in seeds
        for model, recipe in pairs
    ]
    found = [lookup(request, cache) for request in requests]
    missing = [request for request, files in zip(requests, found, strict=True) if files is None]
    fresh = iter(_build_in_workers(missing, cache, report) if missing else ())
    built = [next(fresh) if files is None else files for files in found]
    return {
        (model, recipe.name): _merge_seeds(built[index :: len(pairs)])
        for index, (model, recipe) in enumerate(pairs)
    }


def _merge_seeds(per_seed: Sequence[Built]) -> Built:
    """The first seed's files, scored over all seeds; a seed that failed makes the score unknown."""
    return {name: _merge_format([built[name] for built in per_seed]) for name in per_seed[0]}


def _merge_format(files: Sequence[Artifact | Failure]) -> Artifact | Failure:
    first = files[0]
    if isinstance(first, Failure):
        return first
    scores = []
    for number, file in enumerate(files):
        if isinstance(file, Failure):
            return replace(first, score=None, score_reason=f"build {number + 1} failed: {file.reason}")
        if file.score is None:
            return first
        scores.append(file.score)
    merged = replace(
        scores[0],
        values=tuple(v for s in scores for v in s.values),
        seeds=tuple(v for s in scores for v in s.seeds),
    )
    return replace(first, score=merged)


def _build_in_workers(
    requests: Sequence[BuildRequest], cache: Path, report: Callable[[Progress], None]
) -> list[Built]:
    # Killed workers cannot unlink the semaphores of their libraries; the tracker does, and need not say so.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    workers = min(len(requests), os.cpu_count() or 1, MOST_WORKERS)
    report(Progress(stage="build", done=0, total=len(requests), note=f"{workers} at a time"))
    built = _in_pool(requests, workers, cache, report)
    return [
        built[index] if index in built else _build_alone(request, cache, report)
        for index, request in enumerate(requests)
    ]


def _build_alone(request: BuildRequest, cache: Path, report: Callable[[Progress], None]) -> Built:
    """Once more, in a pool of its own: a worker that dies takes all others of its pool with it."""
    built = _in_pool([request], 1, cache, report)
    if 0 in built:
        return built[0]
    reason = "The process that built it was killed or crashed; often there was no memory left."
    return {name: Failure(status="build_failed", reason=reason) for name in request.formats}


def _in_pool(
    requests: Sequence[BuildRequest], workers: int, cache: Path, report: Callable[[Progress], None]
) -> dict[int, Built]:
    """What could be built, by its place in *requests*; nothing more once a worker has died."""
    context: SpawnContext = multiprocessing.get_context("spawn")
    events: Queue[Progress] = context.Queue()
    built: dict[int, Built] = {}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(events,))
    try:
        running: dict[Future[Built], int] = {pool.submit(_work, r, cache): i for i, r in enumerate(requests)}
        while running:
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _forward(events, report)
            for future in done:
                index = running.pop(future)
                built[index] = future.result()
                request = requests[index]
                note = f"{request.recipe.name} of {Path(request.model).stem}, seed {request.seed}"
                report(Progress(stage="build", done=len(built), total=len(requests), note=note))
    except BrokenProcessPool:
        return built
    except BaseException:
        for child in multiprocessing.active_children():  # ours: what they finished is in the cache
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return built


def _forward(events: Queue[Progress], report: Callable[[Progress], None]) -> None:
    while True:
        try:
            report(events.get_nowait())
        except queue.Empty:
            return


def _start_worker(events: Queue[Progress]) -> None:
    """Remember the way back, and keep standard output for results: libraries print to standard error."""
    global _events  # noqa: PLW0603 - a worker process has one way back, given once
    _events = events
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(request: BuildRequest, cache: Path) -> Built:
    put: Callable[[Progress], Any] = _events.put if _events is not None else _ignore
    return build(request, cache, put)


def _ignore(event: Progress) -> None:
    """Nobody waits."""


@functools.cache
def versions(packages: tuple[str, ...]) -> Mapping[str, str | None]:
    """Installed versions by distribution name; None for what is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
