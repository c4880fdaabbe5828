"""Train a model so that one seed always gives the same weights."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from compressors.options import Training
from compressors.task import Task
from harness.core.errors import CellError, UsageError
from harness.core.types import Progress

#: From a batch's inputs, outputs and targets to the loss that is minimised.
Loss = Callable[[tuple[Tensor, ...], Any, Tensor], Tensor]


@contextlib.contextmanager
def deterministic(seed: int, threads: int = 1) -> Iterator[None]:
    """Run the block with every random generator seeded and *threads* threads; put all of it back after."""
    numpy_state, python_state, threads_before = (
        numpy.random.get_state(),
        random.getstate(),
        torch.get_num_threads(),
    )
    strict_before = torch.are_deterministic_algorithms_enabled()
    warn_before = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            numpy.random.seed(seed % 2**32)
            random.seed(seed)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(strict_before, warn_only=warn_before)
            torch.set_num_threads(threads_before)
            numpy.random.set_state(numpy_state)
            random.setstate(python_state)


def tidy(module: nn.Module) -> nn.Module:
    """
    *module* in evaluation mode with frozen parameters in plain C order; changed in place.

    In C order because the TFLite exporter merges constants that share a shape and are not, and because
    exporters write strides into the file: a model from the cache must give the same bytes as a fresh one.
    """
    module.eval().to("cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        tensor.requires_grad_(False)
    return module


def fit(
    module: nn.Module,
    task: Task,
    training: Training,
    *,
    seed: int,
    stage: str,
    report: Callable[[Progress], None],
    loss: Loss | None = None,
) -> nn.Module:
    """A trained copy of *module*; *loss* replaces the task's own, e.g. to learn from a teacher."""
    if task.train_loader is None or task.loss is None:
        raise UsageError(
            f"{stage}: the task {task.name} has no train_loader() and loss(), so it cannot be trained."
        )
    own_loss = task.loss

    def minimised(inputs: tuple[Tensor, ...], outputs: Any, targets: Tensor) -> Tensor:
        return own_loss(outputs, targets) if loss is None else loss(inputs, outputs, targets)

    module = copy.deepcopy(module).train().requires_grad_(True)
    if training.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with deterministic(seed, training.threads):
        loader = task.train_loader(seed)
        batches = _count(task, loader)
        optimiser, scheduler = _optimiser(module, training, training.epochs * batches)
        started = time.monotonic()
        for epoch in range(training.epochs):
            value = _epoch(
                module, task, loader, _Work(loss=minimised, optimiser=optimiser, scheduler=scheduler)
            )
            _require_finite(value, stage, epoch, training)
            left_s = (time.monotonic() - started) / (epoch + 1) * (training.epochs - epoch - 1)
            note = f"loss {value:.4f}, {left_s:.0f} s left" if left_s >= 1 else f"loss {value:.4f}"
            report(Progress(stage=stage, done=epoch + 1, total=training.epochs, note=note))
    return tidy(module)


def _require_finite(loss: float, stage: str, epoch: int, training: Training) -> None:
    if not math.isfinite(loss):
        raise CellError(
            "build_failed",
            f"{stage}: the loss became {loss} in epoch {epoch + 1} of {training.epochs}.",
            hint=f"Try a smaller learning rate than {training.lr:g}.",
        )


def _count(task: Task, loader: Any) -> int:
    """Batches of one epoch."""
    count = (
        len(loader) if hasattr(loader, "__len__") else sum(1 for _ in task.batches(loader, "train_loader"))
    )
    if not count:
        raise UsageError(f"{task.path}: train_loader() gives no batches.")
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one training step needs besides the model and the batch."""

    loss: Loss
    optimiser: torch.optim.Optimizer
    scheduler: Any


def _epoch(module: nn.Module, task: Task, loader: Any, work: _Work) -> float:
    """Train on every batch once; the mean loss."""
    total, batches = 0.0, 0
    for inputs, targets in task.batches(loader, "train_loader"):
        if targets is None:
            raise UsageError(
                f"{task.path}: train_loader() must give (inputs, targets) pairs, found no targets."
            )
        outputs = task.run(module, inputs)
        value = work.loss(inputs, outputs[0] if len(outputs) == 1 else outputs, targets)
        work.optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        work.optimiser.step()
        work.scheduler.step()
        total, batches = total + value.item(), batches + 1
    return total / batches


def _optimiser(module: nn.Module, training: Training, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    optimiser: torch.optim.Optimizer
    if training.optimiser == "sgd":
        optimiser = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **common)
    elif training.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, **common)
    else:
        optimiser = torch.optim.AdamW(parameters, **common)
    schedules = torch.optim.lr_scheduler
    if training.schedule == "one_cycle":
        # One step more than is taken: the scheduler is stepped after the last batch as well.
        return optimiser, schedules.OneCycleLR(
            optimiser, training.lr, total_steps=max(steps, 1) + 1, pct_start=training.warmup
        )
    if training.schedule == "cosine":
        return optimiser, schedules.CosineAnnealingLR(optimiser, max(steps, 1))
    return optimiser, schedules.ConstantLR(optimiser, factor=1.0, total_iters=0)
