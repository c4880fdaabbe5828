"""What passes that remove parts in rounds share: targets, gates on the validation score, batch norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressors import counting, score
from compressors.task import Task
from harness.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model may have at most: parameters, or multiply-accumulates of one inference."""

    option: str  # "parameters" or "macs"
    most: int

    def cost(self, module: nn.Module, task: Task) -> int:
        """What *module* has of it."""
        return counting.parameters(module) if self.option == "parameters" else counting.macs(module, task)

    def fits(self, module: nn.Module, task: Task) -> bool:
        """Whether *module* is within it."""
        return self.cost(module, task) <= self.most


def budget(module: nn.Module, task: Task, *, macs: float | None, parameters: float | None) -> Budget | None:
    """The budget that options ask for, as shares of what *module* has; None: no budget."""
    if macs is not None:
        return Budget(option="macs", most=int(macs * counting.macs(module, task) + 1e-6))
    if parameters is not None:
        return Budget(option="parameters", most=int(parameters * counting.parameters(module) + 1e-6))
    return None


def require_gate(task: Task, min_score: float | None) -> None:
    """Refuse a gate on the validation score of a task that has none of its own."""
    if min_score is None:
        return
    if task.metric is None or not task.has_test_split:
        lacks = "metric()" if task.metric is None else "test_loader()"
        raise UsageError(
            f"min_score: the task {task.name} has no {lacks}; the gate needs a validation split with a score"
            " that is not the test split.",
            hint="Leave min_score out or give the task what it lacks.",
        )


def passes(module: nn.Module, task: Task, min_score: float | None) -> tuple[bool, float | None]:
    """Whether the validation score of *module* is at least *min_score*, and the score."""
    if min_score is None:
        return True, None
    found = score.of_validation(module, task)
    return found >= min_score, found


def reestimated(module: nn.Module, task: Task, seed: int, samples: int) -> nn.Module:
    """
    *module*, changed in place, with the running mean and variance of every batch norm measured again.

    On *samples* training samples, without gradients. Only batch norm is in training mode: what is measured
    is what inference will see, so dropout stays off. Each batch counts the same.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms or not samples or task.train_loader is None:
        return module
    module.eval()
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    seen = 0
    with torch.no_grad():
        for inputs, _ in task.batches(task.train_loader(seed), "train_loader"):
            if seen >= samples:
                break
            task.run(module, inputs)
            seen += inputs[0].shape[0]
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return module.eval()


def progress(kind: str, step: int, steps: int) -> float:
    """The share of the whole way that is gone after *step* of *steps*: all, equal parts, or cubic."""
    if kind == "cubic":
        return 1 - (1 - step / steps) ** 3
    return step / steps
