"""ONNX (.onnx) for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors import exporting, quiet, source
from harness.core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compressors.state import State

    Sample = tuple[NDArray[Any], ...]

RUNTIME = "ONNX Runtime"
OPSET = 20


def versions() -> dict[str, str]:
    """What decides the exported file."""
    return source.versions("torch", "onnx", "onnxscript", "onnxruntime")


def export(state: State, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write *state* to *path*."""
    with exporting.explained("The ONNX exporter", "onnxscript"), quiet.exporters():
        import onnx
        import torch

        program = torch.onnx.export(
            state.reference, example_inputs, dynamo=True, opset_version=OPSET, verbose=False
        )
        assert program is not None
        model = _bare(program.model_proto)
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def session(path: Path) -> Any:
    """A session on the CPU with one thread; it sends no telemetry."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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


_DTYPES = {"float": "float32", "double": "float64"}


def _specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    found = []
    for value in values:
        inner = value.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) and size > 0 else 1 for size in value.shape)
        found.append(TensorSpec(name=value.name, dtype=_DTYPES.get(inner, inner), shape=shape))
    return tuple(found)


def _bare(model: Any) -> Any:
    """*model* without what the runtime does not read: stack traces, paths, doc strings, inner shapes."""
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
