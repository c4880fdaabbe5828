"""The task's metric of a model or a file on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressors.task import Batch, Task
from harness.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]

#: From samples (batch 1 each) to their outputs, in order.
Runner = Callable[[Iterable["Sample"]], Iterator["Sample"]]


def forward(module: nn.Module, inputs: tuple[Tensor, ...], task: Task) -> tuple[Tensor, ...]:
    """The outputs of *module*, as a tuple of tensors, without gradients."""
    with torch.no_grad():
        return task.run(module, inputs)


def of_module(module: nn.Module, task: Task, *, one_by_one: bool = False) -> float | None:
    """The score of *module* on the test split; *one_by_one* for a graph that only takes a batch of 1."""
    if task.metric is None:
        return None
    return _metric(task, *_answers(module, task, one_by_one))


def of_validation(module: nn.Module, task: Task) -> float:
    """The score of *module* on the validation split."""
    collected: list[tuple[Tensor, ...]] = []
    targets: list[Tensor] = []
    for inputs, wanted in task.batches(task.validation_loader(), "validation_loader"):
        assert wanted is not None  # contract.require_task has seen to it
        collected.append(forward(module, inputs, task))
        targets.append(wanted)
    return _metric(task, collected, targets)


def figures(
    module: nn.Module, task: Task, *, one_by_one: bool = False
) -> tuple[float | None, dict[str, float]]:
    """
    The score of *module* on the test split, and more figures by name.

    A classifier has accuracy, f1 and recall (mean over the classes); the task's metrics() adds its own.
    """
    if task.metric is None:
        return None, {}
    collected, targets = _answers(module, task, one_by_one)
    value = _metric(task, collected, targets)
    columns = [torch.cat(column) for column in zip(*collected, strict=True)]
    wanted = torch.cat(targets)
    found = classification(columns[0], wanted) if _is_labelled(columns, wanted) else {}
    if task.metrics is not None:
        own: object = task.metrics(columns[0] if len(columns) == 1 else tuple(columns), wanted)
        if not isinstance(own, dict):
            raise UsageError(f"{task.path}: metrics() must return a dict of numbers, found {_kind(own)}.")
        found |= {str(name): number(figure, task) for name, figure in own.items()}
    return value, found


def _is_labelled(columns: list[Tensor], targets: Tensor) -> bool:
    """Whether there is a row of logits per sample and a whole number as its target."""
    return (
        len(columns) == 1
        and columns[0].ndim == 2
        and columns[0].shape[1] > 1
        and targets.ndim == 1
        and not targets.is_floating_point()
    )


def classification(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """
    Accuracy, and F1 and recall as the plain mean over the classes.

    Over the classes that are a target or an answer; a class without answers or targets counts 0.
    """
    classes = logits.shape[1]
    table = torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2)
    table = table.reshape(classes, classes).double()  # rows: targets, columns: answers
    right, wanted, answered = table.diagonal(), table.sum(1), table.sum(0)
    seen = (wanted + answered) > 0
    recall = right / wanted.clamp(min=1)
    f1 = 2 * right / (wanted + answered).clamp(min=1)
    return {
        "accuracy": float(right.sum() / table.sum()),
        "f1": float(f1[seen].mean()),
        "recall": float(recall[seen].mean()),
    }


def _answers(
    module: nn.Module, task: Task, one_by_one: bool
) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    collected: list[tuple[Tensor, ...]] = []
    targets: list[Tensor] = []
    for inputs, wanted in _labelled(task):
        targets.append(wanted)
        if one_by_one:
            collected.extend(forward(module, sample, task) for sample in _singles(inputs))
        else:
            collected.append(forward(module, inputs, task))
    return collected, targets


def of_file(run: Runner, task: Task) -> tuple[float, int] | None:
    """The score on the test split of a file that *run* runs, and the number of samples."""
    if task.metric is None:
        return None
    targets: list[Tensor] = []

    def samples() -> Iterator[Sample]:
        for inputs, wanted in _labelled(task):
            targets.append(wanted)
            for single in _singles(inputs):
                yield tuple(tensor.numpy() for tensor in single)

    collected = [tuple(torch.from_numpy(array) for array in outputs) for outputs in run(samples())]
    return _metric(task, collected, targets), len(collected)


def is_classifier(task: Task, outputs: tuple[Tensor, ...]) -> bool:
    """Whether the outputs are a row of logits per sample and the targets, if any, whole numbers."""
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
        return False
    for _, targets in task.batches(task.validation_loader(), "validation_loader"):
        return targets is None or (targets.ndim == 1 and not targets.is_floating_point())
    return False


def samples(task: Task, count: int) -> list[tuple[Tensor, ...]]:
    """Up to *count* samples of the validation split, batch 1 each."""
    return take(task.batches(task.validation_loader(), "validation_loader"), count)


def take(batches: Iterable[Batch], count: int) -> list[tuple[Tensor, ...]]:
    """The first *count* samples of *batches*, batch 1 each."""
    found: list[tuple[Tensor, ...]] = []
    for inputs, _ in batches:
        for single in _singles(inputs):
            if len(found) == count:
                return found
            found.append(single)
    return found


def _singles(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    for i in range(inputs[0].shape[0]):
        yield tuple(tensor[i : i + 1].contiguous() for tensor in inputs)


def _labelled(task: Task) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    for inputs, targets in task.batches(task.test_loader(), "test_loader"):
        if targets is None:
            raise UsageError(
                f"{task.path}: test_loader() must give (inputs, targets) pairs, found no targets."
            )
        yield inputs, targets


def _metric(task: Task, collected: list[tuple[Tensor, ...]], targets: list[Tensor]) -> float:
    assert task.metric is not None
    if not collected:
        raise UsageError(f"{task.path}: test_loader() gives no batches.")
    columns = [torch.cat(column) for column in zip(*collected, strict=True)]
    value: object = task.metric(columns[0] if len(columns) == 1 else tuple(columns), torch.cat(targets))
    found = number(value, task)
    if not math.isfinite(found):
        raise UsageError(f"{task.path}: {task.metric_call} must return a finite number, found {found}.")
    return found


def number(value: object, task: Task) -> float:
    """What the task's metric returned, as a float; UsageError if it is none."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise UsageError(f"{task.path}: {task.metric_call} must return a number, found {_kind(value)}.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UsageError(
            f"{task.path}: {task.metric_call} must return a number, found {_kind(value)}."
        ) from error


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {list(shape)}" if shape else "")
