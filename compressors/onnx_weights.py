"""Put integer or 16-bit weights into a float ONNX graph: into integer kernels, or dequantised first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressors.kernels.affine import Integers
from harness.core.errors import CellError

#: ONNX Runtime's own operators.
CONTRIB = "com.microsoft"
_BLOCK = 32  # inputs per scale of MatMulNBits where the weights have one scale per output


def pack(model: Any, weights: Mapping[str, Integers], *, dynamic: bool) -> Any:
    """
    *model*, changed in place: each constant that is one of *weights* is stored as integers.

    Linear layers of a *dynamic* graph become MatMulInteger behind DynamicQuantizeLinear, or MatMulNBits for
    4 bits; anything else is dequantised before its float operator. Raises CellError for a weight that is
    not in the graph: it would have stayed float without a word.
    """
    found = _constants(model, weights)
    missing = [name for name in weights if name not in {match[1] for match in found.values()}]
    if missing:
        raise CellError(
            "export_failed", f"The ONNX exporter does not store the weight {missing[0]} as one constant."
        )
    for constant, (_, name, transposed) in found.items():
        integers = weights[name]
        for node in [n for n in model.graph.node if constant in n.input]:
            if not (node.op_type in ("Gemm", "MatMul") and _is_matrix(node, constant)):
                continue
            by_nbits = integers.bits == 4 and not integers.zero.any() and _nbits_block(integers)
            if by_nbits:
                _to_nbits(model, node, constant, integers, level=4 if dynamic else 0)
            elif dynamic and integers.block <= 0:
                _to_dynamic(model, node, constant, integers)
        if any(constant in node.input for node in model.graph.node):
            if integers.block > 0:
                raise CellError(
                    "unsupported_op",
                    f"ONNX Runtime has no kernel for {integers.bits}-bit weights with blocks of"
                    f" {integers.block} ({name}); it has 4 bits with blocks of 16, 32, 64, ...",
                )
            _dequantise(model, constant, integers, transposed)
        _remove(model, constant)
    return model


def _constants(model: Any, weights: Mapping[str, Integers]) -> dict[str, tuple[Any, str, bool]]:
    """Constant name -> (tensor, weight, transposed) of every constant with the values of a weight."""
    wanted: dict[bytes, tuple[str, bool]] = {}
    for name, integers in weights.items():
        value = integers.dequantised().numpy()
        if value.ndim == 2:
            wanted[_key(value.T)] = (name, True)
        wanted[_key(value)] = (name, False)
    found = {}
    for tensor in model.graph.initializer:
        match = wanted.get(_key(numpy_helper.to_array(tensor)))
        if match is not None:
            found[tensor.name] = (tensor, *match)
    return found


def _key(value: NDArray[Any]) -> bytes:
    return str(value.shape).encode() + numpy.ascontiguousarray(value).tobytes()


def _is_matrix(node: Any, constant: str) -> bool:
    return bool(node.input[1] == constant)


def _to_dynamic(model: Any, node: Any, constant: str, integers: Integers) -> None:
    """x W + b as DynamicQuantizeLinear, MatMulInteger and one multiplication with both scales."""
    name = node.output[0]
    codes = integers.codes.numpy().T
    zero = integers.zero.numpy().astype(numpy.int8)
    scale = integers.scale.numpy()
    _add(model, f"{constant}_codes", numpy.ascontiguousarray(codes))
    _add(model, f"{constant}_scale", scale)
    inputs = [f"{name}_q", f"{constant}_codes", f"{name}_z"]
    if zero.any():
        _add(model, f"{constant}_zero", zero if len(zero) > 1 else zero[0])
        inputs.append(f"{constant}_zero")
    made = [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], [f"{name}_q", f"{name}_s", f"{name}_z"]),
        helper.make_node("MatMulInteger", inputs, [f"{name}_i"]),
        helper.make_node("Cast", [f"{name}_i"], [f"{name}_f"], to=1),
        helper.make_node("Mul", [f"{name}_s", f"{constant}_scale"], [f"{name}_ss"]),
    ]
    _finish(model, node, [*made, helper.make_node("Mul", [f"{name}_f", f"{name}_ss"], [name])])


def _nbits_block(integers: Integers) -> int:
    """The block that MatMulNBits can take for *integers*; 0: none."""
    if integers.codes.ndim != 2:
        return 0
    block = integers.block if integers.block > 0 else _BLOCK
    return block if block >= 16 and block & (block - 1) == 0 else 0


def _to_nbits(model: Any, node: Any, constant: str, integers: Integers, *, level: int) -> None:
    """x W + b as MatMulNBits: two codes per byte, offset 8, in blocks of inputs."""
    outputs, inputs = integers.codes.shape
    block = _nbits_block(integers)
    blocks = -(-inputs // block)
    codes = numpy.full((outputs, blocks * block), 8, dtype=numpy.uint8)
    codes[:, :inputs] = integers.codes.numpy().astype(numpy.int16) + 8
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(outputs, blocks, block // 2)
    scale = integers.scale.reshape(-1, 1) if integers.block <= 0 else integers.scale.reshape(outputs, -1)
    _add(model, f"{constant}_codes", packed)
    _add(model, f"{constant}_scale", scale.expand(outputs, blocks).reshape(-1).numpy().copy())
    made = helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{constant}_codes", f"{constant}_scale"],
        [node.output[0]],
        domain=CONTRIB,
        K=inputs,
        N=outputs,
        bits=4,
        block_size=block,
        accuracy_level=level,
    )
    if not any(entry.domain == CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    _finish(model, node, [made])


def _finish(model: Any, node: Any, made: list[Any]) -> None:
    """Put *made* in the place of *node*, with its bias behind if it has one."""
    if len(node.input) > 2:
        result = node.output[0]
        made[-1].output[0] = f"{result}_without_bias"
        made.append(helper.make_node("Add", [f"{result}_without_bias", node.input[2]], [result]))
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    for offset, new in enumerate(made):
        model.graph.node.insert(place + offset, new)


def _dequantise(model: Any, constant: str, integers: Integers, transposed: bool) -> None:
    """Store the constant as integers and restore it with DequantizeLinear before its reader."""
    codes = integers.codes.numpy()
    _add(model, f"{constant}_codes", numpy.ascontiguousarray(codes.T if transposed else codes))
    single = integers.block < 0
    scale, zero = integers.scale.numpy(), integers.zero.numpy().astype(numpy.int8)
    _add(model, f"{constant}_scale", scale[0] if single else scale)
    _add(model, f"{constant}_zero", zero[0] if single else zero)
    inputs = [f"{constant}_{part}" for part in ("codes", "scale", "zero")]
    axis = {} if single else {"axis": int(transposed)}
    value = f"{constant}_value"
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == constant:
                node.input[place] = value
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [value], **axis))


def halve(model: Any, dtype: Any) -> Any:
    """*model*, changed in place: float constants that *dtype* holds exactly are stored in it."""
    import torch
    from onnx import TensorProto

    kind = TensorProto.FLOAT16 if dtype == torch.float16 else TensorProto.BFLOAT16
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        exact = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        narrow = exact.to(dtype)
        if exact.numel() < 8 or not torch.equal(narrow.float(), exact):
            continue
        raw = narrow.contiguous().view(torch.int16).numpy().tobytes()
        name = tensor.name
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(
            helper.make_tensor(f"{name}_16", kind, list(exact.shape), raw, raw=True)
        )
        casts.append(helper.make_node("Cast", [f"{name}_16"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return model


def _add(model: Any, name: str, value: Any) -> None:
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(numpy.asarray(value), name))


def _remove(model: Any, name: str) -> None:
    for tensor in [t for t in model.graph.initializer if t.name == name]:
        model.graph.initializer.remove(tensor)
