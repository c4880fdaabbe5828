"""Read what an ExecuTorch program hands to XNNPACK."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def layers(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Every layer in XNNPACK's graphs with the data types of its input and its weight."""
    found = []
    for graph in _graphs(path):
        types = _types(graph)
        for node in graph["xnodes"]:
            union = node["xnode_union"]
            if "filter_id" in union or node["xnode_union_type"] == "XNNBatchMatrixMultiply":
                inputs = [union["input1_id"], union.get("filter_id", union.get("input2_id"))]
                found.append((node["xnode_union_type"], tuple(types[i] for i in inputs)))
    return found


def outside(path: Path) -> list[str]:
    """Layers that run outside XNNPACK, in ExecuTorch's portable kernels."""
    kernels = ("aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "aten::linear")
    return [
        f"{operator.name} (portable)"
        for plan in _program(path).execution_plan
        for operator in plan.operators
        if operator.name in kernels
    ]


def _program(path: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(path.read_bytes()).program


def _graphs(path: Path) -> Iterator[dict[str, Any]]:
    """XNNPACK's graphs, read with the schema and the flatc that ExecuTorch ships."""
    import executorch
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    schema = Path(next(iter(executorch.__path__))) / "backends" / "xnnpack" / "serialization" / "schema.fbs"
    for blob in _program(path).backend_delegate_data:
        data = blob.data
        header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "graph.bin"
            binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
            _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
            text = (Path(folder) / "graph.json").read_text()
        yield json.loads(re.sub(r": (-?)(inf|nan)\b", r": \1Infinity", text))


def _types(graph: dict[str, Any]) -> dict[int, str]:
    found = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        found[tensor["id_out"]] = tensor["datatype"]
    return found
