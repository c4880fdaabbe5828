"""Put integer or 16-bit weights into a float .tflite: as inputs of hybrid kernels, or dequantised first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor

from compressors import tflite_file
from compressors.kernels.affine import Integers
from harness.core.errors import CellError

_KINDS = {"conv_2d": 0, "depthwise_conv_2d": 3, "fully_connected": 0}  # -> dimension of the outputs


def pack(model: Any, weights: Mapping[str, Integers], *, dynamic: bool) -> Any:
    """
    *model*, changed in place: each constant that is one of *weights* is stored as integers.

    In a *dynamic* graph LiteRT's hybrid kernels take them as they are and quantise the other input; else
    a DEQUANTIZE restores them. Raises CellError for a weight that is not in the graph, or has no kernel.
    """
    (graph,) = model.subgraphs
    wanted: dict[bytes, str] = {}
    scaled = _scaled(model, graph, weights)
    for name, integers in weights.items():
        for key in _layouts(integers.dequantised()):
            wanted.setdefault(key, name)
    done: set[str] = set()
    for index, tensor in enumerate(list(graph.tensors)):
        exact = wanted.get(_content(model, tensor))
        if exact is None and index not in scaled:
            continue
        name, factor = (exact, 1.0) if exact is not None else scaled[index]
        readers = [o for o in graph.operators if index in list(o.inputs)]
        dimension = _dimension(model, readers, index)
        if dimension is None:
            continue
        _require_kernel(name, weights[name], dynamic)
        integers = dataclasses.replace(weights[name], scale=weights[name].scale * factor)
        stored = _stored(model, graph, index, integers, dimension)
        if not dynamic:
            _restored(model, graph, index, stored, readers)
        else:
            _as_input(index, stored, readers)
        done.add(name)
    missing = [name for name in weights if name not in done]
    if missing:
        raise CellError(
            "export_failed",
            f"The TFLite converter changed the weight {missing[0]}, so its integers cannot be stored.",
            hint="It folds normalisation into linear layers. static_int8 works; or leave the layer in float.",
        )
    return _without_unused(model)


def _scaled(model: Any, graph: Any, weights: Mapping[str, Integers]) -> dict[int, tuple[str, float]]:
    """
    Tensors that are a weight times one number: tensor -> weight and number.

    The converter moves a multiplication behind a linear layer (that of attention) into its weight.
    """
    found: dict[int, tuple[str, float]] = {}
    values = {n: i.dequantised().flatten().double() for n, i in weights.items() if i.codes.ndim == 2}
    for index, tensor in enumerate(graph.tensors):
        content = _content(model, tensor)
        for name, value in values.items() if content else ():
            if len(content) != 4 * value.numel():
                continue
            other = torch.frombuffer(bytearray(content), dtype=torch.float32).double()
            factor = float(other @ value / (value @ value).clamp(min=1e-30))
            if factor > 0 and (other - factor * value).norm() < 1e-5 * other.norm():
                found[index] = (name, factor)
    return found


def _layouts(value: Tensor) -> list[bytes]:
    """The bytes of *value* in the orders that LiteRT's layers have."""
    found = [value]
    if value.ndim >= 3:
        found.append(value.movedim(1, -1))
        if value.shape[1] == 1:
            found.append(value.movedim(0, -1))
    return [tensor.contiguous().numpy().tobytes() for tensor in found]


def _content(model: Any, tensor: Any) -> bytes:
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) == 0:
        return b""
    return bytes(numpy.asarray(data, dtype=numpy.uint8))


def _dimension(model: Any, readers: list[Any], index: int) -> int | None:
    """The dimension of the outputs in a weight, from the layers that read it; None: no layer does."""
    kinds = {
        tflite_file.kind(model.operatorCodes[o.opcodeIndex]) for o in readers if list(o.inputs)[1] == index
    }
    return _KINDS.get(kinds.pop()) if len(kinds) == 1 else None


def _require_kernel(name: str, integers: Integers, dynamic: bool) -> None:
    if integers.block > 0 and not dynamic:
        raise CellError(
            "unsupported_op", "LiteRT cannot dequantise weights with blocks; it has dynamic_int8."
        )
    if integers.block > 0 and (integers.bits != 4 or integers.block % 32):
        raise CellError(
            "unsupported_op",
            f"LiteRT has blocks of 4 bits and 32, 64, ... inputs only; {name} has {integers.bits} bits and"
            f" {integers.block} inputs.",
        )


def _stored(model: Any, graph: Any, index: int, integers: Integers, dimension: int) -> int:
    """A new tensor with the codes of *integers* in the layout of the tensor *index*."""
    like = graph.tensors[index]
    made = schema.TensorT()
    made.shape, made.hasRank = like.shape, like.hasRank
    codes = integers.codes
    if codes.ndim >= 3:
        codes = codes.movedim(0, -1) if dimension == 3 else codes.movedim(1, -1)
    narrow = integers.bits == 4 and dimension == 0
    made.type = schema.TensorType.INT4 if narrow else schema.TensorType.INT8
    flat = codes.contiguous().flatten().numpy()
    made.buffer = _buffer(model, _nibbles(flat) if narrow else flat.view(numpy.uint8))
    made.quantization = _parameters(model, graph, integers, dimension)
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def _nibbles(codes: NDArray[Any]) -> NDArray[Any]:
    """Two codes per byte, the first in the lower half."""
    padded = numpy.append(codes, numpy.zeros(len(codes) % 2, dtype=codes.dtype)).view(numpy.uint8) & 15
    packed: NDArray[Any] = padded[0::2] | padded[1::2] << 4
    return packed


def _parameters(model: Any, graph: Any, integers: Integers, dimension: int) -> Any:
    made = schema.QuantizationParametersT()
    if integers.block > 0:
        scales = schema.TensorT()
        shape = (integers.codes.shape[0], integers.codes.shape[1] // integers.block)
        scales.shape, scales.hasRank = numpy.array(shape, dtype=numpy.int32), True
        scales.type = schema.TensorType.FLOAT16
        scales.buffer = _buffer(model, integers.scale.half().numpy().view(numpy.uint8))
        graph.tensors.append(scales)
        blocks = schema.BlockwiseQuantizationT()
        blocks.scales, blocks.zeroPoints, blocks.blockSize = len(graph.tensors) - 1, -1, integers.block
        made.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        made.details = blocks
        return made
    made.scale = integers.scale.numpy().astype(numpy.float32)
    made.zeroPoint = integers.zero.numpy()
    made.quantizedDimension = dimension if integers.block == 0 else 0
    return made


def _buffer(model: Any, data: NDArray[Any]) -> int:
    made = schema.BufferT()
    made.data = numpy.ascontiguousarray(data)
    model.buffers.append(made)
    return len(model.buffers) - 1


def _as_input(index: int, stored: int, readers: list[Any]) -> None:
    for operator in readers:
        _read(operator, index, stored)
        options = operator.builtinOptions
        if hasattr(options, "asymmetricQuantizeInputs"):
            options.asymmetricQuantizeInputs = True


def _restored(model: Any, graph: Any, index: int, stored: int, readers: list[Any]) -> None:
    """Put a DEQUANTIZE before the readers of *index*, which gives them back what it was."""
    twin = schema.TensorT()
    like = graph.tensors[index]
    twin.shape, twin.hasRank, twin.type, twin.buffer = like.shape, like.hasRank, like.type, 0
    graph.tensors.append(twin)
    value = len(graph.tensors) - 1
    for operator in readers:
        _read(operator, index, value)
    made = tflite_file.new_operator(model, schema.BuiltinOperator.DEQUANTIZE, stored, value)
    graph.operators.insert(0, made)


def _read(operator: Any, before: int, after: int) -> None:
    inputs = numpy.array(list(operator.inputs), dtype=numpy.int32)
    inputs[inputs == before] = after
    operator.inputs = inputs


def halve(model: Any, dtype: torch.dtype) -> Any:
    """*model*, changed in place: float constants that *dtype* holds exactly are stored in it."""
    if dtype != torch.float16:
        raise CellError("unsupported_op", "LiteRT has no kernel that reads weights in bf16.")
    (graph,) = model.subgraphs
    for index, tensor in enumerate(list(graph.tensors)):
        content = _content(model, tensor)
        exact = torch.frombuffer(bytearray(content), dtype=torch.float32) if content else torch.empty(0)
        readers = [o for o in graph.operators if index in list(o.inputs)]
        if exact.numel() < 8 or not readers or not torch.equal(exact.half().float(), exact):
            continue
        made = schema.TensorT()
        made.shape, made.hasRank, made.type = tensor.shape, tensor.hasRank, schema.TensorType.FLOAT16
        made.buffer = _buffer(model, exact.half().numpy().view(numpy.uint8))
        graph.tensors.append(made)
        _restored(model, graph, index, len(graph.tensors) - 1, readers)
    return _without_unused(model)


def _without_unused(model: Any) -> Any:
    """Empty the buffers that no tensor in use has, so that the file does not keep the old weights."""
    used = {0}
    for graph in model.subgraphs:
        read = {int(i) for o in graph.operators for i in (*o.inputs, *o.outputs) if i >= 0}
        read |= {int(i) for i in (*graph.inputs, *graph.outputs)}
        for tensor in graph.tensors:
            details = tensor.quantization.details if tensor.quantization else None
            if isinstance(details, schema.BlockwiseQuantizationT):
                read.add(details.scales)
        for index, tensor in enumerate(graph.tensors):
            if index in read:
                used.add(tensor.buffer)
            else:
                tensor.buffer = 0
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return model
