"""ExecuTorch program (.pte), delegated to XNNPACK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors import exporting, quiet, source
from harness.core.errors import UsageError
from harness.core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compressors.kernels.affine import Integers
    from compressors.state import State

    Sample = tuple[NDArray[Any], ...]

RUNTIME = "ExecuTorch"
#: Schemes of quantise that XNNPACK computes wrongly or not at all.
_LACKS = {
    "weight_only": "integer weights with float activations (dynamic_int8 has them)",
    "static_int16": "int16 activations (only LiteRT has them)",
}


def versions() -> dict[str, str]:
    """What decides the exported file."""
    return source.versions("torch", "torchao", "executorch")


def export(state: State, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write *state* to *path*."""
    with exporting.explained("The ExecuTorch exporter", "executorch"), quiet.exporters():
        import torch
        from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from compressors import export_source

        export_source.require_kernels(state, RUNTIME, _LACKS)
        export_source.require_symmetric(state, RUNTIME)
        exported = torch.export.export(_graph(state), example_inputs)
        partitioners = [XnnpackPartitioner()]
        if state.quantised is not None and state.quantised.scheme == "dynamic_int8":
            dynamic = ConfigPrecisionType.DYNAMIC_QUANT
            partitioners.insert(0, XnnpackPartitioner(config_precisions=dynamic, per_op_mode=True))
        edge = to_edge_transform_and_lower(exported, partitioner=partitioners)
        finished = edge.to_executorch()
        _require_kernels(finished.executorch_program)
        path.write_bytes(finished.buffer)


def _graph(state: State) -> Any:
    """What is exported: for dynamic int8, layers that XNNPACK has no such kernel for compute in float."""
    if state.quantised is None or state.quantised.scheme != "dynamic_int8":
        return state.reference
    from compressors import integer_graph

    unfolded = state.quantised.unfolded
    integers = integer_graph.integers_in(unfolded)
    lacking = {
        name
        for node in unfolded.graph.nodes
        if (name := integer_graph.layer_weight(node)) in integers
        and name is not None
        and _lacks(node, integers[name])
    }
    return integer_graph.with_float_layers(state.quantised.folded, lacking, unfolded)


def _lacks(node: Any, integers: Integers) -> bool:
    """Whether XNNPACK cannot quantise the input of *node* at run time: depthwise and grouped convolutions."""
    kind, groups = str(node.target), node.args[6] if len(node.args) > 6 else 1
    return "conv1d" in kind or ("conv2d" in kind and (groups > 1 or integers.codes.shape[1] == 1))


def _require_kernels(program: Any) -> None:
    """Refuse a program with an operator that the runtime has no kernel for: it would fail on loading."""
    from executorch.runtime import Runtime

    known = Runtime.get().operator_registry.operator_names
    used = {
        f"{operator.name}.{operator.overload}".removesuffix(".")
        for plan in program.execution_plan
        for operator in plan.operators
    }
    if used - known:
        raise exporting.unsupported(
            "The ExecuTorch runtime", sorted(name.replace("::", ".") for name in used - known)
        )


def require_whole(path: Path) -> None:
    """Nothing beyond what the file's header says, which compressors.sniff has compared."""


def program(path: Path) -> Any:
    """The loaded program; its methods live as long as it does."""
    with quiet.exporters():
        from executorch.runtime import Runtime

        loaded = Runtime.get().load_program(path)
        if "forward" not in loaded.method_names:
            names = ", ".join(map(repr, sorted(loaded.method_names)))
            raise UsageError(f"{path} has no method 'forward'.", hint=f"It has: {names}.")
        loaded.load_method("forward")
    return loaded


def outputs(path: Path, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The outputs of the file for each of *samples*, in ExecuTorch."""
    import torch

    loaded = program(path)
    forward = loaded.load_method("forward")
    for sample in samples:
        results = forward.execute([torch.from_numpy(array) for array in sample])
        yield tuple(result.detach().numpy().copy() for result in results)


def arithmetic(path: Path) -> str:
    """How many of the file's layers XNNPACK computes in integers and in float."""
    from compressors import pte_file

    integer, real = [], []
    for name, types in pte_file.layers(path):
        kinds = [kind.removeprefix("xnn_datatype_") for kind in types]
        if any(kind.startswith("q") for kind in kinds):
            integer.append(f"{name.removeprefix('XNN')} ({' x '.join(kinds)})")
        else:
            real.append(name.removeprefix("XNN"))
    return exporting.counted(integer, real + pte_file.outside(path))


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the file, named by position: the format has no names."""
    loaded = program(path)
    meta = loaded.metadata("forward")
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
