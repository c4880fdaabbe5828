"""Fine-tune a compressed model on the task's loss, and on what the original model answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressors.options import FineTuning
from compressors.state import Context, State
from compressors.task import as_outputs
from compressors.training import NO_HOOKS, Hooks, Loss, fit
from harness.core.errors import UsageError


def finetune(
    state: State, options: FineTuning, context: Context, *, stage: str, hooks: Hooks = NO_HOOKS
) -> State:
    """*state* with its module trained again under its promises; nothing of it is changed in place."""
    if state.quantised is not None:
        raise UsageError(
            "integer weights cannot be trained.", hint=f"Put {stage} before quantise in the recipe."
        )
    if not options.epochs:
        return state
    if context.task.train_loader is None and context.task.no_score is not None:
        note = f"not trained again: {context.task.no_score}"
        return dataclasses.replace(state, note="; ".join(filter(None, (state.note, note))))
    if options.alpha and hooks.loss is None:
        hooks = dataclasses.replace(hooks, loss=taught(context, options.alpha, options.temperature))
    module = fit(
        state.module,
        context.task,
        options,
        seed=context.seed,
        stage=stage,
        report=context.report,
        hooks=hooks,
        constraints=state.constraints,
    )
    return state.replaced(module, dropped=state.dropped, note=state.note)


def taught(context: Context, alpha: float, temperature: float) -> Loss:
    """The task's own loss mixed with the distance to the original model's answers."""
    teacher, own_loss = context.original, context.task.loss
    assert own_loss is not None

    def loss(inputs: tuple[Tensor, ...], outputs: Any, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = context.task.run(teacher, inputs)
        hard = own_loss(outputs, targets)
        soft = distance(as_outputs(outputs, "the model"), answers, temperature)
        return (1 - alpha) * hard + alpha * soft

    return loss


def distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], temperature: float) -> Tensor:
    """
    How far a student's outputs are from its teacher's.

    For one row of logits per sample: T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over
    samples (Hinton 2015, arXiv:1503.02531). For anything else: the mean squared difference.
    """
    if len(student) == 1 and student[0].ndim == 2 and student[0].shape[1] > 1:
        return temperature**2 * functional.kl_div(
            functional.log_softmax(student[0] / temperature, 1),
            functional.log_softmax(teacher[0] / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
    total = torch.stack([functional.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)])
    return total.sum()
