"""What each runtime makes of each scheme: the model's outputs, or a typed reason why not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compressors import export_source, integer_graph, parity, score
from compressors.state import State
from harness.core import plugins
from harness.core.errors import CellError
from tests.compressors.models import Trained, run_pass, trained


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


INTEGERS = "in integers: "
DYNAMIC = {"scheme": "dynamic_int8"}
BLOCKS = {**DYNAMIC, "bits": 4, "granularity": "per_block", "block": 32}
BLOCKS["layers"] = [{"match": ["0"], "granularity": "per_channel"}]
FIRST = "in integers: 1 conv_2d ({0}), 2 depthwise_conv_2d ({0}), 2 fully_connected ({0})"
#: Model, options, format -> what the runtime computes, or the reason after the status.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "residual",
        {**DYNAMIC},
        "executorch",
        "1 Conv2d (qdint8 x qcint8), 2 FullyConnected (qdint8 x qcint8);",
    ),
    ("residual", {**DYNAMIC}, "onnx", "in integers: 2 DynamicQuantizeMatMul; in float: 3 FusedConv"),
    ("residual", {**DYNAMIC}, "tflite", FIRST.format("int8, input quantised at run time")),
    (
        "residual",
        {"scheme": "weight_only"},
        "executorch",
        "unsupported_op: ExecuTorch has no kernels for integer",
    ),
    ("residual", {"scheme": "weight_only", "bits": 4}, "onnx", "in float: .*2 MatMul (4-bit weights)"),
    (
        "residual",
        {"scheme": "weight_only"},
        "tflite",
        "in float: 1 conv_2d, 2 depthwise_conv_2d, 2 fully_connected",
    ),
    (
        "residual",
        {"scheme": "static_int16"},
        "executorch",
        "unsupported_op: ExecuTorch has no kernels for int16",
    ),
    ("residual", {"scheme": "static_int16"}, "onnx", "unsupported_op: ONNX Runtime has no kernels for int16"),
    ("residual", {"scheme": "static_int16"}, "tflite", FIRST.format("int16 x int8")),
    (
        "residual",
        {"symmetric": False},
        "executorch",
        "unsupported_op: ExecuTorch has no kernels for weights with a zero",
    ),
    ("residual", {"symmetric": False}, "onnx", "in integers: 2 QGemm, 1 QLinearAdd, 3 QLinearConv"),
    (
        "residual",
        {"symmetric": False},
        "tflite",
        "unsupported_op: LiteRT has no kernels for weights with a zero",
    ),
    ("residual", {"scheme": "fp16"}, "onnx", "in float: "),
    ("residual", {"scheme": "fp16"}, "tflite", "in float: "),
    ("tabular", BLOCKS, "executorch", "FullyConnected (qdint8 x qbint4)"),
    ("tabular", BLOCKS, "onnx", "in integers: 3 MatMulNBits"),
    ("tabular", BLOCKS, "tflite", "in integers: 3 fully_connected (int4, input quantised at run time)"),
    ("tabular", {"scheme": "bf16"}, "onnx", "in float: "),
    ("tabular", {**BLOCKS, "block": 16}, "tflite", "unsupported_op: LiteRT has blocks of 4 bits and 32, 64"),
    (
        "tabular",
        {**BLOCKS, "bits": 8},
        "onnx",
        "unsupported_op: ONNX Runtime has no kernel for 8-bit weights with",
    ),
]


@functools.cache
def state_of(name: str, options: str) -> State:
    chosen: dict[str, Any] = eval(options)
    calibration = {"calibration": 32} if chosen.get("scheme", "static").startswith("static") else {}
    return run_pass("quantise", {**calibration, **chosen}, trained(name))[0]


def bound_of(state: State, model: Trained, samples: Any, wanted: Any) -> parity.Bound:
    if state.quantised is None:
        return parity.bound(None)
    exact = [tuple(t.numpy() for t in score.forward(state.module, s, model.task)) for s in samples]
    return parity.bound(parity.compare(exact, wanted, classifier=True))


@pytest.mark.parametrize(("name", "options", "format", "wanted"), CASES, ids=lambda v: str(v)[:60])
def test_file_gives_the_models_outputs_or_a_reason(
    name: str, options: dict[str, Any], format: str, wanted: str, tmp_path: Path
) -> None:
    model, path = trained(name), tmp_path / "file"
    state = state_of(name, str(options))
    module = plugins.load("compressors.formats", format)
    if not wanted.startswith(("in ", "1 ", "Fully")):
        with pytest.raises(CellError) as caught:
            module.export(state, model.task.example_inputs(), path)
        assert f"{caught.value.status}: {caught.value.message}".startswith(wanted)
        return
    module.export(state, model.task.example_inputs(), path)
    samples = score.samples(model.task, 64)
    reference = [tuple(t.numpy() for t in score.forward(state.reference, s, model.task)) for s in samples]
    found = list(module.outputs(path, [tuple(t.numpy() for t in s) for s in samples]))
    measured = parity.compare(reference, found, classifier=True)
    parity.require(measured, bound_of(state, model, samples, reference), runtime=module.RUNTIME)
    told = module.arithmetic(path)
    assert all(part in told for part in wanted.split(".*")), told


def test_files_of_16_bit_floats_are_half_as_large(tmp_path: Path) -> None:
    model = trained("tabular")
    sizes = {}
    for format in ("onnx", "tflite"):
        module = plugins.load("compressors.formats", format)
        for scheme, state in (("fp32", model.state), ("fp16", state_of("tabular", "{'scheme': 'fp16'}"))):
            path = tmp_path / f"{format}_{scheme}"
            module.export(state, model.task.example_inputs(), path)
            sizes[format, scheme] = path.stat().st_size
        saved = sizes[format, "fp32"] - sizes[format, "fp16"]
        assert saved > 0.4 * 4 * sum(p.numel() for p in model.state.module.parameters())
    assert export_source.half(state_of("tabular", "{'scheme': 'fp16'}")) == torch.float16


def test_scales_of_all_files_are_the_graphs(tmp_path: Path) -> None:
    """Every scale of a dynamic int8 graph stands in the .onnx and the .tflite as it is."""
    import onnx
    from onnx import numpy_helper

    from compressors import tflite_file

    model = trained("tabular")
    state = state_of("tabular", str(DYNAMIC))
    assert state.quantised is not None
    wanted = {tuple(i.scale.tolist()) for i in integer_graph.integers_in(state.quantised.unfolded).values()}
    found: dict[str, set[Any]] = {}
    for format in ("onnx", "tflite"):
        plugins.load("compressors.formats", format).export(
            state, model.task.example_inputs(), tmp_path / format
        )
    stored = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "onnx").graph.initializer]
    found["onnx"] = {tuple(array.tolist()) for array in stored if array.ndim == 1}
    (graph,) = tflite_file.read(tmp_path / "tflite").subgraphs
    parameters = [t.quantization for t in graph.tensors if t.quantization is not None]
    found["tflite"] = {tuple(map(float, q.scale)) for q in parameters if q.scale is not None}
    assert wanted <= found["onnx"]
    assert wanted <= found["tflite"]
