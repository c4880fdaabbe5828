"""Run a recipe's passes on a task's model, taking from the cache whatever an earlier build left there."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError
from torch import nn

from compressors import cache, contract, exporting, memory, order, stored
from compressors.cache import BuildRequest
from compressors.options import option_error
from compressors.state import Context, State
from compressors.task import Task
from compressors.training import deterministic, fit, tidy
from harness.core import codec, plugins
from harness.core.errors import CellError, EdgebenchError, NotApplicable, UsageError
from harness.core.types import Progress, Recipe, Step, StepReport

logger = logging.getLogger(__name__)

PASSES = "compressors.passes"
Report = Callable[[Progress], None]
Done = tuple[State, tuple[StepReport, ...]]


def check_recipe(recipe: Recipe) -> list[BaseModel]:
    """The validated options of every step; UsageError names the step and the option."""
    found: list[BaseModel] = []
    for position, step in enumerate(recipe.steps, 1):
        options: type[BaseModel] = plugins.load(PASSES, step.name).Options
        where = f"{recipe.source or f'recipe {recipe.name}'}: step {position} ({step.name})"
        try:
            found.append(options.model_validate(dict(step.options)))
        except ValidationError as error:
            raise option_error(where, options, error) from error
    order.require(recipe, recipe.source or f"recipe {recipe.name}")
    return found


def run(request: BuildRequest, task: Task, root: Path, report: Report) -> Done:
    """The model after every step of the recipe, and what each step did."""
    options = check_recipe(request.recipe)
    keys = cache.step_keys(request)
    places = [cache.folder(root, "steps", key) for key in keys]
    state, reports = _trained(request, task, places[0], report)
    original = state.module
    start = _longest(task, request.seed, places)
    if start:
        state, later = start
        reports = (*reports, *later)
    context = Context(task=task, seed=request.seed, report=report, original=original)
    kept: dict[str, nn.Module] = {}  # the last model after each step, for passes that ask for it
    for i in range(len(reports), len(places)):
        step = request.recipe.steps[i - 1]
        with cache.lock(places[i], lambda name=step.name: _waiting(report, name)):  # type: ignore[misc]
            found = _load(task, request.seed, places[i])
            if found is None:
                done_before = tuple(r.name for r in reports)
                earlier = functools.partial(
                    _earlier, kept, dict(zip(done_before, places, strict=False)), task, request.seed
                )
                context = dataclasses.replace(context, before=done_before, earlier=earlier)
                state, done = apply_step(step, options[i - 1], state, context, reports[-1])
                done = _save(places[i], state, done, task, request.seed)
            else:
                state, done = found
        reports = (*reports, done)
        kept[done.name] = state.module
    return state, reports


def _earlier(
    kept: dict[str, nn.Module], places: dict[str, Path], task: Task, seed: int, name: str
) -> nn.Module | None:
    """The model after the last step *name*: of this run, or else from the cache."""
    found = None if name in kept else _load(task, seed, places[name])
    return found[0].module if found else kept.get(name)


def _trained(request: BuildRequest, task: Task, place: Path, report: Report) -> Done:
    with cache.lock(place, lambda: _waiting(report, "train")):
        found = _load(task, request.seed, place)
        if found is not None:
            return found[0], (found[1],)
        report(Progress(stage="check the task"))
        with deterministic(request.seed):
            contract.require_task(task)
        started = time.monotonic()
        with memory.peak() as used:
            with deterministic(request.seed):
                module = task.model()
            note = "the weights come with the task"
            if task.training is not None:
                module = fit(module, task, task.training, seed=request.seed, stage="train", report=report)
                note = f"{task.training.epochs} epochs"
        state = State(module=tidy(module))
        contract.require(state, task, "training")
        wall_s = time.monotonic() - started
        note = task.no_score or note
        done = contract.report("train", None, state, task, wall_s=wall_s, note=note, memory=used)
        done = _save(place, state, done, task, request.seed)
        return state, (done,)


def apply_step(
    step: Step, options: BaseModel, state: State, context: Context, last: StepReport
) -> tuple[State, StepReport]:
    """*state* after *step*, checked against the contract, and what the step did."""
    where = f"{step.name} (after {', '.join(context.before)})"
    context.report(Progress(stage=step.name))
    before = dataclasses.replace(state, note="", dropped={})
    started = time.monotonic()
    with deterministic(context.seed), memory.peak() as used:
        after = _run_pass(step, options, before, context, where)
    contract.require(after, context.task, where, before=before)
    contract.require_promises(before, after, where)
    wall_s = time.monotonic() - started
    done = contract.report(step.name, before, after, context.task, wall_s=wall_s, memory=used)
    if not getattr(options, "allow_growth", False):
        contract.require_no_growth(last, done, where)
    return after, dataclasses.replace(done, note=_note(after, done))


def _run_pass(step: Step, options: BaseModel, state: State, context: Context, where: str) -> State:
    try:
        after: State = plugins.load(PASSES, step.name).apply(state, options, context)
    except NotApplicable as error:
        raise NotApplicable(f"{where}: {error.message}", hint=error.hint) from error
    except CellError as error:
        raise CellError(error.status, f"{where}: {error.message}", hint=error.hint) from error
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error
    except ModuleNotFoundError as error:
        missing = plugins.missing_package((error.name or "").split(".")[0], needed_by=step.name)
        raise CellError("build_failed", missing.message, hint=missing.hint) from error
    except EdgebenchError:
        raise
    except Exception as error:
        logger.debug("%s failed", where, exc_info=error)
        raise CellError("build_failed", f"{where} failed: {exporting.first_sentence(error)}.") from error
    return after


def _note(after: State, done: StepReport) -> str:
    """What a person should know of a step: its own words, that it did nothing, promises that ended."""
    parts = [after.note] if after.note else []
    if not done.changed:
        parts.append("changed nothing")
    for why in dict.fromkeys(after.dropped.values()):
        names = [name for name, reason in after.dropped.items() if reason == why]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts.append(f"no longer kept as they are: {shown} ({why})")
    return "; ".join(parts)


def _waiting(report: Report, step: str) -> None:
    report(Progress(stage=step, note="another build is doing the same step; waiting for it"))


def _longest(task: Task, seed: int, places: list[Path]) -> Done | None:
    """The latest step whose result, and the reports of all steps before it, are in the cache."""
    for last in range(len(places) - 1, 0, -1):
        found = _load(task, seed, places[last])
        if found is None:
            continue
        before = [_load_report(place) for place in places[1:last]]
        if all(before):
            return found[0], (*(r for r in before if r), found[1])
    return None


def _save(place: Path, state: State, report: StepReport, task: Task, seed: int) -> StepReport:
    """Store a step; if the state cannot be stored the report alone is, and it says so."""
    try:
        with cache.filling(place) as folder:
            stored.save(folder, state, task, seed)
            _save_report(folder, report)
    except stored.CannotStore as error:
        note = "; ".join(filter(None, (report.note, f"not kept in the cache: {error}")))
        report = dataclasses.replace(report, note=note)
        with cache.filling(place) as folder:
            _save_report(folder, report)
    return report


def _save_report(folder: Path, report: StepReport) -> None:
    (folder / "report.json").write_text(codec.dumps(report, indent=1) + "\n", encoding="utf-8")


def _load(task: Task, seed: int, place: Path) -> tuple[State, StepReport] | None:
    """A stored step; None if there is none, or if its state cannot be restored exactly."""
    report = _load_report(place)
    state = None if report is None else stored.load(place, task, seed)
    return None if report is None or state is None else (state, report)


def _load_report(place: Path) -> StepReport | None:
    try:
        data = json.loads((place / "report.json").read_text(encoding="utf-8"))
        return dataclasses.replace(codec.from_json(StepReport, data), cached=True)
    except (OSError, ValueError, EdgebenchError):
        return None
