"""A task: a model, its data, its loss and its metric, loaded from one Python file and checked."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressors import exporting, source
from compressors.options import Training, option_error
from harness.core import plugins
from harness.core.errors import EdgebenchError, UsageError

Batch = tuple[tuple[Tensor, ...], Tensor | None]
Outputs = Tensor | tuple[Tensor, ...]

REQUIRED = ("model", "example_inputs", "validation_loader")
OPTIONAL = ("train_loader", "test_loader", "calibration_loader", "loss", "metric", "metrics")


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
    metrics: Callable[[Any, Tensor], Any] | None = None  # more figures by name
    has_test_split: bool = True  # False: the score is taken on the validation split

    @property
    def metric_call(self) -> str:
        """What a sentence about the metric calls it."""
        return "metric()" if self.metric_name == "metric" else f"metric() ({self.metric_name})"

    def batches(self, loader: Iterable[Any], name: str) -> Iterator[Batch]:
        """The batches of *loader* as (inputs, targets), checked; *name* is the function that made it."""
        return _batches(self.path, loader, name)

    def run(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs of *module* as a tuple; what the user's forward raises becomes a sentence."""
        result = _guarded(self.path, "the model's forward", module)(*inputs)
        return as_outputs(result, str(self.path))


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest output is the target."""
    return float((outputs.argmax(1) == targets).double().mean())


#: A task may say METRIC = one of these instead of writing metric().
METRICS: dict[str, Callable[[Any, Tensor], float]] = {"accuracy": _accuracy}


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
    metric_name = _constant(module, path, "METRIC", str)
    needed = [*REQUIRED]
    if no_score is None:
        needed += [] if trained else ["train_loader", "loss"]
        needed += [] if metric_name in METRICS else ["metric"]
    functions = {
        name: _function(module, path, name, required=name in needed) for name in (*REQUIRED, *OPTIONAL)
    }
    validation, train = functions["validation_loader"], functions["train_loader"]
    assert validation is not None
    metric = functions["metric"] or METRICS.get(metric_name)
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
        metric=metric if no_score is None else None,
        metric_name=metric_name or getattr(getattr(module, "metric", None), "__name__", "metric"),
        training=None if trained or no_score is not None else _training(module, path),
        no_score=no_score,
        metrics=functions["metrics"] if no_score is None else None,
        has_test_split=functions["test_loader"] is not None,
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
    pair = (item,) if isinstance(item, Tensor) else item  # a tensor alone is a batch without targets
    if not isinstance(pair, (tuple, list)) or not 1 <= len(pair) <= 2:
        raise UsageError(f"{path}: {name}() must give (inputs, targets) pairs, found {_kind(item)}.")
    raw, targets = pair[0], pair[1] if len(pair) == 2 else None
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
        except (Exception, SystemExit) as error:
            raise user_error(path, name, error) from error

    return call


def user_error(path: Path, name: str, error: BaseException) -> UsageError:
    """What a user's function raised, as one sentence with the user's last line that was running."""
    line = getattr(error, "lineno", None)
    where = user_line(path, error) or (f"{path}:{line}" if line else str(path))
    text = " ".join(str(error).split())
    what = {"import": "importing it", "the model's forward": name}.get(name, f"{name}()")
    return UsageError(f"{where}: {what} raised {type(error).__name__}{f': {text}' if text else ''}")


def user_line(path: Path, error: BaseException) -> str | None:
    """
    ``file:line`` of the user's code that *error* came through, the last call; None if it came through none.

    That is a line of the task file, or else of a module that it imports from beside it.
    """
    for files in ([path], source.siblings(path)):
        for cause in exporting.chain(error):
            for frame in reversed(traceback.extract_tb(cause.__traceback__)):
                if Path(frame.filename) in files:
                    return f"{frame.filename}:{frame.lineno}"
    return None


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
