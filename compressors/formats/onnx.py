"""ONNX (.onnx) for ONNX Runtime."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors import exporting, quiet, source
from harness.core.errors import UsageError
from harness.core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compressors.state import State

    Sample = tuple[NDArray[Any], ...]

RUNTIME = "ONNX Runtime"
#: Old enough for the runtimes on devices (ONNX Runtime 1.14 and later), new enough for every layer.
OPSET = 18


def versions() -> dict[str, str]:
    """What decides the exported file."""
    return source.versions("torch", "onnx", "onnxscript", "onnxruntime")


def export(state: State, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write *state* to *path*."""
    with exporting.explained("The ONNX exporter", "onnxscript"), quiet.exporters():
        _switch_telemetry_off()  # exporters may import the runtime
        import onnx
        import torch

        from compressors import export_source, onnx_graph, onnx_weights
        from compressors.task import as_outputs

        export_source.require_kernels(
            state, RUNTIME, {"static_int16": "int16 activations (only LiteRT has them)"}
        )
        source, weights = export_source.source(state, packed=_is_packed(state))
        with torch.no_grad():
            results = as_outputs(state.reference(*example_inputs), "the model")
        program = torch.onnx.export(
            source,
            example_inputs,
            output_names=[f"output_{i}" for i in range(len(results))],
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        model = onnx_graph.with_unsigned_activations(program.model_proto)
        if weights:
            dynamic = state.quantised is not None and state.quantised.scheme == "dynamic_int8"
            model = onnx_weights.pack(model, weights, dynamic=dynamic)
        elif (dtype := export_source.half(state)) is not None:
            model = onnx_weights.halve(model, dtype)
        model = onnx_graph.for_old_runtimes(onnx_graph.bare(model))
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _is_packed(state: State) -> bool:
    """Whether integer weights are put into a float file: for all but graphs that torch's exporter takes."""
    return state.quantised is not None and not state.quantised.scheme.startswith("static")


def require_whole(path: Path) -> None:
    """Refuse a model that keeps its weights in other files: a device is sent one file."""
    try:
        session(path.read_bytes())
    except Exception as error:
        if "external" not in str(error).lower():
            session(path)  # if this fails too, the file itself is at fault
        raise UsageError(
            f"{path} keeps its weights in another file.",
            hint="Store it as one file: onnx.save(onnx.load(path), new_path).",
        ) from error


def _switch_telemetry_off() -> None:
    """To be called before the library starts: no uploader, no device identifier in the home folder."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def session(model: Path | bytes, *, optimised: Path | None = None) -> Any:
    """A session on the CPU with one thread and no telemetry; its own graph is written to *optimised*."""
    _switch_telemetry_off()
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # older wheels know only this one
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def outputs(path: Path, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The outputs of the file for each of *samples*, in ONNX Runtime."""
    opened = session(path)
    names = [value.name for value in opened.get_inputs()]
    for sample in samples:
        yield tuple(opened.run(None, dict(zip(names, sample, strict=True))))


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the file; sizes that it leaves open are 1."""
    opened = session(path)
    return _specs(opened.get_inputs()), _specs(opened.get_outputs())


#: What ONNX Runtime computes layers with: in integers, and in float.
_INTEGER = re.compile(r"QLinear\w+|QGemm|QAttention|\w*Integer\w*|DynamicQuantizeMatMul|MatMulNBits")
_FLOAT = re.compile(r"(Fused)?(Conv|Gemm|MatMul)( \(.*\))?|Attention")


def arithmetic(path: Path) -> str:
    """What ONNX Runtime makes of the file's layers: how many it computes in integers and in float."""
    import tempfile

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "optimised.onnx"
        session(path, optimised=place)
        kinds = [_kind(node) for node in onnx.load(place, load_external_data=False).graph.node]
    integer = [kind for kind in kinds if _INTEGER.fullmatch(kind)]
    return exporting.counted(integer, [kind for kind in kinds if _FLOAT.fullmatch(kind)])


def _kind(node: Any) -> str:
    """The operator's name; one that only stores its weights in few bits says so."""
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits" and settings.get("accuracy_level", 0) < 4:
        return f"MatMul ({settings['bits']}-bit weights)"
    return str(node.op_type)


_DTYPES = {"float": "float32", "double": "float64"}


def _specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    found = []
    for value in values:
        inner = value.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) and size > 0 else 1 for size in value.shape)
        found.append(TensorSpec(name=value.name, dtype=_DTYPES.get(inner, inner), shape=shape))
    return tuple(found)
