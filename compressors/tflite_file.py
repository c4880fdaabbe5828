"""Edit a .tflite file: give a quantised model a float interface and take out what no runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import numpy
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
#: The schema asks for this alignment of a buffer's data (``force_align: 16``).
_ALIGNMENT_BYTES = 16


def read(path: Path) -> Any:
    """The model in the file as a tree of objects that can be changed."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def write(model: Any, path: Path) -> None:
    """Write *model* to *path*."""
    builder = _Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers is untyped
    """A builder that aligns byte vectors as the schema asks; the generated Python code forgets to."""

    def StartVector(self, size: int, count: int, alignment: int) -> int:
        if size == 1 and count:
            alignment = _ALIGNMENT_BYTES
        return super().StartVector(size, count, alignment)  # type: ignore[no-any-return]


def with_float_interface(model: Any) -> Any:
    """*model*, changed in place: int8 inputs and outputs become float, converted inside the model."""
    (graph,) = model.subgraphs
    signature = model.signatureDefs[0] if model.signatureDefs else None
    graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
    for position, index in enumerate(graph.inputs):
        if not _is_quantised(graph.tensors[index]):
            continue
        outer = _float_twin(graph, index)
        graph.operators.insert(0, new_operator(model, schema.BuiltinOperator.QUANTIZE, outer, index))
        graph.inputs[position] = outer
        _repoint(signature.inputs if signature else [], index, outer)
    for position, index in enumerate(graph.outputs):
        if not _is_quantised(graph.tensors[index]):
            continue
        outer = _float_twin(graph, index)
        graph.operators.append(new_operator(model, schema.BuiltinOperator.DEQUANTIZE, index, outer))
        graph.outputs[position] = outer
        _repoint(signature.outputs if signature else [], index, outer)
    return model


def with_wide_biases(model: Any) -> Any:
    """*model*, changed in place: layers with int16 inputs get the 64-bit biases that their kernels want."""
    (graph,) = model.subgraphs
    for operator in graph.operators:
        inputs = [int(index) for index in operator.inputs]
        if len(inputs) < 3 or inputs[2] < 0 or graph.tensors[inputs[0]].type != schema.TensorType.INT16:
            continue
        bias = graph.tensors[inputs[2]]
        if bias.type == schema.TensorType.INT32 and model.buffers[bias.buffer].data is not None:
            narrow = numpy.asarray(model.buffers[bias.buffer].data, dtype=numpy.uint8).view(numpy.int32)
            made = schema.BufferT()
            made.data = narrow.astype(numpy.int64).view(numpy.uint8)
            model.buffers.append(made)
            bias.type, bias.buffer = schema.TensorType.INT64, len(model.buffers) - 1
    return model


def bare(model: Any) -> Any:
    """*model*, changed in place, with short names: interface by signature, the rest by operator."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = None
        for number, operator in enumerate(graph.operators):
            name = kind(model.operatorCodes[operator.opcodeIndex])
            for index in operator.outputs:
                graph.tensors[index].name = f"{name}_{number}"
    for signature in model.signatureDefs or []:
        graph = model.subgraphs[signature.subgraphIndex]
        for tensor_map in (*signature.inputs, *signature.outputs):
            graph.tensors[tensor_map.tensorIndex].name = tensor_map.name
    return model


def operators(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Every operator of the first graph with the types of its inputs (``schema.TensorType``)."""
    graph = model.subgraphs[0]
    return [
        (
            kind(model.operatorCodes[operator.opcodeIndex]),
            tuple(graph.tensors[index].type for index in operator.inputs if index >= 0),
        )
        for operator in graph.operators
    ]


def _is_quantised(tensor: Any) -> bool:
    scale = tensor.quantization.scale if tensor.quantization else None
    return (
        tensor.type in (schema.TensorType.INT8, schema.TensorType.INT16)
        and scale is not None
        and len(scale) > 0
    )


def _float_twin(graph: Any, index: int) -> int:
    twin = schema.TensorT()
    inner = graph.tensors[index]
    twin.shape, twin.shapeSignature, twin.hasRank = inner.shape, inner.shapeSignature, inner.hasRank
    twin.type, twin.buffer = schema.TensorType.FLOAT32, 0
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def new_operator(model: Any, builtin: int, source: int, target: int) -> Any:
    """A new operator of *model* from the tensor *source* to *target*."""
    made = schema.OperatorT()
    made.opcodeIndex = _code(model, builtin)
    made.inputs = numpy.array([source], dtype=numpy.int32)
    made.outputs = numpy.array([target], dtype=numpy.int32)
    return made


def _code(model: Any, builtin: int) -> int:
    for index, known in enumerate(model.operatorCodes):
        if known.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 3 if builtin == schema.BuiltinOperator.DEQUANTIZE else 1  # takes int8, int16 and float16
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _repoint(maps: Any, before: int, after: int) -> None:
    for tensor_map in maps:
        if tensor_map.tensorIndex == before:
            tensor_map.tensorIndex = after


_NAMES: dict[int, str] = {
    value: name.lower() for name, value in vars(schema.BuiltinOperator).items() if name[0].isupper()
}


def kind(code: Any) -> str:
    """The name of an operator."""
    return _NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "custom")


_TYPES: dict[int, str] = {
    value: name.lower() for name, value in vars(schema.TensorType).items() if name[0].isupper()
}


def type_name(number: int) -> str:
    """The name of a type of tensors (``schema.TensorType``)."""
    return _TYPES[number]
