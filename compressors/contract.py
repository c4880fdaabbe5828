"""What must hold before and after every pass, and the report of what the pass did."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from compressors import score
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


def report(
    name: str, before: State | None, after: State, task: Task, *, wall_s: float, note: str = ""
) -> StepReport:
    """What step *name* made of *before*; the score is the model's on the test split."""
    return StepReport(
        name=name,
        wall_s=wall_s,
        parameters=sum(p.numel() for p in after.module.parameters()),
        nonzeros=nonzeros(after),
        macs=macs(after.module, task),
        score=score.of_module(after.reference, task, one_by_one=after.quantised is not None),
        changed=before is None or changed(before, after),
        cached=False,
        note=note,
    )


def changed(before: State, after: State) -> bool:
    """Whether a pass made any difference."""
    if before.quantised is not after.quantised:
        return True
    old, new = before.module.state_dict(), after.module.state_dict()
    return old.keys() != new.keys() or any(not torch.equal(old[key], new[key]) for key in old)


def nonzeros(state: State) -> int:
    """Weights that are not zero; of a quantised model those whose integer is not zero."""
    if state.quantised is None:
        return sum(int(p.count_nonzero()) for p in state.module.parameters())
    tensors = dict((*state.quantised.folded.named_parameters(), *state.quantised.folded.named_buffers()))
    used = [str(node.target) for node in state.quantised.folded.graph.nodes if node.op == "get_attr"]
    return sum(int(tensors[n].count_nonzero()) for n in used if not re.search(r"_(scale|zero_point)_\d+$", n))


def macs(module: nn.Module, task: Task) -> int:
    """Multiply-accumulates of one inference with the example inputs: convolutions and matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into fused attention
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            score.forward(module, task.example_inputs(), task)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def _signature(outputs: tuple[Tensor, ...]) -> list[tuple[list[int], torch.dtype]]:
    return [(list(t.shape), t.dtype) for t in outputs]


def _shapes(signature: list[tuple[list[int], torch.dtype]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')}{shape}" for shape, dtype in signature)
