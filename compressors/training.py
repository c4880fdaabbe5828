"""Train a model so that one seed always gives the same weights."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from compressors import score
from compressors.constraints import Constraints, gather_gradients, project
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a pass may add to training; each is optional."""

    #: Replaces the task's own loss, e.g. to learn from a teacher.
    loss: Loss | None = None
    #: Added to the loss: from the model in training to one number, e.g. a group lasso.
    regulariser: Callable[[nn.Module], Tensor] | None = None
    #: Called after the gradients are there and before the optimiser's step.
    before_step: Callable[[nn.Module], None] | None = None
    #: Called after the step with the rate of the step, e.g. a proximal operator or a mask that is learned.
    after_step: Callable[[nn.Module, float], None] | None = None
    #: Called with the trained epochs so far (1 after the first).
    after_epoch: Callable[[nn.Module, int], None] | None = None


NO_HOOKS = Hooks()


def fit(
    module: nn.Module,
    task: Task,
    training: Training,
    *,
    seed: int,
    stage: str,
    report: Callable[[Progress], None],
    hooks: Hooks = NO_HOOKS,
    constraints: Constraints = MappingProxyType({}),
) -> nn.Module:
    """A trained copy of *module* that keeps *constraints* after every single step."""
    if task.train_loader is None or task.loss is None:
        raise UsageError(
            f"{stage}: the task {task.name} has no train_loader() and loss(), so it cannot be trained."
        )
    best = _Best(task, training, stage)
    module = copy.deepcopy(module).train().requires_grad_(True)
    if training.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with deterministic(seed, training.threads):
        loader = _Rebatched(task, task.train_loader(seed), training.batch_size)
        optimiser, scheduler = _optimiser(module, training, loader.count())
        work = _Work(
            task=task,
            loss=_total_loss(task.loss, hooks, module),
            optimiser=optimiser,
            scheduler=scheduler,
            hooks=hooks,
            constraints=constraints,
            where=lambda epoch: f"{stage}: the loss became {{}} in epoch {epoch + 1} of {training.epochs}.",
            hint=f"Try a smaller learning rate than {training.lr:g} (option lr).",
        )
        started = time.monotonic()
        for epoch in range(training.epochs):
            value = _epoch(module, loader, work, epoch)
            if hooks.after_epoch is not None:
                hooks.after_epoch(module, epoch + 1)
            done = best.seen(module, epoch)
            left_s = (time.monotonic() - started) / (epoch + 1) * (training.epochs - epoch - 1)
            note = f"loss {value:.4f}" + best.note + (f", {left_s:.0f} s left" if left_s >= 1 else "")
            total = epoch + 1 if done else training.epochs
            report(Progress(stage=stage, done=epoch + 1, total=total, note=note))
            if done:
                break
        best.restore(module)
    return tidy(module)


def _total_loss(own: Callable[[Any, Tensor], Tensor], hooks: Hooks, module: nn.Module) -> Loss:
    def loss(inputs: tuple[Tensor, ...], outputs: Any, targets: Tensor) -> Tensor:
        value = own(outputs, targets) if hooks.loss is None else hooks.loss(inputs, outputs, targets)
        return value if hooks.regulariser is None else value + hooks.regulariser(module)

    return loss


class _Best:
    """The weights with the best validation score so far, for early stopping."""

    def __init__(self, task: Task, training: Training, stage: str) -> None:
        self.task, self.patience, self.note = task, training.patience, ""
        self._score = -math.inf
        self._epoch = -1
        self._weights: dict[str, Tensor] = {}
        if self.patience is not None and (task.metric is None or not task.has_test_split):
            lacks = "test_loader()" if task.metric is not None else "metric()"
            raise UsageError(
                f"{stage}: patience: the task {task.name} has no {lacks}; early stopping needs a validation"
                " split with a score that is not the test split.",
                hint="Leave patience out or give the task a test_loader().",
            )

    def seen(self, module: nn.Module, epoch: int) -> bool:
        """Remember *module* if it is better; True once it was not for too many epochs."""
        if self.patience is None:
            return False
        found = score.of_validation(module.eval(), self.task)
        module.train()
        self.note = f", validation {found:.4f}"
        if found > self._score:
            self._score, self._epoch = found, epoch
            self._weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
        return epoch - self._epoch >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Put the best weights back."""
        if self._weights:
            module.load_state_dict(self._weights)


class _Rebatched:
    """The batches of a train loader, joined and split to *size* samples if a size is asked for."""

    def __init__(self, task: Task, loader: Any, size: int | None) -> None:
        self.task, self.loader, self.size = task, loader, size

    def count(self) -> int:
        """Batches of one epoch."""
        if self.size is None and hasattr(self.loader, "__len__"):
            count = len(self.loader)
        else:
            count = sum(1 for _ in self)
        if not count:
            raise UsageError(f"{self.task.path}: train_loader() gives no batches.")
        return count

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        columns: list[Tensor] = []
        for inputs, targets in self.task.batches(self.loader, "train_loader"):
            if targets is None:
                raise UsageError(
                    f"{self.task.path}: train_loader() must give (inputs, targets) pairs, found no targets."
                )
            if self.size is None:
                yield inputs, targets
                continue
            new = [*inputs, targets]
            columns = [torch.cat(pair) for pair in zip(columns, new, strict=True)] if columns else new
            while columns[0].shape[0] >= self.size:
                yield tuple(c[: self.size] for c in columns[:-1]), columns[-1][: self.size]
                columns = [c[self.size :] for c in columns]
        if columns and columns[0].shape[0]:
            yield tuple(columns[:-1]), columns[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one training step needs besides the model and the batch."""

    task: Task
    loss: Loss
    optimiser: torch.optim.Optimizer
    scheduler: Any
    hooks: Hooks
    constraints: Constraints
    where: Callable[[int], str]
    hint: str


def _epoch(module: nn.Module, loader: _Rebatched, work: _Work, epoch: int) -> float:
    """Train on every batch once; the mean loss."""
    total, batches = 0.0, 0
    for inputs, targets in loader:
        outputs = work.task.run(module, inputs)
        value = work.loss(inputs, outputs[0] if len(outputs) == 1 else outputs, targets)
        number = value.item()
        if not math.isfinite(number):
            raise CellError("build_failed", work.where(epoch).format(number), hint=work.hint)
        work.optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        if work.constraints:
            gather_gradients(module, work.constraints)
        if work.hooks.before_step is not None:
            work.hooks.before_step(module)
        rate = float(work.optimiser.param_groups[0]["lr"])
        work.optimiser.step()
        if work.hooks.after_step is not None:
            work.hooks.after_step(module, rate)
        if work.constraints:
            project(module, work.constraints)
        work.scheduler.step()
        total, batches = total + number, batches + 1
    return total / batches


def _optimiser(module: nn.Module, training: Training, batches: int) -> tuple[torch.optim.Optimizer, Any]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    optimiser: torch.optim.Optimizer
    if training.optimiser == "sgd":
        nesterov = training.momentum > 0
        optimiser = torch.optim.SGD(parameters, momentum=training.momentum, nesterov=nesterov, **common)
    elif training.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, **common)
    else:
        optimiser = torch.optim.AdamW(parameters, **common)
    schedules = torch.optim.lr_scheduler
    steps = training.epochs * batches
    if training.schedule == "one_cycle":
        # One step more than is taken: the scheduler is stepped after the last batch as well.
        return optimiser, schedules.OneCycleLR(
            optimiser, training.lr, total_steps=max(steps, 1) + 1, pct_start=training.warmup
        )
    if training.schedule == "cosine":
        return optimiser, schedules.CosineAnnealingLR(optimiser, max(steps, 1))
    if training.schedule == "step":
        return optimiser, schedules.StepLR(optimiser, training.step_epochs * batches, training.step_factor)
    return optimiser, schedules.ConstantLR(optimiser, factor=1.0, total_iters=0)
