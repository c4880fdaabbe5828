"""Run a recipe's passes on a task's model, taking from the cache whatever an earlier build left there."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from compressors import cache, contract, exporting, rebuild, score
from compressors.cache import BuildRequest
from compressors.options import option_error
from compressors.state import Context, State
from compressors.task import Task
from compressors.training import deterministic, fit, tidy
from harness.core import codec, plugins
from harness.core.errors import CellError, EdgebenchError, UsageError
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
    for i in range(len(reports), len(places)):
        step = request.recipe.steps[i - 1]
        names = ", ".join(r.name for r in reports)
        with cache.lock(places[i], lambda name=step.name: _waiting(report, name)):  # type: ignore[misc]
            found = _load(task, request.seed, places[i])
            if found is None:
                state, done = _apply(step, options[i - 1], state, context, f"{step.name} (after {names})")
                _save(places[i], state, done, task)
            else:
                state, done = found
        reports = (*reports, done)
    return state, reports


def _trained(request: BuildRequest, task: Task, place: Path, report: Report) -> Done:
    with cache.lock(place, lambda: _waiting(report, "train")):
        found = _load(task, request.seed, place)
        if found is not None:
            return found[0], (found[1],)
        report(Progress(stage="check the task"))
        with deterministic(request.seed):
            contract.require_task(task)
        started = time.monotonic()
        with deterministic(request.seed):
            module = task.model()
        note = "the weights come with the task"
        if task.training is not None:
            module = fit(module, task, task.training, seed=request.seed, stage="train", report=report)
            note = f"{task.training.epochs} epochs"
        state = State(module=tidy(module))
        contract.require(state, task, "training")
        wall_s = time.monotonic() - started
        done = contract.report("train", None, state, task, wall_s=wall_s, note=task.no_score or note)
        _save(place, state, done, task)
        return state, (done,)


def _apply(
    step: Step, options: BaseModel, state: State, context: Context, where: str
) -> tuple[State, StepReport]:
    context.report(Progress(stage=step.name))
    started = time.monotonic()
    try:
        after: State = plugins.load(PASSES, step.name).apply(state, options, context)
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
    contract.require(after, context.task, where, before=state)
    wall_s = time.monotonic() - started
    note = after.note or ("" if contract.changed(state, after) else "changed nothing")
    return after, contract.report(step.name, state, after, context.task, wall_s=wall_s, note=note)


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


def _save(place: Path, state: State, report: StepReport, task: Task) -> None:
    """Store an eager model as tensors, with its outputs for the example inputs as the proof of a restore."""
    if state.quantised is not None:
        return  # made again in a second or two from the step before
    probe = score.forward(state.module, task.example_inputs(), task)
    with cache.filling(place) as folder:
        stored = io.BytesIO()  # torch's own writer does not tell why a file cannot be written
        torch.save({"tensors": state.module.state_dict(), "probe": list(probe)}, stored)
        (folder / "state.pt").write_bytes(stored.getbuffer())
        (folder / "report.json").write_text(codec.dumps(report, indent=1) + "\n", encoding="utf-8")


def _load(task: Task, seed: int, place: Path) -> tuple[State, StepReport] | None:
    """A stored model; None if there is none, or if it cannot be rebuilt exactly from its tensors."""
    report = _load_report(place)
    if report is None:
        return None
    try:
        stored: dict[str, Any] = torch.load(place / "state.pt", weights_only=True)
        with deterministic(seed):
            module: nn.Module = tidy(rebuild.resized(task.model(), stored["tensors"]))
        outputs = score.forward(module, task.example_inputs(), task)
    except (OSError, RuntimeError, KeyError, EOFError, UsageError):
        return None
    if len(outputs) != len(stored["probe"]) or not all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(outputs, stored["probe"], strict=True)
    ):
        return None
    return State(module=module), report


def _load_report(place: Path) -> StepReport | None:
    try:
        data = json.loads((place / "report.json").read_text(encoding="utf-8"))
        return dataclasses.replace(codec.from_json(StepReport, data), cached=True)
    except (OSError, ValueError, EdgebenchError):
        return None
