"""Int8 files compute in integers in each runtime, and files hold nothing but the model."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from compressors import parity, tflite_file
from compressors.formats import executorch as executorch_format
from compressors.formats import onnx as onnx_format
from compressors.formats import tflite as tflite_format
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError
from harness.core.types import FormatName, Parity
from tests.compressors.conftest import FORMATS, Built

MODULES: dict[FormatName, Any] = {
    "executorch": executorch_format,
    "onnx": onnx_format,
    "tflite": tflite_format,
}


def ort_operators(path: str, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime makes of the file."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)


def test_onnx_runtime_fuses_every_layer_to_integers(built: Built, tmp_path: Path) -> None:
    """3 convolutions, a residual sum, 2 dense layers; no clip, convolution or sum is left in float."""
    operators = ort_operators(built["int8"]["onnx"].path, tmp_path)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QGemm"] == 2
    assert not {"Conv", "FusedConv", "Add", "Gemm", "FusedGemm", "MatMul", "Clip", "Relu"} & set(operators)


def test_float_onnx_has_no_integer_operator(built: Built, tmp_path: Path) -> None:
    operators = ort_operators(built["fp32"]["onnx"].path, tmp_path)
    assert not any(name.startswith("QLinear") or name == "QGemm" for name in operators)


def test_litert_layers_take_int8(built: Built) -> None:
    model = tflite_file.read(Path(built["int8"]["tflite"].path))
    layers = [
        (name, types)
        for name, types in tflite_file.operators(model)
        if name in {"conv_2d", "depthwise_conv_2d", "fully_connected", "add"}
    ]
    # The first convolution has one input channel: a depthwise one to LiteRT.
    assert Counter(name for name, _ in layers) == {
        "conv_2d": 1,
        "depthwise_conv_2d": 2,
        "fully_connected": 2,
        "add": 1,
    }
    int8 = schema.TensorType.INT8
    assert all(types[:2] == (int8, int8) for _, types in layers)


def test_tflite_converts_float_to_int8_once_at_each_end(built: Built) -> None:
    model = tflite_file.read(Path(built["int8"]["tflite"].path))
    names = [name for name, _ in tflite_file.operators(model)]
    assert names[0] == "quantize"
    assert names[-1] == "dequantize"
    assert {"quantize", "dequantize"}.isdisjoint(names[1:-1])


def test_tflite_buffers_are_aligned_as_the_schema_asks(built: Built) -> None:
    raw = Path(built["int8"]["tflite"].path).read_bytes()
    model = schema.Model.GetRootAs(raw, 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert starts
    assert all(start % 16 == 0 for start in starts)


def xnnpack_graph(path: str, tmp_path: Path) -> dict[str, Any]:
    """The graph that a .pte hands to XNNPACK, read with the schema and flatc that ExecuTorch ships."""
    import executorch
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(Path(path).read_bytes()).program
    (plan,) = program.execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]
    assert plan.operators == []  # nothing runs outside the delegate
    data = program.backend_delegate_data[0].data
    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    binary = tmp_path / "graph.bin"
    binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
    (folder,) = executorch.__path__
    definition = Path(folder) / "backends" / "xnnpack" / "serialization" / "schema.fbs"
    _flatc_decompile(str(tmp_path), str(definition), str(binary), ["--raw-binary"])
    text = re.sub(r": (-?)inf\b", r": \1Infinity", (tmp_path / "graph.json").read_text())
    graph: dict[str, Any] = json.loads(text)
    return graph


def values_of(graph: dict[str, Any]) -> dict[int, str]:
    """The data type of each value of an XNNPACK graph."""
    found = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        found[tensor["id_out"]] = tensor["datatype"]
    return found


def test_executorch_layers_take_int8_in_xnnpack(built: Built, tmp_path: Path) -> None:
    graph = xnnpack_graph(built["int8"]["executorch"].path, tmp_path)
    types = values_of(graph)
    layers = [node for node in graph["xnodes"] if "filter_id" in node["xnode_union"]]
    assert Counter(node["xnode_union_type"] for node in layers) == {
        "XNNConv2d": 1,
        "XNNDepthwiseConv2d": 2,
        "XNNFullyConnected": 2,
    }
    for node in layers:
        union = node["xnode_union"]
        assert types[union["input1_id"]] == types[union["output_id"]] == "xnn_datatype_qint8"
        assert types[union["filter_id"]] == "xnn_datatype_qcint8"


def test_float_executorch_has_no_integer_value(built: Built, tmp_path: Path) -> None:
    graph = xnnpack_graph(built["fp32"]["executorch"].path, tmp_path)
    assert set(values_of(graph).values()) == {"xnn_datatype_fp32"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_file_names_no_path_of_the_machine_that_made_it(
    built: Built, recipe: str, format: FormatName
) -> None:
    raw = Path(built[recipe][format].path).read_bytes()
    texts = [text.decode() for text in re.findall(rb"[\x20-\x7e]{6,}", raw)]
    leaks = [
        t for t in texts if re.search(r"\.py\b|/(home|root|tmp|usr|work)/|site-packages|<locals>|stack", t)
    ]
    assert leaks == []


def test_onnx_file_is_one_file_without_metadata(built: Built) -> None:
    model = onnx.load(built["int8"]["onnx"].path, load_external_data=False)
    assert model.ir_version <= 8  # so that ONNX Runtime 1.14 and later open it
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("format", FORMATS)
def test_versions_are_told_without_importing_the_exporter(format: FormatName) -> None:
    versions = MODULES[format].versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__


# What the gate is for: files that load, run and are wrong.


def gate(format: FormatName, path: Path, module: nn.Module, samples: list[torch.Tensor]) -> Parity:
    found = list(MODULES[format].outputs(path, [(sample.numpy(),) for sample in samples]))
    with torch.no_grad():
        wanted = [(module(sample).numpy(),) for sample in samples]
    measured = parity.compare(wanted, found, classifier=True)
    parity.require(measured, parity.bound(None), runtime=MODULES[format].RUNTIME)
    return measured


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return tidy(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)))


@pytest.fixture(scope="module")
def dense_samples() -> list[torch.Tensor]:
    return list(torch.randn(64, 1, 16, generator=torch.Generator().manual_seed(0)))


def test_gate_refuses_an_onnx_file_with_one_wrong_weight(
    dense: nn.Module, dense_samples: list[torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "dense.onnx"
    onnx_format.export(State(module=dense), (dense_samples[0],), path)
    assert gate("onnx", path, dense, dense_samples).sqnr_db > 100
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    with pytest.raises(
        CellError, match=r"In ONNX Runtime .*SQNR \d+\.\d dB.*must reach SQNR 60 dB"
    ) as caught:
        gate("onnx", path, dense, dense_samples)
    assert caught.value.status == "wrong_output"


def test_gate_refuses_a_tflite_file_with_one_wrong_weight(
    dense: nn.Module, dense_samples: list[torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "dense.tflite"
    tflite_format.export(State(module=dense), (dense_samples[0],), path)
    assert gate("tflite", path, dense, dense_samples).sqnr_db > 100
    model = tflite_file.read(path)
    buffer = max(model.buffers, key=lambda b: 0 if b.data is None else len(b.data))
    values = numpy.frombuffer(bytes(buffer.data), dtype=numpy.float32).copy()
    values[0] += 0.1
    buffer.data = numpy.frombuffer(values.tobytes(), dtype=numpy.uint8)
    tflite_file.write(model, path)
    with pytest.raises(CellError, match="In LiteRT"):
        gate("tflite", path, dense, dense_samples)


class Transposed(nn.Module):
    """Four weights of equal shape that are views, as the factors of an SVD are: not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0)) / 8
        self.weights = nn.ParameterList(nn.Parameter(w.T, requires_grad=False) for w in weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


@pytest.fixture(scope="module")
def wide_samples() -> list[torch.Tensor]:
    return list(torch.randn(64, 1, 64, generator=torch.Generator().manual_seed(0)))


def test_gate_refuses_what_the_tflite_exporter_makes_of_strided_weights(
    wide_samples: list[torch.Tensor], tmp_path: Path
) -> None:
    """
    litert-torch takes weights that are not contiguous for one another and says nothing.

    It does so where a copy of one lies where another's lay, which the allocator decides: mostly, not
    always. So whether the file is right is found out here, with no part of the gate.
    """
    module, path = Transposed().eval(), tmp_path / "weights.tflite"
    tflite_format.export(State(module=module), (wide_samples[0],), path)
    (found,) = next(tflite_format.outputs(path, [(wide_samples[0].numpy(),)]))
    if numpy.allclose(found, module(wide_samples[0]).numpy(), atol=1e-3):
        assert gate("tflite", path, module, wide_samples).sqnr_db > 100
    else:
        with pytest.raises(CellError, match="In LiteRT"):
            gate("tflite", path, module, wide_samples)


def test_tidy_models_are_exported_right(wide_samples: list[torch.Tensor], tmp_path: Path) -> None:
    """The same weights, through the function that every model of a build goes through."""
    module, path = tidy(Transposed()), tmp_path / "weights.tflite"
    tflite_format.export(State(module=module), (wide_samples[0],), path)
    assert gate("tflite", path, module, wide_samples).sqnr_db > 100


def test_integer_bound_follows_the_noise_of_quantising() -> None:
    def noise(sqnr_db: float, agreement: float) -> Parity:
        return Parity(max_abs=1.0, cosine=1.0, sqnr_db=sqnr_db, top1_agreement=agreement, samples=64)

    assert parity.bound(noise(40, 1.0)) == parity.Bound(sqnr_db=30, agreement=0.95)
    assert parity.bound(noise(20, 0.9)) == parity.Bound(sqnr_db=17, agreement=0.9 - 0.05)
    assert parity.bound(noise(5, 0.9)).sqnr_db == 8


def test_sqnr_is_ten_log_of_power_over_noise() -> None:
    """Signal 3, 4 has power 25; an error of 0.5 has 0.25: 10 log10(100) = 20 dB."""
    wanted, found = [(numpy.array([3.0, 4.0]),)], [(numpy.array([3.5, 4.0]),)]
    measured = parity.compare(wanted, found, classifier=False)
    assert measured.sqnr_db == pytest.approx(20.0)
    assert measured.max_abs == pytest.approx(0.5)
    assert measured.cosine == pytest.approx((3 * 3.5 + 16) / (5 * (3.5**2 + 16) ** 0.5))


def test_not_a_number_never_passes_the_gate() -> None:
    wanted, found = [(numpy.array([1.0, 2.0]),)], [(numpy.array([1.0, numpy.nan]),)]
    with pytest.raises(CellError, match="must reach"):
        parity.require(
            parity.compare(wanted, found, classifier=False), parity.bound(None), runtime="a runtime"
        )


def test_worst_output_decides_however_small_it_is() -> None:
    """1000 times larger and right, the first output would leave 60 dB and more over both together."""
    large = numpy.array([[1e4, -1e4]], numpy.float32)
    wanted = [(large, numpy.array([[1.0, 2.0]], numpy.float32))] * 4
    wrong = [(large, numpy.array([[2.0, -1.0]], numpy.float32))] * 4
    measured = parity.compare(wanted, wrong, classifier=False)
    assert measured.sqnr_db == pytest.approx(10 * numpy.log10(5 / 10))
    assert measured.cosine == pytest.approx(0.0)
    assert measured.max_abs == 3.0
    assert parity.compare(wanted, wanted, classifier=False).sqnr_db == parity.CAP_DB


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ((numpy.ones((2, 3), numpy.float32), numpy.ones(1, numpy.float32)), "float32[2, 3], float32[1]"),
        ((numpy.ones((3, 2), numpy.float64), numpy.ones(1, numpy.float32)), "float64[3, 2], float32[1]"),
        ((numpy.ones(1, numpy.float32), numpy.ones((3, 2), numpy.float32)), "float32[1], float32[3, 2]"),
        ((numpy.ones(7, numpy.float32),), "float32[7]"),
        ((), "no output"),
    ],
    ids=["shape", "dtype", "order", "number", "none"],
)
def test_outputs_of_another_signature_never_pass_the_gate(
    found: tuple[numpy.typing.NDArray[Any], ...], told: str
) -> None:
    """Even where every value agrees; the sentence says what differs."""
    wanted = [(numpy.ones((3, 2), numpy.float32), numpy.ones(1, numpy.float32))]
    parity.require_signature(wanted, wanted, runtime="a runtime")
    with pytest.raises(CellError) as caught:
        parity.require_signature([*wanted, *wanted], [*wanted, found], runtime="a runtime")
    assert caught.value.status == "wrong_output"
    assert caught.value.message == (
        f"In a runtime the file gives {told}, where the model gives float32[3, 2], float32[1]."
    )
    with pytest.raises(CellError, match="must reach"):
        parity.require(
            parity.compare(wanted, [found], classifier=False), parity.bound(None), runtime="a runtime"
        )
