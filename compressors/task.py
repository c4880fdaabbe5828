"""A task: a model, its data, its loss and its metric, loaded from one Python file and checked."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from compressors import source
from harness.core import plugins
from harness.core.errors import EdgebenchError, UsageError

Batch = tuple[tuple[Tensor, ...], Tensor | None]
Outputs = Tensor | tuple[Tensor, ...]

REQUIRED = ("model", "example_inputs", "validation_loader")
LABELLED = ("loss", "metric")


class Training(BaseModel):
    """How a model is trained; a task's ``TRAINING`` and the fine-tuning options of passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(10, ge=0, le=100_000, description="passes over the train loader")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    optimiser: Literal["adamw", "adam", "sgd"] = Field("adamw", description="optimiser")
    weight_decay: float = Field(0.01, ge=0, le=1, description="weight decay")
    schedule: Literal["one_cycle", "cosine", "constant"] = Field(
        "one_cycle", description="learning rate over time"
    )
    warmup: float = Field(0.25, ge=0, le=0.9, description="share of one_cycle in which the rate rises")
    channels_last: bool = Field(False, description="train in NHWC memory order; faster for many CNNs")
    threads: int = Field(1, ge=1, le=1024, description="threads; 1 makes weights the same on any core count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The functions of a task file; each raises UsageError, naming the file, if the user's code raises."""

    name: str
    path: Path
    model: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Tensor, ...]]
    validation_loader: Callable[[], Iterable[Any]]
    test_loader: Callable[[], Iterable[Any]]
    calibration_loader: Callable[[int], Iterable[Any]]
    train_loader: Callable[[int], Iterable[Any]] | None
    loss: Callable[[Any, Tensor], Tensor] | None
    metric: Callable[[Any, Tensor], float] | None
    metric_name: str
    training: Training | None  # None: the weights come with model()
    no_score: str | None  # why there is no score; None: there is one

    def batches(self, loader: Iterable[Any], name: str) -> Iterator[Batch]:
        """The batches of *loader* as (inputs, targets), checked; *name* is the function that made it."""
        return _batches(self.path, loader, name)


def load(model: str) -> Task:
    """Load a task by name or by path; every mistake in the file is one UsageError sentence."""
    path = source.locate(model)
    if path.parent == Path(__file__).resolve().parent / "tasks":
        module = plugins.load(source.TASKS, path.stem)
    else:
        module = _import_file(path)
    return _task(module, path, source.task_name(model))


def _import_file(path: Path) -> ModuleType:
    _forget_siblings(path)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"edgebench_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"The task file {path} cannot be imported as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _guarded(path, "import", spec.loader.exec_module)(module)
    return module


def _forget_siblings(path: Path) -> None:
    """Forget modules of another task's folder that have the name of a module beside *path*."""
    for sibling in source.siblings(path):
        name = sibling.parent.name if sibling.stem == "__init__" else sibling.stem
        known = getattr(sys.modules.get(name), "__file__", None)
        if known and Path(known).resolve() != sibling.resolve():
            del sys.modules[name]


def _task(module: ModuleType, path: Path, name: str) -> Task:
    no_score = _constant(module, path, "LATENCY_ONLY", str)
    trained = bool(_constant(module, path, "TRAINED", bool))
    needed = [*REQUIRED]
    if no_score is None:
        needed += LABELLED
        if not trained:
            needed += ["train_loader"]
    functions = {f: _function(module, path, f, required=f in needed) for f in (*REQUIRED, *LABELLED)}
    for optional in ("train_loader", "test_loader", "calibration_loader"):
        functions[optional] = _function(module, path, optional, required=optional in needed)
    validation, train = functions["validation_loader"], functions["train_loader"]
    assert validation is not None
    metric = getattr(module, "metric", None)
    return Task(
        name=name,
        path=path,
        model=_checked_model(path, functions["model"]),
        example_inputs=_checked_inputs(path, functions["example_inputs"]),
        validation_loader=validation,
        test_loader=functions["test_loader"] or validation,
        calibration_loader=_calibration(functions["calibration_loader"], train, validation),
        train_loader=train,
        loss=functions["loss"],
        metric=functions["metric"] if no_score is None else None,
        metric_name=_constant(module, path, "METRIC", str) or getattr(metric, "__name__", "metric"),
        training=None if trained or no_score is not None else _training(module, path),
        no_score=no_score,
    )


def _constant(module: ModuleType, path: Path, name: str, kind: type) -> Any:
    value = getattr(module, name, None)
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{path}: {name} must be a {kind.__name__}, found {type(value).__name__}.")
    return value


def _function(module: ModuleType, path: Path, name: str, *, required: bool) -> Callable[..., Any] | None:
    value = getattr(module, name, None)
    if value is None:
        if required:
            raise UsageError(
                f"{path}: the task has no function {name}().",
                hint="A task has model, example_inputs, train_loader, validation_loader, loss and metric.",
            )
        return None
    if not callable(value):
        raise UsageError(f"{path}: {name} must be a function, found {type(value).__name__}.")
    return _guarded(path, name, value)


def _training(module: ModuleType, path: Path) -> Training:
    options = _constant(module, path, "TRAINING", dict)
    if options is None:
        raise UsageError(
            f"{path}: the task says neither TRAINING nor TRAINED.",
            hint='Write TRAINING = {"epochs": 10, "lr": 0.001}, or TRAINED = True if model() is trained.',
        )
    try:
        return Training.model_validate(options)
    except ValidationError as error:
        raise option_error(f"{path}: TRAINING", Training, error) from error


def option_error(where: str, options: type[BaseModel], error: ValidationError) -> UsageError:
    """The first problem that pydantic found, as one sentence; *where* says whose options they are."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        unknown = plugins.unknown("option", key, options.model_fields)
        return UsageError(f"{where}: {unknown.message}", hint=unknown.hint)
    text = first["msg"][:1].lower() + first["msg"][1:]
    return UsageError(f"{where}: {key}: {text}, found {first['input']!r}.")


def _calibration(
    own: Callable[..., Any] | None, train: Callable[..., Any] | None, validation: Callable[..., Any]
) -> Callable[[int], Iterable[Any]]:
    if own is not None:
        return lambda seed: own()  # noqa: ARG005 - the data is the same for every seed
    if train is not None:
        return train
    return lambda seed: validation()  # noqa: ARG005


def _checked_model(path: Path, function: Callable[..., Any] | None) -> Callable[[], nn.Module]:
    assert function is not None

    def model() -> nn.Module:
        module = function()
        if not isinstance(module, nn.Module):
            raise UsageError(f"{path}: model() must return a torch.nn.Module, found {_kind(module)}.")
        return module

    return model


def _checked_inputs(path: Path, function: Callable[..., Any] | None) -> Callable[[], tuple[Tensor, ...]]:
    assert function is not None

    def example_inputs() -> tuple[Tensor, ...]:
        value = function()
        tensors = (value,) if isinstance(value, Tensor) else value
        if (
            not isinstance(tensors, (tuple, list))
            or not all(isinstance(t, Tensor) for t in tensors)
            or not tensors
        ):
            raise UsageError(
                f"{path}: example_inputs() must return a tuple of tensors, found {_kind(value)}."
            )
        for tensor in tensors:
            if tensor.ndim == 0 or tensor.shape[0] != 1:
                raise UsageError(
                    f"{path}: example_inputs() must have batch size 1 in dimension 0,"
                    f" found a tensor of shape {list(tensor.shape)}."
                )
        return tuple(tensors)

    return example_inputs


def _batches(path: Path, loader: Iterable[Any], name: str) -> Iterator[Batch]:
    iterator = _guarded(path, name, lambda: iter(loader))()
    step = _guarded(path, name, lambda: next(iterator, _END))
    while (item := step()) is not _END:
        yield _batch(path, item, name)


_END = object()


def _batch(path: Path, item: Any, name: str) -> Batch:
    if not isinstance(item, (tuple, list)) or not 1 <= len(item) <= 2:
        raise UsageError(f"{path}: {name}() must give (inputs, targets) pairs, found {_kind(item)}.")
    raw, targets = item[0], item[1] if len(item) == 2 else None
    inputs = (raw,) if isinstance(raw, Tensor) else raw
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(t, Tensor) for t in inputs) or not inputs:
        raise UsageError(f"{path}: {name}() must give inputs that are tensors, found {_kind(raw)}.")
    if targets is not None and not isinstance(targets, Tensor):
        raise UsageError(f"{path}: {name}() must give targets that are a tensor, found {_kind(targets)}.")
    sizes = {t.shape[0] if t.ndim else 0 for t in (*inputs, *(() if targets is None else (targets,)))}
    if len(sizes) != 1:
        raise UsageError(
            f"{path}: {name}() gave a batch whose tensors differ in dimension 0: sizes {sorted(sizes)}."
        )
    return tuple(inputs), targets


def _guarded(path: Path, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """*function*, with whatever it raises turned into a sentence that names the file and the line."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except EdgebenchError:
            raise
        except Exception as error:
            raise user_error(path, name, error) from error

    return call


def user_error(path: Path, name: str, error: BaseException) -> UsageError:
    """What a user's function raised, as one sentence with the last line of that file that was running."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{path}:{line}" if line else str(path)
    text = " ".join(str(error).split())
    what = "importing it" if name == "import" else f"{name}()"
    return UsageError(f"{where}: {what} raised {type(error).__name__}{f': {text}' if text else ''}")


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        inside = ", ".join(type(v).__name__ for v in value[:4])
        return f"a {type(value).__name__} of {len(value)} ({inside}{', …' if len(value) > 4 else ''})"
    return "None" if value is None else f"a {type(value).__name__}"


def as_outputs(value: object, where: str) -> tuple[Tensor, ...]:
    """A model's result as a tuple of tensors; UsageError for a dict or anything else."""
    tensors = (value,) if isinstance(value, Tensor) else value
    if isinstance(tensors, (tuple, list)) and tensors and all(isinstance(t, torch.Tensor) for t in tensors):
        return tuple(tensors)
    raise UsageError(f"{where}: the model must return a tensor or a tuple of tensors, found {_kind(value)}.")
