"""ExecuTorch program (.pte), delegated to XNNPACK."""

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

RUNTIME = "ExecuTorch"


def versions() -> dict[str, str]:
    """What decides the exported file."""
    return source.versions("torch", "torchao", "executorch")


def export(state: State, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write *state* to *path*."""
    with exporting.explained("The ExecuTorch exporter", "executorch"), quiet.exporters():
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        exported = torch.export.export(state.reference, example_inputs)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


def method(path: Path) -> Any:
    """The loaded ``forward`` of the file."""
    with quiet.exporters():
        from executorch.runtime import Runtime

        loaded = Runtime.get().load_program(path).load_method("forward")
    assert loaded is not None
    return loaded


def outputs(path: Path, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The outputs of the file for each of *samples*, in ExecuTorch."""
    import torch

    loaded = method(path)
    for sample in samples:
        results = loaded.execute([torch.from_numpy(array) for array in sample])
        yield tuple(result.detach().numpy().copy() for result in results)


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the file, named by position: the format has no names."""
    meta = method(path).metadata
    inputs = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
    results = [meta.output_tensor_meta(i) for i in range(meta.num_outputs())]
    return _specs("input", inputs), _specs("output", results)


#: ExecuTorch's ScalarType numbers.
_DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}


def _specs(prefix: str, metas: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=f"{prefix}_{i}",
            dtype=_DTYPES.get(meta.dtype(), str(meta.dtype())),
            shape=tuple(meta.sizes()),
        )
        for i, meta in enumerate(metas)
    )
