"""Edit an ONNX graph: integers as ONNX Runtime's kernels want them, and nothing that no runtime reads."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy
from onnx import TensorProto, helper, numpy_helper


def with_unsigned_activations(model: Any) -> Any:
    """
    *model*, changed in place: int8 activations become uint8; the numbers stay the same.

    A quantised value q with zero point z is stored as q + 128 with zero point z + 128. ONNX Runtime's
    CPU kernels take unsigned activations with signed weights; it converts signed ones itself, but not
    where an activation has two consumers, and then leaves the layers around a residual in float.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    consumers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    results = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in results:
            continue
        zero = constants.get(node.input[2])
        readers = consumers[node.output[0]]
        if (
            zero is not None
            and zero.data_type == TensorProto.INT8
            and all(reader.op_type == "DequantizeLinear" for reader in readers)
        ):
            name = _unsigned(graph, constants, zero)
            for user in (node, *readers):
                user.input[2] = name
    return _without_unused(model)


def _unsigned(graph: Any, constants: dict[str, Any], zero: Any) -> str:
    """The name of the constant *zero* + 128 as uint8."""
    name = f"{zero.name}_u8"
    if name not in constants:
        value = (numpy_helper.to_array(zero).astype(numpy.int16) + 128).astype(numpy.uint8)
        constants[name] = numpy_helper.from_array(value, name)
        graph.initializer.append(constants[name])
    return name


def _without_unused(model: Any) -> Any:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


def bare(model: Any) -> Any:
    """*model*, changed in place, without stack traces, paths, doc strings and inner shapes."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    return model


def for_old_runtimes(model: Any) -> Any:
    """*model*, changed in place, with the lowest file version that its operators need."""
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    return model
