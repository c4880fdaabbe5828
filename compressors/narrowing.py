"""Weights in fewer bits that stay float tensors: a k-means codebook, or values that 16-bit floats hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from compressors import constraints, layers, rewriting
from compressors.constraints import Constraint
from compressors.kernels import kmeans
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def to_codebook(state: State, bits: int, rules: Iterable[Any], seed: int) -> State:
    """Every weight from 2^bits values of its layer (k-means); zeros that are promised stay zero."""
    every = layers.weighted(state.module)
    if not every:
        raise NotApplicable("quantise does not apply: the model has no convolution or linear layer.")
    rule_of: dict[str, Any] = {}
    for rule in rules:
        for name in layers.named(every, rule.match, "layers.match"):
            rule_of[name] = rule
    module = copy.deepcopy(state.module)
    parameters = dict(module.named_parameters())
    promises: dict[str, Constraint] = {}
    widths: dict[str, int] = {}
    for name, layer in layers.parameters_of(state.module, every).items():
        rule = rule_of.get(layer)
        if rule is not None and rule.keep_float:
            continue
        width = (rule and rule.bits) or bits
        old = state.constraints.get(name, Constraint())
        values, numbers = _codebook(parameters[name].detach(), old.zeros, width, seed)
        parameters[name].data.copy_(values)
        promises[name] = Constraint(zeros=old.zeros, shared=numbers)
        widths[name] = width
    note = (
        "the files keep float weights: no runtime has kernels for codebooks; what is smaller is the file"
        " after gzip or in a container"
    )
    return state.replaced(
        tidy(module),
        note=note,
        constraints=constraints.merged(state.constraints, promises),
        bits={**state.bits, **widths},
    )


def _codebook(weight: Tensor, zeros: Tensor | None, bits: int, seed: int) -> tuple[Tensor, Tensor]:
    """The weight with its values from a codebook, and the number of each; -1 is a promised zero."""
    free = torch.ones_like(weight, dtype=torch.bool) if zeros is None else ~zeros
    numbers = torch.full(weight.shape, -1, dtype=torch.int64)
    found = weight.clone()
    count = 2**bits - (0 if zeros is None or not bool(zeros.any()) else 1)  # zero is a value, too
    if bool(free.any()):
        centres, numbers[free] = kmeans.kmeans(weight[free], count, seed=seed)
        found[free] = centres[numbers[free]]
    if zeros is not None:
        found[zeros] = 0.0
    return found, numbers


def to_half(state: State, scheme: str, inputs: tuple[Tensor, ...]) -> State:
    """
    Every parameter rounded to a value that the 16-bit type holds, and stored in it.

    Batch norm is folded first: exporters would do it afterwards and leave values that need 32 bits.
    """
    dtype = DTYPES[scheme]
    module, _ = rewriting.fold(copy.deepcopy(state.module), inputs, False)
    kept, lost = constraints.kept(state.constraints, module)
    widths = {name: bits for name, bits in state.bits.items() if name in module.state_dict()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dtype != torch.float32:
            continue
        narrow = tensor.detach().to(dtype)
        if not bool(torch.isfinite(narrow).all()) and bool(torch.isfinite(tensor).all()):
            raise CellError(
                "build_failed",
                f"{name} has a value of {float(tensor.abs().max()):.3g}, which {scheme} cannot hold.",
                hint="bf16 has the range of float32." if scheme == "fp16" else "",
            )
        tensor.data.copy_(narrow.float())
        widths[name] = min(widths.get(name, 16), 16)
    return state.replaced(
        tidy(module),
        constraints=constraints.kept(kept, module)[0],
        dropped=dict.fromkeys(lost, "batch norm was folded into it"),
        bits=widths,
        note=f"weights rounded to {scheme}; .onnx and .tflite store 16 bits, .pte 32; all compute in float32",
    )
