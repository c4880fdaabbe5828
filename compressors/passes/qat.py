"""Quantisation-aware training: train with the rounding of static int8 or less, then make integers."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError

if TYPE_CHECKING:
    from torch import nn

    from compressors.constraints import Constraint
    from compressors.state import Context, State
    from compressors.training import Hooks

NEEDS = ("float", "eager")
BREAKS = ("float", "eager")


class Options(shared.FineTuning, shared.PassOptions):
    """Options of qat; ``alpha`` above 0 learns from the original model's answers as well."""

    epochs: int = Field(default=5, ge=1, le=100_000, description="passes over the train loader")
    lr: float = Field(default=5e-4, gt=0, le=10, description="peak learning rate")
    bits: int = Field(default=8, ge=2, le=8, description="bits of a weight; activations have 8")
    granularity: Literal["per_channel", "per_tensor"] = Field(
        default="per_channel", description="one scale for each output channel of a weight, or one for all"
    )
    restricted: bool = Field(default=True, description="weights in [-127, 127] and not [-128, 127]")
    frozen_from: float = Field(
        default=0.7, ge=0, le=1, description="share of the epochs after which the ranges stay as they are"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="layers that stay float, by name, pattern, re:expression or type"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """The model in integers, after training that saw the rounding."""
    if state.quantised is not None:
        raise UsageError("the model is quantised already; qat does both in one.")
    if context.task.train_loader is None or context.task.loss is None:
        raise UsageError(
            f"the task {context.task.name} has no train_loader() and loss(), so it cannot be trained.",
            hint="quantise needs no training.",
        )
    from compressors import constraints, qat_graph, training

    inputs = context.task.example_inputs()
    module, promises, dropped = _folded(state, context)
    left = _left(module, options)
    if not set(qat_graph.layer_weights(module, inputs)) - left:
        raise NotApplicable("qat does not apply: no convolution or linear layer is left to become integers.")
    prepared = qat_graph.prepare(
        module,
        inputs,
        bits=options.bits,
        per_channel=options.granularity == "per_channel",
        restricted=options.restricted,
        left=left,
    )
    inside = {qat_graph.PREFIX + name: c for name, c in promises.items()}
    trained = training.fit(
        prepared,
        context.task,
        options,
        seed=context.seed,
        stage="qat",
        report=context.report,
        hooks=_hooks(options, context),
        constraints=inside,
    )
    assert isinstance(trained, qat_graph.Trainable)
    made = training.tidy(qat_graph.with_weights_of(module, trained))
    kept, lost = constraints.kept(promises, made)
    dropped |= dict.fromkeys(lost, "changed by qat")
    after = state.replaced(made, constraints=kept, dropped=dropped, note=_note(options))
    return dataclasses.replace(after, quantised=qat_graph.finished(trained, inputs))


def _folded(state: State, context: Context) -> tuple[nn.Module, dict[str, Constraint], dict[str, str]]:
    """The model with batch norm folded, the promises that still hold there, and why the rest does not."""
    from compressors import constraints, rewriting

    module, _ = rewriting.fold(copy.deepcopy(state.module), context.task.example_inputs(), False)
    kept, lost = constraints.kept(state.constraints, module)
    zeros = {n: state.constraints[n] for n in lost if state.constraints[n].zeros is not None}
    for name, promise in zeros.items():
        only = dataclasses.replace(promise, shared=None, book="")
        kept |= constraints.kept({name: only}, module)[0]
    return module, kept, dict.fromkeys(lost, "batch norm was folded into it")


def _left(module: nn.Module, options: Options) -> set[str]:
    from compressors import layers

    every = layers.weighted(module)
    return {layers.parameter_name(n) for n in layers.named(every, options.keep_float, "keep_float")}


def _hooks(options: Options, context: Context) -> Hooks:
    from compressors import qat_graph, tuning
    from compressors.training import Hooks

    def after_epoch(module: nn.Module, done: int) -> None:
        if done >= options.frozen_from * options.epochs:
            qat_graph.freeze(module)

    loss = tuning.taught(context, options.alpha, options.temperature) if options.alpha else None
    return Hooks(loss=loss, after_epoch=after_epoch)


def _note(options: Options) -> str:
    how = f", {options.alpha:g} of the loss from the original model's answers" if options.alpha else ""
    return f"{options.epochs} epochs with {options.bits}-bit weights{how}"
