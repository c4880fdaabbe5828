"""Quantisation-aware training with PT2E: a graph that trains with rounding, and its integers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    disable_observer,
    enable_observer,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from compressors import integer_graph, quiet
from compressors.observers import SMALLEST
from compressors.quantiser import ClipAwareQuantizer
from compressors.state import Quantised
from harness.core.errors import CellError

#: What the graph's parameters are called inside a trainable model.
PREFIX = "graph."


class Trainable(nn.Module):
    """A prepared graph that ``training.fit`` can train: graphs refuse train() and eval() themselves."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.frozen = False  # whether ranges follow the values no more

    def forward(self, *inputs: Tensor) -> Any:
        """What the graph gives with rounding."""
        return self.graph(*inputs)

    def train(self, mode: bool = True) -> Trainable:
        """In training ranges follow the values, unless they are frozen."""
        self.training = mode
        self.graph.apply(enable_observer if mode and not self.frozen else disable_observer)
        return self


def freeze(module: nn.Module) -> None:
    """Keep the ranges of a trainable model as they are now."""
    assert isinstance(module, Trainable)
    module.frozen = True
    module.graph.apply(disable_observer)


def prepare(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    bits: int,
    per_channel: bool,
    restricted: bool,
    left: Collection[str],
) -> Trainable:
    """*module*, whose batch norm is folded, with simulated rounding of weights and activations."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    batch = tuple(torch.cat([t, t]) for t in inputs)
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with quiet.exporters():
        try:
            program = torch.export.export(
                module, batch, dynamic_shapes=(sizes,) if _is_variadic(module) else sizes
            )
        except Exception as error:  # torch.export raises what it likes
            text = str(error).strip().splitlines()
            raise CellError(
                "build_failed",
                "qat needs a model whose graph takes batches of any size; torch.export says:"
                f" {type(error).__name__}: {text[0][:200] if text else 'no message'}",
            ) from error
        quantizer = ClipAwareQuantizer(
            _activations(), weight=_weights(bits, per_channel, restricted), left=left, is_qat=True
        )
        prepared = prepare_qat_pt2e(program.module(), quantizer)
    return Trainable(prepared)


def _is_variadic(module: nn.Module) -> bool:
    import inspect

    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _activations() -> Any:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, eps=SMALLEST
        ),
    )


def _weights(bits: int, per_channel: bool, restricted: bool) -> Any:
    observer = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    # Averaging 1: the range is always that of the weights as they are now.
    fake = FusedMovingAvgObsFakeQuantize.with_args(observer=observer, averaging_constant=1.0, eps=2.0**-16)
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-(2 ** (bits - 1)) + restricted,
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0,
        is_dynamic=False,
        observer_or_fake_quant_ctr=fake,
    )


def finished(trained: Trainable, inputs: tuple[Tensor, ...]) -> Quantised:
    """The two forms of the trained graph with integers, for a batch of 1."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    forms = []
    with quiet.exporters():
        for fold in (True, False):
            converted = convert_pt2e(copy.deepcopy(trained.graph), fold_quantize=fold)
            single: Any = torch.export.export(converted, inputs).module()
            for part in single.modules():
                part.training = False
            forms.append(single)
    return Quantised(folded=forms[0], unfolded=forms[1], scheme="static_int8")


def with_weights_of(module: nn.Module, trained: Trainable) -> nn.Module:
    """A copy of the float *module* with the parameters that were trained."""
    made = copy.deepcopy(module)
    graph = dict(trained.graph.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in graph:
                parameter.copy_(graph[name])
    return made


def layer_weights(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """The weights of *module* that could become integers."""
    with quiet.exporters():
        return list(integer_graph.layers(integer_graph.exported(module, inputs)))
