"""What must hold before and after every pass, and the report of what the pass did."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors import constraints, counting, score
from compressors.memory import Peak
from compressors.state import State
from compressors.task import Task
from harness.core.errors import CellError, UsageError
from harness.core.types import StepReport


def require_task(task: Task) -> None:
    """Refuse a task whose model, inputs, loader, loss and metric do not fit each other."""
    module = task.model().eval()
    outputs = score.forward(module, task.example_inputs(), task)
    for inputs, targets in task.batches(task.validation_loader(), "validation_loader"):
        _require_same_shapes(task, inputs)
        batch = score.forward(module, inputs, task)
        for one, many in zip(outputs, batch, strict=True):
            if many.shape[0] != inputs[0].shape[0] or many.shape[1:] != one.shape[1:]:
                raise UsageError(
                    f"{task.path}: the model must give one output per sample in dimension 0:"
                    f" {list(one.shape)} for example_inputs(),"
                    f" {list(many.shape)} for a batch of {inputs[0].shape[0]}."
                )
        if task.no_score is None:
            _require_labelled(task, batch, targets)
        return
    raise UsageError(f"{task.path}: validation_loader() gives no batches.")


def _require_same_shapes(task: Task, inputs: tuple[Tensor, ...]) -> None:
    example = task.example_inputs()
    wanted = [(list(t.shape[1:]), t.dtype) for t in example]
    found = [(list(t.shape[1:]), t.dtype) for t in inputs]
    if wanted != found:
        raise UsageError(
            f"{task.path}: validation_loader() gives samples of {_shapes(found)},"
            f" but example_inputs() has {_shapes(wanted)}."
        )


def _require_labelled(task: Task, outputs: tuple[Tensor, ...], targets: Tensor | None) -> None:
    assert task.metric is not None
    if targets is None:
        raise UsageError(
            f"{task.path}: validation_loader() must give (inputs, targets) pairs, found no targets.",
            hint="A task without labels says LATENCY_ONLY = 'why there is no score'.",
        )
    answers = outputs[0] if len(outputs) == 1 else outputs
    if task.loss is not None:
        loss = task.loss(answers, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"{task.path}: loss() must return a tensor with one number, found {found}.")
    score.number(task.metric(answers, targets), task)


def require(state: State, task: Task, step: str, before: State | None = None) -> None:
    """Refuse a model that does not run, gives other shapes or dtypes than before, or is not finite."""
    inputs = task.example_inputs()
    try:
        outputs = score.forward(state.reference, inputs, task)
    except UsageError as error:
        raise CellError("build_failed", f"After {step} the model does not run: {error}") from error
    if not all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point()):
        raise CellError("build_failed", f"After {step} the model's outputs are not finite.")
    if before is not None:
        wanted = _signature(score.forward(before.reference, inputs, task))
        if _signature(outputs) != wanted:
            raise CellError(
                "build_failed",
                f"After {step} the model gives {_shapes(_signature(outputs))} and not {_shapes(wanted)}.",
            )


def require_promises(before: State, after: State, step: str) -> None:
    """Refuse a step that broke what an earlier one promised, or lost a promise without saying so."""
    lost = constraints.weaker(before.constraints, after.constraints, after.dropped, after.module)
    if lost is not None:
        raise CellError(
            "build_failed",
            f"{step} does not keep the zeros or shared values of {lost} and does not say why.",
            hint="A pass carries State.constraints or names them in State.dropped.",
        )
    wrong = constraints.broken(after.module, after.constraints)
    if wrong is None and after.quantised is not None:
        wrong = _broken_when_quantised(after)
    if wrong is not None:
        raise CellError("build_failed", f"{step} broke a promise of an earlier step: {wrong}.")


def _broken_when_quantised(state: State) -> str | None:
    """Zeros are zeros in integers as well; a shared value may be rounded by the scale of its channel."""
    for weight in counting.quantised_weights(state):
        promise = state.constraints.get(weight.name)
        if promise is None or promise.zeros is None or promise.zeros.shape != weight.rounded.shape:
            continue
        if lost := int(weight.rounded[promise.zeros].count_nonzero()):
            return f"{lost} of the {int(promise.zeros.sum())} zeros of {weight.name} are not zero any more"
    return None


def require_no_growth(before: StepReport, after: StepReport, step: str) -> None:
    """Refuse a step after which the model is bigger, or slower by its multiply-accumulates."""
    grown = [
        f"{what} from {old:,} to {new:,}"
        for what, old, new in (
            ("parameters", before.parameters, after.parameters),
            ("bytes", before.bytes, after.bytes),
            ("multiply-accumulates", before.macs, after.macs),
        )
        if old is not None and new is not None and new > old
    ]
    if grown:
        raise CellError(
            "build_failed",
            f"{step} made the model bigger or slower: {', '.join(grown)}.",
            hint="Choose other options, or set allow_growth: true if that is meant.",
        )


def report(
    name: str,
    before: State | None,
    after: State,
    task: Task,
    *,
    wall_s: float,
    note: str = "",
    memory: Peak | None = None,
) -> StepReport:
    """What step *name* made of *before*; the score is the model's on the test split."""
    value, metrics = score.figures(after.reference, task, one_by_one=after.quantised is not None)
    nonzeros, weights = counting.nonzeros(after)
    size_bytes, gzip_bytes = counting.size(after)
    return StepReport(
        name=name,
        wall_s=wall_s,
        parameters=counting.parameters(after.module),
        nonzeros=nonzeros,
        macs=counting.macs(after.module, task),
        score=value,
        changed=before is None or changed(before, after),
        cached=False,
        note=note,
        sparsity=1 - nonzeros / weights if weights else None,
        bytes=size_bytes,
        gzip_bytes=gzip_bytes,
        metrics=metrics,
        metrics_reason=None
        if metrics
        else task.no_score or "not a classifier, and the task has no metrics()",
        peak_memory_bytes=memory.bytes if memory else None,
        peak_memory_method=memory.method if memory else "not measured",
        layers=counting.changes(before, after) if before is not None else (),
    )


def changed(before: State, after: State) -> bool:
    """Whether a pass made any difference."""
    if before.quantised is not after.quantised:
        return True
    if before.constraints.keys() != after.constraints.keys() or dict(before.bits) != dict(after.bits):
        return True
    if str(before.module) != str(after.module):  # layers and their settings
        return True
    old, new = before.module.state_dict(), after.module.state_dict()
    return old.keys() != new.keys() or any(not torch.equal(old[key], new[key]) for key in old)


def _signature(outputs: tuple[Tensor, ...]) -> list[tuple[list[int], torch.dtype]]:
    return [(list(t.shape), t.dtype) for t in outputs]


def _shapes(signature: list[tuple[list[int], torch.dtype]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')}{shape}" for shape, dtype in signature)
