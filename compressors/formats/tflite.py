"""TensorFlow Lite (.tflite) for LiteRT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors import exporting, quiet, source
from harness.core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from compressors.state import State

    Sample = tuple[NDArray[Any], ...]

RUNTIME = "LiteRT"


def versions() -> dict[str, str]:
    """What decides the exported file."""
    return source.versions("torch", "torchao", "litert-torch", "litert-converter", "ai-edge-litert")


def export(state: State, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write *state* to *path*."""
    with exporting.explained("The TFLite exporter", "litert_torch"), quiet.exporters():
        import litert_torch

        from compressors import export_source, tflite_file, tflite_weights

        scheme = state.quantised.scheme if state.quantised is not None else ""
        export_source.require_symmetric(state, RUNTIME)
        model, weights = export_source.source(state, packed=not scheme.startswith("static"))
        if weights or state.quantised is None:
            litert_torch.convert(model, example_inputs, enable_x64=_wide(example_inputs)).export(str(path))
        else:
            assert state.quantised is not None
            _convert_quantised(state.quantised.unfolded, example_inputs, path)
        file = tflite_file.read(path)
        if scheme == "static_int16":
            file = tflite_file.with_wide_biases(file)
        if weights:
            file = tflite_weights.pack(file, weights, dynamic=scheme == "dynamic_int8")
        elif (dtype := export_source.half(state)) is not None:
            file = tflite_weights.halve(file, dtype)
        tflite_file.write(tflite_file.bare(tflite_file.with_float_interface(file)), path)


def _convert_quantised(graph: nn.Module, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config

    # The graph carries its own scales; this only tells the converter to make integer kernels of it.
    mode = pt2e_quantizer.PT2EQuantizer().set_global(pt2e_quantizer.get_symmetric_quantization_config())
    config = quant_config.QuantConfig(pt2e_quantizer=mode)
    wide = _wide(example_inputs)
    litert_torch.convert(graph, example_inputs, quant_config=config, enable_x64=wide).export(str(path))


def _wide(example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether 64-bit types must be kept: by default the converter changes such inputs to 32 bits."""
    return any(tensor.element_size() == 8 for tensor in example_inputs)


def require_whole(path: Path) -> None:
    """Raise ValueError if the file ends before its tables say: the runtime would read zeros or crash."""
    import struct

    from compressors import tflite_file

    try:
        tflite_file.read(path)
    except (struct.error, IndexError, TypeError) as error:
        raise ValueError("its tables point outside the file") from error


def interpreter(path: Path) -> Any:
    """An allocated interpreter with one thread and the XNNPACK delegate, LiteRT's default on a CPU."""
    with quiet.exporters():
        from ai_edge_litert.interpreter import Interpreter

        opened = Interpreter(model_path=str(path), num_threads=1)
        opened.allocate_tensors()
    return opened


def outputs(path: Path, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The outputs of the file for each of *samples*, in LiteRT."""
    opened = interpreter(path)
    inputs = [detail["index"] for detail in opened.get_input_details()]
    results = [detail["index"] for detail in opened.get_output_details()]
    for sample in samples:
        for index, array in zip(inputs, sample, strict=True):
            opened.set_tensor(index, array)
        opened.invoke()
        yield tuple(opened.get_tensor(index) for index in results)


#: Operators with weights.
_LAYERS = ("conv_2d", "depthwise_conv_2d", "fully_connected", "batch_matmul", "transpose_conv")


def arithmetic(path: Path) -> str:
    """How many layers LiteRT computes in integers and in float, by the types of their inputs."""
    from compressors import tflite_file

    integer, real = [], []
    for name, types in tflite_file.operators(tflite_file.read(path)):
        if name not in _LAYERS:
            continue
        kinds = [tflite_file.type_name(kind) for kind in types[:2]]
        if kinds[1].startswith("float"):
            real.append(name)
        elif kinds[0].startswith("float"):
            integer.append(f"{name} ({kinds[1]}, input quantised at run time)")
        else:
            integer.append(f"{name} ({' x '.join(kinds)})")
    return exporting.counted(integer, real)


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the file; sizes that it leaves open are 1."""
    opened = interpreter(path)
    return _specs(opened.get_input_details()), _specs(opened.get_output_details())


def _specs(details: Iterable[Any]) -> tuple[TensorSpec, ...]:
    import numpy

    return tuple(
        TensorSpec(
            name=detail["name"],
            dtype=numpy.dtype(detail["dtype"]).name,
            shape=tuple(max(int(size), 1) for size in detail["shape"]),
        )
        for detail in details
    )
