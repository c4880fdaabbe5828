"""Make the files that a request lacks: run its steps, export, and pass each file through the parity gate."""

from __future__ import annotations

import functools
import gzip
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from compressors import cache, check, container, exporting, parity, score, steps, task
from compressors.cache import BuildRequest
from compressors.state import State
from compressors.training import deterministic
from harness.core import plugins
from harness.core.errors import CellError, MissingPackage
from harness.core.types import Artifact, Container, Failure, FormatName, Progress, Score, StepReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]

#: Samples of the validation split that every file is compared on; at least 64 where the split has them.
PARITY_SAMPLES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """A request whose steps are done."""

    request: BuildRequest
    task: task.Task
    state: State
    reports: tuple[StepReport, ...]
    samples: Sequence[Sample]  # of the validation split
    reference: Sequence[Sample]  # what the model gives for them
    classifier: bool
    bound: parity.Bound  # what a file must reach


def produce(
    request: BuildRequest, root: Path, report: Callable[[Progress], None]
) -> dict[FormatName, Artifact | Failure]:
    """Every format of *request*, taken from the cache or made now."""
    with deterministic(request.seed):
        return _produce(request, root, report)


def _produce(
    request: BuildRequest, root: Path, report: Callable[[Progress], None]
) -> dict[FormatName, Artifact | Failure]:
    loaded = task.load(request.model)
    last = cache.step_keys(request)[-1]
    results: dict[FormatName, Artifact | Failure] = {}
    built: _Built | None = None
    for format in request.formats:
        place = cache.folder(root, "files", cache.artifact_key(last, format))
        with cache.lock(place, lambda f=format: report(Progress(stage=f"export {f}", note="waiting"))):  # type: ignore[misc]
            found = cache.fetch(place)
            if found is None:
                try:
                    built = built or _build_state(request, loaded, root, report)
                    found = _make(built, format, place, report)
                except CellError as error:
                    failure = Failure(status=error.status, reason=str(error))
                    return {f: results.get(f, failure) for f in request.formats}
        results[format] = cache.named(found, request)
    return results


def _build_state(
    request: BuildRequest, loaded: task.Task, root: Path, report: Callable[[Progress], None]
) -> _Built:
    state, reports = steps.run(request, loaded, root, report)
    samples = score.samples(loaded, PARITY_SAMPLES)
    answers = [score.forward(state.reference, sample, loaded) for sample in samples]
    reference = [_arrays(outputs) for outputs in answers]
    classifier = score.is_classifier(loaded, answers[0])
    noise = None
    if state.quantised is not None:
        exact = [_arrays(score.forward(state.module, sample, loaded)) for sample in samples]
        noise = parity.compare(exact, reference, classifier=classifier)
    return _Built(
        request=request,
        task=loaded,
        state=state,
        reports=reports,
        samples=[_arrays(sample) for sample in samples],
        reference=reference,
        classifier=classifier,
        bound=parity.bound(noise),
    )


def _make(
    built: _Built, format: FormatName, place: Path, report: Callable[[Progress], None]
) -> Artifact | Failure:
    """Export, verify and store one file; a failure that would come again is stored, too."""
    report(Progress(stage=f"export {format}"))
    try:
        module = plugins.load("compressors.formats", format)
        with cache.filling(place) as folder:
            artifact = _export(built, format, module, folder, report)
            cache.store(folder, artifact)
    except MissingPackage as error:
        return Failure(status="runtime_missing", reason=str(error))
    except CellError as error:
        failure = Failure(status=error.status, reason=str(error))
        if error.status in cache.DETERMINISTIC:
            with cache.filling(place) as folder:
                cache.store(folder, failure)
        return failure
    return cache.placed(artifact, lambda path: str((place / path).resolve()))


def _export(
    built: _Built, format: FormatName, module: ModuleType, folder: Path, report: Callable[[Progress], None]
) -> Artifact:
    """Write the file and its check file into *folder*; paths in the result are relative to it."""
    request, path = built.request, folder / cache.file_name(built.request, format)
    try:
        module.export(built.state, built.task.example_inputs(), path)
    except CellError as error:
        where = task.user_line(built.task.path, error)
        if where is None:
            raise
        place = Path(where).name  # this is stored, and the task may move
        why = f"{error.message.rstrip('.')} (at {place})."
        raise CellError(error.status, why, hint=error.hint) from error
    report(Progress(stage=f"verify {format}"))
    with exporting.explained(module.RUNTIME, format, did="run"):
        inputs, outputs = module.signature(path)
        found = list(module.outputs(path, built.samples))
    parity.require_signature(built.reference, found, runtime=module.RUNTIME)
    measured = parity.compare(built.reference, found, classifier=built.classifier)
    parity.require(measured, built.bound, runtime=module.RUNTIME)
    with exporting.explained(module.RUNTIME, format, did="run"):
        scored = score.of_file(functools.partial(module.outputs, path), built.task)
        arithmetic = module.arithmetic(path)
    check.write(folder / check.NAME, built.samples, found)
    packed, reason = _packed(built, path, report)
    return Artifact(
        path=path.name,
        format=format,
        sha256=cache.sha256(path),
        bytes=path.stat().st_size,
        gzip_bytes=len(gzip.compress(path.read_bytes(), 9, mtime=0)),
        model=built.task.name,
        recipe=request.recipe.name,
        seed=request.seed,
        model_digest=cache.model_digest(request),
        recipe_digest=request.recipe.digest,
        inputs=inputs,
        outputs=outputs,
        check_path=check.NAME,
        check_sets=min(check.SETS, len(found)),
        check_min_sqnr_db=check.min_sqnr_db(built.bound.sqnr_db),
        exporter=module.versions(),
        parameters=built.reports[-1].parameters,
        nonzeros=built.reports[-1].nonzeros,
        macs=built.reports[-1].macs,
        parity=measured,
        score=_score(built, scored),
        score_reason=built.task.no_score,
        steps=built.reports,
        container=packed,
        container_reason=reason,
        arithmetic=arithmetic or None,
    )


def _packed(
    built: _Built, path: Path, report: Callable[[Progress], None]
) -> tuple[Container | None, str | None]:
    """The container beside the file at *path* if the recipe asks for one, and why it has none."""
    if not any(step.name == container.STEP for step in built.request.recipe.steps):
        return None, None
    report(Progress(stage=f"pack {path.name}"))
    file = path.read_bytes()
    packed = container.pack(file, container.tensors(built.state))
    if len(packed) >= len(file):
        return None, f"packed, {path.name} would have {len(packed):,} bytes instead of {len(file):,}"
    target = path.with_name(path.name + container.SUFFIX)
    target.write_bytes(packed)
    return (
        Container(
            path=target.name,
            sha256=cache.sha256(target),
            bytes=len(packed),
            xz_bytes=len(lzma.compress(file, preset=9 | lzma.PRESET_EXTREME)),
        ),
        None,
    )


def _score(built: _Built, scored: tuple[float, int] | None) -> Score | None:
    if scored is None:
        return None
    value, samples = scored
    return Score(metric=built.task.metric_name, values=(value,), seeds=(built.request.seed,), samples=samples)


def _arrays(tensors: tuple[torch.Tensor, ...]) -> Sample:
    return tuple(tensor.numpy() for tensor in tensors)
