"""Make the model files that the tests of agents run: ``python -m tests.agents.models FOLDER``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core import tensors
from harness.core.types import SUFFIXES, FormatName

#: Input sets of each check file.
SETS = 3
OPERATOR = "Frobnicate"


def make(folder: Path) -> None:
    """
    Five models in three formats, each with a check file, and one per format with an unknown operator.

    net: a small convolutional net · wide: one of some milliseconds · mixed: two inputs, three outputs, of
    float32, int32 and bool · chain: its .pte keeps later values where its input was ·
    heavy: 8 MiB of weights and next to no work.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5)).eval()
    wide = nn.Sequential(*(layer for _ in range(4) for layer in (nn.LazyConv2d(48, 3), nn.ReLU()))).eval()
    images = [(torch.randn(1, 1, 10, 10),) for _ in range(SETS)]
    planes = [(torch.randn(1, 3, 48, 48),) for _ in range(SETS)]
    wide(*planes[0])
    heavy = nn.Linear(512, 4096).eval()
    rows = [(torch.randn(1, 512),) for _ in range(SETS)]
    pairs = [(torch.randn(2, 3), torch.randint(-9, 9, (2, 3), dtype=torch.int32)) for _ in range(SETS)]
    cases: dict[str, tuple[Any, Sequence[Sequence[Any]]]] = {
        "net": (net, images),
        "wide": (wide, planes),
        "mixed": (_mixed(), pairs),
        "chain": (_chain(), images),
        "heavy": (heavy, rows),
    }
    for name, (model, inputs) in cases.items():
        export(model, inputs[0], folder / name, delegate=name != "chain")
        dump_check(folder / f"{name}.ebt", model, inputs)
    unknown_onnx(folder / "unknown.onnx")
    unknown_tflite(folder / "net.tflite", folder / "unknown.tflite")
    unknown_executorch(folder / "unknown.pte")


def _mixed() -> Any:
    import torch

    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x + i, i * 2, x > 0

    return Mixed().eval()


def _chain() -> Any:
    import torch

    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = torch.sin(x) * 2 + 1
            return x

    return Chain().eval()


def export(model: Any, inputs: Sequence[Any], stem: Path, *, delegate: bool) -> None:
    import litert_torch
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    given = tuple(inputs)
    torch.onnx.export(model, given, stem.with_suffix(".onnx"), dynamo=True, external_data=False)
    litert_torch.convert(model, given).export(str(stem.with_suffix(".tflite")))
    partitioner = [XnnpackPartitioner()] if delegate else []
    edge = to_edge_transform_and_lower(torch.export.export(model, given), partitioner=partitioner)
    stem.with_suffix(".pte").write_bytes(edge.to_executorch().buffer)


def dump_check(path: Path, model: Any, inputs: Sequence[Sequence[Any]]) -> None:
    import torch

    with torch.no_grad():
        outputs = [model(*given) for given in inputs]
    outputs = [found if isinstance(found, tuple) else (found,) for found in outputs]
    arrays = [tensor.numpy() for group in (*inputs, *outputs) for tensor in group]
    values = [tensors.Tensor(dtype=str(a.dtype), shape=a.shape, data=a.tobytes()) for a in arrays]
    tensors.dump(path, values)


def unknown_onnx(path: Path) -> None:
    """A model with an operator of a domain that no runtime knows."""
    import onnx
    from onnx import TensorProto, helper

    shape = [1, 1, 10, 10]
    node = helper.make_node(OPERATOR, ["x"], ["y"], domain="com.acme")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "g", [given], [found])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def unknown_tflite(source: Path, path: Path) -> None:
    """*source* with its first operator made a custom one."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(source.read_bytes(), 0))
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = OPERATOR
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def unknown_executorch(path: Path) -> None:
    """A program with an operator that only this process knows."""
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge

    library: Any = torch.library.Library("acme", "DEF")  # type: ignore[no-untyped-call]
    library.define(f"{OPERATOR}(Tensor x) -> Tensor")
    library.define(f"{OPERATOR}.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)")
    library.impl(OPERATOR, lambda x: x + 1, "CompositeExplicitAutograd")
    library.impl(f"{OPERATOR}.out", lambda x, *, out: out.copy_(x + 1), "CompositeExplicitAutograd")

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = getattr(torch.ops.acme, OPERATOR)(x)
            return result

    program = torch.export.export(Model(), (torch.randn(1, 1, 10, 10),))
    edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    path.write_bytes(edge.to_executorch().buffer)


def file_of(folder: Path, name: str, format_name: FormatName) -> Path:
    """Where a model lies."""
    return folder / f"{name}{SUFFIXES[format_name]}"


if __name__ == "__main__":
    make(Path(sys.argv[1]))
