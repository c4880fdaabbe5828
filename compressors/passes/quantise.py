"""Quantise weights and activations to integers: static int8 with one calibration for all three formats."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compressors import options as shared
from compressors import quiet
from harness.core.errors import CellError, UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from compressors.state import Context, State


NEEDS = ("float", "eager")
BREAKS = ("float", "eager")


class Options(shared.PassOptions):
    """Options of quantise."""

    scheme: Literal["static_int8"] = Field(default="static_int8", description="int8 weights and activations")
    calibration: int = Field(
        default=256, ge=1, le=100_000, description="samples that the ranges of activations are taken from"
    )
    granularity: Literal["per_channel", "per_tensor"] = Field(
        default="per_channel", description="one scale for each output channel of a weight, or one for all"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """Calibrate one PT2E graph and convert it into the two forms that the exporters want."""
    if state.quantised is not None:
        raise UsageError("the model is quantised already; a recipe has one quantise step.")
    from compressors.state import Quantised
    from compressors.training import deterministic

    with quiet.exporters(), deterministic(context.seed):
        prepared = _prepare(state.module, options, context)
        _calibrate(prepared, options, context)
        return dataclasses.replace(
            state,
            note="",
            dropped={},
            quantised=Quantised(
                folded=_converted(prepared, fold=True), unfolded=_converted(prepared, fold=False)
            ),
        )


def _prepare(module: nn.Module, options: Options, context: Context) -> GraphModule:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    from compressors import quantiser

    quantizer = quantiser.int8(per_channel=options.granularity == "per_channel")
    exported = torch.export.export(module, context.task.example_inputs()).module()
    return prepare_pt2e(exported, quantizer)  # type: ignore[no-any-return]  # torchao is untyped


def _calibrate(prepared: GraphModule, options: Options, context: Context) -> None:
    from compressors import score

    task = context.task
    batches = task.batches(task.calibration_loader(context.seed), "calibration_loader")
    samples = score.take(batches, options.calibration)
    if not samples:
        raise UsageError(f"the task {task.name} gives no samples to calibrate with.")
    for done, sample in enumerate(samples, 1):
        score.forward(prepared, sample, task)
        if done % 32 == 0 or done == len(samples):
            context.report(Progress(stage="quantise", done=done, total=len(samples), note="calibrating"))


def _converted(prepared: GraphModule, *, fold: bool) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph: Any = convert_pt2e(copy.deepcopy(prepared), fold_quantize=fold)
    for part in graph.modules():
        part.training = False  # eval() refuses exported graphs, and exporters warn of a graph in training
    if not any("quantize" in str(node.target) for node in graph.graph.nodes):
        raise CellError("build_failed", "no operator of the model has an int8 form.")
    return graph  # type: ignore[no-any-return]
