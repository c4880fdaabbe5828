"""The whole flow: recipes become files, files are measured on devices, cells become records."""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressors.build import open_file
from harness import __version__, building, config, measuring, preflight, store
from harness.core import codec
from harness.core.errors import UsageError
from harness.core.types import (
    BACKENDS,
    Artifact,
    Cell,
    Device,
    Failure,
    FormatName,
    Plan,
    Progress,
    Recipe,
    Record,
    Run,
    RunInfo,
)
from harness.progress import Reporter
from harness.session import Conduct
from harness.store import RunFolder

#: What a record says of the host: these decide what a file contains or how it is driven.
PACKAGES = (
    "torch",
    "torchao",
    "torch-pruning",
    "executorch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "numpy",
    "scikit-learn",
)
FILE_RECIPE = "as-is"  # the recipe column of a file that was made elsewhere

FileKey = tuple[str, str, FormatName]  # model, recipe, format
Files = Mapping[FileKey, Artifact | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one bench is asked for; stored in run.json, so --resume needs no options."""

    models: tuple[str, ...]  # task names or paths of task files
    recipes: tuple[str, ...]  # names or paths
    formats: tuple[FormatName, ...]
    threads: tuple[int, ...]
    seeds: tuple[int, ...]
    files: tuple[str, ...]  # model files made elsewhere
    inputs: str | None  # .npz for those files
    plan: Plan


def bench(
    request: Request,
    devices: Sequence[Device],
    *,
    results: Path,
    name: str,
    cache: Path,
    show: Reporter,
    wait_s: float = 0.0,
) -> RunFolder:
    """
    Build what is missing, measure every cell on every device, keep one record per cell.

    A device that somebody else holds is waited for up to *wait_s*. DeviceError, before anything is built,
    when no device can be reached and trying again is no help.
    """
    opened = open_files(request, cache)  # bad files and recipes end here, before a folder is made
    recipes = load_recipes(request)
    cells = tuple(plan_cells(request, devices, recipes, list(opened)))
    preflight.check(devices, show.say)
    if aside := store.make_room(results, name):
        show.say(f"The earlier run {name} is kept as {aside.name}.")
    folder = store.create(results, name)
    with folder.locked():
        info = RunInfo(
            schema=codec.SCHEMA,
            name=name,
            created_utc=store.utc_now(),
            cells=cells,
            plan=request.plan,
            request=codec.to_json(request),
            host=host_facts(),
        )
        folder.save_info(info)
        try:
            files = opened | build_files(request, recipes, cache, show)
        except UsageError:
            folder.discard()  # nothing was measured, and what was asked for cannot be
            raise
        _measure_all(_open_records(info, files, folder), devices, folder, show, wait_s)
    return folder


def resume(
    folder: RunFolder, fleet: Mapping[str, Device], cache: Path, show: Reporter, *, wait_s: float = 0.0
) -> None:
    """Go on with a run: finished cells stay, open ones are measured from the block they stopped at."""
    with folder.locked():
        run = folder.read()
        request = codec.from_json(Request, run.info.request, where=f"{folder.path}: request")
        names = list(dict.fromkeys(cell.device for cell in run.info.cells))
        devices = [config.device_called(fleet, name) for name in names]
        records = list(run.records)
        preflight.check(_still_needed(run, devices), show.say)
        if len(records) < len(run.info.cells):
            files = open_files(request, cache) | build_files(request, load_recipes(request), cache, show)
            records = _open_records(run.info, files, folder, records)
        for record in records:
            if record.artifact and measuring.sha256_of(record.artifact.path) != record.artifact.sha256:
                raise UsageError(
                    f"{record.artifact.path}, the file of {record.cell.id}, is gone or no longer the same.",
                    hint="Start the run again under a new name.",
                )
        _measure_all(measuring.reopened(records), devices, folder, show, wait_s)


def _still_needed(run: Run, devices: Sequence[Device]) -> list[Device]:
    """The devices that have cells to measure."""
    have = {record.cell for record in run.records}
    todo = [record.cell for record in measuring.reopened(run.records) if record.status == "interrupted"]
    names = {cell.device for cell in [*todo, *(cell for cell in run.info.cells if cell not in have)]}
    return [device for device in devices if device.name in names]


def _open_records(
    info: RunInfo, files: Files, folder: RunFolder, have: Sequence[Record] = ()
) -> list[Record]:
    """One record for every cell of the plan: those we *have*, and new ones for the others."""
    kept = {record.cell: record for record in have}
    for cell in info.cells:
        if cell not in kept:
            file = files[cell.model, cell.recipe, cell.format]
            kept[cell] = measuring.new_record(info.name, cell, info.plan, file, info.host)
            folder.save(kept[cell])
    return [kept[cell] for cell in info.cells]


def _measure_all(
    records: Sequence[Record],
    devices: Sequence[Device],
    folder: RunFolder,
    show: Reporter,
    wait_s: float,
) -> None:
    """Devices in parallel, one worker each; the cells of a device one after the other."""
    groups = [[record for record in records if record.cell.device == device.name] for device in devices]
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    def report(event: Progress) -> None:
        check()
        show(event)

    conduct = Conduct(run=folder.path.name, wait_s=wait_s, say=show.say, check=check)

    def measure(device: Device, group: Sequence[Record]) -> None:
        done = measuring.measure(device, group, folder, report, conduct)
        if len(devices) > 1:
            show.say(measuring.summary(device, done))

    if len(devices) == 1:  # in this thread, so that Ctrl-C reaches it at once
        measure(devices[0], groups[0])
        return
    with ThreadPoolExecutor(max_workers=len(devices)) as pool:
        jobs = [pool.submit(measure, *pair) for pair in zip(devices, groups, strict=True)]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException as error:
            stop.set()  # each device ends its block, stores it, is put back and stops
            if isinstance(error, KeyboardInterrupt):
                show.say("Stopping: every device ends the block that it runs. Ctrl-C again: without that.")
                _wait_or_abandon(jobs, conduct)
            raise


def _wait_or_abandon(jobs: Sequence[Future[None]], conduct: Conduct) -> None:
    """Until all *jobs* have stopped; a second Ctrl-C ends their blocks, and leaves the devices as found."""
    try:
        wait(jobs)
    except KeyboardInterrupt:
        for session in list(conduct.sessions):
            session.abandon()
        wait(jobs)


def open_files(request: Request, cache: Path) -> dict[FileKey, Artifact | Failure]:
    """The request's files that were made elsewhere."""
    _refuse_twins("file", [Path(file).name.lower() for file in request.files])
    if request.inputs and not request.files:
        raise UsageError("--inputs is for model files: none was given.", hint="A task has its own inputs.")
    inputs = Path(request.inputs) if request.inputs else None
    opened = [open_file(Path(file), cache, inputs) for file in request.files]
    return {(file.model, FILE_RECIPE, file.format): file for file in opened}


def load_recipes(request: Request) -> list[Recipe]:
    """The request's recipes; UsageError for two of one name."""
    recipes = [config.load_recipe(name) for name in request.recipes]
    _refuse_twins("recipe", [recipe.name for recipe in recipes])
    return recipes


def build_files(
    request: Request, recipes: Sequence[Recipe], cache: Path, show: Reporter
) -> dict[FileKey, Artifact | Failure]:
    """Every file of the request that is built here from a model and a recipe."""
    _refuse_twins("model", [Path(model).stem for model in request.models])
    built = building.build_all(
        models=request.models,
        recipes=recipes,
        formats=request.formats,
        seeds=request.seeds,
        cache=cache,
        report=show,
    )
    return {
        (Path(model).stem, recipe, name): file
        for (model, recipe), outcomes in built.items()
        for name, file in outcomes.items()
    }


def _refuse_twins(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two of the {kind}s are called {name!r}.", hint="Give each its own name.")


def plan_cells(
    request: Request, devices: Sequence[Device], recipes: Sequence[Recipe], opened: Sequence[FileKey]
) -> list[Cell]:
    """Every (device, file, threads) as a cell; UsageError when there is none."""
    keys = [
        (Path(model).stem, recipe.name, name)
        for model in request.models
        for recipe in recipes
        for name in request.formats
    ]
    cells = [
        Cell(
            device=device.name,
            model=model,
            recipe=recipe,
            format=name,
            threads=threads,
            backend=BACKENDS[name],
        )
        for device in devices
        for model, recipe, name in [*keys, *opened]
        for threads in request.threads
    ]
    if not cells:
        raise UsageError(
            "There is nothing to measure.",
            hint="Give --model NAME (see: edgebench list models), or model files.",
        )
    return cells


def host_facts() -> dict[str, Any]:
    """The machine and the packages that build and drive."""
    return {
        "edgebench": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(building.versions(PACKAGES)),
    }
