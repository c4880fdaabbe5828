"""Models that options name: a function of the task's file, another file, a task, an earlier step."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from compressors import score, source, task
from compressors.state import Context
from compressors.training import deterministic, fit, tidy
from harness.core import plugins
from harness.core.errors import EdgebenchError, NotApplicable, UsageError


def student(name: str, own: task.Task) -> nn.Module:
    """
    The untrained model *name*: a function of the file of *own*, or ``file.py`` (``file.py:function``).

    A file is looked for in the working folder and beside the task; its function is model() unless named.
    """
    if ".py" in name:
        file, _, function = name.partition(":")
        path = file_of(file, own.path.parent)
        if path is None:
            raise UsageError(
                f"student: the file {file} does not exist.",
                hint=f"Give its path, or its name if it is in {own.path.parent}.",
            )
        module, function = _imported(path, own), function or "model"
    else:
        module, path, function = _of_task(own), own.path, name
    made = getattr(module, function, None)
    if not callable(made):
        known = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        unknown = plugins.unknown(
            "function", function, [n for n in known if not n.startswith("_") and callable(vars(module)[n])]
        )
        raise UsageError(f"student: {path}: {unknown.message}", hint=unknown.hint)
    found = _called(made, path, function)
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise UsageError(f"student: {path}: {function}() must return a torch.nn.Module, found a {kind}.")
    return tidy(found)


def teacher(name: str, context: Context) -> nn.Module:
    """The model after the step *name*, or the model of the task *name*, trained now if it must be."""
    if name in context.before:
        found = context.original if name == "train" else context.earlier(name)
        if found is None:
            raise UsageError(f"teacher: the model after {name} was not kept.", hint="Choose another teacher.")
        return found
    if not is_task(name, context.task.path.parent):
        words = ["original", "before", "ema", "born_again", *context.before, *plugins.names(source.TASKS)]
        unknown = plugins.unknown("teacher", name, dict.fromkeys(words))
        raise UsageError(unknown.message, hint=f"{unknown.hint} Or the path of a task's file.")
    path = file_of(name, context.task.path.parent)
    loaded = task.load(name if path is None else str(path))
    module = loaded.model()
    if loaded.training is not None:
        module = fit(
            module, loaded, loaded.training, seed=context.seed, stage=f"train {loaded.name}",
            report=context.report,
        )  # fmt: skip
    return tidy(module)


def is_task(name: str, folder: Path) -> bool:
    """Whether *name* is a task of this package or a file in the working folder or in *folder*."""
    return name in plugins.names(source.TASKS) or file_of(name, folder) is not None


def file_of(name: str, folder: Path) -> Path | None:
    """The file *name*, seen from the working folder or else from *folder*; None if there is none."""
    places = (Path(name).expanduser(), folder / name)
    return next((path.resolve() for path in places if path.suffix == ".py" and path.is_file()), None)


def require_fit(student: nn.Module, teacher: nn.Module, own: task.Task, name: str) -> None:
    """Refuse a student whose outputs are not shaped like its teacher's, or either that does not run."""
    found = {}
    for option, module in (("teacher", teacher), ("student", student)):
        try:
            found[option] = [
                f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
                for t in score.forward(module, own.example_inputs(), own)
            ]
        except EdgebenchError as error:
            raise UsageError(f"{option}: it does not take the inputs of {own.name}: {error}") from error
    if found["student"] != found["teacher"]:
        raise UsageError(
            f"student: {name} gives {', '.join(found['student'])} where its teacher gives"
            f" {', '.join(found['teacher'])}.",
            hint="Student and teacher need outputs of the same shapes and dtypes.",
        )


def reborn(module: nn.Module, own: task.Task, seed: int) -> nn.Module:
    """*module* with new random weights: those of a fresh task.model() if it fits, else layer by layer."""
    with deterministic(seed):
        if own.training is not None:
            fresh = own.model()
            if _outline(fresh) == _outline(module):
                return tidy(fresh)
        fresh = copy.deepcopy(module)
        for name, layer in fresh.named_modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise NotApplicable(
                    f"{name or 'the model'} cannot begin anew: its class {type(layer).__name__} has no"
                    " reset_parameters()."
                )
    return tidy(fresh)


def _outline(module: nn.Module) -> list[Any]:
    return [[(n, type(m)) for n, m in module.named_modules()]] + [
        (name, tensor.shape) for name, tensor in module.state_dict().items()
    ]


def _of_task(own: task.Task) -> ModuleType:
    """The module that *own* was loaded from."""
    if own.path.parent == Path(task.__file__).resolve().parent / "tasks":
        return plugins.load(source.TASKS, own.path.stem)
    module = sys.modules.get(f"edgebench_task_{own.path.stem}")
    if module is None or Path(module.__file__ or "") != own.path:
        task.load(str(own.path))
        module = sys.modules[f"edgebench_task_{own.path.stem}"]
    return module


def _imported(path: Path, own: task.Task) -> ModuleType:
    """The file as a module: by its plain name beside the task, so that the cache finds its classes again."""
    beside = path.parent == own.path.parent and str(path.parent) in sys.path
    name = path.stem if beside else f"edgebench_student_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__ or "").resolve() == path:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or (beside and known is not None):
        raise UsageError(f"student: {path} cannot be imported as {name}: choose another file name.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _called(lambda: spec.loader.exec_module(module), path, "import")  # type: ignore[union-attr]
    return module


def _called(function: Callable[[], Any], path: Path, name: str) -> Any:
    try:
        return function()
    except EdgebenchError:
        raise
    except Exception as error:
        found = task.user_error(path, name, error)
        raise UsageError(f"student: {found.message}", hint=found.hint) from error


def agreement(student: nn.Module, teacher: nn.Module, own: task.Task) -> float | None:
    """Share of the validation samples that both put into the same class; None if there are no classes."""
    same = total = 0
    for inputs, _ in own.batches(own.validation_loader(), "validation_loader"):
        one, two = score.forward(student, inputs, own), score.forward(teacher, inputs, own)
        if len(one) != 1 or one[0].ndim != 2 or one[0].shape[1] < 2:
            return None
        same += int(torch.eq(one[0].argmax(1), two[0].argmax(1)).sum())
        total += len(one[0])
    return same / total if total else None
